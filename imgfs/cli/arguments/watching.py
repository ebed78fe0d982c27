"""status: what it may be told, and what its help teaches."""

from __future__ import annotations

import argparse
import contextlib

from imgfs.cli.arguments.options import RAW, Commands, lazily

_EVERY = 2.0  # seconds
_OFTENEST, _SELDOMEST = 0.1, 86_400.0


def add_status(commands: Commands) -> None:
    """`imgfs status`."""
    command = commands.add_parser(
        "status",
        help="show what a mount has fetched and served",
        usage="imgfs status [-h] [--json | --metrics] [--watch [SECONDS]] MOUNTPOINT",
        description="""\
Shows what is mounted at MOUNTPOINT; for each layer, by what index it is read and who vouches for that, what
readers have needed, what was fetched for it and why, and what of that was of use; and what goes wrong.

Examples:
  imgfs status /mnt
  imgfs status --watch /mnt            look again every two seconds, until it is interrupted
  imgfs status --json /mnt | jq .bytes_fetched
  imgfs status --json --watch 10 /mnt  a line of JSON every ten seconds
  imgfs status --metrics /mnt          as Prometheus reads it (see: imgfs mount --metrics)
""",
        formatter_class=RAW,
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--metrics", action="store_true", help="write text for Prometheus")
    command.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=str(_EVERY),
        help=f"show it again and again, and how fast things change (default: every {_EVERY:.0f} seconds)",
    )
    show = lazily("status", "status")

    def run(options: argparse.Namespace) -> int:
        _tell_apart(options, command)
        return show(options)

    command.set_defaults(run=run)


def _tell_apart(options: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """What follows --watch may be its number, or, as the number may be left out, the mount point already."""
    if options.watch is not None and options.mountpoint is None and _seconds(options.watch) is None:
        options.watch, options.mountpoint = str(_EVERY), options.watch
    if options.mountpoint is None:
        command.error("the following arguments are required: MOUNTPOINT")
    if options.watch is not None:
        seconds = _seconds(options.watch)
        if seconds is None:
            command.error(
                f"argument --watch: {options.watch!r} is no number of seconds from {_OFTENEST} to "
                f"{_SELDOMEST:.0f}"
            )
        options.watch = seconds


def _seconds(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        if _OFTENEST <= float(text) <= _SELDOMEST:
            return float(text)
    return None

"""imgfs status: once, or again and again; as text, JSON, or as Prometheus reads it."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgfs.cli.options import Commands
from imgfs.cli.output import say

_EVERY = 2.0  # seconds
_OFTENEST, _SELDOMEST = 0.1, 86_400.0
Status = dict[str, Any]  # as the daemon says it: --json shows all of it, whatever its version
Text = Callable[[Status, Status | None], str]  # of a status, and of the one before it
# Home and erase; erase to the end of a line, of the screen; lines are cut off, not broken (xterm's ctlseqs).
_CLEAR, _HOME, _REST_OF_LINE, _REST = "\x1b[H\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


def add_status(commands: Commands) -> None:
    """`imgfs status`."""
    command = commands.add_parser(
        "status",
        help="show what a mount has fetched and served",
        usage="imgfs status [-h] [--json | --metrics] [--watch [SECONDS]] MOUNTPOINT",
        description="""\
Shows what is mounted at MOUNTPOINT; for each layer, its index and who vouches for that, what readers have
needed, what was fetched, why, and how much of that was used; and errors.

Examples:
  imgfs status /mnt
  imgfs status --watch /mnt            look again every two seconds, until it is interrupted
  imgfs status --json /mnt | jq .bytes_fetched
  imgfs status --json --watch 10 /mnt  a line of JSON every ten seconds
  imgfs status --metrics /mnt          as Prometheus reads it (see: imgfs mount --metrics)
""",
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--metrics", action="store_true", help="print Prometheus's text format")
    command.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=str(_EVERY),
        help=f"print it again and again, with the rates of change (default: every {_EVERY:.0f} seconds)",
    )

    def run(options: argparse.Namespace) -> int:
        _tell_apart(options, command)
        return status(options)

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


def status(options: argparse.Namespace) -> int:
    """Show what a mount has fetched and served."""
    path = Path(options.mountpoint).absolute()
    text = _text(options)
    found = _look(path)
    if options.watch is None:
        say(text(found, None))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # SIGINT ends it
        _watch(path, options.watch, found, text)
    return 0


def _watch(path: Path, every: float, found: Status, text: Text) -> None:
    """Show the status until SIGINT, or until the mount is gone."""
    before: Status | None = None
    draw = _redraw if sys.stdout.isatty() else _append
    while True:
        draw(text(found, before), before is None)
        time.sleep(every)
        before, found = found, _look(path)


def _look(path: Path) -> Status:
    from imgfs.mounts.status_client import read_status
    from imgfs.mounts.table import imgfs_mount_at

    return read_status(imgfs_mount_at(path))


def _text(options: argparse.Namespace) -> Text:
    if options.metrics:
        from imgfs.metrics.exposition import exposition
        from imgfs.status import MountStatus

        return lambda found, _: exposition(MountStatus.from_json(found)).rstrip("\n")
    if options.json:
        import json

        indent = 2 if options.watch is None else None
        return lambda found, _: json.dumps(found, indent=indent)
    return _report


def _report(found: Status, before: Status | None) -> str:
    from imgfs.cli.report import report
    from imgfs.status import MountStatus

    return report(MountStatus.from_json(found), MountStatus.from_json(before) if before else None)


def _append(text: str, is_first: bool) -> None:
    """Write a block; an empty line parts it from the one before, if it has several."""
    say(f"\n{text}" if "\n" in text and not is_first else text, flush=True)


def _redraw(text: str, is_first: bool) -> None:
    """Write over what was there, as much as the screen holds."""
    height = shutil.get_terminal_size().lines
    lines = text.splitlines()
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    drawn = "".join(f"{line}{_REST_OF_LINE}{os.linesep}" for line in lines)
    sys.stdout.write(f"{_CLEAR if is_first else _HOME}{_NO_WRAP}{drawn}{_REST}{_WRAP}")
    sys.stdout.flush()

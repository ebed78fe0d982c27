"""The options that several commands have, and how a command is added."""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from imgfs.cli.arguments.values import scaled
from imgfs.oci.policy import Policy

RAW = argparse.RawDescriptionHelpFormatter
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_LONGEST_WAIT = 60  # seconds


def add_command(
    commands: Commands, name: str, module: str, summary: str, description: str
) -> argparse.ArgumentParser:
    """Add a command, which the function of its name in `imgfs.cli.MODULE` carries out."""
    command = commands.add_parser(name, help=summary, description=description, formatter_class=RAW)
    command.set_defaults(run=lazily(module, name))
    return command


def lazily(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """The function `name` of `imgfs.cli.MODULE`, imported when it is called: start-up time is felt."""
    return partial(_carry_out, module, name)


def _carry_out(module: str, name: str, options: argparse.Namespace) -> int:
    code: int = getattr(importlib.import_module(f"imgfs.cli.{module}"), name)(options)
    return code


def image_options(command: argparse.ArgumentParser, *, offline: bool = True) -> None:
    """Add the image, and where it comes from and goes to; whether it may do without its registry."""
    command.add_argument("image", metavar="IMAGE", help="an image's name, or oci:DIR[:TAG]")
    registry_options(command, platform="instead of this machine's")
    command.add_argument(
        "--index",
        choices=[policy.value for policy in Policy],
        default=Policy.AUTO,
        help="which indexes of others to use: those that the registry vouches for, unless IMAGE has a digest "
        "(auto); those always (any); those alone that the image's digest covers (verified); none",
    )
    if offline:
        command.add_argument(
            "--offline",
            action="store_true",
            help="ask no registry, use what the store has (a registry that is away: by itself)",
        )
    else:
        command.set_defaults(offline=None)
    store_option(command)


def registry_options(command: argparse.ArgumentParser, *, platform: str) -> None:
    """Add what says which image of a registry, and how to talk to that."""
    command.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help=platform)
    connection_options(command)


def connection_options(command: argparse.ArgumentParser) -> None:
    """Add how to talk to a registry."""
    command.add_argument(
        "--plain-http", action="store_true", help="talk to the registry without TLS (loopback: by itself)"
    )
    command.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="believe the authorities in this PEM file, too, not only the usual ones",
    )
    command.add_argument(
        "--insecure",
        action="store_true",
        help="believe whoever answers in the registry's place: do not check its certificate",
    )
    command.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=_seconds,
        help="fail a read for which the registry sends nothing for so long (default: 30)",
    )


def _seconds(text: str) -> float:
    """A time to wait; `content.PATIENCE` is never exceeded."""
    with contextlib.suppress(ValueError):
        if 0 < float(text) <= _LONGEST_WAIT:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds up to {_LONGEST_WAIT}")


def rate(text: str) -> int:
    """Bytes per second: a number, with k, M or G for powers of 1000."""
    with contextlib.suppress(ValueError, OverflowError):
        if (count := int(scaled(text, "kmg"))) > 0:
            return count
    raise argparse.ArgumentTypeError(f"{text!r} is no rate, like 500k or 2M")


def driver_option(command: argparse.ArgumentParser) -> None:
    """Add --driver."""
    command.add_argument(
        "--driver",
        choices=["auto", "fuse", "kernel"],
        default="auto",
        help="who shows the image: imgfs by FUSE, or the kernel by EROFS and overlayfs, which is faster and "
        "only for root (default: auto, the kernel where it can, from an image's second mount on)",
    )


def store_option(command: argparse.ArgumentParser) -> None:
    """Add where the cache directory is."""
    command.add_argument("--store", metavar="DIR", help="the cache directory (default: $IMGFS_STORE)")


def json_option(command: argparse.ArgumentParser) -> None:
    """Add --json."""
    command.add_argument("--json", action="store_true", help="for programs")

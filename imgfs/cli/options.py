"""How commands are added, the options that several of them have, and how their values are read."""

from __future__ import annotations

import importlib

from imgfs.cli.plain_line import SUPPRESS

TYPE_CHECKING = False  # as that of `typing`, which takes long to load, as `argparse` does
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    from imgfs.config import Environment
    from imgfs.store.store import Store

Run: TypeAlias = "Callable[[argparse.Namespace], int]"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


IMAGE_HELP = "an image's name, or oci:DIR[:TAG], docker-archive:FILE, … (see: imgfs --help)"
_LONGEST_WAIT = 60  # seconds


_SIZE = r"([0-9]{1,15})([bkmgt]?)"


def add_command(
    commands: Commands, name: str, run: Run, summary: str, description: str, *, own_h: bool = False
) -> argparse.ArgumentParser:
    """Add a command, which `run` carries out; with `own_h` it has another meaning for -h than --help."""
    command = commands.add_parser(name, help=summary, description=description, add_help=not own_h)
    if own_h:
        command.add_argument("--help", action="help", help="show this help message and exit")
    command.set_defaults(run=run)
    return command


def lazily(module: str, name: str) -> Run:
    """Return the function `name` of `imgfs.cli.MODULE`, imported when it is called: start-up time is felt."""
    from functools import partial  # here: few commands have any; and pickle knows it, for a mount's daemon

    return partial(_carry_out, module, name)


def _carry_out(module: str, name: str, options: argparse.Namespace) -> int:
    code: int = getattr(importlib.import_module(f"imgfs.cli.{module}"), name)(options)
    return code


def image_options(command: argparse.ArgumentParser, *, offline: bool = True) -> None:
    """Add the image, its platform, the indexes to use, and the store; --offline if `offline`."""
    from imgfs.oci.policy import Policy

    command.add_argument("image", metavar="IMAGE", help=IMAGE_HELP)
    registry_options(command, platform="instead of this machine's")
    command.add_argument(
        "--index",
        choices=[policy.value for policy in Policy],
        default=Policy.AUTO,
        help="which published indexes to use: those in the registry, unless IMAGE has a digest (auto, the "
        "default); those always (any); only those that the image's digest covers (verified); none",
    )
    if offline:
        command.add_argument(
            "--offline",
            action="store_true",
            help="ask no registry, use the store (the default if the registry cannot be reached)",
        )
    else:
        command.set_defaults(offline=None)
    store_option(command)


def registry_options(command: argparse.ArgumentParser, *, platform: str) -> None:
    """Add the platform, and how to connect to the registry."""
    command.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help=platform)
    connection_options(command)


def connection_options(command: argparse.ArgumentParser, *, peers: bool = True) -> None:
    """Add how to connect to a registry, and to `peers`: a group, which the help has at its end."""
    group = command.add_argument_group("connection to the registry")
    group.add_argument(
        "--plain-http", action="store_true", help="use HTTP, not HTTPS (the default on loopback)"
    )
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="trust the authorities in this PEM file, too",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="do not verify the registry's certificate",
    )
    group.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=_seconds,
        help="fail a read when the registry sends nothing for this long (default: 30)",
    )
    if peers:
        group.add_argument(
            "--peers",
            metavar="URL",
            action="append",
            default=[],
            help="read layers that another machine's imgfs has from there: https://HOST:PORT",
        )


def connection_words(options: argparse.Namespace) -> list[str]:
    """Return the options of a connection as words, for a command that is run."""
    flags = {"--plain-http": options.plain_http, "--insecure": options.insecure}
    values = {"--tls-ca": options.tls_ca, "--read-timeout": options.read_timeout}
    pairs = [*values.items(), *(("--peers", url) for url in options.peers)]
    given = [word for name, value in pairs if value is not None for word in (name, str(value))]
    return [*(name for name, is_given in flags.items() if is_given), *given]


def log_level_option(
    command: argparse.ArgumentParser, what: str = "how much is logged, to standard error"
) -> None:
    """Add --log-level of what runs on."""
    command.add_argument(
        "--log-level",
        default="info",
        type=str.lower,
        choices=["debug", "info", "warning", "error"],
        help=f"{what} (default: info)",
    )


def driver_option(command: argparse.ArgumentParser) -> None:
    """Add --driver."""
    command.add_argument(
        "--driver",
        choices=["auto", "fuse", "kernel"],
        default="auto",
        help="what serves the image: imgfs by FUSE, or the kernel by EROFS and overlayfs, faster and "
        "for root only (default: auto: the kernel if possible, from an image's second mount on)",
    )


def store_option(command: argparse.ArgumentParser) -> None:
    """Add where the cache directory is."""
    command.add_argument("--store", metavar="DIR", help="the cache directory (default: $IMGFS_STORE)")


def open_store(
    options: argparse.Namespace, environment: Environment | None = None, *, writable: bool = True
) -> Store:
    """Return the store that --store or the environment names; what only lists it does without `writable`."""
    from imgfs.store.store import Store

    return Store(store_root(options, environment), writable=writable)


def store_root(options: argparse.Namespace, environment: Environment | None = None) -> Path:
    """Return where that store is, which need not be there yet."""
    from pathlib import Path

    from imgfs.config import Environment

    named = getattr(options, "store", None)  # of commands that hardly need one it is the usual one
    return Path(named).absolute() if named else (environment or Environment.read()).store_root


def accepted(command: argparse.ArgumentParser, *options: str) -> None:
    """Take options that another program's users type, and that change nothing here."""
    command.add_argument(*options, dest="_accepted", action="store_true", help=SUPPRESS)


def output_option(command: argparse.ArgumentParser) -> None:
    """Add -o."""
    command.add_argument(
        "-o", "--output", metavar="FILE", default="-", help="write it to FILE (default: -, standard output)"
    )


def json_option(command: argparse.ArgumentParser) -> None:
    """Add --json."""
    command.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    """Return a time to wait; `content.PATIENCE` is never exceeded."""
    try:
        if 0 < float(text) <= _LONGEST_WAIT:
            return float(text)
    except ValueError:
        pass
    raise refusal(f"{text!r} is not a number of seconds up to {_LONGEST_WAIT}")


def rate(text: str) -> int:
    """Return bytes per second: a number, with k, M or G for powers of 1000."""
    try:
        if (per_second := int(scaled(text, "kmg"))) > 0:
            return per_second
    except (ValueError, OverflowError):
        pass
    raise refusal(f"{text!r} is not a rate, like 500k or 2M")


def refusal(text: str) -> argparse.ArgumentTypeError:
    """Return argparse's error for a value, to be raised."""
    import argparse  # here: most values are right

    return argparse.ArgumentTypeError(text)


def scaled(text: str, units: str) -> float:
    """Return a number, perhaps with one of `units`, a beginning of `kmgt`, for powers of 1000.

    Raises ValueError.
    """
    exponent = units.find(text[-1:].lower()) + 1 if text else 0
    return float(text[:-1] if exponent else text) * 1000.0**exponent


def memory(text: str) -> int:
    """Return bytes: a number, with k, m or g for powers of 1024, as podman has it."""
    import re  # here: few commands have such an option

    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    found = int(match[1]) * 1024 ** " kmgt".index(match[2].lower().replace("b", "") or " ") if match else 0
    if not 0 < found < 1 << 63:
        raise refusal(f"{text!r} is not an amount of memory, like 512m or 2g")
    return found


def count(text: str) -> int:
    """Return a number of things, from 0."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    raise refusal(f"{text!r} is not a number, like 2")


def in_image(text: str) -> str:
    """Return a path from the image's root."""
    if not text.startswith("/"):
        raise refusal(f"{text!r} does not begin with a slash")
    return text

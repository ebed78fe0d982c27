"""store: what it may be told, and what its help teaches."""

from __future__ import annotations

import argparse
import contextlib

from imgfs.cli.arguments.options import RAW, json_option, lazily, store_option
from imgfs.cli.arguments.options import Commands as Actions
from imgfs.cli.arguments.values import scaled

_LEAST = 64 * 10**6  # bytes of a limit: with less, readers would fetch the same again and again
NO_LIMIT = 0


def add_store(commands: Actions) -> None:
    """`imgfs store`."""
    command = commands.add_parser(
        "store",
        help="show, limit, prune or check what is kept in the cache directory",
        description="""\
Indexes, trees and cached bytes are kept in one directory, shared by all mounts and images.

Examples:
  imgfs store path
  imgfs store ls                       images and layers, with sizes
  imgfs store rm debian:12             an image, and the layers only it uses
  imgfs store rm --data debian:12      its cached bytes; its indexes stay
  imgfs store rm --all
  imgfs store limit 20G                keep no more than 20 GB of cached bytes
  imgfs store prune --keep 5G          have disk space back now
  imgfs store check --repair           after trouble with the disk

Each has its own help: imgfs store prune --help
""",
        formatter_class=RAW,
    )
    actions = command.add_subparsers(metavar="path|ls|rm|limit|prune|check", required=True)
    for add in (_add_path, _add_ls, _add_rm, _add_limit, _add_prune, _add_check):
        store_option(add(actions))


def _add_path(actions: Actions) -> argparse.ArgumentParser:
    path = actions.add_parser("path", help="say where it is")
    path.set_defaults(run=lazily("store", "path"))
    return path


def _add_ls(actions: Actions) -> argparse.ArgumentParser:
    ls = actions.add_parser("ls", help="list images and layers with their sizes")
    ls.set_defaults(run=lazily("store", "ls"))
    json_option(ls)
    return ls


def _add_rm(actions: Actions) -> argparse.ArgumentParser:
    rm = actions.add_parser("rm", help="remove images, layers or cached bytes")
    rm.set_defaults(run=lazily("store", "rm"))
    rm.add_argument("names", metavar="IMAGE|DIGEST", nargs="*", help="as `imgfs store ls` shows them")
    rm.add_argument("--all", action="store_true", help="everything")
    rm.add_argument("--data", action="store_true", help="only cached bytes: what is needed is fetched again")
    rm.add_argument("--force", action="store_true", help="also what a mount is using")
    return rm


def _add_limit(actions: Actions) -> argparse.ArgumentParser:
    limit = actions.add_parser(
        "limit",
        help="show or set how many cached bytes are kept",
        description="""\
Shows or sets how many bytes of layers the store keeps. Every mount and command that uses the store keeps to
it: once there is more, layers are evicted whole, those used longest ago first, those that are mounted only if
nothing else is left. What was evicted is fetched again when it is read. Indexes and trees do not count.

Examples:
  imgfs store limit                    what it is, and what is taken
  imgfs store limit 20G
  imgfs store limit none
""",
        formatter_class=RAW,
    )
    limit.set_defaults(run=lazily("prune", "limit"))
    limit.add_argument("size", metavar="SIZE|none", nargs="?", type=_limit, help="such as 500M, 20G, 1T")
    json_option(limit)
    return limit


def _add_prune(actions: Actions) -> argparse.ArgumentParser:
    prune = actions.add_parser(
        "prune",
        help="have disk space back, least recently used layers first",
        description="""\
Drops the cached bytes of layers that no mount is using, those used longest ago first. They are fetched again
when they are read. Images stay known, with their documents, indexes, trees and profiles; scratches stay.

Examples:
  imgfs store prune                    all that no mount is using
  imgfs store prune --keep 5G          until no more than 5 GB are left
  imgfs store prune --older-than 30    only what was not used for 30 days
  imgfs store prune --all --older-than 90 --dry-run
""",
        formatter_class=RAW,
    )
    prune.set_defaults(run=lazily("prune", "prune"))
    add = prune.add_argument
    add("--keep", metavar="SIZE", type=_bytes, default=0, help="stop at 500M, 20G, 1T (default: 0)")
    add("--older-than", metavar="DAYS", type=_days, default=0.0, help="only what was not used for so long")
    add("--all", action="store_true", help="indexes and trees too: the next mount reads the layers anew")
    add("--force", action="store_true", help="also what a mount is using: it fetches it again, if it can")
    add("-n", "--dry-run", action="store_true", help="show what would go")
    json_option(prune)
    return prune


def _add_check(actions: Actions) -> argparse.ArgumentParser:
    check = actions.add_parser(
        "check",
        help="see whether everything is what it was",
        description="""\
Reads the whole store, and holds documents against their digests, indexes and trees against their checksums,
cached bytes against what digests are known of them, or their layer's DiffID. Cached bytes of a compressed
layer that is not here whole cannot be checked: --strict counts them as wrong. Exits with 1 if something is
wrong and has been left as it is.

Examples:
  imgfs store check                    look only
  imgfs store check --repair           remove what is wrong: it is fetched or made again when it is needed
  imgfs store check --repair --strict  after trouble with the disk, keep only what is known to be right
""",
        formatter_class=RAW,
    )
    check.set_defaults(run=lazily("check", "check"))
    check.add_argument("--repair", action="store_true", help="remove what is wrong")
    check.add_argument("--strict", action="store_true", help="what cannot be checked counts as wrong")
    json_option(check)
    return check


def _limit(text: str) -> int:
    """A limit in bytes, or NO_LIMIT."""
    if text == "none":
        return NO_LIMIT
    count = _bytes(text)
    if count < _LEAST:
        raise argparse.ArgumentTypeError(f"{text!r} is less than 64M, which one mount may need at once")
    return count


def _bytes(text: str) -> int:
    """A number of bytes, with k, M, G or T for powers of 1000."""
    with contextlib.suppress(ValueError, OverflowError):
        if (count := scaled(text, "kmgt")) >= 0:
            return int(count)
    raise argparse.ArgumentTypeError(f"{text!r} is no size, like 500M or 20G")


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 100_000:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of days")

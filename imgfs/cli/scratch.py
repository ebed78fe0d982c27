"""imgfs scratch ls, rm, reset: the scratches that are kept."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from imgfs.cli.format import size
from imgfs.cli.options import (
    Commands,
    Run,
    json_option,
    store_option,
)
from imgfs.cli.output import say
from imgfs.errors import StoreError, UsageError
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.overlay.scratch import Scratch


def add_scratch(commands: Commands) -> None:
    """`imgfs scratch`."""
    command = commands.add_parser(
        "scratch",
        help="list, remove or reset scratches",
        description="""\
A scratch that has a name is kept in the store, with all that was changed in the image it lies on.

Examples:
  imgfs mount --scratch work debian:12 /mnt
  imgfs scratch ls
  imgfs scratch reset work             back to the image as it is
  imgfs scratch rm work
""",
    )
    actions = command.add_subparsers(metavar="ls|rm|reset", required=True)
    listing = _add_action(actions, "ls", ls, "list them with their sizes and images")
    json_option(listing)
    for action in (
        _add_action(actions, "rm", rm, "remove scratches with all their changes"),
        _add_action(actions, "reset", reset, "throw away all changes"),
    ):
        action.add_argument("names", metavar="NAME|DIR", nargs="+", help="as `imgfs scratch ls` shows them")


def _add_action(actions: Commands, name: str, run: Run, summary: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=summary)
    action.set_defaults(run=run)
    store_option(action)
    return action


def ls(options: argparse.Namespace) -> int:
    """List the scratches in the store."""
    import json

    from imgfs.cli.selection import open_store
    from imgfs.overlay.scratches import list_scratches

    store = open_store(options)
    found = [_described(scratch) for scratch in list_scratches(store.root)]
    if options.json:
        say(json.dumps(found, indent=2))
        return 0
    say(f"{'SCRATCH':<20} {'ON DISK':>9}  {'IMAGE':<48} IN USE")
    for one in found:
        image = "(damaged)" if one["damaged"] else one["image"] or "-"
        say(printable(f"{one['name']:<20} {size(one['disk']):>9}  {image:<48} {one['in_use'] or '-'}"))
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove scratches, and all their changes."""
    with ExitStack() as locks:
        scratches = _scratches(options)
        for scratch in scratches:
            locks.enter_context(scratch.locked("being removed"))
        for scratch in scratches:
            scratch.remove()
    return 0


def reset(options: argparse.Namespace) -> int:
    """Throw away all changes, so that the image shows again as it is."""
    for scratch in _scratches(options):
        scratch.reset()
    return 0


def _scratches(options: argparse.Namespace) -> list[Scratch]:
    from imgfs.cli.selection import open_store
    from imgfs.overlay.scratches import find_scratch

    store = open_store(options)
    found = [find_scratch(name, store.root) for name in dict.fromkeys(options.names)]
    for scratch in found:
        if not scratch.exists():
            raise UsageError(f"{scratch.name}: there is no such scratch (see: imgfs scratch ls)")
    return found


def _described(scratch: Scratch) -> dict[str, Any]:
    base, damaged = None, False
    try:
        base = scratch.base()
    except StoreError:
        damaged = True
    return {
        "name": scratch.name,
        "directory": str(scratch.directory),
        "image": base.reference if base else None,
        "digest": base.digest if base else None,
        "disk": scratch.disk_usage(),
        "in_use": scratch.holder(),
        "damaged": damaged,
    }

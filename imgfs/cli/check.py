"""imgfs store check: see whether everything in the store is what it was."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands as Actions
from imgfs.cli.options import json_option
from imgfs.cli.output import say
from imgfs.errors import StoreError
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.maintenance.fsck import Fault


def add_check(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser(
        "check",
        help="verify everything in the store",
        description="""\
Reads the whole store and verifies documents by their digests, indexes and trees by their checksums, cached
bytes by the digests known of them, or by their layer's DiffID. Cached bytes of a compressed
layer that is not here whole cannot be checked: --strict counts them as wrong. Exits with 1 if something is
wrong and has been left as it is.

Examples:
  imgfs store check                    look only
  imgfs store check --repair           remove what is wrong: it is fetched or made again when it is needed
  imgfs store check --repair --strict  after trouble with the disk, keep only what is known to be right
""",
    )
    command.set_defaults(run=check)
    command.add_argument("--repair", action="store_true", help="remove what is wrong")
    command.add_argument("--strict", action="store_true", help="count what cannot be checked as wrong")
    json_option(command)
    return command


def check(options: argparse.Namespace) -> int:
    """Verify everything in the store, and with --repair remove what is wrong."""
    import json

    from imgfs.cli.selection import open_store
    from imgfs.maintenance.fsck import check as check_store

    store = open_store(options)
    found, left = [], 0
    for fault in check_store(store):
        state = _mended(fault) if options.repair and _counts(fault, options) else _named(fault, options)
        left += state in ("wrong", "not removed")
        found.append({"file": str(fault.where), "what": fault.what, "state": state})
        if not options.json:
            line = f"{fault.where.relative_to(store.root)}: {fault.what}: {state}"
            say(printable(line), flush=True)
    if options.json:
        say(json.dumps({"store": str(store.root), "found": found}, indent=2))
    elif not found:
        say(f"{store.root}: everything is what it was")
    return int(left > 0)


def _counts(fault: Fault, options: argparse.Namespace) -> bool:
    return options.strict or not fault.is_doubt


def _named(fault: Fault, options: argparse.Namespace) -> str:
    return "wrong" if _counts(fault, options) else "unknown"


def _mended(fault: Fault) -> str:
    try:
        fault.mend()
    except (StoreError, OSError):
        return "not removed"
    return "removed"

"""imgfs store check."""

from __future__ import annotations

import argparse
import json

from imgfs.cli.images import open_store
from imgfs.cli.output import say
from imgfs.errors import StoreError
from imgfs.maintenance.fsck import Fault
from imgfs.maintenance.fsck import check as check_store
from imgfs.quoting import printable


def check(options: argparse.Namespace) -> int:
    """See whether everything in the store is what it was, and remove what is not."""
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

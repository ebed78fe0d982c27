"""imgfs store limit, prune."""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from typing import Any

from imgfs.cli.arguments.storing import NO_LIMIT
from imgfs.cli.images import open_store
from imgfs.cli.output import say
from imgfs.cli.text import ago, size
from imgfs.maintenance.gc import Prunable, contents_of, prunable
from imgfs.maintenance.gc import prune as prune_store
from imgfs.oci.descriptor import Digest
from imgfs.quoting import printable
from imgfs.store.limit import cached
from imgfs.store.store import Store

_DAY = 86_400.0  # seconds


def limit(options: argparse.Namespace) -> int:
    """Show or set the limit; what is too much goes at once."""
    store = open_store(options)
    freed = 0
    if options.size is not None:
        store.limit.put(None if options.size == NO_LIMIT else options.size)
        freed = store.limit.keep()
    count, taken = store.limit.read(), sum(one.size for one in cached(store.layers()))
    if options.json:
        say(json.dumps({"limit": count, "taken": taken, "freed": freed}))
        return 0
    say(f"limit {'none' if count is None else size(count)}, {size(taken)} taken, {size(freed)} freed")
    return 0


def prune(options: argparse.Namespace) -> int:
    """Have disk space back."""
    store = open_store(options)
    before = time.time() - options.older_than * _DAY
    found = prunable(store, keep=options.keep, before=before, whole=options.all, force=options.force)
    shown = _fields(found, store)
    freed = found.size if options.dry_run else prune_store(found, store, whole=options.all)
    if options.json:
        say(json.dumps({**shown, "dry_run": options.dry_run, "freed": freed}, indent=2))
        return 0
    for line in _lines(shown):
        say(printable(line))
    say(f"{size(freed)} {'would be freed' if options.dry_run else 'freed'}")
    return 0


def _fields(found: Prunable, store: Store) -> dict[str, Any]:
    names: defaultdict[Digest, list[str]] = defaultdict(list)
    for image in store.resolutions():
        for digest in (*contents_of(image, store).layers, image.manifest):
            names[digest].append(image.reference)
    layers = [
        {
            "digest": str(one.layer.digest),
            "disk": one.size,
            "last_used": int(one.last_used),
            "in_use": one.in_use,
            "images": sorted(set(names[one.layer.digest])),
        }
        for one in found.layers
    ]
    trees = [
        {"digest": str(manifest), "disk": disk, "images": sorted(set(names[manifest]))}
        for manifest, disk in found.trees
    ]
    return {"layers": layers, "trees": trees}


def _lines(shown: dict[str, Any]) -> list[str]:
    rows = [("layer", one, ago(time.time() - one["last_used"])) for one in shown["layers"]]
    rows += [("tree", one, "") for one in shown["trees"]]
    lines = [f"{'':<5} {'DIGEST':<12} {'ON DISK':>9}  {'LAST USED':<15}  IMAGES"] if rows else []
    for kind, one, when in rows:
        short = one["digest"].partition(":")[2][:12]
        used = "in use" if one.get("in_use") else when
        images = ", ".join(one["images"])
        lines.append(f"{kind:<5} {short:<12} {size(one['disk']):>9}  {used:<15}  {images}".rstrip())
    return lines

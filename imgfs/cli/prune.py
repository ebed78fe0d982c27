"""imgfs store limit, prune: how much is kept, and having disk space back."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.format import Column, ago, counted, short, size
from imgfs.cli.options import Commands as Actions
from imgfs.cli.options import json_option, open_store, refusal, scaled
from imgfs.cli.output import say, say_table

if TYPE_CHECKING:
    import argparse

    from imgfs.maintenance.gc import Prunable
    from imgfs.oci.descriptor import Digest
    from imgfs.store.store import Store

_DAY = 86_400.0  # seconds


class ChosenLimit(NamedTuple):
    """A store's limit: bytes, or a share of its disk in per cent; neither for none."""

    size: int = 0
    percent: int = 0


def add_limit(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser(
        "limit",
        help="show or set how many cached bytes are kept",
        description="""\
Shows or sets how many bytes of layers the store keeps. Every mount and command that uses the store keeps to
it: once there is more, layers are evicted whole, those used longest ago first, those that are mounted only if
nothing else is left. What was evicted is fetched again when it is read. A share is one of the disk: with
80%, unmounted layers go once it is 80% full, by anything, mounted ones once it is 90% full.

Examples:
  imgfs store limit                    the limit, and what is cached
  imgfs store limit 20G
  imgfs store limit 80%
  imgfs store limit none
""",
    )
    command.set_defaults(run=limit)
    command.add_argument(
        "size", metavar="SIZE|SHARE|none", nargs="?", type=limit_value, help="such as 500M, 20G, 1T or 80%%"
    )
    json_option(command)
    return command


def add_prune(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser(
        "prune",
        help="free disk space, least recently used layers first",
        description="""\
Drops the cached bytes of layers that no mount is using, those used longest ago first. They are fetched again
when they are read. Images stay known, with their documents, indexes, trees and profiles; scratches stay.

Examples:
  imgfs store prune                    all that no mount is using
  imgfs store prune --keep 5G          until no more than 5 GB are left
  imgfs store prune --older-than 30    only what was not used for 30 days
  imgfs store prune --all --older-than 90 --dry-run
""",
    )
    command.set_defaults(run=prune)
    add = command.add_argument
    add(
        "--keep",
        metavar="SIZE",
        type=_bytes,
        default=0,
        help="stop once no more than this is left: 500M, 20G (default: 0)",
    )
    add(
        "--older-than",
        metavar="DAYS",
        type=_days,
        default=0.0,
        help="only what was not used for this many days",
    )
    add("--all", action="store_true", help="indexes, trees and old logs too: mounts read layers anew")
    add("--force", action="store_true", help="also what a mount is using: it fetches it again, if it can")
    add("-n", "--dry-run", action="store_true", help="show what would be removed")
    json_option(command)
    return command


def limit(options: argparse.Namespace) -> int:
    """Show or set the limit; what exceeds it is evicted at once."""
    import json

    from imgfs.store.limit import cached

    store = open_store(options, writable=options.size is not None)
    freed = 0 if options.size is None else set_limit(store, options.size)
    count, share = store.limit.read(), store.limit.share()
    taken, kept = sum(one.size for one in cached(store.layers())), store.kept()
    if options.json:
        shown = {"limit": count, "taken": taken, "kept": kept, "freed": freed}
        say(json.dumps({**shown, "disk_percent": share} if share else shown))
        return 0
    allowed = "none" if count is None else f"{share}% of the disk" if share else size(count)
    parts = [f"limit {allowed}", f"{size(taken)} taken by layers", f"{size(kept)} by indexes and trees"]
    say(", ".join([*parts, *([] if options.size is None else [f"{size(freed)} freed"])]))
    return 0


def set_limit(store: Store, wanted: ChosenLimit) -> int:
    """Set a store's limit, and evict what exceeds it at once; return the bytes of disk freed."""
    if wanted.percent:
        store.limit.put_share(wanted.percent)
    else:
        store.limit.put(wanted.size or None)
    return store.limit.keep()


def prune(options: argparse.Namespace) -> int:
    """Free disk space."""
    import json

    from imgfs.maintenance.gc import prunable
    from imgfs.maintenance.gc import prune as prune_store

    store = open_store(options)
    before = time.time() - options.older_than * _DAY
    found = prunable(store, keep=options.keep, before=before, whole=options.all, force=options.force)
    report = _report(found, store)
    freed = found.size if options.dry_run else prune_store(found, store, whole=options.all)
    if options.json:
        say(json.dumps({**report.to_json(), "dry_run": options.dry_run, "freed": freed}, indent=2))
        return 0
    if rows := [*_cells(report)]:
        say_table(_COLUMNS, rows)
    if logs := report.logs:
        say(f"logs  {counted(len(logs), 'file'):<12}  {size(sum(log.disk for log in logs)):>7}")
    say(f"{size(freed)} {'would be freed' if options.dry_run else 'freed'}")
    return 0


class PrunedLayer(NamedTuple):
    """A layer whose cached bytes are dropped."""

    digest: str
    disk: int
    last_used: int
    in_use: bool
    images: list[str]


class PrunedTree(NamedTuple):
    """An image's tree and indexes that are removed."""

    digest: str
    disk: int
    images: list[str]


class PrunedLog(NamedTuple):
    """A log that is removed."""

    name: str
    disk: int


class PruneReport(NamedTuple):
    """What `imgfs store prune --json` shows."""

    layers: list[PrunedLayer]
    trees: list[PrunedTree]
    logs: list[PrunedLog]

    def to_json(self) -> dict[str, object]:
        """Return it as --json prints it."""
        return {name: [one._asdict() for one in rows] for name, rows in self._asdict().items()}


def _report(found: Prunable, store: Store) -> PruneReport:
    from imgfs.maintenance.gc import contents_of

    names: defaultdict[Digest, list[str]] = defaultdict(list)
    for image in store.resolutions():
        for digest in (*contents_of(image, store).layers, image.manifest):
            names[digest].append(image.reference)
    layers = [
        PrunedLayer(
            digest=str(one.layer.digest),
            disk=one.size,
            last_used=int(one.last_used),
            in_use=one.in_use,
            images=sorted(set(names[one.layer.digest])),
        )
        for one in found.layers
    ]
    trees = [PrunedTree(str(manifest), disk, sorted(set(names[manifest]))) for manifest, disk in found.trees]
    return PruneReport(layers, trees, [PrunedLog(path.name, disk) for path, disk in found.logs])


_COLUMNS = (
    Column(""),
    Column("DIGEST"),
    Column("ON DISK", right=True),
    Column("LAST USED"),
    Column("IMAGES"),
)


def _cells(report: PruneReport) -> Iterator[tuple[str, ...]]:
    now = time.time()
    for layer in report.layers:
        used = "in use" if layer.in_use else ago(now - layer.last_used) if layer.last_used else "never"
        yield "layer", short(layer.digest), size(layer.disk), used, ", ".join(layer.images)
    for tree in report.trees:
        yield "tree", short(tree.digest), size(tree.disk), "", ", ".join(tree.images)


def limit_value(text: str) -> ChosenLimit:
    """Return a limit: a size, a share of the disk such as 80%, or none."""
    from imgfs.store.limit import LEAST

    if text == "none":
        return ChosenLimit()
    if text.endswith("%"):
        number = text.removesuffix("%")
        if not (number.isascii() and number.isdecimal() and 0 < int(number) < 100):
            raise refusal(f"{text!r} is not a share of the disk, from 1% to 99%")
        return ChosenLimit(percent=int(number))
    count = _bytes(text)
    if count < LEAST:
        raise refusal(f"{text!r} is less than 64M, which one mount may need at once")
    return ChosenLimit(count)


def _bytes(text: str) -> int:
    """Return a number of bytes, with k, M, G or T for powers of 1000."""
    with contextlib.suppress(ValueError, OverflowError):
        if (count := scaled(text, "kmgt")) >= 0:
            return int(count)
    raise refusal(f"{text!r} is not a size, like 500M or 20G")


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 100_000:
            return float(text)
    raise refusal(f"{text!r} is not a number of days")

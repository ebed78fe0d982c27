"""imgfs diff, scratch ls, rm, reset: what a scratch has changed, and what to do with it."""

from __future__ import annotations

import argparse
import base64
import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imgfs.cli.images import connect_to, open_store
from imgfs.cli.output import say
from imgfs.cli.progress import Progress
from imgfs.cli.text import size
from imgfs.config import Environment
from imgfs.errors import MountError, StoreError, UsageError
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import resolve
from imgfs.kernel.filehandle import inos
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import imgfs_mount_at, mount_at
from imgfs.oci.descriptor import Digest, Platform
from imgfs.oci.reference import Reference, parse_reference
from imgfs.overlay.diff import ChangeKind, Diff, DiffEntry
from imgfs.overlay.scratch import Scratch, ScratchBase, find_scratch, list_scratches, sync
from imgfs.quoting import printable, printable_path
from imgfs.store.store import Store

_WORDS = {ChangeKind.ADDED: "added", ChangeKind.CHANGED: "changed", ChangeKind.DELETED: "deleted"}
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Changed:
    """A scratch that somebody named, and the image below it."""

    scratch: Scratch
    base: ScratchBase
    store: Store
    environment: Environment
    options: argparse.Namespace

    @property
    def reference(self) -> Reference:
        """The image, for ever."""
        return replace(parse_reference(self.base.reference), digest=Digest.parse(self.base.digest))

    @contextmanager
    def changes(self, image: Image) -> Iterator[Diff]:
        """What it changes in that image."""
        with self.scratch.diff(image.tree, image.content, inos(image.resolved.tree, self.store)) as changes:
            yield changes

    @contextmanager
    def open(self) -> Iterator[Image]:
        """The image, ready to be read."""
        with closing(connect_to(self.reference, self.options, self.environment)) as source:
            host = Platform.host()  # the digest is one platform's already
            resolved = resolve(self.base.reference, source, self.store, host, remember=False)
            if self.base.layers:
                resolved = resolved.up_to(str(self.base.layers))
            with closing(Progress()) as progress:
                prepare(resolved, source, self.store, progress)
            with Image(resolved, source, self.store) as image:
                yield image


def changed(options: argparse.Namespace) -> Changed:
    """What MNT|NAME means: a mount with a scratch, a scratch's name, or its directory. Raises ImgfsError."""
    environment = Environment.read()
    mounted = mount_at(Path(os.path.abspath(options.scratch)))
    if mounted is not None and mounted.is_imgfs:
        return _mounted(options, environment)
    store = open_store(options, environment)
    scratch = find_scratch(options.scratch, store.root)
    if not scratch.exists():
        raise UsageError(f"{options.scratch}: no mount and no scratch (see: imgfs scratch ls)")
    base = scratch.base()
    if base is None:
        raise UsageError(
            f"scratch {scratch.name} does not say what image it lies on: mount it once with imgfs"
        )
    return Changed(scratch, base, store, environment, options)


def _mounted(options: argparse.Namespace, environment: Environment) -> Changed:
    status = read_status(imgfs_mount_at(Path(options.scratch)))
    found = status.get("scratch")
    if not found:
        raise MountError(f"{options.scratch}: mounted read-only: there are no changes (imgfs mount --rw)")
    sync(Path(options.scratch))
    scratch = Scratch(Path(found["directory"]), found["name"], volatile=not found["kept"])
    base = scratch.base()
    if base is None:
        raise MountError(f"{options.scratch}: its scratch {scratch.directory} is gone")
    return Changed(scratch, base, Store(Path(status["store"])), environment, options)


def diff(options: argparse.Namespace) -> int:
    """List what a scratch has changed."""
    found = changed(options)
    with found.open() as image, found.changes(image) as changes:
        if options.json:
            say(json.dumps([_fields(change) for change in changes], indent=2))
        elif options.stat:
            say("\n".join(_statistics(list(changes))))
        else:
            for change in changes:
                say(f"{change.kind.value} /{printable_path(change.path)}")
    return 0


def ls(options: argparse.Namespace) -> int:
    """List the scratches in the store."""
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


def _fields(change: DiffEntry) -> dict[str, Any]:
    now = change.after or change.before
    assert now is not None
    return {
        **_named(b"/" + change.path),
        "change": _WORDS[change.kind],
        "kind": _KINDS[stat.S_IFMT(now.mode)],
        "size": _size(change.after),
        "size_before": _size(change.before),
    }


def _named(path: bytes) -> dict[str, str]:
    """A path for programs; one that is no UTF-8 also whole, in base64."""
    try:
        return {"path": path.decode()}
    except UnicodeDecodeError:
        return {"path": path.decode(errors="replace"), "path_base64": base64.b64encode(path).decode()}


def _statistics(changes: list[DiffEntry]) -> list[str]:
    """A line for each changed file with its growth, and one for all."""
    files = [
        change for change in changes if _size(change.after) is not None or change.kind is ChangeKind.DELETED
    ]
    lines = [f"{change.kind.value} {_growth(change):>9}  /{printable_path(change.path)}" for change in files]
    counts = {kind: sum(change.kind is kind for change in changes) for kind in ChangeKind}
    total = sum(_size(change.after) or 0 for change in files)
    told = ", ".join(f"{count} {_WORDS[kind]}" for kind, count in counts.items())
    return [*lines, f"{told}; {size(total)} in new and changed files"]


def _growth(change: DiffEntry) -> str:
    grown = (_size(change.after) or 0) - (_size(change.before) or 0)
    return f"{'-' if grown < 0 else '+'}{size(abs(grown))}"


def _size(file: Any) -> int | None:
    """A regular file's size in bytes; nothing else has one that counts."""
    return file.size if file is not None and stat.S_ISREG(file.mode) else None

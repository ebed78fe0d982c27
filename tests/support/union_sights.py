"""A union without a kernel: an upper directory over a tree out of tar bytes, and all there is to see."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imgfs.layer.entry import Extent
from imgfs.overlay.lookup import File
from imgfs.overlay.node import UpperNode
from imgfs.overlay.overlay import Overlay
from imgfs.overlay.union import Union
from imgfs.overlay.upper import Upper
from imgfs.tree.database import ROOT
from imgfs.tree.reader import Tree

_NOW = 1_700_000_000 * 10**9  # ns: images of tests are older


class TarBytes:
    """The bytes of an image's files, out of its layers' tar streams; `here` if none has to be waited for."""

    def __init__(self, *layers: bytes, here: bool = False) -> None:
        self._layers = layers
        self._here = here

    def cached(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> memoryview | None:
        return memoryview(self.read(layer, extents, offset, length)) if self._here else None

    def read(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        given_up: Future[None] | None = None,
    ) -> bytes:
        if given_up and given_up.done():
            raise InterruptedError
        found = bytearray(length)
        for extent in extents:
            start = max(offset, extent.offset)
            end = min(offset + length, extent.offset + extent.length)
            if start < end:
                flat = extent.flat + start - extent.offset
                found[start - offset : end - offset] = self._layers[layer][flat : flat + end - start]
        return bytes(found)

    def copy(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        target: int,
        at: int,
        given_up: Future[None] | None = None,
    ) -> None:
        os.pwrite(target, self.read(layer, extents, offset, length, given_up), at)


class Sight(NamedTuple):
    """What can be seen of a file; not a time that has become now, nor a directory's size and time at all."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    device: int
    body: bytes  # a symlink's target, a file's bytes
    xattrs: tuple[tuple[bytes, bytes | None], ...]
    group: bytes  # of a file with several names the first


@contextmanager
def overlay_of(tree: Tree, content: TarBytes, scratch: Path) -> Iterator[Overlay]:
    """The overlay whose upper directory is `scratch`/upper, made if there is none."""
    (scratch / "upper").mkdir(parents=True, exist_ok=True)
    with Overlay(tree, content, Upper(scratch / "upper", scratch / "work"), durable=False) as overlay:
        yield overlay


def find(union: Union, path: bytes) -> File | None:
    """Return what a path from the root leads to."""
    found: File | None = union.file(ROOT)
    for part in path.split(b"/") if path else []:
        found = union.find(found.ino, part) if found else None
    return found


def ino(overlay: Overlay, path: bytes) -> int:
    """Return the ino of what must be there."""
    found = find(overlay.union, path)
    assert found is not None, path
    return found.ino


def place(overlay: Overlay, path: bytes) -> tuple[int, bytes]:
    """Return a path as (directory, name)."""
    above, _, name = path.rpartition(b"/")
    return ino(overlay, above), name


def sights(overlay: Overlay, content: TarBytes) -> dict[bytes, Sight]:
    """Return all there is, by path, the root's empty."""
    groups: dict[int, bytes] = {}
    return {path: _sight(overlay, content, path, file, groups) for path, file in walk(overlay.union)}


def walk(union: Union) -> Iterator[tuple[bytes, File]]:
    """Yield every path with its file, directories before what is in them."""
    ahead: list[tuple[bytes, File]] = [(b"", union.file(ROOT))]
    while ahead:
        path, file = ahead.pop()
        yield path, file
        if stat.S_ISDIR(union.attributes(file).mode):
            children = sorted(union.children(file.ino), reverse=True)
            ahead += [(path + b"/" + name if path else name, child) for name, child in children]


def read(overlay: Overlay, content: TarBytes, file: File) -> bytes:
    """Return a regular file's bytes, as a mount would have them read."""
    size = overlay.union.attributes(file).size
    data = file.data if isinstance(file, UpperNode) else file.ino
    if data is not None:
        return content.read(*overlay.union.tree.extents(data), 0, size)
    assert isinstance(file, UpperNode)
    fd = overlay.union.upper.open(overlay.union.at(file), os.O_RDONLY)
    try:
        return os.pread(fd, size + 1, 0)
    finally:
        os.close(fd)


def _sight(overlay: Overlay, content: TarBytes, path: bytes, file: File, groups: dict[int, bytes]) -> Sight:
    found = overlay.union.attributes(file)
    is_directory = stat.S_ISDIR(found.mode)
    several = found.nlink > 1 and not is_directory
    body = b""
    if stat.S_ISLNK(found.mode):
        body = overlay.symlink_target(file.ino)
    elif stat.S_ISREG(found.mode):
        body = read(overlay, content, file)
    return Sight(
        mode=found.mode,
        uid=found.uid,
        gid=found.gid,
        nlink=found.nlink,
        size=0 if is_directory else found.size,
        mtime_ns=0 if is_directory or found.mtime_ns > _NOW else found.mtime_ns,
        device=found.device,
        body=body,
        xattrs=tuple((name, overlay.xattr(file.ino, name)) for name in sorted(overlay.xattrs(file.ino))),
        group=groups.setdefault(file.ino, path) if several else b"",
    )

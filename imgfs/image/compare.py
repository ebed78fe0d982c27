"""Two trees of files compared: what is only in one, and what differs; nothing is read that need not be.

Files that come from the same bytes of the same layer are the same. Others are compared by their size, and
read only if that is the same, too.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from typing import NamedTuple

from imgfs.image.files import Found, ImageFiles

_PIECE = 1 << 20  # bytes that are compared at once


class Difference(NamedTuple):
    """A path that differs; `before` is None of what was added, `after` of what was deleted."""

    path: bytes
    before: Found | None
    after: Found | None
    what: tuple[str, ...] = ()  # of a changed one: kind, mode, owner, target, xattrs, device, content, mtime

    @property
    def change(self) -> str:
        """Return "added", "changed" or "deleted"."""
        return "added" if self.before is None else "deleted" if self.after is None else "changed"


def compare(before: ImageFiles, after: ImageFiles, *, times: bool = False) -> Iterator[Difference]:
    """Yield the differences of two images' files, directories before what is in them, by names.

    Times of modification count only with `times`. What is in an added or deleted directory is listed, too.
    """
    roots = before.at(b"/"), after.at(b"/")
    pending: list[tuple[Found | None, Found | None]] = [roots]
    while pending:
        old, new = pending.pop()
        one = new or old
        assert one is not None
        what = changes(before, old, after, new, times=times) if old and new else ()
        if what or not (old and new):
            yield Difference(one.path, old, new, what)
        pending += list(pairs(before, old, after, new))[::-1]


def layer_changes(below: ImageFiles | None, after: ImageFiles, layer: int) -> Iterator[Difference]:
    """Yield what a layer does to the tree below it: names it adds, changes (perhaps to the same), deletes."""
    old_root = below.at(b"/") if below else None
    pending = [(old_root, after.at(b"/"))]
    while pending:
        old, new = pending.pop()
        if new is None and old is not None:
            yield Difference(old.path, old, None)
        elif new is not None and after.layer(new) == layer:
            yield Difference(new.path, old, new)
        pending += list(pairs(below, old, after, new))[::-1]


def pairs(
    before: ImageFiles | None, old: Found | None, after: ImageFiles, new: Found | None
) -> Iterator[tuple[Found | None, Found | None]]:
    """Yield the children of two directories side by side, by the bytes of their names."""
    ours = before.children(old) if before and old and old.is_directory else iter(())
    theirs = after.children(new) if new and new.is_directory else iter(())
    one, other = next(ours, None), next(theirs, None)
    while one or other:
        if other is None or (one and one.path < other.path):
            yield one, None
            one = next(ours, None)
        elif one is None or other.path < one.path:
            yield None, other
            other = next(theirs, None)
        else:
            yield one, other
            one, other = next(ours, None), next(theirs, None)


def changes(
    before: ImageFiles, old: Found, after: ImageFiles, new: Found, *, times: bool = False
) -> tuple[str, ...]:
    """Return in what two files of one path differ."""
    ours, theirs = old.node, new.node
    if stat.S_IFMT(ours.mode) != stat.S_IFMT(theirs.mode):
        return ("kind",)
    differs: Mapping[str, bool] = {
        "mode": ours.mode != theirs.mode,
        "owner": (ours.uid, ours.gid) != (theirs.uid, theirs.gid),
        "target": before.target(old) != after.target(new),
        "device": ours.device != theirs.device,
        "xattrs": before.xattrs(old) != after.xattrs(new),
        "content": old.is_regular and not same_content(before, old, after, new),
        "mtime": times and ours.mtime_ns != theirs.mtime_ns,
    }
    return tuple(name for name, is_other in differs.items() if is_other)


def same_content(before: ImageFiles, old: Found, after: ImageFiles, new: Found) -> bool:
    """Return True if two regular files hold the same bytes; reads them only if that cannot be known else."""
    if old.node.size != new.node.size:
        return False
    if not old.node.size or before.origin(old) == after.origin(new):
        return True
    ours, theirs = before.reader(old), after.reader(new)
    pieces = _pieces(before.filled(old), after.filled(new))
    return all(ours(*piece) == theirs(*piece) for piece in pieces)


def _pieces(*filled: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what is in any of several lots of ranges, each in order, once."""
    end = 0
    for start, stop in merge(*filled):
        for offset in range(max(start, end), stop, _PIECE):
            yield offset, min(_PIECE, stop - offset)
        end = max(end, stop)

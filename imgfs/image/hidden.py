"""The files of an image that later layers hide, by path or pattern."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from imgfs.image.files import Found, is_match
from imgfs.tree.reader import Tree
from imgfs.tree.versions import HiddenFile, VersionsTree

_SIGNS = (b"*", b"?", b"[")


class HiddenFound(NamedTuple):
    """A hidden file, and the same as a file to look at; its depth is counted from the path asked for."""

    hidden: HiddenFile
    found: Found


def hidden_below(tree: VersionsTree, path: bytes, *, follow: bool = False) -> Iterator[HiddenFound]:
    """Yield the hidden files at `path` and below it, by path; `path` may be a shell's pattern.

    Symlinks in the directories of `path` are followed as the image has them now; with `follow` one at its
    end, too, if it leads to a directory.
    """
    literal = b"/" + path.strip(b"/")
    tops = [
        top.rstrip(b"/").split(b"/") for top in dict.fromkeys([literal, _real(tree, literal, follow=follow)])
    ]
    pattern = tops[0] if any(sign in literal for sign in _SIGNS) else None
    for hidden in tree.hidden():
        parts = hidden.path.split(b"/")
        depths = [len(parts) - len(top) for top in tops if parts[: len(top)] == top]
        if pattern and _matches(parts, pattern):
            depths.append(len(parts) - len(pattern))
        if depths:
            yield HiddenFound(hidden, Found(hidden.path, hidden.node, min(depths)))


def _matches(parts: list[bytes], pattern: list[bytes]) -> bool:
    """Return True if a path, or a directory above it, matches."""
    return len(parts) >= len(pattern) and all(map(is_match, parts, pattern))


def _real(tree: Tree, path: bytes, *, follow: bool) -> bytes:
    """Return a path with the symlinks of its directories followed, as far as they exist."""
    parts = path.split(b"/")[1:]
    for count in range(len(parts) - (not follow), 0, -1):
        with suppress(OSError):  # it does not exist now
            node = tree.resolve(b"/".join(parts[:count]))
            if stat.S_ISDIR(node.mode):
                above = b"/" + tree.path(node.ino)
                return b"/".join([above.rstrip(b"/"), *parts[count:]])
    return path

"""The image's files by path, as guesses ask for them: what is not there is None.

So is all else once guesses have looked for more than a mount may cost: an image may be made to have them look
for ever.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from imgfs.layer.limits import PATH_LIMIT
from imgfs.tree.database import Node
from imgfs.tree.reader import Listed, Tree

_LISTED = 4096  # names of a directory that are looked at
_LOOKS = 500_000  # names that are looked at for a mount: a few seconds of CPU; numpy takes some 5,000
_A_PATH, _DEEPEST = 20, 64  # a path costs as many, and may lead over so many


class FilesByPath:
    """The files of `tree`. Any thread may use it. Raises StoreError if the tree is damaged."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.left = _LOOKS

    def file(self, path: bytes) -> Node | None:
        """Return the regular file that a path leads to, symbolic links followed within the image."""
        found = self._resolve(path)
        return found if found and stat.S_ISREG(found.mode) else None

    def directory(self, path: bytes) -> int | None:
        """Return the ino of the directory that a path leads to."""
        found = self._resolve(path)
        return found.ino if found and stat.S_ISDIR(found.mode) else None

    def child(self, directory: int, name: bytes) -> Node | None:
        """Return the file of that name in a directory."""
        self.left -= 1
        return self._tree.lookup(directory, name) if self.left > 0 else None

    def listing(self, directory: int) -> Iterator[Listed]:
        """Yield what is in a directory, the first few thousand names."""
        for listed in islice(self._tree.listing(directory), min(_LISTED, max(0, self.left))):
            self.left -= 1
            yield listed

    def node(self, ino: int) -> Node | None:
        """Return a file by its ino."""
        return self._tree.node(ino)

    def name(self, ino: int) -> bytes:
        """Return a name of a file; b"" if it has none."""
        return self._tree.a_name(ino) or b""

    def path(self, ino: int) -> bytes:
        """Return a path of a file, from the root and without the leading slash."""
        return self._tree.path(ino)

    def _resolve(self, path: bytes) -> Node | None:
        self.left -= _A_PATH
        if self.left > 0 and len(path) <= PATH_LIMIT:
            with suppress(OSError):
                return self._tree.resolve(path, most=_DEEPEST)
        return None

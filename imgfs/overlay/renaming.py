"""Renaming in the union: one rename on disk for each, so that it is done or not, whenever the process dies.

A directory of the image moves with all that is in it, copied up. What the image has at the new name is
covered by what moves there, a directory being marked opaque; what it has at the old one by a whiteout.
"""

from __future__ import annotations

import contextlib
import errno

from imgfs import syscalls
from imgfs.overlay.at import At
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.entries import check_name
from imgfs.overlay.node import UpperNode, error, no_entry
from imgfs.overlay.union import File, Union, is_directory
from imgfs.overlay.xattrs import is_whiteout

NOREPLACE, EXCHANGE = syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE


class Renaming:
    """Renames in `union`. Raises OSError."""

    def __init__(self, union: Union, copyup: CopyUp) -> None:
        self._union = union
        self._upper = union.upper
        self._copyup = copyup

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        """Rename what is at `old`, (directory, name), to `new`; `flags` as of renameat2(2)."""
        source, target = self._union.find(*old), self._union.find(*new)
        check_name(new[1])
        if source is None:
            raise no_entry()
        if flags & NOREPLACE and target:
            raise error(errno.EEXIST)
        if flags & ~(NOREPLACE | EXCHANGE):
            raise error(errno.EINVAL)
        if target and target.ino == source.ino:  # two names of one file
            return
        if flags & EXCHANGE:
            if target is None:
                raise no_entry()
            self._exchange(old, source, new, target)
            return
        if target:
            self._check_replaceable(source, target)
        self._move(old, source, new, target)

    def _check_replaceable(self, source: File, target: File) -> None:
        if is_directory(target):
            if not is_directory(source):
                raise error(errno.EISDIR)
            if any(True for _ in self._union.children(target.ino)):
                raise error(errno.ENOTEMPTY)
        elif is_directory(source):
            raise error(errno.ENOTDIR)

    def _move(
        self, old: tuple[int, bytes], source: File, new: tuple[int, bytes], target: File | None
    ) -> None:
        """Rename, in place of `target` if there is one."""
        node = self._copyup.up(source.ino)
        self._make_whole(node)
        before, after = self._copyup.up(old[0]), self._copyup.up(new[0])
        if after.anchor is not None:
            raise no_entry()
        leaves = self._union.below(before, old[1]) is not None
        if self._union.below(after, new[1]) is not None and node.is_directory:
            self._upper.set_opaque(self._union.at(node))
        at_old = At(self._union.directory_fd(before), old[1])
        at_new = At(self._union.directory_fd(after), new[1])
        with self._union.unlinking(target, after, new[1]) if target else contextlib.nullcontext():
            if node.is_directory:
                self._move_directory(at_old, at_new, target, leaves)
            else:
                self._upper.move(at_old, at_new, whiteout=leaves)
        self._renamed(node, (before, old[1]), (after, new[1]))

    def _move_directory(self, old: At, new: At, target: File | None, leaves: bool) -> None:
        """Rename a directory: over a whiteout, by exchanging them, or over a directory that shows nothing.

        That has to be truly empty first, for one rename to do it all: it is made opaque, and then needs no
        whiteouts.
        """
        covered = self._upper.stat(new)
        if covered is not None and is_whiteout(covered):
            self._upper.rename(old, new, EXCHANGE)
            if not leaves:
                self._upper.unlink(old)
            return
        if isinstance(target, UpperNode):
            self._upper.set_opaque(new)
            self._copyup.remove_whiteouts(target)
            target.lower = target.links = None
        self._upper.move(old, new, whiteout=leaves)

    def _exchange(self, old: tuple[int, bytes], source: File, new: tuple[int, bytes], target: File) -> None:
        """Have two names change places."""
        one, other = self._copyup.up(source.ino), self._copyup.up(target.ino)
        self._make_whole(one)
        self._make_whole(other)
        before, after = self._copyup.up(old[0]), self._copyup.up(new[0])
        for node, directory, name in ((one, after, new[1]), (other, before, old[1])):
            if node.is_directory and self._union.below(directory, name) is not None:
                self._upper.set_opaque(self._union.at(node))
        at_old = At(self._union.directory_fd(before), old[1])
        at_new = At(self._union.directory_fd(after), new[1])
        self._upper.rename(at_old, at_new, EXCHANGE)
        was_called = other.is_called(after, new[1])
        self._renamed(one, (before, old[1]), (after, new[1]))
        if was_called:
            other.move(before, old[1])

    def _make_whole(self, node: UpperNode) -> None:
        """A directory that moves takes all of the image's with it: at its new place the image has nothing."""
        if node.is_directory and node.lower is not None:
            self._copyup.up_tree(node)

    def _renamed(self, node: UpperNode, old: tuple[UpperNode, bytes], new: tuple[UpperNode, bytes]) -> None:
        if node.is_called(*old):
            node.move(*new)
        for directory, _ in (old, new):
            directory.changes += 1
            directory.links = None

"""Changing the names in directories: create, remove, link, rename, by overlayfs's rules.

What the image has is never touched: a name of its that goes is covered by a whiteout, and a directory made or
moved over one of its names is marked opaque. Each change shows at once and whole, whenever the process dies:
a rename is one on disk. A directory of the image moves with all that is in it, copied up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from imgfs import syscalls
from imgfs.layer.entry import ACCESS_ACL, DEFAULT_ACL
from imgfs.overlay.acl import inherit, says_more_than_mode
from imgfs.overlay.copyup import CopyUp
from imgfs.overlay.lookup import File, is_directory
from imgfs.overlay.node import At, UpperNode, error, no_entry
from imgfs.overlay.union import Union
from imgfs.overlay.xattrs import Owner, is_whiteout
from imgfs.tree.database import Node
from imgfs.tree.paths import WHITEOUT_PREFIX

NOREPLACE, EXCHANGE = syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE
_NAME_MAX = 255  # bytes in a name


class New(NamedTuple):
    """What is about to be made: S_IFMT of its mode, owner, its maker's umask, the ACLs that it inherits."""

    kind: int
    owner: Owner
    umask: int = 0
    acls: Sequence[tuple[bytes, bytes]] = ()


# What was made; and what stat(2) says of it, if it still does
Made: TypeAlias = tuple[UpperNode, os.stat_result | None]


class Entries:
    """The names in the directories of `union`. Raises OSError."""

    def __init__(self, union: Union, copyup: CopyUp) -> None:
        self._union = union
        self._upper = union.upper
        self._copyup = copyup
        # Told what a change is about, right before it is made: the inos that its names mean, 0 for nothing.
        self.before_change: Callable[[int, int], None] = _ignore_change

    def create(self, parent: int, name: bytes, owner: Owner, umask: int = 0) -> Made:
        """Make an empty file, open for reading and writing."""
        made, fd = None, -1

        def make(at: At, mode: int) -> int:
            nonlocal fd
            fd = self._upper.create(at, mode)
            return fd

        try:
            made = self._add(parent, name, New(stat.S_IFREG, owner, umask), make)
        finally:
            if made is None and fd >= 0:
                os.close(fd)
        made[0].fd = fd
        return made

    def create_nameless(self, parent: int, owner: Owner, umask: int) -> UpperNode:
        """Make an empty file without a name, open likewise, as if for a directory; `link` may give it one."""
        directory = self._copyup.up(parent)
        if directory.anchor is not None:  # removed
            raise no_entry()
        new = self._inherited(directory, New(stat.S_IFREG, owner, umask))
        fd = self._upper.open_nameless(self._upper.xattr_format.disk_mode(stat.S_IFREG | new.owner.mode))
        try:
            at = At.anchor(fd)
            node = self._union.node_nameless(self._set_attributes(at, new), self._upper.hold(at))
            self._union.keep_open(node)
        except BaseException:
            os.close(fd)
            raise
        node.fd = fd
        return node

    def make(
        self, parent: int, name: bytes, kind: int, owner: Owner, device: int = 0, umask: int = 0
    ) -> UpperNode:
        """Make a directory, FIFO, socket, device or empty file, whichever `kind` (S_IFMT) says."""
        if kind == stat.S_IFCHR and device == 0:
            raise error(errno.EPERM)  # would be a whiteout
        new = New(kind, owner, umask)
        return self._add(parent, name, new, lambda at, mode: self._upper.make(at, kind | mode, device))[0]

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> UpperNode:
        """Make a symbolic link."""
        new = New(stat.S_IFLNK, owner)
        return self._add(parent, name, new, lambda at, _: os.symlink(target, at.name, dir_fd=at.directory))[0]

    def link(self, ino: int, parent: int, name: bytes) -> UpperNode:
        """Give a file another name."""
        _check_name(name)
        node = self._copyup.up(ino)
        directory = self._copyup.up(parent)
        at, covered = self._vacancy(directory, name)
        source = self._union.at(node)
        target = self._upper.new() if covered else at
        self.before_change(0, 0)
        self._upper.link(source, target)
        if covered:
            try:
                self._upper.put(target, at)
            except BaseException:
                self._upper.discard(target)
                raise
        directory.changes += 1
        if node.parent is None:
            node.move(directory, name)
            self._union.let_go(node)
        return node

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of something that is no directory."""
        found = self._existing(parent, name)
        if is_directory(found):
            raise error(errno.EISDIR)
        self._remove(parent, name, found)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        found = self._existing(parent, name)
        if not is_directory(found):
            raise error(errno.ENOTDIR)
        if any(True for _ in self._union.children(found.ino)):
            raise error(errno.ENOTEMPTY)
        directory = self._remove(parent, name, found)
        if directory.links is not None:
            directory.links -= 1

    def _existing(self, parent: int, name: bytes) -> File:
        found = self._union.find(parent, name)
        if found is None:
            raise no_entry()
        return found

    def _add(self, parent: int, name: bytes, new: New, make: Callable[[At, int], int | None]) -> Made:
        """Put something new, that `make` makes with permission bits, and may open, under a free name."""
        _check_name(name)
        directory = self._copyup.up(parent)
        at, covered = self._vacancy(directory, name)
        target = self._upper.new() if covered else at
        new = self._inherited(directory, new)
        self.before_change(0, 0)
        fd = make(target, new.owner.mode)
        try:
            found = self._set_attributes(target, new, fd)
            if covered:
                if new.kind == stat.S_IFDIR:
                    self._upper.set_opaque(target)
                self._upper.put(target, at)
        except BaseException:
            self._upper.discard(target)
            raise
        node = self._union.node_new(directory, name, found)
        directory.changes += 1
        if node.is_directory and directory.links is not None:  # else counted, for each that is made
            directory.links += 1
        return node, None if covered else found

    def _vacancy(self, directory: UpperNode, name: bytes) -> tuple[At, bool]:
        """Return where a new name goes, and whether a whiteout is there; raises EEXIST."""
        if directory.anchor is not None:  # removed
            raise no_entry()
        at = At(self._union.directory_fd(directory), name)
        if directory.clean:
            return at, False
        found = self._upper.stat(at)
        if found is None:
            if self._union.below(directory, name):
                raise error(errno.EEXIST)
            return at, False
        if is_whiteout(found):
            return at, True
        raise error(errno.EEXIST)

    def _inherited(self, directory: UpperNode, new: New) -> New:
        """Return what something new gets from its directory, which may be set-gid or have an ACL for such."""
        uid, gid, mode = new.owner
        group = self._union.group_of(directory)
        if group is not None:
            gid, mode = group, mode | stat.S_ISGID if new.kind == stat.S_IFDIR else mode
        default = self._union.default_acl(directory) if new.kind != stat.S_IFLNK else b""
        if not default:
            return New(new.kind, Owner(uid, gid, mode & ~new.umask))
        mode, access = inherit(default, mode)
        acls = [(ACCESS_ACL, access)] if says_more_than_mode(access) else []
        if new.kind == stat.S_IFDIR:
            acls.append((DEFAULT_ACL, default))
        return New(new.kind, Owner(uid, gid, mode), acls=acls)

    def _set_attributes(self, at: At, new: New, fd: int | None = None) -> os.stat_result:
        """Give something new, perhaps open, its owner and ACLs, if it has not got them by itself.

        Returns what stat(2) says of it after that.
        """
        kind, owner = new.kind, new.owner
        found = _status(at, fd)
        is_so = (found.st_uid, found.st_gid) == owner[:2] and (
            kind == stat.S_IFLNK or stat.S_IMODE(found.st_mode) == owner.mode
        )
        if not is_so or self._upper.xattr_format.override:
            self._upper.set_owner(at, kind, owner)
            is_so = False
        if new.acls and self._upper.xattr_format.can_hold(kind):
            for name, value in new.acls:
                self._upper.set_shown_xattr(at, name, value)
            is_so = False
        return found if is_so else _status(at, fd)

    def _remove(self, parent: int, name: bytes, found: File) -> UpperNode:
        """Take a name away; returns its directory."""
        directory = self._copyup.up(parent)
        at = At(self._union.directory_fd(directory), name)
        below = self._union.below(directory, name) is not None
        place = self._union.place_for(found)
        self.before_change(found.ino, 0)
        with self._union.unlinking(found, directory, name):
            if isinstance(found, Node):
                self._upper.whiteout(at)
            elif below:
                self._upper.put_whiteout(at, place)
            elif found.is_directory:
                self._copyup.remove_whiteouts(found)
                self._upper.remove_directory(at, place)
            else:
                self._upper.unlink(at)
            if place and isinstance(found, UpperNode):
                found.kept = True
        directory.changes += 1
        return directory

    def rename(self, old: tuple[int, bytes], new: tuple[int, bytes], flags: int) -> None:
        """Rename what is at `old`, (directory, name), to `new`; `flags` as of renameat2(2)."""
        source, target = self._union.find(*old), self._union.find(*new)
        _check_name(new[1])
        if source is None:
            raise no_entry()
        if flags & NOREPLACE and target:
            raise error(errno.EEXIST)
        if flags & ~(NOREPLACE | EXCHANGE):
            raise error(errno.EINVAL)
        if target and target.ino == source.ino:  # two names of one file
            return
        if flags & EXCHANGE and target is None:
            raise no_entry()
        if target and not flags & EXCHANGE:
            self._check_replaceable(source, target)
        self.before_change(source.ino, target.ino if target else 0)
        if target and flags & EXCHANGE:
            self._exchange(old, source, new, target)
        else:
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
        """Copy up all of a directory that is about to move: at its new place the image has nothing."""
        if node.is_directory and node.lower is not None:
            self._copyup.up_tree(node)

    def _renamed(self, node: UpperNode, old: tuple[UpperNode, bytes], new: tuple[UpperNode, bytes]) -> None:
        if node.is_called(*old):
            node.move(*new)
        for directory, _ in (old, new):
            directory.changes += 1
            if node.is_directory:
                directory.links = None


def _ignore_change(_ino: int, _other: int) -> None:
    """Do nothing before a change: the default of `before_change`."""


def _status(at: At, fd: int | None) -> os.stat_result:
    if fd is not None:
        return os.fstat(fd)
    return os.stat(at.name, dir_fd=at.directory, follow_symlinks=at.anchored)


def _check_name(name: bytes) -> None:
    """Refuse names that are too long, and names that would be whiteouts in a layer."""
    if len(name) > _NAME_MAX:
        raise error(errno.ENAMETOOLONG)
    if name.startswith(WHITEOUT_PREFIX):
        raise error(errno.EINVAL)

"""The upper directory as overlayfs has it, and the work directory beside it where new things are made.

Files are named by an open directory and a name in it: paths may be longer than the kernel takes, and
directories move. What is made in the work directory appears in the upper one whole, by a rename.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import StoreError, is_full
from imgfs.layer.entry import ACCESS_ACL, DEFAULT_ACL
from imgfs.overlay import fdtree
from imgfs.overlay.node import At, Place, times_kept
from imgfs.overlay.xattrs import (
    OPAQUE,
    OVERRIDE,
    TRUSTED,
    USER,
    Owner,
    XattrFormat,
    format_override,
    is_reserved,
    is_whiteout_entry,
    overlay_prefixes,
    parse_overlay_xattrs,
    read_override,
    read_xattrs,
)

OPEN = b"open-"  # begins the names, in the work directory, of files that are open and have no other
_WORK = "imgfs"  # our corner of the work directory: overlayfs's own is called "work"
# What a file system says of an attribute that it, or this user, cannot have there (setxattr(2)).
_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ERANGE, errno.E2BIG, errno.EPERM, errno.EACCES)
_SMALL_VALUE = 1024  # bytes: what ext4 holds in blocks of any size
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log = logging.getLogger(__name__)


class Upper:
    """An upper directory and its work directory, on one file system. Raises StoreError."""

    def __init__(self, upper: Path, work: Path | None) -> None:
        """Open it; without a work directory only to look, while another process may be changing it."""
        try:
            self.root = os.open(upper, _DIRECTORY)
            if work is not None:
                (work / _WORK).mkdir(mode=0o700, parents=True, exist_ok=True)
            self.work = os.open(work / _WORK if work else upper, _DIRECTORY)
            if work is not None:
                forget_acls(work / _WORK)
            prefix = _probe(work / _WORK) if work else TRUSTED
            attributes = read_xattrs(os.fsencode(upper), follow=True)
            self._self = os.fstat(self.root).st_uid
        except OSError as error:
            raise StoreError(f"{error.filename or upper}: {error.strerror}") from error
        self._prefixes = overlay_prefixes(attributes)
        aside = OVERRIDE in attributes and USER in self._prefixes
        self.xattr_format = XattrFormat(prefix, override=aside or os.geteuid() != 0)
        self.is_ours = work is not None
        self._serial = itertools.count()

    def close(self) -> None:
        """Close the two directories."""
        os.close(self.root)
        os.close(self.work)

    def new(self) -> At:
        """Return a place in the work directory where nothing is."""
        return At(self.work, b"%d" % next(self._serial))

    def stat(self, at: Place) -> os.stat_result | None:
        """Return lstat(2) of a place, None if nothing is there."""
        try:
            return os.stat(at.name, dir_fd=at.directory, follow_symlinks=at.anchored)
        except FileNotFoundError:
            return None

    def open(self, at: At, flags: int, mode: int = 0) -> int:
        """Open or create a file."""
        nofollow = 0 if at.anchored else os.O_NOFOLLOW
        return os.open(at.name, flags | nofollow | os.O_CLOEXEC, mode, dir_fd=at.directory)

    def open_nameless(self, mode: int) -> int:
        """Make a file that has no name, and open it (open(2), O_TMPFILE)."""
        return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=self.work)

    def open_data(self, at: At) -> int:
        """Open a file for what the kernel may ask of it: it reads, too, what is being written."""
        return self.open(at, os.O_RDWR)

    def hold(self, at: At) -> int:
        """Return a descriptor by which the file can be had without its name."""
        return self.open(at, os.O_PATH)

    def keep_open(self, at: At, ino: int) -> None:
        """Link an open file whose name is to go into the work directory, named by its inode number."""
        self.link(at, self.place_for_open(ino))

    def link(self, at: At, target: At) -> None:
        """Give a file of the upper or the work directory one more name."""
        os.link(
            at.name,
            target.name,
            src_dir_fd=at.directory,
            dst_dir_fd=target.directory,
            follow_symlinks=at.anchored,
        )

    def place_for_open(self, ino: int) -> At:
        """Return that name, which is free."""
        place = At(self.work, OPEN + b"%d" % ino)
        self.discard(place)
        return place

    def let_go(self, ino: int) -> None:
        """Take that name away again, and all that is below it."""
        self.discard(At(self.work, OPEN + b"%d" % ino))

    def scan(self, at: At) -> Iterator[os.DirEntry[str]]:
        """Yield all that is in a directory."""
        fd = self.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
        try:
            with os.scandir(fd) as entries:
                yield from entries
        finally:
            os.close(fd)

    def names(self, at: At) -> tuple[list[bytes], set[bytes]]:
        """Return the names that a directory shows, and those of the image that it covers."""
        shown, covered = [], set()
        for entry in self.scan(at):
            name = os.fsencode(entry.name)
            covered.add(name)
            if not is_whiteout_entry(entry):
                shown.append(name)
        return sorted(shown), covered

    def xattrs(self, at: Place) -> dict[bytes, bytes]:
        """Return all extended attributes as they are stored."""
        return read_xattrs(at.path, follow=at.anchored)

    def unkept_xattrs(self, at: At) -> list[bytes]:
        """Return a file's attributes that no layer gets, for they would be overlay xattrs, and are none here.

        Users of overlayfs with root's xattrs may set them.
        """
        if USER in self._prefixes:
            return []
        return sorted(name for name in self.xattrs(at) if is_reserved(name) and not name.startswith(TRUSTED))

    def overlay_xattrs(self, at: At) -> dict[bytes, bytes]:
        """Return a file's overlay xattrs, without their prefix."""
        return parse_overlay_xattrs(self.xattrs(at), self._prefixes)

    def set_xattr(self, at: Place, name: bytes, value: bytes) -> None:
        """Set an extended attribute by the name it is stored under."""
        os.setxattr(at.path, name, value, follow_symlinks=at.anchored)

    def set_shown_xattr(self, at: Place, name: bytes, value: bytes) -> None:
        """Set an extended attribute by the name that users see."""
        self.set_xattr(at, self.xattr_format.stored_name(name), value)

    def remove_xattr(self, at: Place, name: bytes) -> None:
        """Remove an extended attribute by the name it is stored under; ENODATA if it is not there."""
        os.removexattr(at.path, name, follow_symlinks=at.anchored)

    def set_overlay_xattr(self, at: Place, key: bytes, value: bytes = b"y") -> None:
        """Set an overlay xattr on a file."""
        self.set_xattr(at, self.xattr_format.overlay_name(key), value)

    def remove_overlay_xattrs(self, at: At, *keys: bytes) -> None:
        """Remove overlay xattrs from a file, those that it has, whatever their prefix."""
        names = [prefix + key for prefix in (TRUSTED, USER) for key in keys]
        for name in self.xattrs(at).keys() & names:
            self.remove_xattr(at, name)

    def owner(self, at: Place, found: os.stat_result) -> Owner:
        """Return a file's owner, group and permission bits as the image would have them."""
        if self.xattr_format.override and not stat.S_ISLNK(found.st_mode):
            kept = read_override(self.xattrs(at))
            if kept:
                return kept
        own = Owner(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
        return own._replace(uid=0, gid=0) if self.xattr_format.override and own.uid == self._self else own

    def set_owner(self, at: Place, mode: int, owner: Owner) -> None:
        """Give a file of the kind in `mode` an owner and permission bits."""
        if not self.xattr_format.override:
            self.chown(at, owner.uid, owner.gid)
        elif self.xattr_format.can_hold(mode):
            self.set_xattr(at, OVERRIDE, format_override(owner))
        if not stat.S_ISLNK(mode):  # after the owner: changing that takes set-uid bits away
            self.chmod(at, stat.S_IFMT(mode) | owner.mode)

    def chown(self, at: Place, uid: int, gid: int) -> None:
        """Change the owner on disk, -1 leaving it as it is; the kernel takes privileges away with it."""
        os.chown(at.name, uid, gid, dir_fd=at.directory, follow_symlinks=at.anchored)

    def chmod(self, at: Place, mode: int) -> None:
        """Change the permission bits on disk of a file of the kind in `mode`, which is no symlink."""
        os.chmod(at.name, self.xattr_format.disk_mode(mode), dir_fd=at.directory)

    def set_times(self, at: Place, atime_ns: int, mtime_ns: int) -> None:
        """Set access and modification times."""
        os.utime(at.name, ns=(atime_ns, mtime_ns), dir_fd=at.directory, follow_symlinks=at.anchored)

    def describe(
        self, at: Place, mode: int, owner: Owner, xattrs: Mapping[bytes, bytes], times: tuple[int, int]
    ) -> None:
        """Give a file of the kind in `mode` all the attributes a copy-up has to keep; `times` in ns.

        An image's own attributes with names of overlay xattrs are left out: here they would count as such.
        """
        self.set_owner(at, mode, owner)
        size = 0
        for name, value in xattrs.items():
            if is_reserved(name):
                continue
            if self.xattr_format.can_hold(mode) or not self.xattr_format.override:
                size += len(name) + len(value)
                self._keep_xattr(at, self.xattr_format.stored_name(name), value, size)
        if ACCESS_ACL in xattrs and not self.xattr_format.override:  # the mode counts, as in the image
            self.chmod(at, stat.S_IFMT(mode) | owner.mode)
        self.set_times(at, *times)

    def _keep_xattr(self, at: Place, name: bytes, value: bytes, size: int) -> None:
        """Set an attribute, unless this file system has none such: that is no reason not to copy a file up.

        So does umoci. A value that is larger than any it can hold is ENOSPC on ext4, a full disk or not, and
        so is one after which all that the file has, of `size` bytes with it, would take more than a block.
        """
        try:
            self.set_xattr(at, name, value)
        except OSError as error:
            is_too_large = error.errno == errno.ENOSPC and (
                len(value) > _SMALL_VALUE or (size > _SMALL_VALUE and os.fstatvfs(self.root).f_bavail > 0)
            )
            if error.errno not in _NOT_HERE and not is_too_large:
                raise
            log.debug("%s: the attribute %r is left out: %s", at.path, name, error.strerror)

    def make(self, at: At, mode: int, device: int = 0) -> None:
        """Make an empty file, directory or special file of the kind in `mode`."""
        disk = self.xattr_format.disk_mode(mode)
        if stat.S_ISDIR(mode):
            os.mkdir(at.name, disk, dir_fd=at.directory)
        elif stat.S_ISREG(mode):
            os.close(self.create(at, mode))
        else:
            os.mknod(at.name, stat.S_IFMT(mode) | disk, device, dir_fd=at.directory)

    def create(self, at: At, mode: int) -> int:
        """Make an empty file with permission bits, and open it for reading and writing."""
        disk = self.xattr_format.disk_mode(stat.S_IFREG | mode)
        return self.open(at, os.O_RDWR | os.O_CREAT | os.O_EXCL, disk)

    def whiteout(self, at: At) -> None:
        """Say that a name which is only in the image is deleted (any user may, since Linux 5.8)."""
        os.mknod(at.name, stat.S_IFCHR, 0, dir_fd=at.directory)

    def unlink(self, at: At) -> None:
        """Remove a name that is no directory."""
        os.unlink(at.name, dir_fd=at.directory)

    def rename(self, source: At, target: At, flags: int = 0) -> None:
        """Rename within the file system; `flags` as of renameat2."""
        assert source.directory is not None
        assert target.directory is not None
        syscalls.renameat2(source.directory, source.name, target.directory, target.name, flags)

    def move(self, source: At, target: At, *, whiteout: bool) -> None:
        """Rename over whatever file is there; `whiteout` covers the name that is left."""
        try:
            self.rename(source, target, syscalls.RENAME_WHITEOUT if whiteout else 0)
        except OSError as error:  # a file system that cannot leave whiteouts
            if not whiteout or error.errno != errno.EINVAL:
                raise
            self.rename(source, target)
            self.whiteout(source)

    def put(self, made: At, at: At) -> None:
        """Put what was made in the work directory in the place of what is at `at`, if anything is."""
        try:
            self.rename(made, at)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
            self.rename(made, at, syscalls.RENAME_EXCHANGE)
            self.discard(made)

    def remove_directory(self, at: At, place: At | None) -> None:
        """Remove an empty directory; or have it go to a place in the work directory."""
        if place:
            self.rename(at, place)
        else:
            os.rmdir(at.name, dir_fd=at.directory)

    def put_whiteout(self, at: At, place: At | None = None) -> None:
        """Say that a name is deleted, in the place of what is there, at once and whole.

        A directory may go to a place in the work directory instead.
        """
        spare = self.new()
        self.whiteout(spare)
        if place:
            self.rename(spare, at, syscalls.RENAME_EXCHANGE)
            self.rename(spare, place)
        else:
            self.put(spare, at)

    def discard(self, at: At) -> None:
        """Remove something, if it is there, with all below it."""
        assert at.directory is not None
        fdtree.remove(at.directory, at.name, self._spare)

    def discard_open(self) -> None:
        """Remove from the work directory what was only open: the mount has ended. Journals stay."""
        for name in os.listdir(b"/proc/self/fd/%d" % self.work):
            if name.startswith(OPEN):
                self.discard(At(self.work, name))

    def discard_leftovers(self, *, but_open: bool = False) -> None:
        """Remove from the work directory what a killed process has left there; perhaps not what is open."""
        for name in os.listdir(b"/proc/self/fd/%d" % self.work):
            if not (but_open and name.startswith(OPEN)):
                self.discard(At(self.work, name))

    def _spare(self) -> tuple[int, bytes]:
        return self.work, self.new().name

    def remove_whiteouts(self, at: At, names: Iterable[bytes]) -> None:
        """Remove the whiteouts `names` from a directory, for which they are of no use any more."""
        fd = self.open(at, os.O_PATH | os.O_DIRECTORY)
        try:
            with times_kept(At.anchor(fd)):
                for name in names:
                    self.unlink(At(fd, name))
        finally:
            os.close(fd)

    def set_opaque(self, at: At) -> None:
        """Have nothing of the image show below a directory."""
        self.set_overlay_xattr(at, OPAQUE)


def forget_acls(directory: Path) -> None:
    """Take the ACLs off a new directory that it has inherited from the one it is in."""
    for name in (ACCESS_ACL, DEFAULT_ACL):
        with contextlib.suppress(OSError):  # ENODATA: it has none; ENOTSUP: there are none here
            os.removexattr(directory, name)


def _probe(work: Path) -> bytes:
    """Return the prefix of the overlay xattrs that this user may set here."""
    for prefix in (TRUSTED, USER):
        try:
            os.setxattr(work, prefix + b"imgfs.probe", b"y")
        except OSError as error:
            if is_full(error):  # it may, and can do so again once there is room
                return prefix
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
        else:
            return prefix
    raise StoreError(f"{work}: its file system keeps no extended attributes, which a scratch needs")

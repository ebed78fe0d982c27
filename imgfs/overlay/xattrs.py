"""What overlayfs writes into an upper directory beside the files themselves (kernel, overlayfs.rst).

    whiteout    a character device 0/0: the name is deleted
    opaque      on a directory: what the image has below this name does not show
    metacopy    on a file: attributes only; the data is still the image's
    redirect    with metacopy: the image's path of the data
    origin      imgfs's own: the ino of the image's file that this is a copy of

They are extended attributes `trusted.overlay.…`, which only root may set, or `user.overlay.…` (mount option
`userxattr`). A user who cannot set owners has them, and the mode, kept in `user.containers.override_stat`, as
containers/storage and fuse-overlayfs do: `uid:gid:mode`, the mode in octal.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import NamedTuple

OPAQUE, METACOPY, REDIRECT, ORIGIN = b"opaque", b"metacopy", b"redirect", b"imgfs.origin"
BY_OVERLAYFS = b"imgfs.overlayfs"  # imgfs's own, on the root: overlayfs has had it mounted with root's xattrs
TRUSTED, USER = b"trusted.overlay.", b"user.overlay."
OVERRIDE = b"user.containers.override_stat"
CAPABILITY = b"security.capability"
_STASH = b"user.overlay.imgfs.xattr."  # keeps an attribute whose own name its owner may not set
_FOREIGN_OPAQUE = b"user.fuseoverlayfs.opaque"
_RESERVED = (TRUSTED, USER, b"user.fuseoverlayfs.", OVERRIDE)
_LAST_ID = (1 << 32) - 1
_USER_XATTR_KINDS = (stat.S_IFREG, stat.S_IFDIR)  # user.* attributes cannot be on anything else (xattr(7))


class Owner(NamedTuple):
    """Owner and group of a file, and its twelve permission bits."""

    uid: int
    gid: int
    mode: int


class XattrFormat(NamedTuple):
    """How overlay xattrs are stored in one upper directory: the prefix, and if owners are kept in one."""

    prefix: bytes
    override: bool

    def overlay_name(self, key: bytes) -> bytes:
        """Return the full name of an overlay xattr."""
        return self.prefix + key

    def stored_name(self, name: bytes) -> bytes:
        """Under which name an attribute that users see is stored."""
        if name.startswith(b"user."):
            return name
        forbidden = self.override or (self.prefix == USER and name.startswith(b"trusted."))
        return _STASH + name if forbidden else name

    def can_hold(self, mode: int) -> bool:
        """Return True if a file of this kind can have overlay xattrs."""
        return self.prefix == TRUSTED or stat.S_IFMT(mode) in _USER_XATTR_KINDS

    def disk_mode(self, mode: int) -> int:
        """Return the permission bits on disk: users must be able to open their files whatever they show."""
        if not self.override or not self.can_hold(mode):
            return stat.S_IMODE(mode)
        return (mode & 0o777) | (0o700 if stat.S_ISDIR(mode) else 0o600)


def overlay_prefixes(root: Mapping[bytes, bytes]) -> tuple[bytes, ...]:
    """Return the prefixes of the overlay xattrs in an upper directory whose root has those attributes.

    Overlayfs with root's xattrs lets every user set `user.overlay.…`: these say nothing there. So they count
    only where the upper directory's root has no xattr of root's (overlayfs's `uuid` or `impure`, or imgfs's).
    """
    is_roots = any(name.startswith(TRUSTED) for name in root)
    return (TRUSTED,) if is_roots else (TRUSTED, USER)


def parse_overlay_xattrs(
    attributes: Mapping[bytes, bytes], prefixes: Sequence[bytes] = (TRUSTED, USER)
) -> dict[bytes, bytes]:
    """Return the overlay xattrs of a file, without their prefixes, which are among `prefixes`."""
    found = {}
    for name, value in attributes.items():
        for prefix in prefixes:
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = value
    if _FOREIGN_OPAQUE in attributes and USER in prefixes:
        found[OPAQUE] = b"y"
    return found


def read_override(attributes: Mapping[bytes, bytes]) -> Owner | None:
    """Return the owner and mode in `override_stat`, if there is one that makes sense."""
    fields = attributes.get(OVERRIDE, b"").split(b":")
    try:
        owner = Owner(int(fields[0]), int(fields[1]), int(fields[2], 8) & 0o7777)
    except (IndexError, ValueError):
        return None
    return owner if 0 <= owner.uid <= _LAST_ID and 0 <= owner.gid <= _LAST_ID else None


def format_override(owner: Owner) -> bytes:
    """`override_stat` as containers/storage writes it."""
    return b"%d:%d:0%o" % owner


def shown_xattrs(attributes: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the extended attributes that a user of the mount sees."""
    shown = {name: value for name, value in attributes.items() if not is_reserved(name)}
    stashed = (name for name in attributes if name.startswith(_STASH))
    return shown | {name.removeprefix(_STASH): attributes[name] for name in stashed}


def is_reserved(name: bytes) -> bool:
    """Return True if an attribute's name is for overlay xattrs only."""
    return name.startswith(_RESERVED)


def is_whiteout(found: os.stat_result) -> bool:
    """Return whether a file of the upper directory says that its name is deleted."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_whiteout_entry(entry: os.DirEntry[str]) -> bool:
    """Return True if a directory's entry is a whiteout; most are known not to be without a stat(2)."""
    if entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink():
        return False
    return is_whiteout(entry.stat(follow_symlinks=False))


def read_xattrs(path: bytes | int, *, follow: bool = False) -> dict[bytes, bytes]:
    """Return all extended attributes of a file; none where the file system has no notion of them."""
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    return {os.fsencode(name): os.getxattr(path, name, follow_symlinks=follow) for name in names}

"""POSIX ACLs as extended attributes: what a new file inherits; ACL and mode follow each other.

The value is a version and entries of (tag, permissions, id), little-endian (linux/posix_acl_xattr.h). On a
disk that keeps them the kernel does all of this itself; it is needed where an ACL is kept under another name,
and where a file is made elsewhere than in the directory that it is for (fs/posix_acl.c).
"""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<2HI")
_USER_OBJ, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x04, 0x10, 0x20  # tags (linux/posix_acl.h)
_ALL = stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO


class AclEntry(NamedTuple):
    """What one tag grants; `ident` is a user or group, or means nothing."""

    tag: int
    permissions: int
    ident: int


def parse_acl(value: bytes) -> list[AclEntry]:
    """Return the entries of an ACL; none if it is no ACL."""
    if value[:4] != _VERSION or len(value) % _ENTRY.size != len(_VERSION):
        return []
    return list(map(AclEntry._make, _ENTRY.iter_unpack(value[4:])))


def format_acl(entries: list[AclEntry]) -> bytes:
    """Return an ACL of these entries."""
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def says_more_than_mode(value: bytes) -> bool:
    """Return True if an ACL grants what twelve permission bits cannot say."""
    return any(entry.tag not in (_USER_OBJ, _GROUP_OBJ, _OTHER) for entry in parse_acl(value))


def inherit(default: bytes, mode: int) -> tuple[int, bytes]:
    """Return mode and access ACL of a file that is made with `mode` below a directory's default ACL.

    The mode takes away from what the ACL grants, and the other way round; the umask counts for nothing.
    """
    value = _masked(default, mode, keeps=True)
    return mode & ~_ALL | _permissions(value), value


def with_mode(value: bytes, mode: int) -> bytes:
    """Return an access ACL after a chmod(2) of its file."""
    return _masked(value, mode, keeps=False)


def mode_of(value: bytes, mode: int) -> int:
    """Return the mode of a file that had `mode` once it is given an access ACL."""
    return mode & ~_ALL | _permissions(value) if parse_acl(value) else mode


def _masked(value: bytes, mode: int, *, keeps: bool) -> bytes:
    """Return an ACL whose classes have the permissions of `mode`; with `keeps` none that they had not."""
    entries = parse_acl(value)
    shifts = _class_shifts(entries)
    return format_acl(
        [
            entry._replace(permissions=mode >> shifts[entry.tag] & (entry.permissions if keeps else 7))
            if entry.tag in shifts
            else entry
            for entry in entries
        ]
    )


def _permissions(value: bytes) -> int:
    entries = parse_acl(value)
    shifts = _class_shifts(entries)
    return sum((entry.permissions & 7) << shifts[entry.tag] for entry in entries if entry.tag in shifts)


def _class_shifts(entries: list[AclEntry]) -> dict[int, int]:
    """Return where in the mode the permissions of the owner, the group class and the others are, by tag."""
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    return {_USER_OBJ: 6, group: 3, _OTHER: 0}

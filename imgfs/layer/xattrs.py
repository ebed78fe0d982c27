"""Choose the extended attributes of a layer that Linux can keep.

An image made on another system has others (`com.apple.provenance`), and tar stores those of particular file
systems (`system.nfs4_acl`). Attributes that Linux cannot keep are dropped, as umoci, GNU tar and podman do on
ENOTSUP; imgfs drops them from the tree, and so from both drivers, listings and copies.
"""

from __future__ import annotations

from collections.abc import Mapping

from imgfs.errors import InvalidImage
from imgfs.layer.entry import Kind
from imgfs.layer.limits import XATTR_LIST_LIMIT, XATTR_NAME_LIMIT, XATTR_VALUE_LIMIT, XATTRS_LIMIT

_ANYWHERE = (b"trusted.", b"security.")
_ON_FILES = b"user."  # and directories: other files have no permission bits for it (xattr(7))
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"


def kept_xattrs(kind: Kind, xattrs: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return those of a file's attributes that Linux can keep; raises InvalidImage for one too long."""
    kept = {name: value for name, value in xattrs.items() if _is_kept(kind, name, value)}
    for name, value in kept.items():
        if len(name) > XATTR_NAME_LIMIT:
            raise InvalidImage(f"the name of an extended attribute is longer than {XATTR_NAME_LIMIT} bytes")
        if len(value) > XATTR_VALUE_LIMIT:
            raise InvalidImage(f"an extended attribute is longer than {XATTR_VALUE_LIMIT} bytes")
    if sum(len(name) + 1 for name in kept) > XATTR_LIST_LIMIT:
        raise InvalidImage(f"the names of its extended attributes are longer than {XATTR_LIST_LIMIT} bytes")
    if sum(4 + -(-(len(name) + len(value)) // 4) * 4 for name, value in kept.items()) > XATTRS_LIMIT:
        raise InvalidImage(f"its extended attributes are longer than {XATTRS_LIMIT} bytes")
    return kept


def _is_kept(kind: Kind, name: bytes, value: bytes) -> bool:
    if name.startswith(_ON_FILES):
        return kind in (Kind.FILE, Kind.DIRECTORY) and name != _ON_FILES
    if name == _ACCESS:
        return kind is not Kind.SYMLINK and _is_acl(value)
    if name == _DEFAULT:
        return kind is Kind.DIRECTORY and _is_acl(value)
    return any(name.startswith(prefix) and name != prefix for prefix in _ANYWHERE)


def _is_acl(value: bytes) -> bool:
    """Return True for an ACL as the kernel reads them: version 2, entries of 8 bytes (posix_acl_xattr.h)."""
    return len(value) % 8 == 4 and value.startswith(b"\2\0\0\0")

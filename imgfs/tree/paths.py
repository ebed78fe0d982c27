"""Paths as layers write them, and whiteouts' names (OCI layer.md, "Whiteouts")."""

from __future__ import annotations

from imgfs.errors import InvalidImage
from imgfs.layer.limits import NAME_LIMIT, PATH_LIMIT

LINK_LIMIT = 40  # symlinks followed on one path: Linux's MAXSYMLINKS
OPAQUE = b""  # `parse_whiteout`'s name for an opaque whiteout

WHITEOUT_PREFIX = b".wh."
_META_PREFIX = b".wh..wh."
_OPAQUE_MARKER = b".wh..wh..opq"


def clean(path: bytes) -> bytes:
    """Return `path` relative to the root, without `.`, `..` and empty components; b"" is the root.

    `..` removes the component before it, even a symlink, and stops at the root: as containerd and umoci do.
    Raises InvalidImage for a NUL and for paths longer than Linux allows (`layer.limits`).
    """
    if b"//" in path or b"/." in path or path[:1] in (b"", b".", b"/") or path[-1:] == b"/":
        path = b"/".join(_components(path))
    if b"\0" in path:
        raise InvalidImage("a path contains a NUL byte")
    if len(path) > NAME_LIMIT and max(map(len, path.split(b"/"))) > NAME_LIMIT:
        raise InvalidImage(f"a component of the path is longer than {NAME_LIMIT} bytes")
    if len(path) > PATH_LIMIT:
        raise InvalidImage(f"a path is longer than {PATH_LIMIT} bytes")
    return path


def is_reserved(path: bytes) -> bool:
    """Return True if the clean `path` is, or lies below, a whiteout or AUFS metadata: it never shows.

    Raises InvalidImage for a whiteout of nothing (`.wh.`), of `.` or of `..`.
    """
    if WHITEOUT_PREFIX not in path:
        return False
    parts = path.split(b"/")
    if parts[-1] in (WHITEOUT_PREFIX, b".wh..", b".wh..."):
        raise InvalidImage(f"the whiteout {parts[-1].decode()} names no file")
    return any(part.startswith(WHITEOUT_PREFIX) for part in parts)


def parse_whiteout(path: bytes) -> tuple[bytes, bytes] | None:
    """Return (directory, name) that the clean `path` hides in the layers below; None if it is no whiteout.

    The name is OPAQUE where everything in the directory is hidden. Other `.wh..wh.*` are AUFS metadata.
    """
    directory, _, name = path.rpartition(b"/")
    if not name.startswith(WHITEOUT_PREFIX) or not is_reserved(path) or is_reserved(directory):
        return None
    if name == _OPAQUE_MARKER:
        return directory, OPAQUE
    return None if name.startswith(_META_PREFIX) else (directory, name.removeprefix(WHITEOUT_PREFIX))


def shown(path: bytes) -> str:
    """Format `path` for a message: one line, at most about 200 characters."""
    text = path.decode("utf-8", "backslashreplace")
    text = text if text.isprintable() else ascii(text)[1:-1]
    return f"{text[:100]}…{text[-100:]}" if len(text) > 201 else text


def _components(path: bytes) -> list[bytes]:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts

"""Paths as layers write them: cleaned, whiteouts (OCI layer.md, "Whiteouts"), and what paths may cost."""

from __future__ import annotations

from imgfs.errors import InvalidImage
from imgfs.layer.limits import (
    COMPONENTS_EACH,
    COMPONENTS_MORE,
    IMPLIED_EACH,
    IMPLIED_MORE,
    NAME_LIMIT,
    PATH_LIMIT,
)

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
    path = path.removeprefix(b"./").removesuffix(b"/")  # as they usually come
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


class Budget:
    """Counts components looked up and directories implied; the limits grow with the entries merged so far.

    A compressed layer can hold millions of components in a few kilobytes; in real layers an entry's parents
    exist, or the entry implies a few of them.
    """

    def __init__(self) -> None:
        self._entries = 0
        self._components = 0
        self._implied = 0

    def add_entry(self) -> None:
        """Count an entry, which raises both limits."""
        self._entries += 1

    def look_up(self, components: int) -> None:
        """Count components about to be looked up; raises InvalidImage if they are too many."""
        self._components += components
        most = COMPONENTS_MORE + COMPONENTS_EACH * self._entries
        if self._components > most:
            raise InvalidImage(f"the paths so far have more than the {most} components allowed to them")

    def imply(self) -> None:
        """Count a directory that no entry describes; raises InvalidImage if they are too many."""
        self._implied += 1
        most = IMPLIED_MORE + IMPLIED_EACH * self._entries
        if self._implied > most:
            raise InvalidImage(f"the paths so far imply more than the {most} directories allowed to them")

"""The file system `imgfs://` for fsspec: an image's files, read-only, for programs that read by URL.

A URL is `imgfs://IMAGE:PATH`, as the command line has it; `imgfs://PATH` where the image is the option
`image`. An instance is of one image, which it opens when it is first used; its paths begin with `/`.

A symbolic link counts as the file that it leads to. One to a directory is of the type "link" in listings, so
that no walk runs in circles; one that leads nowhere too. Devices, FIFOs and sockets are of the type "other".
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as modes
import threading
from datetime import UTC, datetime
from typing import Any, BinaryIO, NoReturn

from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from imgfs.api import open_image
from imgfs.api.entries import FileStat
from imgfs.api.image import Image
from imgfs.cli.paths import split_image
from imgfs.errors import UsageError
from imgfs.tree.reader import leads_nowhere

_SCHEME = "imgfs://"
_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # seconds since 1970: the years 1 to 9999


class ImgfsFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no annotations
    """The files of an image. The options are those of `imgfs.open`; any thread may use it."""

    protocol = "imgfs"
    root_marker = "/"

    def __init__(self, image: str | None = None, **options: Any) -> None:
        super().__init__(**{name: value for name, value in options.items() if name not in _OPTIONS})
        if not image:
            raise UsageError("which image? imgfs://IMAGE:/PATH, or the option image=")
        self.reference = image
        self._options = {name: value for name, value in options.items() if name in _OPTIONS}
        self._lock = threading.Lock()
        self._image: Image | None = None

    @property
    def image(self) -> Image:
        """Return the image, opened when it is first asked for; raises ImgfsError."""
        with self._lock:
            if self._image is None or self._image.closed:
                self._image = open_image(self.reference, **self._options)
            return self._image

    def close(self) -> None:
        """Close the image; it is opened again when it is needed."""
        with self._lock:
            if self._image is not None:
                self._image.close()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """Return the path inside the image, without a slash at its end."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        _, inside = _split(stringify_path(path))
        return "/" + inside.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        image, _ = _split(path)
        return {"image": image} if image else {}

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""
        return f"{_SCHEME}{self.reference}:{self._strip_protocol(name)}"

    @property
    def fsid(self) -> str:
        """Return a name of the file system that is the same wherever the image is the same."""
        return f"imgfs_{self.image.digest}"

    def ukey(self, path: str) -> str:
        """Return a key that changes with the file."""
        return hashlib.sha256(f"{self.image.digest}{self.info(path)}".encode(errors="replace")).hexdigest()

    def ls(self, path: str, detail: bool = True, **_: object) -> list[Any]:
        """List a directory, or the file itself; with `detail` as `info` tells of each."""
        path = self._strip_protocol(path)
        if not self.image.is_dir(path):
            found = self.info(path)
            return [found if detail else path]
        entries = self.image.scandir(path)
        if not detail:
            return [entry.path for entry in entries]
        return [self._described(entry.path, entry.stat(follow_symlinks=False)) for entry in entries]

    def info(self, path: str, **_: object) -> dict[str, Any]:
        """Tell of a file: name, type, size, mode, uid, gid, mtime, nlink, ino, layer, islink.

        Of a link also its destination. Raises FileNotFoundError.
        """
        path = self._strip_protocol(path)
        return self._described(path, self.image.stat(path, follow_symlinks=False))

    def exists(self, path: str, **_: object) -> bool:
        """Return True if there is a file, links followed."""
        return self.image.exists(self._strip_protocol(path))

    def lexists(self, path: str, **_: object) -> bool:
        """Return True if there is a file, or a link that leads nowhere."""
        try:
            self.info(path)
        except OSError as error:
            if leads_nowhere(error):
                return False
            raise
        return True

    def isdir(self, path: str) -> bool:
        """Return True for a directory, or a link to one."""
        return self.image.is_dir(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        """Return True for a regular file, or a link to one."""
        return self.image.is_file(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
        """Return a file's bytes, or those from `start` to `end`, which count from the end if negative."""
        path = self._strip_protocol(path)
        if start is None and end is None:
            return self.image.read_bytes(path)
        first, last, _step = slice(start, end).indices(self.image.stat(path).st_size)
        return self.image.read_bytes(path, first, max(0, last - first))

    def created(self, path: str) -> datetime:
        """Return the time of a file's last modification: layers keep no other."""
        return self.modified(path)

    def modified(self, path: str) -> datetime:
        """Return the time of a file's last modification; beyond the calendar its first or last second."""
        seconds = self.image.stat(self._strip_protocol(path)).st_mtime
        return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: object) -> BinaryIO:
        if mode != "rb":
            self._refuse(path)
        return self.image.open(path, "rb", -1 if block_size is None else max(2, block_size))

    def _refuse(self, path: str, *_: object, **__: object) -> NoReturn:
        """Refuse to change anything."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    mkdir = makedirs = rmdir = _rm = cp_file = _refuse

    def _described(self, path: str, found: FileStat) -> dict[str, Any]:
        is_link = modes.S_ISLNK(found.st_mode)
        target = self._target(path) if is_link else found
        described = {
            "name": path,
            "type": _type(target, is_link=is_link),
            "size": (target or found).st_size,
            "mode": found.st_mode,
            "uid": found.st_uid,
            "gid": found.st_gid,
            "mtime": found.st_mtime,
            "nlink": found.st_nlink,
            "ino": found.st_ino,
            "layer": found.layer,
            "islink": is_link,
        }
        return described | ({"destination": self.image.readlink(path)} if is_link else {})

    def _target(self, path: str) -> FileStat | None:
        """Return what a link leads to, None if that is nothing."""
        try:
            return self.image.stat(path)
        except OSError as error:
            if leads_nowhere(error):
                return None
            raise


_OPTIONS = {"platform", "index", "offline", "store", "plain_http", "tls_ca", "insecure", "read_timeout"}


def _split(url: str) -> tuple[str, str]:
    """Split a URL into image and path; one without the scheme is a path."""
    if not url.startswith(_SCHEME):
        return "", url.removeprefix("imgfs::")
    image, inside = split_image(url.removeprefix(_SCHEME))
    return ("", image) if inside is None else (image, inside)


def _type(found: FileStat | None, *, is_link: bool) -> str:
    if found and modes.S_ISREG(found.st_mode):
        return "file"
    if is_link:
        return "link"
    return "directory" if found and modes.S_ISDIR(found.st_mode) else "other"

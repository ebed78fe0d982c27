"""An opened image, for Python programs: its files as `os` and `pathlib` would show them.

Paths are text or bytes, absolute or not: they begin at the image's root, and their symbolic links lead inside
the image. Names that are not UTF-8 are text as `os.fsdecode` makes it.
"""

from __future__ import annotations

import errno
import io
import os
import stat as modes
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import IO, BinaryIO, Literal, TextIO, cast, overload

from imgfs.api.entries import AnyPath, DirectoryEntry, FileStat, ImageLayer, path_error
from imgfs.api.reading import ReadingFile, is_text_mode
from imgfs.image.image import Image as OpenedImage
from imgfs.image.versions import Step
from imgfs.layer.entry import Extent
from imgfs.tree.database import Node
from imgfs.tree.reader import leads_nowhere

_BUFFER = 128 * 1024  # bytes: what the kernel reads ahead of a program, too
_BATCH = 1024  # names of a directory that are read at once
_DEPTH = 4096  # directories in a path: bounds an imported tree with cycles
_READ = 1 << 20  # bytes of a file that are read at once


class Image(AbstractContextManager["Image"]):
    """An image whose files can be looked at and read. `imgfs.open` makes it.

    Any thread may use it. What concerns a path raises OSError as the system's calls do (FileNotFoundError,
    NotADirectoryError, IsADirectoryError, …); a registry that fails, or bytes that do not match their digest,
    raise ImgfsError; a closed image raises ValueError.
    """

    def __init__(self, opened: OpenedImage, steps: list[Step], stack: ExitStack) -> None:
        self._opened = opened
        self._stack = stack
        self._steps = tuple(steps)
        self._changed = threading.Condition()
        self._users = 0
        self._closing: Future[None] = Future()  # settled by `close`: no read waits longer

    @property
    def reference(self) -> str:
        """Return the image's full name."""
        return self._opened.resolved.reference

    @property
    def digest(self) -> str:
        """Return the digest of the manifest."""
        return str(self._opened.resolved.digest)

    @property
    def platform(self) -> str:
        """Return the platform that the image is for, like `linux/amd64`."""
        return str(self._opened.resolved.config.platform)

    @property
    def config(self) -> Mapping[str, object]:
        """Return the image's configuration (OCI image-spec, config.md): `config`, `rootfs`, `history`, …"""
        return self._opened.resolved.config.raw

    @property
    def layers(self) -> tuple[ImageLayer, ...]:
        """Return the layers, the lowest first."""
        resolved = self._opened.resolved
        pairs = zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True)
        return tuple(
            ImageLayer(number, str(layer.digest), str(diff_id), layer.size, layer.media_type)
            for number, (layer, diff_id) in enumerate(pairs, 1)
        )

    @property
    def history(self) -> tuple[Step, ...]:
        """Return the steps that made the image, the oldest first."""
        return self._steps

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> FileStat:
        """Return what the image says of a file."""
        with self._use() as opened:
            node = self._node(opened, path, follow=follow_symlinks)
        return self._stat(node)

    def _stat(self, node: Node) -> FileStat:
        with self._use() as opened:
            layer = opened.tree.contents(node.ino)[0] + 1
        sizes = node.mode, node.ino, node.nlink, node.uid, node.gid, node.size
        return FileStat(*sizes, node.mtime_ns, node.device, layer)

    def exists(self, path: AnyPath) -> bool:
        """Return True if there is a file at `path`, symbolic links followed."""
        return self._mode(path) != 0

    def is_dir(self, path: AnyPath) -> bool:
        """Return True if there is a directory at `path`, symbolic links followed."""
        return modes.S_ISDIR(self._mode(path))

    def is_file(self, path: AnyPath) -> bool:
        """Return True if there is a regular file at `path`, symbolic links followed."""
        return modes.S_ISREG(self._mode(path))

    def listdir(self, path: AnyPath = "/") -> list[str]:
        """Return the names in a directory, in the order of their bytes."""
        return [entry.name for entry in self.scandir(path)]

    def scandir(self, path: AnyPath = "/") -> Iterator[DirectoryEntry]:
        """Yield the entries of a directory, in the order of their names' bytes.

        They are read as the caller iterates; errors are raised by this call.
        """
        with self._use() as opened:
            node = self._node(opened, path, follow=True)
            if not modes.S_ISDIR(node.mode):
                raise path_error(errno.ENOTDIR, path)
        return self._scan(node.ino, os.fsdecode(path))

    def walk(
        self, top: AnyPath = "/", *, onerror: Callable[[OSError], object] | None = None
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, names of directories, names of others) from `top` down, as `os.walk` does.

        Parents come first, and the caller may take names of directories out of the list; symbolic links
        are listed as `os.walk` lists them and never followed. Errors are passed to `onerror`, if there is
        one.
        """
        ahead = [(os.fsdecode(top), 0)]
        while ahead:
            directory, depth = ahead.pop()
            try:
                if depth > _DEPTH:
                    raise path_error(errno.ELOOP, directory)
                entries = list(self.scandir(directory))
            except OSError as error:
                if onerror:
                    onerror(error)
                continue
            below = [entry.name for entry in entries if entry.is_dir()]
            links, known = {entry.name for entry in entries if entry.is_symlink()}, set(below)
            yield directory, below, [entry.name for entry in entries if entry.name not in known]
            ahead += [
                (os.path.join(directory, name), depth + 1) for name in reversed(below) if name not in links
            ]

    @overload
    def open(self, path: AnyPath, mode: Literal["rb", "br"] = ..., buffering: int = ...) -> BinaryIO: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: Literal["r", "rt", "tr"],
        buffering: int = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        newline: str | None = ...,
    ) -> TextIO: ...
    @overload
    def open(
        self,
        path: AnyPath,
        mode: str,
        buffering: int = ...,
        encoding: str | None = ...,
        errors: str | None = ...,
        newline: str | None = ...,
    ) -> IO[bytes] | IO[str]: ...
    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[bytes] | IO[str]:
        """Open a file for reading: a seekable binary file object, or a text file if the mode is `r`.

        Nothing is fetched before it is read. `buffering` is the size of the buffer, 128 KiB by default, 0 for
        none. Text is UTF-8 if no encoding is given. A mode that writes raises OSError: EROFS.
        """
        is_text = is_text_mode(path, mode, buffering)
        raw = self._reading(path)
        if buffering == 0:
            return cast(BinaryIO, raw)
        buffered = io.BufferedReader(raw, buffering if buffering > 1 else _BUFFER)
        if is_text:
            return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)
        return buffered

    def read_bytes(self, path: AnyPath, offset: int = 0, size: int = -1) -> bytes:
        """Return a file's bytes: all of them, or `size` from an `offset` on, fewer at the end."""
        if offset < 0:
            raise ValueError(f"negative offset: {offset}")
        with self._reading(path) as raw:
            raw.seek(offset)
            if size < 0:
                return raw.readall()
            parts = []
            while size > 0 and (part := raw.read(min(size, _READ))):
                parts.append(part)
                size -= len(part)
            return b"".join(parts)

    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return a file's text."""
        return self.read_bytes(path).decode(encoding, errors)

    def readlink(self, path: AnyPath) -> str:
        """Return a symbolic link's target; raises OSError: EINVAL for another file."""
        with self._use() as opened:
            node = self._node(opened, path, follow=False)
            if not modes.S_ISLNK(node.mode):
                raise path_error(errno.EINVAL, path)
            return os.fsdecode(opened.tree.target(node.ino))

    def xattrs(self, path: AnyPath, *, follow_symlinks: bool = True) -> dict[str, bytes]:
        """Return the extended attributes of a file, by name."""
        with self._use() as opened:
            node = self._node(opened, path, follow=follow_symlinks)
            found = opened.tree.xattrs(node.ino) if node.has_xattrs else {}
        return {os.fsdecode(name): value for name, value in found.items()}

    def close(self) -> None:
        """Close the image; reads in other threads that wait for the registry fail with ValueError."""
        with self._changed:
            if not self._closing.done():
                self._closing.set_result(None)
            self._changed.wait_for(lambda: not self._users)
            stack = self._stack.pop_all()
        stack.close()

    @property
    def closed(self) -> bool:
        """Return True once it is closed."""
        return self._closing.done()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<imgfs.Image {self.reference!r}{' (closed)' if self.closed else ''}>"

    @contextmanager
    def _use(self) -> Iterator[OpenedImage]:
        """Keep it open meanwhile."""
        with self._changed:
            self._check_open()
            self._users += 1
        try:
            yield self._opened
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the image is closed")

    def _mode(self, path: AnyPath) -> int:
        """Return a file's mode, 0 if there is none."""
        try:
            with self._use() as opened:
                return self._node(opened, path, follow=True).mode
        except OSError as error:
            if leads_nowhere(error):
                return 0
            raise

    @staticmethod
    def _node(opened: OpenedImage, path: AnyPath, *, follow: bool) -> Node:
        words = os.fsencode(path)
        try:
            return opened.tree.resolve(words, follow=follow or words.endswith(b"/"))
        except OSError as error:
            raise path_error(error.errno or errno.EIO, path) from error

    def _scan(self, ino: int, directory: str) -> Iterator[DirectoryEntry]:
        position = 0
        while True:
            with self._use() as opened:
                batch = list(islice(opened.tree.children(ino, position), _BATCH))
            for _, name, node in batch:
                yield DirectoryEntry(self, directory, os.fsdecode(name), node)
            if len(batch) < _BATCH:
                return
            position = batch[-1][0]

    def _reading(self, path: AnyPath) -> ReadingFile:
        with self._use() as opened:
            node = self._node(opened, path, follow=True)
            if not modes.S_ISREG(node.mode):
                raise path_error(errno.EISDIR if modes.S_ISDIR(node.mode) else errno.EINVAL, path)
            layer, extents, size = opened.tree.contents(node.ino)
            with self._changed:  # one thread at a time
                opened.content.opened(node.ino)
        return ReadingFile(os.fsdecode(path), size, partial(self._read, layer, extents))

    def _read(self, layer: int, extents: tuple[Extent, ...], offset: int, length: int) -> bytes:
        try:
            with self._use() as opened:
                return opened.content.read(layer, extents, offset, length, self._closing)
        except InterruptedError as error:
            raise ValueError("the image is closed") from error

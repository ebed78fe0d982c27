"""A layer that podman has unpacked, as the tar it came from: put together again where it is read.

Beside an unpacked layer containers/storage keeps what tar-split (vbatts/tar-split, tar/storage) made of its
tar: lines of JSON, each a segment (type 2: these bytes) or a file (type 1: so many bytes of the file of this
name). Their order is that of the tar. Whether the files are still what they were, the DiffID tells.
"""

from __future__ import annotations

import array
import base64
import os
import stat
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, Unavailable
from imgfs.layer.codec.blob import decoder
from imgfs.layer.limits import EXTENSION_LIMIT
from imgfs.oci.fields import object_at, parse_json
from imgfs.syscalls import open_in_root
from imgfs.transport.files import CHUNK, RegularFile, StoredFile

_SEGMENT, _FILE = 2, 1  # tar/storage/entry.go
_LINE = 4 * EXTENSION_LIMIT  # bytes: a segment is a header with its extensions, or padding, in base64


class _Run(NamedTuple):
    """Bytes of the tar from `start` on: those kept in a segment, or a file's."""

    start: int
    length: int
    kept: int  # where the segment's bytes, or the file's name, are kept
    kept_length: int
    is_file: bool


class TarSplit:
    """A layer's tar, out of its split at `path` and the files in `diff`. Safe in threads."""

    def __init__(self, path: Path, diff: Path) -> None:
        self._path = path
        self._diff = diff
        self._kept = tempfile.TemporaryFile(prefix="imgfs-split-")  # noqa: SIM115 - headers: may be many
        self._starts = array.array("q")
        self._rows = array.array("q")  # of four: length, kept, kept_length, is_file
        self.size = 0
        try:
            self._read()
            self._top = os.open(diff, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._kept.close()
            raise _unavailable(diff, error) from error
        except BaseException:
            self._kept.close()
            raise

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of the tar; raises Unavailable, InvalidImage."""
        number = bisect_right(self._starts, start) - 1
        while start < end:
            run = self._run(number)
            skip, stop = start - run.start, min(run.length, end - run.start)
            if stop > skip:
                body = os.pread(self._kept.fileno(), run.kept_length, run.kept)
                if run.is_file:
                    yield from self._file(body, skip, stop)
                else:
                    yield body[skip:stop]
                start = run.start + stop
            number += 1

    def close(self) -> None:
        """Close its files."""
        self._kept.close()
        os.close(self._top)

    def _run(self, number: int) -> _Run:
        length, kept, kept_length, is_file = self._rows[4 * number : 4 * number + 4]
        return _Run(self._starts[number], length, kept, kept_length, bool(is_file))

    def _file(self, name: bytes, start: int, end: int) -> Iterator[bytes]:
        path = self._diff / os.fsdecode(name)
        try:
            fd = open_in_root(self._top, os.fsdecode(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise InvalidImage("not a regular file any more", where=str(path))
                while start < end:
                    chunk = os.pread(fd, min(CHUNK, end - start), start)
                    if not chunk:
                        raise InvalidImage("shorter than it was", where=str(path))
                    start += len(chunk)
                    yield chunk
            finally:
                os.close(fd)
        except OSError as error:
            raise _unavailable(path, error) from error

    def _read(self) -> None:
        kept = 0
        for number, line in enumerate(_lines(self._path)):
            where = f"{self._path}: line {number + 1}"
            fields = object_at(parse_json(line, where), where)
            try:
                body, length, is_file = _parsed(fields)
            except (ValueError, TypeError) as error:
                raise InvalidImage("not an entry of a tar-split", where=where) from error
            if length:
                self._kept.write(body)
                self._starts.append(self.size)
                self._rows.extend((length, kept, len(body), is_file))
                self.size += length
                kept += len(body)
        self._kept.flush()


class TarSplitFile(StoredFile):
    """The tar of `split`, which stays open."""

    def __init__(self, split: TarSplit) -> None:
        self._split = split
        self.size = split.size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield its bytes."""
        return self._split.read(start, end)

    def close(self) -> None:
        """Leave the split open."""


def _parsed(fields: dict[str, object]) -> tuple[bytes, int, bool]:
    """Return a segment's bytes or a file's name, how many bytes of the tar it stands for, and which it is."""
    kind, size = fields.get("type"), fields.get("size", 0)
    if kind == _SEGMENT:
        body = base64.b64decode(str(fields.get("payload") or ""), validate=True)
        return body, len(body), False
    if kind != _FILE or not isinstance(size, int) or not 0 <= size < 1 << 62:
        raise ValueError(f"type {kind}, size {size}")
    raw = fields.get("name_raw")
    name = base64.b64decode(str(raw), validate=True) if raw else str(fields.get("name", "")).encode()
    if b"\0" in name:
        raise ValueError("a NUL in a name")
    return name, size, True


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a gzip file; raises InvalidImage for one that is too long."""
    decode = decoder("gzip", lambda _: None)
    held = bytearray()
    with RegularFile(path) as file:
        for chunk in file.read(0, file.size):
            for piece in decode.pieces(chunk):
                held += piece
                *lines, rest = bytes(held).split(b"\n")
                yield from filter(None, lines)
                held = bytearray(rest)
                if len(held) > _LINE:
                    raise InvalidImage("a line that is too long", where=str(path))
    decode.finish()
    if held:
        yield bytes(held)


def _unavailable(path: Path, error: OSError) -> Unavailable:
    hint = "; a rootless store is read inside `podman unshare`" if isinstance(error, PermissionError) else ""
    return Unavailable(f"{path}: {error.strerror or error}{hint}")

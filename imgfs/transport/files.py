"""Files of this machine that hold an image: in a directory, or members of a tar archive; and their source.

Others may have made them, and may be writing to them: what is no file, or goes away, is an error of a source.
Nothing of an archive is unpacked: a member is a range of it.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

from imgfs.errors import InvalidImage, NotFound, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.endpoint import MAX_DOCUMENT, Traffic
from imgfs.transport.source import check_document_size, check_size, inline

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus

CHUNK = 1 << 20  # bytes read of a file at once


class StoredFile(ABC):
    """An open file of an image: a context manager. `size` is in bytes."""

    size: int

    @abstractmethod
    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)`, which it has, in chunks; raises Unavailable, InvalidImage."""

    @abstractmethod
    def close(self) -> None:
        """Close it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Files(Protocol):
    """The files of an image, by their names with `/` between the parts. Safe in threads."""

    def path(self, name: str) -> str:
        """Return what messages call a file."""

    def open(self, name: str) -> StoredFile:
        """Open a file; raises NotFound if there is none, InvalidImage if it is another thing."""

    def close(self) -> None:
        """Let go of open files."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file that is one: a FIFO would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidImage("not a regular file", where=str(path))
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def read_whole(files: Files, name: str, limit: int) -> bytes:
    """Return the bytes of a file; raises InvalidImage if it has more than `limit`."""
    with files.open(name) as file:
        if file.size > limit:
            raise InvalidImage(f"more than {limit} bytes long", where=files.path(name))
        return b"".join(file.read(0, file.size))


class RegularFile(StoredFile):
    """A file in a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_regular(path)
        self.size = os.fstat(self._file.fileno()).st_size

    @property
    def identity(self) -> tuple[int, ...]:
        """Return what tells it from other files, and from itself once it is changed."""
        found = os.fstat(self._file.fileno())
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def at(self, start: int, length: int) -> bytes:
        """Return the bytes at `start`: fewer than `length` only at the end. Raises Unavailable."""
        try:
            return os.pread(self._file.fileno(), length, start)
        except OSError as error:
            raise Unavailable(f"{self._path}: {error.strerror}") from error

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `[start, end)`; the position of the open file stays."""
        while start < end:
            chunk = self.at(start, min(CHUNK, end - start))
            if not chunk:
                raise Unavailable(f"{self._path}: became shorter while it was read")
            start += len(chunk)
            yield chunk

    def close(self) -> None:
        """Close it."""
        self._file.close()


class Directory:
    """The files in a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def path(self, name: str) -> str:
        """Return its path."""
        return str(self._path / name)

    def open(self, name: str) -> StoredFile:
        """Open it."""
        return RegularFile(self._path / name)

    def close(self) -> None:
        """Nothing is kept open."""


class FilesSource:
    """An image in files: what its sources share. `place` is what messages call it.

    A subclass says how its reference is resolved, and which file a digest is in.
    """

    def __init__(self, files: Files, place: str) -> None:
        self._files = files
        self._place = place
        self._bytes = 0

    def name_of(self, digest: Digest) -> str:
        """Return the name of the file with a blob or document; raises NotFound if it can be in none."""
        raise NotImplementedError

    def made(self, digest: Digest) -> bytes | None:
        """Return a document that is in no file, but made of what the files say; None for all others."""
        del digest
        return None

    def open_blob(self, digest: Digest) -> StoredFile:
        """Open the file with a blob."""
        return self._files.open(self.name_of(digest))

    def tagged(self, tag: str) -> Descriptor:
        """Nothing is kept beside the image."""
        raise NotFound(f"{self._place} has no tag {tag!r}")

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return nothing: nothing is kept beside the image."""
        del digest, artifact_type
        return []

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a document, and check its digest."""
        body = self._carried(descriptor)
        if body is None:
            check_document_size(descriptor)
            body = self.read_small(self.name_of(descriptor.digest), MAX_DOCUMENT)
            check_size(descriptor, len(body))
            descriptor.digest.verify(body, f"digest of a document in {self._place}")
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Read a piece of a blob."""
        end = descriptor.size if end is None else end
        if not 0 <= start <= end <= descriptor.size:
            raise InvalidImage(f"bytes {start}-{end} of {descriptor.size}", where=str(descriptor.digest))
        body = self._carried(descriptor)
        if body is not None:
            yield body[start:end]
            return
        with self.open_blob(descriptor.digest) as file:
            check_size(descriptor, file.size)
            for chunk in file.read(start, end):
                self._bytes += len(chunk)
                yield chunk

    def _carried(self, descriptor: Descriptor) -> bytes | None:
        """Return what needs no file."""
        body = inline(descriptor)
        return self.made(descriptor.digest) if body is None else body

    def read_small(self, name: str, limit: int) -> bytes:
        """Read a file whole; raises InvalidImage if it has more than `limit` bytes."""
        body = read_whole(self._files, name, limit)
        self._bytes += len(body)
        return body

    def ignores_ranges(self, _descriptor: Descriptor) -> bool:
        """Return False: a file is read at any offset."""
        return False

    def doubt(self, _descriptor: Descriptor) -> bool:
        """There is no other place for its blobs."""
        return False

    def peers(self) -> None:
        """Return None: the image is on this machine."""

    def traffic(self) -> Traffic:
        """Return bytes read of files; there are no requests."""
        return Traffic(0, self._bytes)

    def health(self) -> list[EndpointStatus]:
        """Nothing that could be away."""
        return []

    def expect(self, _requests: int) -> None:
        """There are no connections."""

    def close(self) -> None:
        """Let go of open files."""
        self._files.close()

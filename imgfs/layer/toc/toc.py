"""Turn the JSON table of contents of eStargz and zstd:chunked into entries and spans.

Both formats have the same one (eStargz specification, "TOC, TOCEntries and footer"; containers/storage,
`pkg/chunked/internal/minimal`), each with fields of its own. Zero fields are left out of it.

A table is at a blob's end, before a footer: one request for a generous tail (`fetch_tail`) brings both. Its
readers do no I/O: they yield ranges of the blob and are sent the bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple, TypeVar

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.layer.entry import Codec, Entry, Kind, Span
from imgfs.layer.tar.header import check_owner
from imgfs.layer.toc.document import (
    Fields,
    chunk_digest,
    device_in,
    number_in,
    path_in,
    time_in,
    toc_fields,
    xattrs_in,
)
from imgfs.layer.toc.extents import TocChunk, extents_of, lay_out

_T = TypeVar("_T")

Range = tuple[int, int]  # [start, end) in the blob
Fetch = Generator[Range, bytes, _T]  # yields ranges, is sent exactly their bytes, returns what they hold

# As ctr-remote writes them, a table takes 0.6 % of a layer of Debian, 7 % of one of small files
# (node_modules). A 64th brings the former in one request and leaves what is fetched before the first file is
# read below 2 % of the image. 64 KiB take hardly longer than a few bytes; 1 MiB, at 100 Mbit/s, as long as
# another request.
_TAIL_SHARE = 64
_LEAST_TAIL, _MOST_TAIL = 64 << 10, 1 << 20
TOC_NAME = "stargz.index.json"
_PREFETCH, _NO_PREFETCH = ".prefetch.landmark", ".no.prefetch.landmark"
_HIDDEN = frozenset(
    (TOC_NAME, _PREFETCH, _NO_PREFETCH)
)  # at the root: eStargz, "Prioritized Files and Landmarks"

_KINDS = {
    "reg": Kind.FILE,
    "dir": Kind.DIRECTORY,
    "symlink": Kind.SYMLINK,
    "hardlink": Kind.HARDLINK,
    "char": Kind.CHARACTER,
    "block": Kind.BLOCK,
    "fifo": Kind.FIFO,
}
_LINKS = frozenset((Kind.SYMLINK, Kind.HARDLINK))
_DEVICES = frozenset((Kind.CHARACTER, Kind.BLOCK))
_ZEROS = "zeros"  # a chunkType (containers/storage, ChunkTypeZeros)


class Tail(NamedTuple):
    """The end of a blob, from `start` on."""

    start: int
    body: bytes

    def range(self, start: int, end: int) -> Fetch[bytes]:
        """Yield the bytes [start, end); `end` must lie in the tail. What is before it is fetched."""
        here = self.body[max(0, start - self.start) : end - self.start]
        if start >= self.start:
            return here
        return (yield from fetch(start, self.start)) + here


def fetch(start: int, end: int) -> Fetch[bytes]:
    """Yield the bytes [start, end); IntegrityError if fewer or more were sent."""
    body = yield start, end
    if len(body) != end - start:
        raise IntegrityError(
            f"length of bytes {start} to {end} of a layer", expected=end - start, actual=len(body)
        )
    return body


def fetch_tail(size: int) -> Fetch[Tail]:
    """Yield the end of a blob of `size` bytes, as much of it as a table of contents is likely to take."""
    length = min(size, max(_LEAST_TAIL, min(size // _TAIL_SHARE, _MOST_TAIL)))
    return Tail(size - length, (yield from fetch(size - length, size)))


class Toc(NamedTuple):
    """A layer as its table of contents has it.

    `entries` are in its order, without the format's own files. `flat_size` is in bytes. `prefetch_end` is
    where in the blob the bytes end that eStargz asks to prefetch: 0 for none, None if it says nothing.
    """

    entries: list[Entry]
    spans: list[Span]
    flat_size: int
    prefetch_end: int | None


def read_toc(body: bytes, *, codec: Codec, end: int) -> Toc:
    """Read a table of contents whose digest is right already.

    `end` is where in the blob the chunks end at the latest: where the table begins. Each compressed range
    is one span, its `parts` the digests. Raises InvalidImage naming the entry.
    """
    files = deque(_files(body))
    hidden = {file.name: file for file in files if file.name in _HIDDEN}
    chunks = [chunk for file in files for chunk in _wanted(file)]
    spans, flat_size, flat_offsets = lay_out(chunks, codec, end)
    del chunks
    entries = []
    while files:  # each is let go of as soon as it is an entry: there may be millions
        file = files.popleft()
        if file.name not in hidden:
            extents = extents_of(file.chunks, flat_offsets) if file.chunks else ()
            entries.append(Entry._make((*file.head[:-1], extents)))
    return Toc(entries, spans, flat_size, _prefetch_end(hidden))


def is_own(path: bytes) -> bool:
    """Return True if an entry is one of the format's own files, which no tree shows."""
    return path.decode("utf-8", "replace").removeprefix("./").lstrip("/") in _HIDDEN


class _File(NamedTuple):
    """What an entry has but its extents; its name as far as that could be one to hide; and its chunks."""

    name: str
    size: int
    head: Entry
    chunks: list[TocChunk]


def _wanted(file: _File) -> list[TocChunk]:
    """Return the file's chunks; those of the format's own only mark where others end."""
    if file.name in _HIDDEN:
        return [chunk._replace(digest=b"") for chunk in file.chunks]
    return file.chunks


def _prefetch_end(hidden: Mapping[str, _File]) -> int | None:
    """Return where the landmark is: a file of one byte behind all that is to be prefetched."""
    if _PREFETCH in hidden and hidden[_PREFETCH].chunks:
        return hidden[_PREFETCH].chunks[0].start
    return 0 if _NO_PREFETCH in hidden else None


def _files(body: bytes) -> Iterator[_File]:
    """Yield each entry with the chunks that follow it."""
    file: _File | None = None
    for number, fields in enumerate(toc_fields(body)):
        try:
            if fields.get("type") == "chunk":
                _add_chunk(file, fields)
                continue
            done, file = file, _file(fields)
        except InvalidImage as error:
            raise InvalidImage(str(error), where=f"TOC.entries[{number}]") from error
        if done:
            yield _whole(done)
    if file:
        yield _whole(file)


def _file(fields: Fields) -> _File:
    kind = _kind(fields.get("type"))
    size = number_in(fields, "size") if kind is Kind.FILE else 0
    name, path = path_in(fields, "name")
    head = Entry(
        path,
        kind,
        number_in(fields, "mode") & 0o7777,  # tar's mode: type bits may stand above
        check_owner(number_in(fields, "uid", -(1 << 31))),
        check_owner(number_in(fields, "gid", -(1 << 31))),
        size,
        time_in(fields),
        path_in(fields, "linkName")[1] if kind in _LINKS else b"",
        device_in(fields) if kind in _DEVICES else (0, 0),
        xattrs_in(fields),
    )
    file = _File(name, size, head, [])
    if size:
        _append_chunk(file, fields, 0)
    return file


def _kind(text: object) -> Kind:
    if type(text) is str and (kind := _KINDS.get(text)) is not None:
        return kind
    raise InvalidImage(f"type: {text!r:.40} is unknown")


def _add_chunk(file: _File | None, fields: Fields) -> None:
    if file is None or not file.chunks:
        raise InvalidImage("a chunk that follows no file")
    if path_in(fields, "name")[1] != file.head.path:
        raise InvalidImage("a chunk of another file than the one it follows")
    last = file.chunks[-1]
    _append_chunk(file, fields, last.offset + last.length)


def _append_chunk(file: _File, fields: Fields, offset: int) -> None:
    """Add the next chunk of a file, at `offset` in it; chunkSize 0 is all that is left."""
    if number_in(fields, "chunkOffset") != offset:
        raise InvalidImage(f"chunkOffset: expected {offset}, where the chunk before it ends")
    left = file.size - offset
    length = number_in(fields, "chunkSize") or left
    if not 0 < length <= left:
        raise InvalidImage(f"chunkSize: {length} bytes at {offset} of a file of {file.size}")
    end = number_in(fields, "endOffset")
    digest = b"" if fields.get("chunkType") == _ZEROS else chunk_digest(fields, length == file.size)
    start, skip = number_in(fields, "offset"), number_in(fields, "innerOffset")
    file.chunks.append(TocChunk(start, skip, offset, length, digest, end))


def _whole(file: _File) -> _File:
    """Return the file, if its chunks make up all of it.

    `endOffset`, said with the first, is where the last ends.
    """
    chunks = file.chunks
    if not chunks:
        return file
    if chunks[-1].offset + chunks[-1].length != file.size:
        what = f"TOC entry {file.name[:100]!r}"
        raise InvalidImage(f"the chunks do not add up to the file's {file.size} bytes", where=what)
    if len(chunks) > 1 and chunks[0].end:
        chunks[-1] = chunks[-1]._replace(end=chunks[0].end)
        chunks[0] = chunks[0]._replace(end=0)
    return file

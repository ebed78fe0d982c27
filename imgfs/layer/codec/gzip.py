"""Gzip (RFC 1952) as a stream of members around deflate engines, with the positions where decoding can begin.

`Inflater` reads headers, hands deflate data to an engine and skips trailers. What the trailers would prove,
digest and DiffID prove better.

`sparse_window` says which bytes of a checkpoint's window its span refers to; the others may as well be zeros.
In real layers that is a tenth of the 32 KiB, so a window with zeros for the rest packs to a fifth. The
inflater is not asked: the span's beginning is decoded from two windows of markers instead. What deflate
copies does not depend on what it copies, so both decodings take the same steps; where they differ, the byte
came out of the window, and the two values together say from where.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from imgfs.errors import InvalidImage
from imgfs.layer.codec.zlib_engine import OUTPUT, CorruptDeflate, InflateEngine, ZlibEngine
from imgfs.layer.entry import WINDOW, Checkpoint, Span

_TRAILER = 8  # crc32 and length after a member's deflate data (RFC 1952, section 2.3.1)
_HEADER_LIMIT = 1 << 20  # bytes: a name or comment without an end
_ENDLESS = 2 * _HEADER_LIMIT
_HEADER_STEP = 1024  # bytes of it looked at once
_EXTRA, _NAME, _COMMENT, _HEADER_CRC, _RESERVED = 4, 8, 16, 2, 0xE0  # FLG


class Inflater:
    """Inflates concatenated gzip members, fed in chunks, with `engine`: zlib unless it says otherwise.

    With a `checkpoint` it begins inside a member instead; the first chunk then begins with the
    byte whose upper `bits` bits belong to the span, if `bits` is not 0.

    After each piece that `pieces` yields, `consumed` and `produced` say how many compressed and flat bytes
    that took in all, and `boundary` tells whether decoding could begin anew right there: "member", "block"
    or None.
    """

    def __init__(self, checkpoint: Checkpoint | None = None, engine: InflateEngine | None = None) -> None:
        self._checkpoint = checkpoint  # until the first chunk
        self._engine: InflateEngine = engine or ZlibEngine()
        self._head: bytearray | None = bytearray() if checkpoint is None else None  # of a member not begun
        self._skip = 0  # bytes of a trailer still to skip
        self._padding = False
        self._full = False  # the last step filled its room: there may be more, without further input
        self._fed = 0  # bytes of all chunks so far
        self.consumed = 0
        self.produced = 0
        self.boundary: str | None = "member" if checkpoint is None else "block"

    @property
    def complete(self) -> bool:
        """True if the input so far ends where a member ends."""
        return self._head is not None and not self._head and not self._skip

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint for the block boundary just reached."""
        return self._engine.checkpoint()

    def pieces(self, chunk: bytes, stop: int, end: int | None = None) -> Iterator[memoryview]:
        """Inflate `chunk`, piece by piece; each piece is valid until the next one is requested.

        Until `produced` reaches `stop`, pieces end anywhere; past it they end at boundaries, so the caller
        may move `stop` (see `until`) when it has taken one. Where a member ends there is an empty piece.
        Nothing past `end` is produced. Raises InvalidImage for data that is not gzip.
        """
        self.until = stop
        at = self._begin(chunk)
        base = self._fed  # offset of the chunk in the blob
        self._fed += len(chunk)
        while at < len(chunk) or self._full:
            if self._head is None:
                piece, at = self._step(chunk, at, base, end)
                yield piece
                if end is not None and self.produced >= end:
                    return
            elif self._skip:
                at = self._skip_trailer(chunk, at)
                self.consumed = base + at
                yield memoryview(b"")
            else:
                at = self._read_header(chunk, at)
                self.consumed = base + at

    def _begin(self, chunk: bytes) -> int:
        """Set the checkpoint, if there is one, and return how much of `chunk` that used up."""
        if self._checkpoint is None or not chunk:
            return 0
        used = 1 if self._checkpoint.bits else 0
        self._engine.begin_at(self._checkpoint, chunk[:used])
        self._checkpoint = None
        self.consumed += used
        return used

    def _skip_trailer(self, chunk: bytes, at: int) -> int:
        skipped = min(self._skip, len(chunk) - at)
        self._skip -= skipped
        self.boundary = None if self._skip else "member"
        return at + skipped

    def _read_header(self, chunk: bytes, at: int) -> int:
        """Take a member's header, or as much of it as there is; zeros instead are padding, as for gzip(1)."""
        assert self._head is not None  # that is when this is called
        self.boundary = None
        if self._padding or (not self._head and chunk[at] == 0):
            self._padding = True
            if chunk.count(0, at) != len(chunk) - at:
                raise InvalidImage("bytes after the zero padding", where=self._where())
            return len(chunk)
        had = len(self._head)
        part = chunk[at : at + _HEADER_STEP]
        self._head += part
        try:
            length = header_length(self._head)
        except InvalidImage as error:
            raise InvalidImage(str(error), where=self._where()) from error
        if length is None:
            return at + len(part)
        self._head = None
        self._engine.reset()
        return at + length - had

    def _step(self, chunk: bytes, at: int, base: int, end: int | None) -> tuple[memoryview, int]:
        """One step of the engine: what it put out, and where in `chunk` it stopped."""
        # Without hunting a step may go on over a boundary when it has run out of room there, or not,
        # depending on where the chunk ends: it must never reach `until`, or boundaries would depend on it.
        room = self.until - self.produced - 1
        limit = min(OUTPUT, room) if room > 0 else OUTPUT
        if end is not None:
            limit = min(limit, end - self.produced)
        try:
            step = self._engine.step(chunk, at, limit, room <= 0)
        except CorruptDeflate as error:
            raise InvalidImage(f"inflate: {error}", where=f"gzip offset {base + error.at}") from error
        self.consumed = base + step.at - step.lead
        self.produced += len(step.output)
        self._full = step.full
        # A boundary whose bits lie in an earlier chunk comes too late: that chunk is gone.
        self.boundary = "block" if step.boundary and step.lead < step.at else None
        if step.ended:
            self._head = bytearray()
            self._skip = _TRAILER - max(0, step.lead - step.at)
            return step.output, max(0, step.at - step.lead)
        return step.output, step.at

    def _where(self) -> str:
        return f"gzip offset {self.consumed}"


def header_length(head: bytes | bytearray) -> int | None:
    """Return how long a member's header is, given how it begins (RFC 1952, section 2.3).

    None if more is needed.
    """
    if head[:3] != b"\x1f\x8b\x08"[: len(head)]:
        raise InvalidImage("no gzip header")
    if len(head) > _HEADER_LIMIT:
        raise InvalidImage(f"a gzip header of over {_HEADER_LIMIT} bytes")
    if len(head) < 10:  # magic, CM, FLG, MTIME, XFL, OS
        return None
    flags, length = head[3], 10
    if flags & _RESERVED:
        raise InvalidImage("a gzip header with reserved flags")
    if flags & _EXTRA:
        length += 2 + int.from_bytes(head[10:12], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            length = head.find(0, length) + 1 or _ENDLESS
    length += 2 if flags & _HEADER_CRC else 0
    return length if length <= len(head) else None


def sparse_window(span: Span, packed: bytes) -> bytes:
    """Return the window of `span`'s checkpoint, with zeros for bytes that no flat byte is copied from.

    `packed` are the blob's bytes that the span speaks of, verified. Raises InvalidImage if the beginning of
    them, as far as it is looked at, cannot be decoded.
    """
    assert span.checkpoint is not None  # only spans that have one have a window
    bits, window = span.checkpoint
    low, high = (_beginning(span, packed, Checkpoint(bits, marks[: len(window)])) for marks in _marks())
    sparse, offsets = bytearray(len(window)), _offsets()
    for pair in offsets.keys() & set(_pairs(low, high)):
        at = offsets[pair]
        sparse[at] = window[at]
    return bytes(sparse)


def _beginning(span: Span, packed: bytes, checkpoint: Checkpoint) -> bytes:
    """Return the first flat bytes of `span` from this checkpoint on: all that can come from a window.

    A match looks back 32 KiB at most (RFC 1951, section 2): past as many flat bytes it finds only those, so
    what comes out of the window later has been among them before.
    """
    length = min(span.flat_end - span.flat_start, WINDOW)
    inflater = Inflater(checkpoint)
    flat = b"".join(map(bytes, inflater.pieces(packed, length + 1, length)))
    if len(flat) < length:
        raise InvalidImage(f"span {span.number} ends after {len(flat)} flat bytes, not {length} or more")
    return flat


def _pairs(low: bytes, high: bytes) -> memoryview:
    """Return 16-bit numbers in native order from `low` bytes and `high` bytes, of which there are as many."""
    joined = bytearray(2 * len(low))
    joined[::2], joined[1::2] = low, high
    return memoryview(joined).cast("H")


@functools.cache
def _marks() -> tuple[bytes, bytes]:
    """Return windows whose byte i is marked by the two bytes there: no pair twice, never a pair of equals."""
    low = bytes(i & 255 for i in range(WINDOW))
    return low, bytes(i & 255 ^ 1 + (i >> 8) for i in range(WINDOW))  # 1 + (i >> 8) is 1 to 128


@functools.cache
def _offsets() -> dict[int, int]:
    """Return where in the window the byte is that a pair marks."""
    return {pair: at for at, pair in enumerate(_pairs(*_marks()))}

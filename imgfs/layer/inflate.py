"""zlib's inflate through ctypes: what Python's own binding leaves out, block boundaries and windows.

`Inflater` decodes gzip (RFC 1952) as a stream of members, stops at deflate block boundaries (RFC 1951) to say
where decoding can begin again, and begins there. ctypes releases the GIL around every call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint, c_ulong, c_void_p
from typing import Any

from imgfs.errors import InvalidImage
from imgfs.layer.index import Checkpoint

WINDOW = 32 * 1024  # the farthest a deflate match can look back (RFC 1951, section 2)
TRAILER = 8  # crc32 and length after a member's deflate data (RFC 1952, section 2.3.1)
OUTPUT = 256 * 1024  # what one step puts out at most, in bytes: stays in the second-level cache

# zlib.h
Z_NO_FLUSH, Z_BLOCK = 0, 5
Z_OK, Z_STREAM_END, Z_BUF_ERROR = 0, 1, -5
_BLOCK_END, _LAST_BLOCK = 128, 64  # in data_type, after inflate()
_GZIP, _RAW = 31, -15  # windowBits: a member with header and trailer; bare deflate data


class _Stream(Structure):  # z_stream
    _fields_ = (
        ("next_in", c_void_p),
        ("avail_in", c_uint),
        ("total_in", c_ulong),
        ("next_out", c_void_p),
        ("avail_out", c_uint),
        ("total_out", c_ulong),
        ("msg", c_char_p),
        ("state", c_void_p),
        ("zalloc", c_void_p),
        ("zfree", c_void_p),
        ("opaque", c_void_p),
        ("data_type", c_int),
        ("adler", c_ulong),
        ("reserved", c_ulong),
    )


@functools.cache
def _libz() -> Any:
    library = ctypes.CDLL("libz.so.1")
    pointer = POINTER(_Stream)
    library.zlibVersion.restype = c_char_p
    library.inflateInit2_.argtypes = (pointer, c_int, c_char_p, c_int)
    library.inflate.argtypes = (pointer, c_int)
    library.inflateReset2.argtypes = (pointer, c_int)
    library.inflatePrime.argtypes = (pointer, c_int, c_int)
    library.inflateSetDictionary.argtypes = (pointer, c_char_p, c_uint)
    library.inflateGetDictionary.argtypes = (pointer, c_void_p, POINTER(c_uint))
    library.inflateEnd.argtypes = (pointer,)
    return library


class Inflater:
    """Inflates concatenated gzip members, fed in chunks.

    With a `checkpoint` it begins inside a member instead; the first chunk then begins with the byte whose
    upper `bits` bits belong to the span, if `bits` is not 0.

    After each piece that `pieces` yields, `consumed` and `produced` say how many compressed and flat bytes
    that took in all, and `boundary` tells whether decoding could begin anew right there: "member", "block"
    or None.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self._libz = _libz()
        self._stream = _Stream()
        self._buffer = ctypes.create_string_buffer(OUTPUT)
        self._view = memoryview(self._buffer).cast("B")
        self._pending_prime = checkpoint
        self._between = checkpoint is None  # between members: nothing has been begun
        self._skip = 0  # bytes of a trailer still to skip: raw inflate leaves it to us
        self._padding = False
        self._raw = checkpoint is not None
        self.consumed = 0
        self.produced = 0
        self.boundary: str | None = "member" if self._between else "block"
        version = self._libz.zlibVersion()
        bits = _RAW if self._raw else _GZIP
        if self._libz.inflateInit2_(byref(self._stream), bits, version, ctypes.sizeof(_Stream)) != Z_OK:
            raise MemoryError("inflateInit2")

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._libz.inflateEnd(byref(self._stream))

    @property
    def complete(self) -> bool:
        """Whether the input so far ends where a member ends."""
        return self._between and not self._skip

    def checkpoint(self) -> Checkpoint:
        """What it takes to begin at the block boundary just reached."""
        window = ctypes.create_string_buffer(WINDOW)
        length = c_uint(0)
        self._libz.inflateGetDictionary(byref(self._stream), window, byref(length))
        return Checkpoint(self._stream.data_type & 7, window.raw[: length.value])

    def pieces(self, chunk: bytes, stop: int, end: int | None = None) -> Iterator[memoryview]:
        """Inflate `chunk`, piece by piece; each piece is valid until the next one is asked for.

        Until `produced` reaches `stop`, pieces end anywhere; past it they end at every boundary, so the
        caller may move `stop` (see `until`) when it has taken one. Nothing past `end` is produced.
        Raises InvalidImage for data that is not gzip.
        """
        self.until = stop
        at = self._begin(chunk)
        while at < len(chunk):
            if self._skip or self._between:
                at = self._next_member(chunk, at)
                continue
            piece, at = self._step(chunk, at, end)
            yield piece
            if end is not None and self.produced >= end:
                return

    def _begin(self, chunk: bytes) -> int:
        """Set the checkpoint, if there is one, and return how much of `chunk` that used up."""
        if self._pending_prime is None or not chunk:
            return 0
        bits, window = self._pending_prime
        self._pending_prime = None
        if bits:
            self._libz.inflatePrime(byref(self._stream), bits, chunk[0] >> (8 - bits))
        if window:
            self._libz.inflateSetDictionary(byref(self._stream), window, len(window))
        self.consumed += 1 if bits else 0
        return 1 if bits else 0

    def _next_member(self, chunk: bytes, at: int) -> int:
        if self._skip:
            skipped = min(self._skip, len(chunk) - at)
            self._skip -= skipped
            self.consumed += skipped
            return at + skipped
        if chunk[at] == 0 or self._padding:  # zeros after the last member are padding, as for gzip(1)
            self._padding = True
            if chunk.count(0, at) != len(chunk) - at:
                raise InvalidImage("bytes after the zero padding", where=f"gzip offset {self.consumed}")
            self.consumed += len(chunk) - at
            return len(chunk)
        self._libz.inflateReset2(byref(self._stream), _GZIP)
        self._raw = self._between = False
        return at

    def _step(self, chunk: bytes, at: int, end: int | None) -> tuple[memoryview, int]:
        """One call of inflate(): the bytes it put out, and where in `chunk` it stopped."""
        stream = self._stream
        room = self.until - self.produced
        flush = Z_NO_FLUSH if room > 0 else Z_BLOCK
        limit = min(OUTPUT, room) if room > 0 else OUTPUT
        if end is not None:
            limit = min(limit, end - self.produced)
        pointer = ctypes.cast(c_char_p(chunk), c_void_p).value
        assert pointer is not None  # c_char_p of a bytes object points at it
        stream.next_in, stream.avail_in = pointer + at, len(chunk) - at
        stream.next_out, stream.avail_out = ctypes.addressof(self._buffer), limit
        status = self._libz.inflate(byref(stream), flush)
        if status not in (Z_OK, Z_STREAM_END, Z_BUF_ERROR):
            reason = (stream.msg or b"corrupt").decode()
            raise InvalidImage(f"inflate: {reason}", where=f"gzip offset {self.consumed}")
        reached = len(chunk) - stream.avail_in
        produced = limit - stream.avail_out
        self.consumed += reached - at
        self.produced += produced
        self._mark(status)
        return self._view[:produced], reached

    def _mark(self, status: int) -> None:
        """Note what kind of place this is."""
        if status == Z_STREAM_END:
            self._between = True
            self._skip = TRAILER if self._raw else 0
            self.boundary = None if self._raw else "member"
        elif self._stream.data_type & _BLOCK_END and not self._stream.data_type & _LAST_BLOCK:
            self.boundary = "block"
        else:
            self.boundary = None

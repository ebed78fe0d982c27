"""Engines that inflate deflate streams (RFC 1951) step by step and can tell where a block begins.

`ZlibEngine` is zlib through ctypes: what Python's own binding leaves out, block boundaries and windows.
ctypes releases the GIL around every call. `isal_engine.IsalEngine` is the faster twin.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_uint, c_ulong, c_void_p
from typing import NamedTuple, Protocol

from imgfs.layer.entry import WINDOW, Checkpoint

OUTPUT = 256 * 1024  # what one step puts out at most, in bytes: stays in the second-level cache

# zlib.h
_Z_NO_FLUSH, _Z_BLOCK = 0, 5
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5
_BLOCK_END, _LAST_BLOCK = 128, 64  # in data_type, after inflate()
_RAW = -15  # windowBits: bare deflate data


class CorruptDeflate(Exception):
    """The data is not deflate; `at` is where in the chunk that was noticed."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


class InflateStep(NamedTuple):
    """The result of a step. `output` is valid until the next step."""

    output: memoryview
    at: int  # where in the chunk it stopped
    lead: int  # bytes taken in beyond the position of `ended` or `boundary`
    ended: bool  # the stream ends here
    boundary: bool  # a block ends here and another begins: `checkpoint` can be asked for
    full: bool  # it stopped for lack of room: there may be more without further input


class InflateEngine(Protocol):
    """Inflates one deflate stream after the other."""

    def begin_at(self, checkpoint: Checkpoint, partial: bytes) -> None:
        """Begin in the middle of a stream; `partial` is the byte whose upper bits belong to it."""

    def reset(self) -> None:
        """Begin a new deflate stream."""

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint for the block boundary that the last step reached."""

    def step(self, chunk: bytes, at: int, limit: int, hunt: bool) -> InflateStep:
        """Inflate from `chunk[at:]`, at most `limit` bytes; with `hunt`, up to a block boundary.

        Raises CorruptDeflate for data that is not deflate.
        """


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
def _libz() -> ctypes.CDLL:
    library = ctypes.CDLL("libz.so.1")
    pointer = POINTER(_Stream)
    library.zlibVersion.restype = c_char_p
    library.inflateInit2_.argtypes = (pointer, c_int, c_char_p, c_int)
    library.inflate.argtypes = (pointer, c_int)
    library.inflateReset.argtypes = (pointer,)
    library.inflatePrime.argtypes = (pointer, c_int, c_int)
    library.inflateSetDictionary.argtypes = (pointer, c_char_p, c_uint)
    library.inflateGetDictionary.argtypes = (pointer, c_void_p, POINTER(c_uint))
    library.inflateEnd.argtypes = (pointer,)
    return library


class ZlibEngine:
    """zlib. See `InflateEngine`."""

    def __init__(self) -> None:
        self._libz = _libz()
        self._stream = _Stream()
        self._buffer = ctypes.create_string_buffer(OUTPUT)
        self._view = memoryview(self._buffer).cast("B")
        version = self._libz.zlibVersion()
        if self._libz.inflateInit2_(byref(self._stream), _RAW, version, ctypes.sizeof(_Stream)) != _Z_OK:
            raise MemoryError("inflateInit2")

    def begin_at(self, checkpoint: Checkpoint, partial: bytes) -> None:
        """Begin in the middle of a stream."""
        bits, window = checkpoint
        if bits:
            self._libz.inflatePrime(byref(self._stream), bits, partial[0] >> (8 - bits))
        if window:
            self._libz.inflateSetDictionary(byref(self._stream), window, len(window))

    def __del__(self) -> None:
        if hasattr(self, "_stream"):
            self._libz.inflateEnd(byref(self._stream))

    def reset(self) -> None:
        """Begin a new deflate stream."""
        self._libz.inflateReset(byref(self._stream))

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint for the block boundary that the last step reached."""
        window = ctypes.create_string_buffer(WINDOW)
        length = c_uint(0)
        self._libz.inflateGetDictionary(byref(self._stream), window, byref(length))
        return Checkpoint(self._stream.data_type & 7, window.raw[: length.value])

    def step(self, chunk: bytes, at: int, limit: int, hunt: bool) -> InflateStep:
        """Inflate from `chunk[at:]`, at most `limit` bytes; with `hunt`, up to a block boundary."""
        stream = self._stream
        stream.next_in, stream.avail_in = address_of(chunk) + at, len(chunk) - at
        stream.next_out, stream.avail_out = ctypes.addressof(self._buffer), limit
        status = self._libz.inflate(byref(stream), _Z_BLOCK if hunt else _Z_NO_FLUSH)
        if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
            raise CorruptDeflate((stream.msg or b"corrupt").decode(), len(chunk) - stream.avail_in)
        ended = status == _Z_STREAM_END
        boundary = stream.data_type & (_BLOCK_END | _LAST_BLOCK) == _BLOCK_END and hunt and not ended
        output = self._view[: limit - stream.avail_out]
        return InflateStep(
            output, len(chunk) - stream.avail_in, 0, ended, boundary, not ended and not stream.avail_out
        )


def address_of(chunk: bytes) -> int:
    """Return the address of the bytes of `chunk`."""
    pointer = ctypes.cast(c_char_p(chunk), c_void_p).value
    assert pointer is not None  # c_char_p of a bytes object points at it
    return pointer

"""Intel's ISA-L as the inflate engine: twice as fast as zlib, where the library is installed.

ISA-L does not stop at block boundaries, so they are hunted for. Its decoding state is a public structure
(igzip_lib.h) without pointers into itself, so it can be copied and put back: input is fed in small slices
until the Huffman tables have changed; that slice is taken back and fed again in crumbs, smaller than a
block's header, until the library stands inside one. Then it knows where the header began. A stored block has
no tables, but says how long it is: it is fed to its very end.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import zlib
from collections.abc import Callable
from ctypes import Structure, c_char, c_char_p, c_int16, c_int32, c_uint8, c_uint32, c_uint64, c_void_p

from imgfs.layer.codec.zlib_engine import (
    OUTPUT,
    CorruptDeflate,
    InflateEngine,
    InflateStep,
    ZlibEngine,
    address_of,
)
from imgfs.layer.entry import WINDOW, Checkpoint

_SLICE, _CRUMB = (
    2048,
    64,
)  # bytes of input; a dynamic block's header has some 60 to 100 (RFC 1951, section 3.2.7)
_RATIO = 1032  # what one byte can become at most, so what a crumb needs room for

# igzip_lib.h: enum isal_block_state and return values
_NEW_HEADER, _HEADER, _STORED, _INPUT_DONE, _FINISH = 0, 1, 2, 4, 5
_OK, _END_INPUT, _OUT_OVERFLOW = 0, 1, 2


class _State(Structure):  # struct inflate_state, the same since version 2.20
    _fields_ = (
        ("next_out", c_void_p),
        ("avail_out", c_uint32),
        ("total_out", c_uint32),
        ("next_in", c_void_p),
        ("read_in", c_uint64),
        ("avail_in", c_uint32),
        ("read_in_length", c_int32),
        ("lit_huff_code", c_char * 18912),
        ("dist_huff_code", c_char * 2208),
        ("block_state", c_int32),
        ("dict_length", c_uint32),
        ("bfinal", c_uint32),
        ("crc_flag", c_uint32),
        ("crc", c_uint32),
        ("hist_bits", c_uint32),
        ("count", c_int32),  # of a stored block: the bytes that are left
        ("write_overflow_lits", c_int32),
        ("write_overflow_len", c_int32),
        ("copy_overflow_length", c_int32),
        ("copy_overflow_distance", c_int32),
        ("wrapper_flag", c_int16),
        ("tmp_in_size", c_int16),
        ("tmp_out_valid", c_int32),
        ("tmp_out_processed", c_int32),
        ("tmp_in_buffer", c_uint8 * 328),
        ("tmp_out_buffer", c_uint8 * (2 * WINDOW + 288)),
    )


_SIZE = ctypes.sizeof(_State)
_TABLES = _State.lit_huff_code.offset
_TABLES_SIZE = 4096  # bytes of them that are compared
_NOISE = 8192  # bytes that zlib puts into a stored block of their own


@functools.cache
def available() -> bool:
    """Return True if the library is installed and passes a test of what imgfs uses it for."""
    try:
        _libisal()
    except (OSError, AttributeError):
        return False
    return _proves_itself()


@functools.cache
def _libisal(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> ctypes.CDLL:
    library = load("libisal.so.2")
    library.isal_inflate.argtypes = library.isal_inflate_init.argtypes = (c_void_p,)
    library.isal_inflate_init.restype = None
    library.isal_inflate_set_dict.argtypes = (c_void_p, c_char_p, c_uint32)
    return library


class IsalEngine:
    """Inflates one deflate stream after the other. See `zlib_engine.InflateEngine`."""

    def __init__(self) -> None:
        self._libisal = _libisal()
        # For what takes microseconds: letting go of the interpreter's lock and waiting for it takes longer.
        self._inflate_briefly = _libisal(ctypes.PyDLL).isal_inflate
        self._state = _State()
        self._at_state = ctypes.addressof(self._state)
        self._state_view = memoryview(self._state).cast("B")
        self._kept = memoryview(bytearray(_SIZE))
        # The last window, then what a step puts out.
        self._buffer = ctypes.create_string_buffer(WINDOW + OUTPUT + _CRUMB * _RATIO)
        self._at_buffer = ctypes.addressof(self._buffer)
        self._view = memoryview(self._buffer).cast("B")
        self._filled = 0  # bytes behind the window
        self._behind = 0  # bytes of the stream that came before now: the window has no more
        self._bits = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new deflate stream."""
        self._libisal.isal_inflate_init(self._at_state)
        self._behind = 0

    def begin_at(self, checkpoint: Checkpoint, partial: bytes) -> None:
        """Begin in the middle of a stream."""
        bits, window = checkpoint
        self.reset()
        if bits:
            self._state.read_in, self._state.read_in_length = partial[0] >> (8 - bits), bits
        if window:
            self._libisal.isal_inflate_set_dict(self._at_state, window, len(window))

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint for the block boundary that the last step reached."""
        end = WINDOW + self._filled
        return Checkpoint(self._bits, bytes(self._view[end - min(WINDOW, self._behind) : end]))

    def step(self, chunk: bytes, at: int, limit: int, hunt: bool) -> InflateStep:
        """Inflate from `chunk[at:]`, at most some `limit` bytes; with `hunt`, up to a boundary."""
        self._view[:WINDOW] = self._view[self._filled : self._filled + WINDOW]
        self._filled = 0
        start = address_of(chunk)
        boundary = False
        if hunt and at < len(chunk):
            at, boundary = self._hunt(start, at, len(chunk), limit)
        else:
            at = self._run(start, at, len(chunk) - at, limit)
        state = self._state
        full = not state.avail_out and not boundary
        ended = state.block_state in (_INPUT_DONE, _FINISH) and not full
        lead = (state.tmp_in_size * 8 if boundary else 0) + state.read_in_length
        self._bits = lead % 8
        return InflateStep(self._view[WINDOW : WINDOW + self._filled], at, lead // 8, ended, boundary, full)

    def _hunt(self, start: int, at: int, end: int, limit: int) -> tuple[int, bool]:
        """Go on until a boundary is reached, or the input, the stream, or the room for output ends."""
        while at < end and self._filled < limit:
            if self._in_stored_block():
                at = self._run(start, at, min(self._left_of_stored(), end - at), OUTPUT - self._filled)
                if self._in_header() and self._state.avail_out:
                    return at, True
                continue
            self._kept[:] = self._state_view
            before, filled, behind = at, self._filled, self._behind
            tables = ctypes.string_at(self._at_state + _TABLES, _TABLES_SIZE)
            at = self._run(start, at, min(_SLICE, end - at), OUTPUT - self._filled)
            if self._ended():
                break
            changed = ctypes.string_at(self._at_state + _TABLES, _TABLES_SIZE) != tables
            if changed or self._in_header() or not self._state.avail_out:
                slice_end = at
                self._state_view[:] = self._kept
                at, self._filled, self._behind = before, filled, behind
                at, found = self._creep(start, at, slice_end, limit)
                if found or self._ended():
                    return at, found
        return at, False

    def _creep(self, start: int, at: int, end: int, limit: int) -> tuple[int, bool]:
        """Inflate up to `end` in pieces of `_CRUMB` bytes, so as to stop at the first checkpoint."""
        while at < end and self._filled < limit and not self._ended():
            at = self._run(start, at, min(_CRUMB, end - at), OUTPUT + _CRUMB * _RATIO - self._filled)
            if self._in_header() and self._state.avail_out:
                return at, True
        return at, False

    def _in_stored_block(self) -> bool:
        state = self._state
        return state.block_state == _STORED and not state.bfinal and self._left_of_stored() > 0

    def _left_of_stored(self) -> int:
        """Return the bytes of a stored block that are still to be fed (RFC 1951, section 3.2.4)."""
        return int(self._state.count) - int(self._state.read_in_length) // 8

    def _in_header(self) -> bool:
        return self._state.block_state in (_NEW_HEADER, _HEADER)

    def _ended(self) -> bool:
        return self._state.block_state in (_INPUT_DONE, _FINISH)

    def _run(self, start: int, at: int, count: int, room: int) -> int:
        """One call of the library: put out what `count` bytes give, behind what is there; the new `at`."""
        state = self._state
        state.next_in, state.avail_in = start + at, count
        state.next_out, state.avail_out = self._at_buffer + WINDOW + self._filled, room
        inflate = self._libisal.isal_inflate if count > _SLICE else self._inflate_briefly
        status = inflate(self._at_state)
        if status not in (_OK, _END_INPUT, _OUT_OVERFLOW):
            raise CorruptDeflate(f"corrupt (ISA-L says {status})", at + count - int(state.avail_in))
        self._filled += room - state.avail_out
        self._behind += room - state.avail_out
        return at + count - int(state.avail_in)


def _proves_itself() -> bool:
    """Inflate something with blocks of all kinds, and begin again at each boundary found, with zlib."""
    noise = hashlib.shake_128(b"").digest(6 * _NOISE)
    texts = [noise[at : at + _NOISE] for at in range(0, len(noise), _NOISE)]
    texts += [b"".join(b"%d %d\n" % (n, n * n * step) for n in range(300)) for step in range(1, 16)]
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = (
        b"".join(packer.compress(text) + packer.flush(zlib.Z_SYNC_FLUSH) for text in texts) + packer.flush()
    )
    whole, done, engine, at, found = b"".join(texts), bytearray(), IsalEngine(), 0, 0
    while at < len(stream):
        step = engine.step(stream, at, OUTPUT, True)
        done += step.output
        at = step.at
        if step.boundary:
            found += 1
            if not _resumes(stream, at - step.lead, engine.checkpoint(), whole[len(done) :]):
                return False
    return bytes(done) == whole and found >= 12


@functools.cache
def can_resume() -> bool:
    """Return True if the library is installed and begins where zlib says that it can; takes milliseconds."""
    text = b"".join(
        b"%d %s\n" % (n, hashlib.md5(b"%d" % n, usedforsecurity=False).digest()) for n in range(1500)
    )
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 7)
    stream, engine, at, done, found = packer.compress(text) + packer.flush(), ZlibEngine(), 0, 0, 0
    try:
        while at < len(stream):
            step = engine.step(stream, at, OUTPUT, True)
            at, done = step.at, done + len(step.output)
            if step.boundary:
                found += 1
                if not _resumes(stream, at, engine.checkpoint(), text[done:], IsalEngine()):
                    return False
    except (OSError, AttributeError, CorruptDeflate):
        return False
    return done == len(text) and found > 1


def _resumes(
    stream: bytes, at: int, checkpoint: Checkpoint, rest: bytes, engine: InflateEngine | None = None
) -> bool:
    engine = engine or ZlibEngine()
    engine.begin_at(checkpoint, stream[at - bool(checkpoint.bits) : at])
    output = engine.step(stream, at, WINDOW + 1, False).output
    return bytes(output) == rest[: len(output)] and len(output) > 0

"""A program that changes the ranges of a file by every call there is, and knows what they have to hold.

In the manner of fsx: each call is made on the file and on a model, bytes in memory, and pieces read, by each
way to read, must be the model's. What the kernel or a daemon loses, doubles or moves is found where that
happens.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import random
from pathlib import Path

from tests.support.posix_calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate

MOST = 400_000  # bytes of the file
_LONGEST = 60_000  # of a range


class Ranges:
    """Changes the file at a path, which must not exist."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        self._path = path
        self._chance = chance
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        self._model = bytearray()

    def make(self, count: int) -> str:
        """Make so many calls, with a check after each; a digest of what is there in the end."""
        calls = [getattr(self, name) for name in sorted(dir(type(self))) if name.startswith("call_")]
        for number in range(count):
            call = self._chance.choice(calls)
            offset, length = self._chance.randrange(MOST), self._chance.randint(1, _LONGEST)
            call(offset, min(length, MOST - offset))
            self._check(f"call {number}, {call.__name__}")
        os.close(self._fd)
        found = self._path.read_bytes()
        assert found == self._model
        return hashlib.sha256(found).hexdigest()

    def _check(self, after: str) -> None:
        """Read a piece, and compare the size."""
        size = os.fstat(self._fd).st_size
        assert size == len(self._model), f"{after}: {size} bytes, not {len(self._model)}"
        offset, length = self._chance.randrange(MOST), self._chance.randint(1, _LONGEST)
        if self._chance.random() < 0.3 and size:
            with mmap.mmap(self._fd, size, prot=mmap.PROT_READ) as mapped:
                found = mapped[offset : offset + length]
        else:
            found = os.pread(self._fd, length, offset)
        wanted = self._model[offset : offset + length]
        differ = [at for at, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other]
        assert found == wanted, f"{after}: at {offset + (differ or [0])[0]}, {len(differ)} bytes differ"

    def _put(self, offset: int, body: bytes) -> None:
        self._grow(offset + len(body))
        self._model[offset : offset + len(body)] = body

    def _grow(self, size: int) -> None:
        self._model.extend(bytes(max(0, size - len(self._model))))

    def call_write(self, offset: int, length: int) -> None:
        body = self._chance.randbytes(length)
        assert os.pwrite(self._fd, body, offset) == length
        self._put(offset, body)

    def call_append(self, _: int, length: int) -> None:
        body = self._chance.randbytes(min(length, max(0, MOST - len(self._model))))
        with open(self._path, "ab", buffering=0) as file:
            assert file.write(body) == len(body)
        self._put(len(self._model), body)

    def call_write_mapped(self, offset: int, length: int) -> None:
        length = min(length, len(self._model) - offset)
        if length <= 0:
            return
        body = self._chance.randbytes(length)
        with mmap.mmap(self._fd, len(self._model)) as mapped:
            mapped[offset : offset + length] = body
            if self._chance.random() < 0.3:
                mapped.flush()
        self._put(offset, body)

    def call_truncate(self, offset: int, _: int) -> None:
        os.ftruncate(self._fd, offset)
        self._grow(offset)
        del self._model[offset:]

    def call_allocate(self, offset: int, length: int) -> None:
        fallocate(self._fd, 0, offset, length)
        self._grow(offset + length)

    def call_punch(self, offset: int, length: int) -> None:
        fallocate(self._fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
        self._zero(offset, length)

    def call_zero(self, offset: int, length: int) -> None:
        fallocate(self._fd, FALLOC_ZERO_RANGE, offset, length)
        self._grow(offset + length)
        self._zero(offset, length)

    def _zero(self, offset: int, length: int) -> None:
        length = min(length, len(self._model) - offset)
        if length > 0:
            self._model[offset : offset + length] = bytes(length)

    def call_copy(self, offset: int, length: int) -> None:
        target = self._chance.randrange(MOST)
        length = min(length, len(self._model) - offset, MOST - target)
        if length <= 0 or abs(target - offset) < length:  # copy_file_range(2): must not overlap
            return
        body, done = bytes(self._model[offset : offset + length]), 0
        while done < length:
            copied = os.copy_file_range(self._fd, self._fd, length - done, offset + done, target + done)
            assert copied > 0
            done += copied
        self._put(target, body)

    def call_sync(self, *_: int) -> None:
        os.fsync(self._fd)

    def call_forget_pages(self, *_: int) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def call_open_again(self, *_: int) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)

    def call_write_past_the_cache(self, offset: int, length: int) -> None:
        offset, length = offset // 4096 * 4096, -(-length // 4096) * 4096
        with contextlib.closing(mmap.mmap(-1, length)) as room:
            room[:] = self._chance.randbytes(length)
            fd = os.open(self._path, os.O_RDWR | os.O_DIRECT)
            try:
                assert os.pwrite(fd, room, offset) == length
            finally:
                os.close(fd)
            self._put(offset, room[:])

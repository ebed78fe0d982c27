"""What programs do to the ranges of a file, in any order, gives the same bytes as on a plain disk."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import posix_places as posix
from tests.support.posix_calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate
from tests.support.posix_places import Place, at
from tests.support.posix_tree import HOLES

pytestmark = posix.marks

MOST = 300_000  # bytes: some pages of a file, and beyond its end
Do = Callable[[int, int, int], object]  # to an open file, at an offset, with a length


def copy_whole(source: Path, fd: int) -> None:
    """Copy a file of the image, its holes too."""
    with source.open("rb") as file:
        size = done = os.fstat(file.fileno()).st_size
        while done > 0:
            done -= os.copy_file_range(file.fileno(), fd, done, size - done, size - done)


def copy_within(fd: int, offset: int, length: int) -> int:
    """Copy a range to where it does not overlap."""
    done = os.copy_file_range(fd, fd, min(length, MOST - offset), offset, MOST + offset)
    while 0 < done < length and (more := copy_on(fd, offset + done, length - done)):
        done += more
    return done


def copy_on(fd: int, offset: int, length: int) -> int:
    return os.copy_file_range(fd, fd, length, offset, MOST + offset) if length > 0 else 0


DOINGS: dict[str, Do] = {
    "write": lambda fd, offset, length: os.pwrite(fd, b"w" * length, offset),
    "cut": lambda fd, offset, _: os.ftruncate(fd, offset),
    "allocate": lambda fd, offset, length: fallocate(fd, 0, offset, length),
    "allocate inside": lambda fd, offset, length: fallocate(fd, FALLOC_KEEP_SIZE, offset, length),
    "punch": lambda fd, offset, length: fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length),
    "zero": lambda fd, offset, length: fallocate(fd, FALLOC_ZERO_RANGE, offset, length),
    "copy": copy_within,
    "sync": lambda fd, _offset, _length: os.fsync(fd),
}
STEPS = st.lists(
    st.tuples(st.sampled_from(sorted(DOINGS)), st.integers(0, MOST - 1), st.integers(1, 70_000)), max_size=12
)


def outcome(doing: Do, fd: int, offset: int, length: int) -> object:
    try:
        return doing(fd, offset, length)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def check_holes(fd: int) -> None:
    """What is said to be a hole reads as zeros, and all else follows on it."""
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO  # noqa: PT017  (a hole to the end)
            start = end
        assert at <= start <= end
        assert not any(os.pread(fd, start - at, at))
        at = os.lseek(fd, start, os.SEEK_HOLE) if start < end else end
        assert start < at <= end or start == end


@at("mount", "own-mount")
def test_any_order_gives_the_same_bytes_and_answers(place: Place) -> None:
    beside = Path(tempfile.mkdtemp())
    sources = {name: (place.tree / name).read_bytes() for name in ("text", "holes", "empty")}

    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(sorted(sources)), STEPS)
    def agree(source: str, steps: list[tuple[str, int, int]]) -> None:
        plain, shown = beside / "f", place.at / "f"
        plain.write_bytes(sources[source])
        shown.write_bytes(b"")
        with plain.open("r+b", buffering=0) as one, shown.open("r+b", buffering=0) as other:
            copy_whole(place.tree / source, other.fileno())
            for name, offset, length in steps:
                wanted, got = (outcome(DOINGS[name], file.fileno(), offset, length) for file in (one, other))
                assert got == wanted, name
            check_holes(other.fileno())
            assert os.pread(other.fileno(), 4 * HOLES, 0) == os.pread(one.fileno(), 4 * HOLES, 0)
        assert shown.read_bytes() == plain.read_bytes()

    agree()

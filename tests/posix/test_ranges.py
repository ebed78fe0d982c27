"""Ranges of files: allocated, punched and zeroed, searched for data and holes, copied from file to file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
import time
from pathlib import Path

from imgfs import syscalls
from tests.support import posix_places as posix
from tests.support.mounted import NOBODY
from tests.support.posix_calls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate
from tests.support.posix_places import Place, anyone, by, fails, not_by_overlayfs, only_root
from tests.support.posix_tree import HEAD, HOLES, TAIL, TEXT, large_body

pytestmark = posix.marks

BLOCK = 4096


def runs(fd: int) -> list[tuple[int, int]]:
    """The pieces of a file that are no holes: where each starts and ends."""
    end, found = os.fstat(fd).st_size, []
    at = 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found


@anyone
def test_allocating_lengthens_a_file_of_the_image_or_keeps_its_size(place: Place) -> None:
    path = place.tree / "text"
    fd = os.open(path, os.O_RDWR)
    before = os.fstat(fd).st_mtime_ns
    fallocate(fd, FALLOC_KEEP_SIZE, 0, 1 << 20)
    assert os.fstat(fd).st_size == len(TEXT)
    assert os.fstat(fd).st_blocks * 512 >= 1 << 20
    fallocate(fd, 0, 0, 20_000)
    assert os.pread(fd, 1 << 20, 0) == path.read_bytes() == TEXT + bytes(10_000)
    assert os.fstat(fd).st_mtime_ns > before


@anyone
def test_a_hole_is_punched_into_what_has_just_been_written(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x" * 5 * BLOCK, 0)
    fallocate(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, BLOCK, 2 * BLOCK)
    expected = b"x" * BLOCK + bytes(2 * BLOCK) + b"x" * 2 * BLOCK
    assert os.pread(fd, 1 << 20, 0) == Path("f").read_bytes() == expected
    assert runs(fd) == [(0, BLOCK), (3 * BLOCK, 5 * BLOCK)]


@anyone
def test_a_range_is_zeroed_within_a_file_and_beyond_its_end(place: Place) -> None:
    path = place.tree / "text"
    fd = os.open(path, os.O_RDWR)
    fallocate(fd, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 9000, 5000)
    assert path.read_bytes() == TEXT[:9000] + bytes(1000)
    fallocate(fd, FALLOC_ZERO_RANGE, 8000, 5000)
    assert path.read_bytes() == TEXT[:8000] + bytes(5000)


@anyone
def test_what_cannot_be_allocated_is_refused(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    with fails(errno.EINVAL):
        fallocate(fd, 0, 0, 0)
    with fails(errno.EFBIG):
        fallocate(fd, 0, 1 << 62, 1 << 61)
    with fails(errno.EOPNOTSUPP):
        fallocate(fd, FALLOC_PUNCH_HOLE, 0, 1)
    with fails(errno.EBADF):
        fallocate(os.open(place.tree / "text", os.O_RDONLY), 0, 0, 1)
    assert os.fstat(fd).st_size == 0


@only_root
def test_allocating_takes_set_id_bits_from_who_may_not_keep_them(place: Place) -> None:
    path = place.tree / "setuid"
    path.chmod(0o6777)
    place.tree.chmod(0o755)
    os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0))
    fd = os.open(path, os.O_RDWR)
    fallocate(fd, 0, 0, 1000)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o6777
    assert "security.capability" not in os.listxattr(path)
    by(NOBODY, lambda: fallocate(fd, 0, 0, 2000))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777


@anyone
def test_data_and_holes_of_the_images_files_are_told(place: Place) -> None:
    fd = os.open(place.tree / "holes", os.O_RDONLY)
    found = runs(fd)
    assert found[0] == (0, len(HEAD))
    assert found[-1] == (HOLES - len(TAIL), HOLES)
    with fails(errno.ENXIO):
        os.lseek(fd, HOLES, os.SEEK_DATA)
    with fails(errno.ENXIO):
        os.lseek(fd, HOLES + 1, os.SEEK_HOLE)
    text = os.open(place.tree / "text", os.O_RDONLY)
    assert runs(text) == [(0, len(TEXT))]
    assert os.lseek(text, 5, os.SEEK_HOLE) == len(TEXT)


@anyone
def test_data_that_the_kernel_still_gathers_is_told(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 8 * BLOCK)
    os.pwrite(fd, b"x" * BLOCK, 2 * BLOCK)
    os.pwrite(fd, b"y" * 10, 16 * BLOCK)  # lengthens it
    assert os.lseek(fd, 0, os.SEEK_DATA) == 2 * BLOCK
    assert os.lseek(fd, 3 * BLOCK, os.SEEK_DATA) == 16 * BLOCK
    assert os.lseek(fd, 16 * BLOCK, os.SEEK_HOLE) == 16 * BLOCK + 10
    other = os.open("f", os.O_RDONLY)
    os.pwrite(fd, b"z", 20 * BLOCK)
    assert os.lseek(other, 17 * BLOCK, os.SEEK_DATA) == 20 * BLOCK
    assert os.pread(other, 1, 20 * BLOCK) == b"z"


@anyone
def test_a_file_of_the_image_that_is_cut_or_changed_tells_its_own_holes(place: Place) -> None:
    path = place.tree / "holes"
    os.truncate(path, HOLES + (1 << 20))
    path.chmod(0o600)
    fd = os.open(path, os.O_RDWR)
    assert os.lseek(fd, HOLES, os.SEEK_HOLE) == HOLES
    with fails(errno.ENXIO):
        os.lseek(fd, HOLES, os.SEEK_DATA)
    os.pwrite(fd, b"m" * BLOCK, 500 * 1024)
    assert os.lseek(fd, 500 * 1024, os.SEEK_DATA) == 500 * 1024
    assert os.lseek(fd, 500 * 1024, os.SEEK_HOLE) >= 500 * 1024 + BLOCK


@not_by_overlayfs
def test_ranges_are_copied_between_files(place: Place, large: Path) -> None:
    body = large_body()
    source, target = os.open(large, os.O_RDONLY), os.open("f", os.O_CREAT | os.O_RDWR)
    os.pwrite(target, b"t" * 3 * BLOCK, 0)
    left, at = len(body) - 100, 0
    while left:
        done = os.copy_file_range(source, target, left, 100 + at, BLOCK + at)
        left, at = left - done, at + done
    assert Path("f").read_bytes() == b"t" * BLOCK + body[100:]
    assert os.copy_file_range(source, target, 10, len(body), 0) == 0
    again = os.open("g", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(target, again, BLOCK, BLOCK, 5) == BLOCK
    assert Path("g").read_bytes() == bytes(5) + body[100 : 100 + BLOCK]


@not_by_overlayfs
def test_copying_a_files_holes_leaves_no_old_bytes(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"old" * HOLES, 0)
    source = os.open(place.tree / "holes", os.O_RDONLY)
    done = 0
    while done < HOLES:
        done += os.copy_file_range(source, fd, HOLES - done, done, done)
    assert os.pread(fd, HOLES, 0) == (place.tree / "holes").read_bytes()


@anyone
def test_the_time_of_birth_is_that_of_the_making(place: Place) -> None:
    began = time.time_ns() - 10**9
    Path("f").touch()
    os.utime("f", (1, 1))
    born = syscalls.birth_time(None, b"f", follow=True)
    assert born is not None
    assert began < born < time.time_ns() + 10**9
    (place.tree / "text").chmod(0o600)
    assert syscalls.birth_time(None, os.fsencode(place.tree / "text"), follow=True) is not None


@anyone
def test_no_file_takes_controls_of_devices_or_of_other_file_systems(place: Place) -> None:
    for path in (place.tree / "text", place.tree):
        fd = os.open(path, os.O_RDONLY)
        with fails(errno.ENOTTY):
            fcntl.ioctl(fd, termios.TCGETS, bytes(64))
        with fails(errno.ENOTTY):
            fcntl.ioctl(fd, 0x1234, bytes(64))  # of none

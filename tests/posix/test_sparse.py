"""Sizes and holes: files cut and extended, of the image and new."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails
from tests.support.posix_tree import HEAD, HOLES, SMALL, TAIL, TEXT, large_body

pytestmark = posix.marks


@anyone
def test_writing_behind_the_end_leaves_a_hole_that_reads_as_zeros(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"end", 10_000_000)
    assert os.fstat(fd).st_size == 10_000_003
    assert os.fstat(fd).st_blocks * 512 < 1_000_000
    assert os.pread(fd, 1 << 20, 5_000_000) == bytes(1 << 20)
    assert os.pread(fd, 10, 9_999_998) == b"\0\0end"


@anyone
def test_an_offset_of_terabytes_can_be_written_to(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"far", 1 << 42)
    assert os.fstat(fd).st_size == (1 << 42) + 3
    assert os.pread(fd, 10, (1 << 42) - 2) == b"\0\0far"


@anyone
def test_a_sparse_file_reads_right_after_it_is_written_to(place: Place) -> None:
    path = place.tree / "holes"
    with path.open("r+b") as file:
        file.seek(500_000)
        file.write(b"middle")
    body = path.read_bytes()
    assert (len(body), body[: len(HEAD)], body[-len(TAIL) :]) == (HOLES, HEAD, TAIL)
    assert body[500_000:500_006] == b"middle"
    assert set(body[len(HEAD) : 500_000]) == {0}
    assert set(body[500_006 : -len(TAIL)]) == {0}


@anyone
def test_cutting_a_new_file_drops_what_is_behind(place: Place) -> None:
    Path("f").write_bytes(b"0123456789")
    os.truncate("f", 4)
    assert Path("f").read_bytes() == b"0123"
    os.truncate("f", 8)
    assert Path("f").read_bytes() == b"0123\0\0\0\0"


@anyone
def test_cutting_a_file_of_the_image_drops_what_is_behind(place: Place, large: Path) -> None:
    os.truncate(large, 1_000_001)
    assert large.read_bytes() == large_body()[:1_000_001]
    os.truncate(large, 1_000_005)
    assert large.read_bytes() == large_body()[:1_000_001] + bytes(4)


@anyone
def test_extending_a_file_of_the_image_adds_zeros(place: Place) -> None:
    path = place.tree / "text"
    os.truncate(path, len(TEXT) + 5000)
    assert path.read_bytes() == TEXT + bytes(5000)


@anyone
def test_truncating_to_the_same_size_changes_nothing(place: Place) -> None:
    path = place.tree / "text"
    os.truncate(path, len(TEXT))
    assert path.read_bytes() == TEXT


@anyone
def test_truncating_to_nothing_and_writing_again_shows_no_old_bytes(place: Place, large: Path) -> None:
    fd = os.open(large, os.O_RDWR)
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"x", 100_000)
    assert os.pread(fd, 200_000, 0) == bytes(100_000) + b"x"


@anyone
def test_an_open_files_cut_is_seen_by_every_descriptor(place: Place) -> None:
    path = place.tree / "text"
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    assert os.pread(reader, 3, 5000) == b"012"
    os.ftruncate(writer, 5001)
    assert os.pread(reader, 3, 5000) == b"0"
    assert os.fstat(reader).st_size == os.stat(path).st_size == 5001


@anyone
def test_a_read_only_descriptor_cannot_cut(place: Place) -> None:
    path = place.tree / "small"
    with fails(errno.EINVAL):
        os.ftruncate(os.open(path, os.O_RDONLY), 1)
    assert path.read_bytes() == SMALL


@anyone
def test_only_files_can_be_cut(place: Place) -> None:
    with fails(errno.EISDIR):
        os.truncate(place.tree / "directory", 0)
    with fails(errno.EINVAL):
        os.truncate(place.tree / "pipe", 0)
    with fails(errno.EINVAL):
        os.truncate(place.tree / "small", -1)
    with fails(errno.ENOENT):
        os.truncate("nothing", 0)
    with fails(errno.ENOENT):
        os.truncate(place.tree / "to-nowhere", 0)


@anyone
def test_a_link_to_a_file_is_cut_through(place: Place) -> None:
    os.truncate(place.tree / "to-small", 2)
    assert (place.tree / "small").read_bytes() == SMALL[:2]
    assert (place.tree / "to-small").is_symlink()


@anyone
def test_allocating_extends_a_file_of_the_image(place: Place) -> None:
    path = place.tree / "text"
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, 20_000)  # the C library writes zeros where the file system cannot
    assert path.read_bytes() == TEXT + bytes(10_000)

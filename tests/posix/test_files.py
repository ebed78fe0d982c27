"""Regular files: made, opened with every flag, read, written, cut and extended."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails
from tests.support.posix_tree import SMALL, TEXT, large_body

pytestmark = posix.marks


def contents(path: Path) -> bytes:
    return path.read_bytes()


@anyone
def test_a_new_file_is_empty_and_its_makers(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o640)
    info = os.fstat(fd)
    os.close(fd)
    assert (info.st_size, info.st_nlink, info.st_blocks) == (0, 1, 0)
    assert (info.st_mode, info.st_uid, info.st_gid) == (0o100640, *place.account)
    assert os.stat("f") == info


@anyone
def test_what_is_written_is_read_back(place: Path) -> None:
    Path("f").write_bytes(large_body())
    assert contents(Path("f")) == large_body()
    assert os.stat("f").st_size == len(large_body())


@anyone
def test_exclusive_creation_refuses_what_is_there(place: Place) -> None:
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open("f", exclusive))
    os.symlink("nowhere", "link")
    for path in (
        Path("f"),
        Path("link"),
        place.tree / "small",
        place.tree / "directory",
        place.tree / "to-nowhere",
    ):
        with fails(errno.EEXIST):
            os.open(path, exclusive)


@anyone
def test_opening_what_is_not_there_fails(place: Place) -> None:
    for path in (Path("f"), Path("no/f"), place.tree / "f", place.tree / "to-nowhere"):
        with fails(errno.ENOENT):
            os.open(path, os.O_RDWR)
    with fails(errno.ENOTDIR):
        os.open(place.tree / "small/f", os.O_CREAT | os.O_RDWR)


@anyone
def test_a_dangling_link_is_created_through(place: Place) -> None:
    os.symlink("target", "link")
    Path("link").write_bytes(b"t")
    assert contents(Path("target")) == b"t"
    assert Path("link").is_symlink()


@anyone
def test_truncating_on_open_empties(place: Place) -> None:
    Path("f").write_bytes(b"long")
    for path in (Path("f"), place.tree / "text"):
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert (os.stat(path).st_size, contents(path)) == (0, b"")


@anyone
def test_truncating_on_open_shows_in_files_open_already(place: Place) -> None:
    path = place.tree / "text"
    with path.open("rb", buffering=0) as reader:
        assert reader.read(10) == TEXT[:10]
        path.write_bytes(b"new")
        reader.seek(0)
        assert reader.read() == b"new"
        assert os.fstat(reader.fileno()).st_size == 3


@anyone
def test_a_directory_cannot_be_opened_for_writing(place: Place) -> None:
    for path in (place.at, place.tree, place.tree / "bare"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT | os.O_WRONLY):
            with fails(errno.EISDIR):
                os.open(path, flags)


@anyone
def test_a_file_is_no_directory(place: Place) -> None:
    with fails(errno.ENOTDIR):
        os.open(place.tree / "small", os.O_DIRECTORY)
    with fails(errno.ENOTDIR):
        os.stat(f"{place.tree}/small/")


@anyone
def test_links_are_not_followed_if_asked_not_to(place: Place) -> None:
    for path in (place.tree / "to-small", place.tree / "to-nowhere"):
        with fails(errno.ELOOP):
            os.open(path, os.O_RDWR | os.O_NOFOLLOW)


@anyone
def test_appending_goes_to_the_end_wherever_one_stands(place: Place) -> None:
    Path("f").write_bytes(b"12")
    for path, before in ((Path("f"), b"12"), (place.tree / "small", SMALL)):
        fd = os.open(path, os.O_RDWR | os.O_APPEND)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"end")
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(before) + 3
        os.close(fd)
        assert contents(path) == before + b"end"


@anyone
def test_two_appenders_of_one_process_do_not_overwrite_each_other(place: Place) -> None:
    for path, before in ((Path("f"), b""), (place.tree / "small", SMALL)):
        first, second = (os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for _ in range(2))
        for number in range(10):
            os.write(first if number % 2 else second, b"%d" % number)
        os.close(first)
        os.close(second)
        assert contents(path) == before + b"0123456789"


@anyone
def test_writing_in_the_middle_leaves_the_rest(place: Place, large: Path) -> None:
    before = large_body()
    with large.open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"written")
    assert contents(large) == before[:1_234_567] + b"written" + before[1_234_574:]


@anyone
def test_one_descriptor_reads_what_another_has_just_written(place: Place) -> None:
    path = place.tree / "text"
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    assert os.pread(reader, 4, 0) == b"0123"
    os.pwrite(writer, b"ABCD", 2)
    assert os.pread(reader, 8, 0) == b"01ABCD67"
    os.pwrite(writer, b"Z", len(TEXT) + 2)
    assert os.pread(reader, 10, len(TEXT) - 1) == b"9\0\0Z"
    assert os.fstat(reader).st_size == len(TEXT) + 3


@anyone
def test_descriptors_allow_what_they_were_opened_for(place: Place) -> None:
    path = place.tree / "small"
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    with fails(errno.EBADF):
        os.write(reader, b"x")
    with fails(errno.EBADF):
        os.read(writer, 1)
    with fails(errno.EINVAL, errno.EBADF):
        os.ftruncate(reader, 0)
    assert contents(path) == SMALL


@anyone
def test_scattered_writes_and_gathered_reads_agree(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    assert os.writev(fd, [b"ab", b"", b"cde"]) == 5
    assert os.pwritev(fd, [b"XY", b"Z"], 1) == 3
    first, second = bytearray(2), bytearray(10)
    assert os.preadv(fd, [first, second], 0) == 5
    assert first + second[:3] == b"aXYZe"


@anyone
def test_reading_ends_at_the_end(place: Place) -> None:
    fd = os.open(place.tree / "small", os.O_RDWR)
    assert os.pread(fd, 100, 0) == SMALL
    assert os.pread(fd, 100, len(SMALL)) == b""
    assert os.pread(fd, 100, 1 << 40) == b""
    assert os.lseek(fd, 0, os.SEEK_END) == len(SMALL)


@anyone
def test_direct_input_and_output_see_what_buffered_writes_left(place: Place) -> None:
    Path("f").write_bytes(bytes(range(256)) * 64)
    try:
        fd = os.open("f", os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # where it cannot be had (open(2))
            raise
        return
    page = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [page], 4096) == 4096
    assert page[:] == bytes(range(256)) * 16
    page[:] = b"d" * 4096
    assert os.pwritev(fd, [page], 8192) == 4096
    assert contents(Path("f"))[8190:12290] == b"\xfe\xff" + b"d" * 4096 + b"\x00\x01"


@anyone
def test_a_path_descriptor_names_a_file_without_opening_it(place: Place) -> None:
    fd = os.open(place.tree / "text", os.O_PATH)
    assert os.fstat(fd).st_size == len(TEXT)
    with fails(errno.EBADF):
        os.read(fd, 1)
    with fails(errno.EBADF):
        os.fchmod(fd, 0o600)
    directory = os.open(place.tree, os.O_PATH | os.O_DIRECTORY)
    assert os.stat("small", dir_fd=directory).st_size == len(SMALL)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    os.write(again, b"opened")
    assert contents(place.tree / "text")[:6] == b"opened"

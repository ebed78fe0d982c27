"""Files mapped into memory, copied inside the kernel, and brought to the disk."""

from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.children import Child
from tests.support.posix_calls import syncfs
from tests.support.posix_places import Place, anyone, not_by_overlayfs
from tests.support.posix_tree import HOLES, TEXT, large_body

pytestmark = posix.marks


def mapped(path: Path | str, writable: bool, length: int = 0, private: bool = False) -> mmap.mmap:
    """A map of the file, which is closed again."""
    fd = os.open(path, os.O_RDWR if writable and not private else os.O_RDONLY)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    memory = mmap.mmap(fd, length, flags=flags, prot=protection)
    os.close(fd)
    return memory


@anyone
def test_a_map_of_a_file_of_the_image_shows_its_bytes(place: Place, large: Path) -> None:
    with mapped(large, writable=False) as memory:
        assert memory[:] == large_body()
    with mapped(place.tree / "holes", writable=False) as memory:
        assert (len(memory), memory[500_000:500_100]) == (HOLES, bytes(100))


@anyone
def test_what_is_stored_in_a_shared_map_is_read_from_the_file(place: Place, large: Path) -> None:
    Path("f").write_bytes(large_body())
    for path in (Path("f"), large):
        with mapped(path, writable=True) as memory:
            memory[1_000_000:1_000_005] = b"MAPPD"
            fd = os.open(path, os.O_RDONLY)
            assert (
                os.pread(fd, 7, 999_999)
                == large_body()[999_999:1_000_000] + b"MAPPD" + large_body()[1_000_005:1_000_006]
            )
            memory.flush()
        body = large_body()
        assert path.read_bytes() == body[:1_000_000] + b"MAPPD" + body[1_000_005:]


@not_by_overlayfs
def test_what_is_written_to_the_file_is_seen_in_a_shared_map(place: Place) -> None:
    path = place.tree / "text"
    with mapped(path, writable=False) as before, path.open("r+b") as file:
        assert before[:10] == TEXT[:10]
        file.write(b"ABC")
        file.flush()
        with mapped(path, writable=False) as after:
            assert (before[:5], after[:5]) == (b"ABC34", b"ABC34")


@anyone
def test_two_processes_share_a_map(place: Place) -> None:
    path = place.tree / "text"

    def child() -> None:
        with mapped(path, writable=True) as memory:
            memory[0:5] = b"child"

    with mapped(path, writable=True) as memory:
        with Child(child) as other:
            assert other.join() == 0
        assert memory[:6] == b"child5"


@anyone
def test_a_private_map_keeps_its_changes(place: Place) -> None:
    path = place.tree / "text"
    with mapped(path, writable=True, private=True) as memory:
        memory[0:4] = b"MINE"
        assert memory[:6] == b"MINE45"
    assert path.read_bytes() == TEXT


@anyone
def test_a_map_lives_on_without_descriptor_and_name(place: Place) -> None:
    for path in (place.at / "f", place.tree / "text"):
        path.write_bytes(TEXT)
        with mapped(path, writable=True) as memory:
            os.unlink(path)
            memory[0:2] = b"ok"
            memory.flush()
            assert memory[:4] == b"ok23"


@anyone
def test_a_map_can_be_extended_with_its_file(place: Place) -> None:
    path = place.tree / "text"
    with mapped(path, writable=True, length=4096) as memory:
        os.truncate(path, 20_000)
        memory.resize(20_000)
        memory[19_998:20_000] = b"ok"
        assert memory[len(TEXT) - 1 : len(TEXT) + 2] == b"9\0\0"
    assert path.read_bytes()[-3:] == b"\0ok"


@not_by_overlayfs
def test_touching_a_map_behind_the_end_is_an_error(place: Place) -> None:
    path = place.tree / "text"

    def touch() -> None:
        faulthandler.disable()
        with mapped(path, writable=False) as memory:
            os.truncate(path, 0)
            memory[8192]

    with Child(touch) as child:
        assert child.join() == -signal.SIGBUS


@anyone
def test_bytes_behind_the_end_of_the_last_page_are_not_kept(place: Place) -> None:
    Path("f").write_bytes(b"end")
    fd = os.open("f", os.O_RDWR)
    with mmap.mmap(fd, 3) as memory:
        memory.flush()
        os.ftruncate(fd, 2)
        os.ftruncate(fd, 10)
        assert os.pread(fd, 10, 0) == b"en" + bytes(8)


@anyone
def test_an_empty_file_can_be_filled_through_a_map(place: Place) -> None:
    fd = os.open("f", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, 100_000)
    with mmap.mmap(fd, 100_000) as memory:
        for offset in range(0, 100_000, 10_000):
            memory[offset : offset + 5] = b"%05d" % offset
    os.close(fd)
    body = Path("f").read_bytes()
    assert [int(body[offset : offset + 5]) for offset in range(0, 100_000, 10_000)] == [
        *range(0, 100_000, 10_000)
    ]


def copied(count: int, copy: Callable[[int], int]) -> bool:
    """Call `copy` with what is left until all is copied; whether the file system can do it."""
    try:
        while count:
            done = copy(count)
            assert done > 0
            count -= done
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL):
            raise
        return False
    return True


@not_by_overlayfs
def test_the_kernel_copies_ranges_between_files(place: Place, large: Path) -> None:
    source, target = os.open(large, os.O_RDONLY), os.open(place.tree / "small", os.O_RDWR | os.O_TRUNC)
    if copied(len(large_body()), lambda left: os.copy_file_range(source, target, left)):
        assert (place.tree / "small").read_bytes() == large_body()
    os.copy_file_range(source, target, 5, 100, 1000)
    assert os.pread(target, 5, 1000) == large_body()[100:105]


@anyone
def test_the_kernel_sends_files_into_files(place: Place, large: Path) -> None:
    source, target = os.open(large, os.O_RDONLY), os.open("f", os.O_CREAT | os.O_RDWR)
    assert copied(len(large_body()), lambda left: os.sendfile(target, source, None, left))
    assert Path("f").read_bytes() == large_body()


@anyone
def test_the_kernel_splices_files_into_pipes(place: Place) -> None:
    out, into = os.pipe()
    fd, target = os.open(place.tree / "text", os.O_RDWR), os.open("f", os.O_CREAT | os.O_RDWR)
    assert os.splice(fd, into, 4096, offset_src=3) == 4096
    assert os.splice(out, target, 4096) == 4096
    assert Path("f").read_bytes() == TEXT[3:4099]


@anyone
def test_files_are_copied_by_programs_with_all_they_have(place: Place, large: Path) -> None:
    os.unlink(place.tree / "null")  # only root makes devices
    subprocess.run(["cp", "-a", place.tree, "copy"], check=True)
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", "copy", place.tree], capture_output=True, check=False
    )
    said = done.stdout.decode().splitlines()
    assert [line for line in said if "fifo" not in line] == []
    assert os.stat("copy/text").st_mtime_ns == os.stat(place.tree / "text").st_mtime_ns
    shutil.copyfile("copy/small", place.tree / "text")
    assert (place.tree / "text").read_bytes() == Path("copy/small").read_bytes()


@anyone
def test_everything_can_be_brought_to_the_disk(place: Place) -> None:
    for path in (place.at / "f", place.tree / "text"):
        with path.open("wb") as file:
            file.write(b"synced")
            file.flush()
            os.fdatasync(file.fileno())
            os.fsync(file.fileno())
            syncfs(file.fileno())
        assert path.read_bytes() == b"synced"
    for path in (place.at, place.tree, place.tree / "bare", place.tree / "small"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.fdatasync(fd)
        os.close(fd)

"""A scratch that is full: the mount says so, keeps what it has, and goes on when there is room again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import posix_places as posix
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, drop_caches, gzipped, until, write_image
from tests.support.posix_places import ROOT, fails
from tests.support.posix_tree import SMALL, as_members, large_body

pytestmark = posix.marks

ROOM, NODES = 2 << 20, 60  # bytes and inodes of the scratch: less than `large` has


@pytest.fixture
def tree(imgfs: Imgfs, tmp_path: Path) -> Iterator[Path]:
    """The tree of an image, whose scratch is on a very small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = f"size={ROOM},nr_inodes={NODES},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", disk], check=True)
    try:
        layer = tar.archive(*as_members("case", ROOT, large=True))
        image = write_image(imgfs.directory / "layout", [gzipped(layer)])
        imgfs.expected.append("some files have been left without their data, as metacopy: .*No space left")
        at = imgfs.mount(image, "--rw", "--scratch", f"{disk}/scratch/")
        yield at / "case/tree"
        imgfs.umount(at)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def fill(path: Path) -> int:
    """Write to a new file until there is no room; how many bytes were said to be on the disk."""
    fd, synced = os.open(path, os.O_CREAT | os.O_WRONLY), 0
    try:
        with fails(errno.ENOSPC):
            for _ in range(2 * ROOM // 65_536):
                written = os.write(fd, b"f" * 65_536)
                os.fsync(fd)
                synced += written
        return synced
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def test_writing_more_than_there_is_room_for_fails_and_keeps_what_was_written(tree: Path) -> None:
    (tree / "small").write_bytes(b"kept")
    taken = fill(tree / "full")
    assert 0 < taken <= ROOM
    assert (tree / "full").read_bytes()[:taken] == b"f" * taken
    assert (tree / "small").read_bytes() == b"kept"


def test_there_is_room_again_when_something_is_removed(tree: Path) -> None:
    fill(tree / "full")
    os.unlink(tree / "full")
    until(lambda: os.statvfs(tree).f_bfree * 4096 > ROOM // 2, "the kernel has let go of what was removed")
    (tree / "new").write_bytes(b"n" * (ROOM // 4))
    assert (tree / "new").read_bytes() == b"n" * (ROOM // 4)


def test_a_file_of_the_image_that_has_no_room_stays_as_it_was(tree: Path) -> None:
    before = os.stat(tree / "large")
    with fails(errno.ENOSPC), (tree / "large").open("r+b", buffering=0) as file:
        file.write(b"changed")
        os.fsync(file.fileno())
    drop_caches()  # until then what could not be written may be seen: the kernel's page cache has it
    assert (tree / "large").read_bytes() == large_body()
    assert (os.stat(tree / "large").st_ino, os.stat(tree / "large").st_size) == (
        before.st_ino,
        before.st_size,
    )


def test_what_failed_for_want_of_room_leaves_none_taken(tree: Path) -> None:
    before = os.statvfs(tree)
    for _ in range(3):
        with fails(errno.ENOSPC), (tree / "large").open("r+b", buffering=0) as file:
            file.write(b"changed")
            os.fsync(file.fileno())
    until(lambda: os.statvfs(tree).f_bfree > before.f_bfree - 25, "all but 100 kB is free again")


def test_no_more_files_are_made_than_there_are_inodes(tree: Path) -> None:
    made = []
    with fails(errno.ENOSPC):
        for number in range(2 * NODES):
            (tree / f"new-{number}").touch()
            made.append(f"new-{number}")
    assert 0 < len(made) < NODES
    for call in (os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)):
        with fails(errno.ENOSPC):
            call(tree / "more")
    assert {name for name in os.listdir(tree) if name.startswith("new-")} == set(made)
    os.unlink(tree / made[0])
    os.unlink(tree / made[1])
    until(lambda: os.statvfs(tree).f_ffree > 1, "the kernel has let go of what was removed")
    (tree / "more").write_bytes(b"more")
    assert (tree / "more").read_bytes() == b"more"


def test_what_is_in_the_image_can_be_read_while_the_scratch_is_full(tree: Path) -> None:
    fill(tree / "full")
    assert (tree / "small").read_bytes() == SMALL
    assert sorted(os.listdir(tree / "directory")) == ["a", "b", "sub"]
    assert os.statvfs(tree).f_bavail * os.statvfs(tree).f_frsize < 65_536

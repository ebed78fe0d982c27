"""Files made without a name (open(2), O_TMPFILE), which may get one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails

pytestmark = posix.marks


def link_open(fd: int, target: Path | str) -> None:
    """Give an open file a name (open(2), O_TMPFILE, the example)."""
    descriptors = os.open("/proc/self/fd", os.O_PATH)
    os.link(str(fd), target, src_dir_fd=descriptors, follow_symlinks=True)
    os.close(descriptors)


@anyone
def test_a_file_without_a_name_is_in_no_directory_and_keeps_what_is_written(place: Place) -> None:
    os.umask(0o027)
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o666)
    os.write(fd, b"kept")
    assert os.listdir() == []
    assert os.pread(fd, 10, 0) == b"kept"
    found = os.fstat(fd)
    assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o640, 4)
    assert (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())
    os.ftruncate(fd, 2)
    os.fchmod(fd, 0o600)
    assert os.fstat(fd).st_size == 2


@anyone
def test_it_is_given_a_name_and_another(place: Place) -> None:
    for directory in (Path(), place.tree / "directory"):
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o644)
        os.write(fd, b"first")
        link_open(fd, directory / "named")
        os.write(fd, b" and more")
        assert (directory / "named").read_bytes() == b"first and more"
        os.link(directory / "named", directory / "again")
        assert os.fstat(fd).st_nlink == os.stat(directory / "again").st_nlink == 2
        assert os.fstat(fd).st_ino == os.stat(directory / "named").st_ino
        os.close(fd)
        (directory / "named").unlink()
        assert (directory / "again").read_bytes() == b"first and more"
        assert {"again"} <= set(os.listdir(directory)) - {"named"}


@anyone
def test_it_takes_the_place_of_a_file_of_the_image_that_is_gone(place: Place) -> None:
    path = place.tree / "small"
    path.unlink()
    fd = os.open(place.tree, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"new")
    link_open(fd, path)
    os.close(fd)
    assert path.read_bytes() == b"new"
    with fails(errno.EEXIST):
        link_open(os.open(place.tree, os.O_TMPFILE | os.O_RDWR), path)


@anyone
def test_one_that_is_to_stay_nameless_gets_no_name(place: Place) -> None:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    with fails(errno.ENOENT):
        link_open(fd, "name")


@anyone
def test_it_inherits_the_group_of_its_directory(place: Place) -> None:
    os.mkdir("d")
    os.chmod("d", 0o2755)
    fd = os.open("d", os.O_TMPFILE | os.O_RDWR, 0o644)
    assert os.fstat(fd).st_gid == os.stat("d").st_gid
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o644
    os.rmdir("d")

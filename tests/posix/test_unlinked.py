"""Files and directories without a name that are still open: they live until the last descriptor is closed."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails, not_by_overlayfs, only_root
from tests.support.posix_tree import SMALL, TEXT, large_body, mtime_of

pytestmark = posix.marks


def nameless(path: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of `path`, whose name is gone."""
    fd = os.open(path, flags)
    os.unlink(path)
    assert not path.exists()
    return fd


def new(place: Place) -> Path:
    (place.at / "new").write_bytes(SMALL)
    return place.at / "new"


def each(place: Place) -> list[Path]:
    """A new file and one of the image, both with SMALL in them."""
    return [new(place), place.tree / "small"]


@anyone
def test_it_has_no_links_and_can_be_read_and_written(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 100, 0) == SMALL
        assert os.pwrite(fd, b"more", len(SMALL)) == 4
        assert os.pread(fd, 100, 0) == SMALL + b"more"
        assert os.fstat(fd).st_size == len(SMALL) + 4


@anyone
def test_it_can_be_cut_and_extended(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        os.ftruncate(fd, 2)
        assert os.pread(fd, 100, 0) == SMALL[:2]
        os.ftruncate(fd, 4)
        assert (os.pread(fd, 100, 0), os.fstat(fd).st_size) == (SMALL[:2] + b"\0\0", 4)


@anyone
def test_its_mode_and_times_can_be_changed(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        os.fchmod(fd, 0o600)
        os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
        info = os.fstat(fd)
        assert stat.S_IMODE(info.st_mode) == 0o600
        assert (info.st_atime_ns, info.st_mtime_ns) == (1_000_000_001, 2_000_000_002)


@only_root
def test_it_can_be_given_away(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        os.fchown(fd, 12, 34)
        assert (os.fstat(fd).st_uid, os.fstat(fd).st_gid) == (12, 34)


@anyone
def test_its_extended_attributes_can_be_changed(place: Place) -> None:
    for path in (new(place), place.tree / "labelled"):
        fd = nameless(path)
        os.setxattr(fd, "user.late", b"set")
        assert os.getxattr(fd, "user.late") == b"set"
        os.removexattr(fd, "user.late")
        assert "user.late" not in os.listxattr(fd)


@anyone
def test_a_file_only_read_can_still_be_read_to_its_end(place: Place, large: Path) -> None:
    fd = nameless(large, os.O_RDONLY)
    with open(fd, "rb") as file:
        assert file.read() == large_body()


@not_by_overlayfs
def test_an_untouched_file_of_the_image_keeps_its_attributes(place: Place) -> None:
    path = place.tree / "text"
    before = os.stat(path)
    fd = nameless(path, os.O_RDONLY)
    after = os.fstat(fd)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, len(TEXT))
    assert after.st_mtime_ns == mtime_of("text")
    assert after.st_nlink == 0


@anyone
def test_a_new_file_of_its_name_is_another(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        path.write_bytes(b"another")
        os.pwrite(fd, b"SM", 0)
        assert path.read_bytes() == b"another"
        assert os.pread(fd, 100, 0) == b"SM" + SMALL[2:]
        assert os.fstat(fd).st_ino != os.stat(path).st_ino


@anyone
def test_a_file_renamed_over_stays_readable(place: Place) -> None:
    for path in each(place):
        fd = os.open(path, os.O_RDWR)
        Path("over").write_bytes(b"over")
        os.rename("over", path)
        assert (os.pread(fd, 100, 0), os.fstat(fd).st_nlink) == (SMALL, 0)
        assert path.read_bytes() == b"over"


@anyone
def test_it_cannot_be_linked_again(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        with fails(errno.ENOENT):
            os.link(f"/proc/self/fd/{fd}", "again", src_dir_fd=fd, follow_symlinks=True)


@anyone
def test_a_file_with_another_name_can_be_linked_by_its_descriptor(place: Place) -> None:
    for path in each(place):
        os.link(path, "other")
        fd = nameless(path)
        os.link(f"/proc/self/fd/{fd}", "third", src_dir_fd=fd, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 2
        assert os.path.samefile("other", "third")
        os.unlink("other")
        os.unlink("third")


@anyone
def test_all_names_of_a_hard_linked_file_go_one_by_one(place: Place) -> None:
    first, second = place.tree / "linked-a", place.tree / "linked-b"
    fd = os.open(first, os.O_RDWR)
    os.unlink(first)
    assert (os.fstat(fd).st_nlink, os.stat(second).st_nlink) == (1, 1)
    os.unlink(second)
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b"still")
    assert os.pread(fd, 10, 0) == b"stilld"


@anyone
def test_two_descriptors_of_it_share_what_is_written(place: Place) -> None:
    for path in each(place):
        reader = os.open(path, os.O_RDONLY)
        writer = nameless(path)
        os.pwrite(writer, b"W", 0)
        assert os.pread(reader, 1, 0) == b"W"


@anyone
def test_it_can_be_opened_again_by_its_descriptor(place: Place) -> None:
    for path in each(place):
        fd = nameless(path)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        os.write(again, b"A")
        assert os.pread(fd, 100, 0) == b"A" + SMALL[1:]


@not_by_overlayfs
def test_a_removed_directory_is_empty_and_takes_nothing(place: Place) -> None:
    os.mkdir("made")
    for path in (Path("made"), place.tree / "bare"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        os.rmdir(path)
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        with fails(errno.ENOENT):
            os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        with fails(errno.ENOENT):
            os.mkdir("d", dir_fd=fd)
        with fails(errno.ENOENT):
            os.symlink("s", "s", dir_fd=fd)


@anyone
def test_ones_own_directory_can_be_removed(place: Place) -> None:
    for path in (place.at / "made", place.tree / "bare"):
        path.mkdir(exist_ok=True)
        os.chdir(path)
        os.rmdir(path)
        with fails(errno.ENOENT):
            os.getcwd()
        with fails(errno.ENOENT):
            Path("f").touch()
        os.chdir(place.at)

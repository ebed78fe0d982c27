"""Times of access, modification and change: set to the nanosecond, kept, and moved by what moves them."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_calls import AT_SYMLINK_NOFOLLOW, UTIME_NOW, UTIME_OMIT, futimens, utimensat
from tests.support.posix_places import Place, anyone, fails, not_by_overlayfs, only_users
from tests.support.posix_tree import mtime_of

pytestmark = posix.marks

SECOND = 1_000_000_000


def times(path: Path | str) -> tuple[int, int]:
    info = os.lstat(path)
    return info.st_atime_ns, info.st_mtime_ns


def is_now(stamp: int) -> bool:
    return abs(time.time_ns() - stamp) < 60 * SECOND


@anyone
def test_new_files_are_stamped_with_the_time(place: Place) -> None:
    Path("f").touch()
    os.mkdir("d")
    os.symlink("x", "l")
    os.mkfifo("p")
    for name in "fdlp":
        info = os.lstat(name)
        assert all(map(is_now, (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns))), name


@anyone
def test_times_are_set_to_the_nanosecond(place: Place) -> None:
    Path("f").touch()
    for path in (Path("f"), *(place.tree / name for name in ("small", "bare", "pipe", "linked-a"))):
        utimensat(path, (1_111_111_111, 123_456_789), (1_222_222_222, 987_654_321))
        assert times(path) == (1_111_111_111_123_456_789, 1_222_222_222_987_654_321)
        assert is_now(os.stat(path).st_ctime_ns)
    assert times(place.tree / "linked-b") == times(place.tree / "linked-a")


@anyone
def test_times_long_past_and_far_off_are_kept(place: Place) -> None:
    for path in (place.at / "f", place.tree / "small"):
        path.touch()
        for seconds in (0, -1, -86_400 * 365, 1 << 31, 1 << 33):
            os.utime(path, ns=(seconds * SECOND + 5, seconds * SECOND + 7))
            assert times(path) == (seconds * SECOND + 5, seconds * SECOND + 7)


@anyone
def test_a_time_can_be_left_alone(place: Place) -> None:
    for name in ("small", "bare"):
        path = place.tree / name
        utimensat(path, (5, 6), (0, UTIME_OMIT))
        assert times(path) == (5 * SECOND + 6, mtime_of(name))
        utimensat(path, (0, UTIME_OMIT), (7, 8))
        assert times(path) == (5 * SECOND + 6, 7 * SECOND + 8)
        utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
        assert times(path) == (5 * SECOND + 6, 7 * SECOND + 8)


@anyone
def test_a_time_can_be_set_to_now(place: Place) -> None:
    for name in ("small", "bare"):
        path = place.tree / name
        utimensat(path, (5, 6), (0, UTIME_NOW))
        assert times(path)[0] == 5 * SECOND + 6
        assert is_now(times(path)[1])
        utimensat(path, (0, UTIME_NOW), (7, 8))
        assert is_now(times(path)[0])
        assert times(path)[1] == 7 * SECOND + 8


@anyone
def test_an_open_files_times_are_set(place: Place) -> None:
    for path in (place.tree / "small", place.tree / "bare"):
        fd = os.open(path, os.O_RDONLY)
        futimens(fd, (1, 2), (3, 4))
        assert times(path) == (SECOND + 2, 3 * SECOND + 4)


@anyone
def test_a_links_times_are_not_its_targets(place: Place) -> None:
    utimensat(place.tree / "to-small", (1, 2), (3, 4))
    assert times(place.tree / "small") == (SECOND + 2, 3 * SECOND + 4)
    utimensat(place.tree / "to-small", (5, 6), (7, 8), AT_SYMLINK_NOFOLLOW)
    assert times(place.tree / "to-small")[1] == 7 * SECOND + 8
    assert times(place.tree / "small") == (SECOND + 2, 3 * SECOND + 4)


@anyone
def test_impossible_nanoseconds_are_refused(place: Place) -> None:
    with fails(errno.EINVAL):
        utimensat(place.tree / "small", (0, SECOND), (0, 0))
    with fails(errno.ENOENT):
        utimensat("nothing", (0, 0), (0, 0))


@only_users
def test_somebody_elses_times_are_not_set(place: Place) -> None:
    with fails(errno.EPERM):
        os.utime("/etc/passwd", ns=(0, 0))


@not_by_overlayfs
def test_writing_moves_the_modification_and_reading_does_not(place: Place) -> None:
    Path("f").write_bytes(b"f")
    for path in (Path("f"), place.tree / "text"):
        os.utime(path, ns=(SECOND, SECOND))
        path.read_bytes()
        assert os.stat(path).st_mtime_ns == SECOND
        with path.open("r+b") as file:
            assert os.stat(path).st_mtime_ns == SECOND
            file.write(b"w")
        assert is_now(os.stat(path).st_mtime_ns)


@anyone
def test_a_time_set_on_an_open_file_outlives_its_closing(place: Place) -> None:
    for path in (place.at / "f", place.tree / "text"):
        with path.open("wb") as file:
            file.write(b"written")
            file.flush()
            os.utime(path, ns=(SECOND, SECOND + 1))
        assert os.stat(path).st_mtime_ns == SECOND + 1
        assert path.read_bytes() == b"written"
        assert os.stat(path).st_mtime_ns == SECOND + 1


@anyone
def test_truncating_moves_the_modification(place: Place) -> None:
    Path("f").write_bytes(b"f")
    for path in (Path("f"), place.tree / "text"):
        os.utime(path, ns=(SECOND, SECOND))
        os.truncate(path, 100)
        assert is_now(os.stat(path).st_mtime_ns)
        os.utime(path, ns=(SECOND, SECOND))
        os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        assert is_now(os.stat(path).st_mtime_ns)


@anyone
def test_attributes_and_links_do_not_move_the_modification(place: Place) -> None:
    path = place.tree / "text"
    os.chmod(path, 0o600)
    os.setxattr(path, "user.x", b"1")
    os.link(path, "link")
    os.rename(path, place.tree / "moved")
    os.unlink("link")
    assert os.stat(place.tree / "moved").st_mtime_ns == mtime_of("text")


@anyone
def test_what_happens_in_a_subdirectory_does_not_move_the_one_above(place: Place) -> None:
    (place.tree / "directory/sub/new").touch()
    os.unlink(place.tree / "directory/sub/c")
    (place.tree / "directory/a").write_bytes(b"changed")
    assert os.stat(place.tree / "directory").st_mtime_ns == mtime_of("directory")
    assert os.stat(place.tree / "directory/sub").st_mtime_ns > mtime_of("directory/sub")

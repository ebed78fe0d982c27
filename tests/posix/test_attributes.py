"""What stat says: modes, owners, inode numbers, times of change, and what statfs says of the whole."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails, only_root, tick
from tests.support.posix_tree import HOLES, MEMBERS, SMALL, TEXT, Kind, large_body, mtime_of

pytestmark = posix.marks


@anyone
def test_the_tree_is_as_the_image_says(place: Place) -> None:
    kinds = {
        Kind.FILE: stat.S_IFREG,
        Kind.SPARSE: stat.S_IFREG,
        Kind.DIRECTORY: stat.S_IFDIR,
        Kind.FIFO: stat.S_IFIFO,
        Kind.NULL: stat.S_IFCHR,
    }
    for member in MEMBERS:
        info = os.lstat(place.tree / member.path)
        assert info.st_mtime_ns == mtime_of(member.path), member.path
        assert (info.st_uid, info.st_gid) == place.account, member.path
        if member.kind in kinds:
            assert info.st_mode == kinds[member.kind] | member.mode, member.path
    assert os.stat(place.tree / "holes").st_size == HOLES
    assert os.stat(place.tree / "null").st_rdev == os.makedev(1, 3)


@anyone
def test_modes_can_be_changed(place: Place) -> None:
    os.mkdir("d")
    Path("f").touch()
    for path in (
        Path("d"),
        Path("f"),
        place.tree,
        *(place.tree / name for name in ("small", "bare", "pipe")),
    ):
        for mode in (0o700, 0o4711, 0o1777, 0o755):
            os.chmod(path, mode)
            assert stat.S_IMODE(os.lstat(path).st_mode) == mode


@anyone
def test_changing_a_mode_leaves_all_else(place: Place, large: Path) -> None:
    before = os.stat(large)
    tick()
    os.chmod(large, 0o600)
    after = os.stat(large)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    assert after.st_ctime_ns > before.st_ctime_ns
    assert large.read_bytes() == large_body()


@anyone
def test_a_mode_is_changed_through_a_link(place: Place) -> None:
    os.chmod(place.tree / "to-small", 0o600)
    assert stat.S_IMODE(os.stat(place.tree / "small").st_mode) == 0o600
    with fails(errno.ENOENT):
        os.chmod(place.tree / "to-nowhere", 0o600)


@anyone
def test_an_open_files_mode_is_changed_for_its_name(place: Place) -> None:
    for path in (place.tree / "small", place.tree / "bare"):
        fd = os.open(path, os.O_RDONLY)
        os.fchmod(fd, 0o500)
        assert os.fstat(fd) == os.stat(path)
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o500


@only_root
def test_owners_can_be_changed_one_by_one(place: Place) -> None:
    for name in ("small", "bare", "pipe", "null", "labelled"):
        path = place.tree / name
        os.chown(path, 70_000, -1)
        os.chown(path, -1, 80_000)
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (70_000, 80_000)
    assert os.getxattr(place.tree / "labelled", "user.one") == b"1"


@anyone
def test_owners_may_be_set_to_what_they_are(place: Place) -> None:
    for path in (place.tree / "text", place.tree / "bare"):
        os.chown(path, -1, -1)
        os.chown(path, -1, place.account.gid)
        os.chown(path, place.account.uid, -1)
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == place.account


@anyone
def test_inode_numbers_stay_through_every_change(place: Place) -> None:
    changes: list[tuple[str, Callable[[Path], object]]] = [
        ("small", lambda path: os.chmod(path, 0o600)),
        ("text", lambda path: path.write_bytes(b"written")),
        ("last", lambda path: os.truncate(path, 1)),
        ("readonly", lambda path: os.utime(path)),
        ("labelled", lambda path: os.setxattr(path, "user.one", b"2")),
        ("linked-a", lambda path: os.link(path, "third")),
        ("directory", lambda path: (path / "new").touch()),
        ("bare", lambda path: os.chmod(path, 0o700)),
        ("pipe", lambda path: os.chmod(path, 0o600)),
        ("to-small", lambda path: os.utime(path, ns=(1, 1), follow_symlinks=False)),
    ]
    for name, change in changes:
        path = place.tree / name
        before = os.lstat(path).st_ino
        with_handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        change(path)
        assert os.lstat(path).st_ino == before, name
        os.rename(path, place.tree / "moved")
        assert os.lstat(place.tree / "moved").st_ino == os.fstat(with_handle).st_ino == before, name
        os.rename(place.tree / "moved", path)


@anyone
def test_inode_numbers_tell_files_apart(place: Place) -> None:
    for number in range(100):
        Path(str(number)).touch()
    (place.tree / "small").write_bytes(b"copied")
    paths = [*place.at.iterdir(), *(path for path in place.tree.rglob("*") if os.lstat(path).st_nlink == 1)]
    inodes = {os.lstat(path).st_ino for path in paths}
    assert len(inodes) == len(paths)
    assert {os.lstat(path).st_dev for path in paths} == {os.stat(place.at).st_dev}


@anyone
def test_each_kind_of_change_shows_in_the_time_of_change(place: Place) -> None:
    changes: list[Callable[[Path], object]] = [
        lambda path: os.chmod(path, 0o600),
        lambda path: os.chown(path, -1, place.account.gid),
        lambda path: os.utime(path, ns=(5, 5)),
        lambda path: os.setxattr(path, "user.x", b"1"),
        lambda path: os.removexattr(path, "user.x"),
        lambda path: path.write_bytes(b"x"),
        lambda path: os.truncate(path, 5),
        lambda path: os.link(path, f"link-to-{path.name}"),
        lambda path: os.rename(f"link-to-{path.name}", f"moved-{path.name}"),
        lambda path: os.unlink(f"moved-{path.name}"),
    ]
    Path("f").touch()
    for path in (Path("f"), place.tree / "small"):
        for number, change in enumerate(changes):
            before = os.stat(path).st_ctime_ns
            tick()
            change(path)
            assert os.stat(path).st_ctime_ns > before, number


@anyone
def test_reading_changes_no_time_of_change(place: Place) -> None:
    before = os.stat(place.tree / "small")
    assert (place.tree / "small").read_bytes() == SMALL
    os.listdir(place.tree)
    after = os.stat(place.tree / "small")
    assert (after.st_ctime_ns, after.st_mtime_ns) == (before.st_ctime_ns, before.st_mtime_ns)


@anyone
def test_what_is_written_takes_room(place: Place) -> None:
    Path("f").write_bytes(large_body())
    with Path("f").open("rb") as file:
        os.fsync(file.fileno())  # ext4 counts blocks when it allocates them
    assert os.stat("f").st_blocks * 512 >= len(large_body())
    assert os.stat(place.tree / "text").st_blocks * 512 >= len(TEXT)


@anyone
def test_the_file_system_tells_its_size(place: Place) -> None:
    found = os.statvfs(place.at)
    assert found.f_bsize >= 512
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert (found.f_namemax, found.f_flag & os.ST_RDONLY) == (255, 0)
    fd = os.open(place.tree / "small", os.O_RDONLY)
    assert os.fstatvfs(fd).f_blocks == found.f_blocks

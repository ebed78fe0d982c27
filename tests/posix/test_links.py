"""Hard links and symbolic links: one file of several names, and names of names."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails, only_root, tick
from tests.support.posix_tree import SMALL, mtime_of

pytestmark = posix.marks


@anyone
def test_a_link_is_the_same_file(place: Place) -> None:
    Path("f").write_bytes(b"f")
    for number, path in enumerate((Path("f"), place.tree / "small")):
        os.link(path, f"link-{number}")
        assert os.path.samefile(path, f"link-{number}")
        assert os.stat(path).st_nlink == os.stat(f"link-{number}").st_nlink == 2


@anyone
def test_what_is_written_through_one_name_is_read_through_the_other(place: Place) -> None:
    os.link(place.tree / "small", "new")
    for one, other in (("new", place.tree / "small"), (place.tree / "linked-a", place.tree / "linked-b")):
        Path(one).write_bytes(b"through one")
        assert Path(other).read_bytes() == b"through one"
        with Path(other).open("ab") as file:
            file.write(b" and the other")
        assert Path(one).read_bytes() == b"through one and the other"


@anyone
def test_links_of_the_image_are_one_file(place: Place) -> None:
    first, second = os.stat(place.tree / "pair/one"), os.stat(place.tree / "pair/two")
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)


@anyone
def test_links_of_the_image_stay_one_file_when_changed(place: Place) -> None:
    first, second = place.tree / "pair/one", place.tree / "pair/two"
    ino = os.stat(first).st_ino
    os.chmod(first, 0o600)
    os.setxattr(second, "user.x", b"1")
    os.truncate(first, 2)
    assert os.stat(first) == os.stat(second)
    assert (os.stat(first).st_ino, os.stat(first).st_nlink) == (ino, 2)
    assert (second.read_bytes(), os.getxattr(first, "user.x")) == (b"pa", b"1")


@anyone
def test_a_link_of_the_image_that_is_replaced_leaves_the_other_alone(place: Place) -> None:
    os.unlink(place.tree / "linked-a")
    (place.tree / "linked-a").write_bytes(b"another")
    assert (place.tree / "linked-b").read_bytes() == b"linked"
    assert os.stat(place.tree / "linked-b").st_nlink == 1


@anyone
def test_links_are_counted_as_names_come_and_go(place: Place) -> None:
    counts = []
    path = place.tree / "linked-a"
    changes: list[Callable[[], object]] = [
        lambda: os.link(path, "third"),
        lambda: os.rename("third", "3"),
        lambda: os.link("3", place.tree / "fourth"),
        lambda: os.unlink(place.tree / "linked-b"),
        lambda: os.unlink("3"),
    ]
    for change in changes:
        change()
        counts.append(os.stat(path).st_nlink)
    assert counts == [3, 3, 4, 3, 2]
    os.unlink(path)
    assert (os.stat(place.tree / "fourth").st_nlink, (place.tree / "fourth").read_bytes()) == (1, b"linked")


@anyone
def test_a_link_changes_the_time_of_change_and_of_its_directory(place: Place) -> None:
    for path in (place.tree / "small", place.tree / "linked-a"):
        os.utime(place.at, ns=(0, 0))
        before = os.stat(path)
        tick()
        os.link(path, "new")
        after = os.stat(path)
        assert after.st_ctime_ns > before.st_ctime_ns
        assert after.st_mtime_ns == before.st_mtime_ns
        assert os.stat(place.at).st_mtime_ns > 0
        os.unlink("new")


@anyone
def test_what_cannot_be_linked(place: Place) -> None:
    with fails(errno.EPERM):
        os.link(place.tree / "directory", "d")
    with fails(errno.ENOENT):
        os.link("nothing", "n")
    with fails(errno.EEXIST):
        os.link(place.tree / "small", place.tree / "text")
    with fails(errno.EXDEV):
        os.link("/proc/self/status", "p")


@anyone
def test_special_files_and_links_can_be_linked(place: Place) -> None:
    for name in ("to-small", "to-nowhere", "pipe"):
        os.link(place.tree / name, name, follow_symlinks=False)
        assert os.lstat(name).st_ino == os.lstat(place.tree / name).st_ino
        assert os.lstat(name).st_nlink == 2
    assert os.readlink("to-nowhere") == "no/where"


@anyone
def test_a_symbolic_link_says_what_it_was_made_with(place: Place) -> None:
    for target in ("f", "/", "../../x", "no/where", "a" * 4095, b"\xff\xfe \n"):
        os.symlink(target, "link")
        assert os.readlink(os.fsencode("link")) == os.fsencode(target)
        info = os.lstat("link")
        assert (stat.S_ISLNK(info.st_mode), info.st_size) == (True, len(target))
        assert (info.st_uid, info.st_gid) == place.account
        os.unlink("link")


@anyone
def test_a_target_too_long_or_empty_is_refused(place: Place) -> None:
    with fails(errno.ENAMETOOLONG):
        os.symlink("a" * 4096, "link")
    with fails(errno.ENOENT):
        os.symlink("", "link")
    with fails(errno.EEXIST):
        os.symlink("x", place.tree / "to-nowhere")
    with fails(errno.EINVAL):
        os.readlink(place.tree / "small")


@anyone
def test_links_are_followed_to_new_and_old_files(place: Place) -> None:
    os.symlink(place.tree, "tree")
    assert Path("tree/to-small").read_bytes() == SMALL
    Path("tree/to-small").write_bytes(b"through")
    assert (place.tree / "small").read_bytes() == b"through"
    Path("tree/to-directory/made").write_bytes(b"made")
    assert (place.tree / "directory/made").read_bytes() == b"made"
    assert (place.tree / "to-small").is_symlink()


@anyone
def test_going_in_circles_is_noticed(place: Place) -> None:
    os.symlink("b", "a")
    os.symlink("a", "b")
    os.symlink("self", "self")
    for path in ("a", "b", "self", "self/x"):
        with fails(errno.ELOOP):
            os.stat(path)
    assert os.readlink("a") == "b"


@anyone
def test_forty_links_are_followed_and_no_more(place: Place) -> None:
    Path("l0").write_bytes(b"end")
    for number in range(41):
        os.symlink(f"l{number}", f"l{number + 1}")
    assert Path("l40").read_bytes() == b"end"
    with fails(errno.ELOOP):  # path_resolution(7): at most 40
        Path("l41").read_bytes()


@anyone
def test_removing_a_link_leaves_its_target(place: Place) -> None:
    os.unlink(place.tree / "to-small")
    assert (place.tree / "small").read_bytes() == SMALL
    with fails(errno.ENOTDIR):
        os.rmdir(place.tree / "to-directory")


@anyone
def test_a_links_own_times_can_be_set(place: Place) -> None:
    for path in (place.tree / "to-small", place.tree / "to-nowhere"):
        os.utime(path, ns=(1_000_000_001, 2_000_000_002), follow_symlinks=False)
        assert os.lstat(path).st_mtime_ns == 2_000_000_002
        assert os.readlink(path) in ("small", "no/where")
    assert os.stat(place.tree / "small").st_mtime_ns == mtime_of("small")


@only_root
def test_a_links_own_owner_can_be_set(place: Place) -> None:
    os.lchown(place.tree / "to-small", 12, 34)
    assert (os.lstat(place.tree / "to-small").st_uid, os.lstat(place.tree / "to-small").st_gid) == (12, 34)
    assert (os.stat(place.tree / "small").st_uid, os.readlink(place.tree / "to-small")) == (0, "small")


@anyone
def test_a_links_mode_cannot_be_set(place: Place) -> None:
    with fails(errno.EOPNOTSUPP, errno.ENOTSUP):
        os.chmod(f"/proc/self/fd/{os.open(place.tree / 'to-small', os.O_PATH | os.O_NOFOLLOW)}", 0o600)
    assert stat.S_IMODE(os.lstat(place.tree / "to-small").st_mode) == 0o777

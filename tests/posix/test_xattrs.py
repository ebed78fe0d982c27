"""Extended attributes, set, replaced, listed and removed; and the marks of the mount itself, which hide."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.mounted import NOBODY
from tests.support.posix_places import Place, anyone, become, fails, in_child, only_root, only_users
from tests.support.posix_tree import SMALL, TEXT

pytestmark = posix.marks

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
MARKS = [
    *(
        f"{space}.overlay.{mark}"
        for space in ("trusted", "user")
        for mark in ("opaque", "metacopy", "redirect")
    ),
    "user.containers.override_stat",
]


def new_and_old(place: Place) -> list[Path]:
    """A file and a directory of either kind: new, and of the image."""
    Path("f").write_bytes(SMALL)
    os.mkdir("d")
    return [place.at / "f", place.at / "d", place.tree / "small", place.tree / "bare"]


@anyone
def test_attributes_are_set_read_listed_and_removed(place: Place) -> None:
    for path in new_and_old(place):
        os.setxattr(path, "user.a", b"1")
        os.setxattr(path, "user.b", b"\0\xff\n")
        assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
        assert (os.getxattr(path, "user.a"), os.getxattr(path, "user.b")) == (b"1", b"\0\xff\n")
        os.removexattr(path, "user.a")
        assert os.listxattr(path) == ["user.b"]
        with fails(errno.ENODATA):
            os.getxattr(path, "user.a")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.a")


@anyone
def test_attributes_of_the_image_can_be_changed(place: Place) -> None:
    path = place.tree / "labelled"
    assert sorted(os.listxattr(path)) == ["user.binary", "user.one"]
    os.setxattr(path, "user.one", b"changed")
    assert os.getxattr(path, "user.binary") == b"\0\xff\n=\0"
    os.removexattr(path, "user.binary")
    assert os.listxattr(path) == ["user.one"]
    assert (os.getxattr(path, "user.one"), path.read_bytes()) == (b"changed", b"l")
    os.removexattr(path, "user.one")
    assert os.listxattr(path) == []


@anyone
def test_attributes_of_the_image_stay_through_other_changes(place: Place) -> None:
    path = place.tree / "labelled"
    os.chmod(path, 0o600)
    path.write_bytes(b"written")
    os.rename(path, place.tree / "moved")
    assert os.getxattr(place.tree / "moved", "user.one") == b"1"
    assert sorted(os.listxattr(place.tree / "moved")) == ["user.binary", "user.one"]
    (place.tree / "directory/new").touch()
    assert os.getxattr(place.tree / "directory", "user.directory") == b"d"


@anyone
def test_creating_and_replacing_are_told_apart(place: Place) -> None:
    for path in new_and_old(place):
        with fails(errno.ENODATA):
            os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
        os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
        with fails(errno.EEXIST):
            os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
        os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
        assert os.getxattr(path, "user.a") == b"3"
    with fails(errno.EEXIST):
        os.setxattr(place.tree / "labelled", "user.one", b"2", os.XATTR_CREATE)
    os.setxattr(place.tree / "labelled", "user.one", b"2", os.XATTR_REPLACE)
    assert os.getxattr(place.tree / "labelled", "user.one") == b"2"


@anyone
def test_values_may_be_empty_and_names_long(place: Place) -> None:
    for path in new_and_old(place):
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user." + "n" * 250, b"long")
        os.setxattr(path, "user.long", b"v" * 2000)
        assert os.getxattr(path, "user.empty") == b""
        assert os.getxattr(path, "user." + "n" * 250) == b"long"
        assert os.getxattr(path, "user.long") == b"v" * 2000
        with fails(errno.ERANGE):
            os.setxattr(path, "user." + "n" * 251, b"")


@anyone
def test_an_open_files_attributes_are_its_names(place: Place) -> None:
    for path in new_and_old(place):
        fd = os.open(path, os.O_RDONLY)
        os.setxattr(fd, "user.a", b"1")
        assert os.getxattr(path, "user.a") == b"1"
        os.removexattr(path, "user.a")
        assert os.listxattr(fd) == []


@anyone
def test_names_of_one_file_share_its_attributes(place: Place) -> None:
    os.setxattr(place.tree / "linked-a", "user.a", b"1")
    assert os.getxattr(place.tree / "linked-b", "user.a") == b"1"


@anyone
def test_links_and_special_files_have_none_of_the_users(place: Place) -> None:
    for name in ("to-small", "pipe"):
        with fails(errno.EPERM):
            os.setxattr(place.tree / name, "user.a", b"1", follow_symlinks=False)
        assert os.listxattr(place.tree / name, follow_symlinks=False) == []
    os.setxattr(place.tree / "to-small", "user.a", b"1")
    assert os.getxattr(place.tree / "small", "user.a") == b"1"


@anyone
def test_what_is_no_name_or_no_file_is_refused(place: Place) -> None:
    with fails(errno.ENOENT):
        os.setxattr("nothing", "user.a", b"1")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(place.tree / "small", "nonsense", b"1")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(place.tree / "small", "nonsense.a", b"1")


@only_users
def test_users_need_permission_for_theirs_and_have_none_for_roots(place: Place) -> None:
    path = place.tree / "small"
    os.chmod(path, 0o400)
    with fails(errno.EACCES):
        os.setxattr(path, "user.a", b"1")
    os.chmod(path, 0o200)
    os.setxattr(path, "user.a", b"1")
    with fails(errno.EACCES):
        os.getxattr(path, "user.a")
    with fails(errno.EPERM):
        os.setxattr(path, "trusted.a", b"1")
    with fails(errno.ENODATA):
        os.getxattr(path, "trusted.a")


@only_root
def test_trusted_attributes_are_roots_alone(place: Place) -> None:
    for path in new_and_old(place):
        os.setxattr(path, "trusted.a", b"1")
        assert (os.getxattr(path, "trusted.a"), os.listxattr(path)) == (b"1", ["trusted.a"])

        def user(path: Path = path) -> None:
            become(NOBODY)
            with fails(errno.ENODATA):
                os.getxattr(path, "trusted.a")

        in_child(user)


@only_root
def test_capabilities_are_kept_until_the_file_is_written_to(place: Place) -> None:
    for path in (place.tree / "script", place.at / "f"):
        path.touch(0o755)
        os.setxattr(path, "security.capability", CAPABILITY)
        os.chmod(path, 0o700)
        assert os.getxattr(path, "security.capability") == CAPABILITY
        path.write_bytes(b"written")
        with fails(errno.ENODATA):
            os.getxattr(path, "security.capability")


@anyone
def test_what_the_mount_notes_for_itself_is_not_shown(place: Place) -> None:
    tree = place.tree
    shutil.rmtree(tree / "directory")
    (tree / "directory").mkdir()
    os.rename(tree / "wide", tree / "moved")
    os.chmod(tree / "text", 0o600)
    (tree / "small").write_bytes(b"written")
    os.unlink(tree / "pair/one")
    for path in (tree, *(tree / name for name in ("directory", "moved", "text", "small", "pair"))):
        assert os.listxattr(path) == [], path
        for mark in MARKS:
            with fails(errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                os.getxattr(path, mark)


@anyone
def test_what_the_mount_notes_for_itself_cannot_be_forged(place: Place) -> None:
    tree = place.tree
    before = os.stat(tree / "text"), os.stat(tree / "directory").st_uid
    for mark, value in zip(MARKS, [b"y", b"", b"/etc", b"y", b"", b"/etc", b"5:5:0777"], strict=True):
        for name in ("directory", "text"):
            with contextlib.suppress(OSError):
                os.setxattr(tree / name, mark, value)
    after = os.stat(tree / "text"), os.stat(tree / "directory").st_uid
    assert (after[0].st_mode, after[0].st_uid, after[1]) == (before[0].st_mode, before[0].st_uid, before[1])
    assert sorted(os.listdir(tree / "directory")) == ["a", "b", "sub"]
    assert (tree / "text").read_bytes() == TEXT

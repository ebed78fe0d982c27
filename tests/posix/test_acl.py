"""POSIX ACLs: set, shown and obeyed, followed by the mode, inherited.

Overlayfs sets none on a file of EROFS that has not been copied up: so these tests touch files first.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import posix_places as posix
from tests.support.mounted import NOBODY
from tests.support.posix_places import Place, anyone, by, fails, only_root
from tests.support.posix_tree import SHARED, SOMEBODY

pytestmark = posix.marks

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32  # linux/posix_acl.h


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """An ACL of (tag, permissions, id): linux/posix_acl_xattr.h."""
    packed = (struct.pack("<2HI", tag, perm, *(rest or [0xFFFFFFFF])) for tag, perm, *rest in entries)
    return struct.pack("<I", 2) + b"".join(packed)


def of_somebody(permissions: int, *, mask: int = 7, group: int = 0) -> bytes:
    """An ACL that grants a user what neither the group nor others have."""
    somebody = USER, permissions, SOMEBODY.uid
    return acl((USER_OBJ, 7), somebody, (GROUP_OBJ, group), (MASK, mask), (OTHER, 0))


def refused(work: Callable[[], object]) -> None:
    with fails(errno.EACCES):
        work()


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@anyone
def test_an_acl_is_shown_and_the_mode_follows_it(place: Place) -> None:
    for path in (place.tree / "text", Path("new")):
        path.touch()
        os.setxattr(path, ACCESS, of_somebody(6, mask=6))
        assert os.getxattr(path, ACCESS) == of_somebody(6, mask=6)
        assert ACCESS in os.listxattr(path)
        assert mode_of(path) == 0o760
        os.chmod(path, 0o640)
        assert os.getxattr(path, ACCESS) == acl(
            (USER_OBJ, 6), (USER, 6, SOMEBODY.uid), (GROUP_OBJ, 0), (MASK, 4), (OTHER, 0)
        )
        os.removexattr(path, ACCESS)
        assert ACCESS not in os.listxattr(path)
        assert mode_of(path) == 0o640


@anyone
def test_an_acl_that_says_no_more_than_the_mode_is_the_mode(place: Place) -> None:
    path = place.tree / "text"
    path.touch()
    os.setxattr(path, ACCESS, of_somebody(7))
    os.setxattr(path, ACCESS, acl((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 1)))
    assert mode_of(path) == 0o751
    assert ACCESS not in os.listxattr(path)
    with fails(errno.ENODATA):
        os.getxattr(path, ACCESS)


@anyone
def test_what_is_made_in_a_directory_inherits_its_acl_and_not_the_umask(place: Place) -> None:
    default = of_somebody(6, mask=7, group=5)
    for directory in (place.tree / "directory", Path("new")):
        directory.mkdir(exist_ok=True)
        os.utime(directory)
        os.setxattr(directory, DEFAULT, default)
        os.umask(0o077)
        (directory / "file").write_text("")
        (directory / "a").unlink(missing_ok=True)
        os.close(os.open(directory / "a", os.O_CREAT | os.O_WRONLY, 0o640))
        (directory / "sub2").mkdir(mode=0o775)
        (directory / "sub2" / "deep").mkdir()
        os.mkfifo(directory / "fifo", 0o620)
        os.symlink("x", directory / "link")
        assert mode_of(directory / "file") == 0o660
        assert os.getxattr(directory / "file", ACCESS) == acl(
            (USER_OBJ, 6), (USER, 6, SOMEBODY.uid), (GROUP_OBJ, 5), (MASK, 6), (OTHER, 0)
        )
        assert mode_of(directory / "a") == 0o640
        assert os.listxattr(directory / "a") == [ACCESS]
        assert (
            os.getxattr(directory / "sub2", DEFAULT)
            == os.getxattr(directory / "sub2" / "deep", DEFAULT)
            == default
        )
        assert (mode_of(directory / "sub2"), mode_of(directory / "fifo")) == (0o770, 0o620)
        os.removexattr(directory, DEFAULT)
        (directory / "later").touch()
        assert (mode_of(directory / "later"), os.listxattr(directory / "later")) == (0o600, [])


@only_root
def test_an_acl_lets_a_user_in_and_keeps_others_out(place: Place) -> None:
    path, directory = place.tree / "text", place.tree / "pair"
    place.tree.chmod(0o755)
    body = path.read_bytes()
    path.chmod(0o600)
    by(SOMEBODY, lambda: refused(path.read_bytes))
    os.setxattr(path, ACCESS, of_somebody(6, mask=4))
    by(SOMEBODY, lambda: path.read_bytes() == body or pytest.fail("other bytes"))
    by(SOMEBODY, lambda: refused(lambda: os.open(path, os.O_WRONLY)))
    by(NOBODY, lambda: refused(path.read_bytes))
    os.utime(directory)
    os.setxattr(directory, ACCESS, of_somebody(7))
    by(SOMEBODY, lambda: (directory / "theirs").write_text("x"))
    by(NOBODY, lambda: refused(lambda: os.listdir(directory)))
    os.chmod(directory, 0o700)  # the mask
    by(SOMEBODY, lambda: refused(lambda: os.listdir(directory)))


@anyone
def test_acls_of_the_image_are_shown_and_stay_when_a_file_is_changed(place: Place) -> None:
    shared, inherits = place.tree / "acls/shared", place.tree / "acls/inherits"
    for _ in range(2):
        assert os.getxattr(shared, ACCESS) == SHARED
        assert os.getxattr(inherits, DEFAULT) == SHARED
        assert mode_of(shared) == 0o660
        shared.write_bytes(b"changed")
        os.utime(inherits)
    (inherits / "new").touch(0o644)
    assert os.getxattr(inherits / "new", ACCESS) == acl(
        (USER_OBJ, 6), (USER, 6, SOMEBODY.uid), (GROUP_OBJ, 6), (MASK, 4), (OTHER, 0)
    )


@only_root
def test_acls_of_the_image_are_obeyed(place: Place) -> None:
    shared = place.tree / "acls/shared"
    by(SOMEBODY, lambda: shared.read_bytes() == b"s" or pytest.fail("other bytes"))
    by(NOBODY, lambda: refused(shared.read_bytes))
    by(SOMEBODY, lambda: shared.write_bytes(b"theirs"))
    assert shared.read_bytes() == b"theirs"


@anyone
def test_what_is_no_acl_is_refused(place: Place) -> None:
    path = place.tree / "text"
    with fails(errno.EINVAL):
        os.setxattr(path, ACCESS, acl((USER_OBJ, 7), (OTHER, 0)))
    with fails(errno.EOPNOTSUPP, errno.EINVAL):
        os.setxattr(path, ACCESS, b"\1\0\0\0")
    with fails(errno.EACCES):
        os.setxattr(path, DEFAULT, of_somebody(7))
    with fails(errno.EOPNOTSUPP):
        os.setxattr(place.tree / "to-small", ACCESS, of_somebody(7), follow_symlinks=False)
    assert os.listxattr(path) == []


@only_root
def test_who_is_not_of_the_group_loses_the_set_gid_bit_by_an_acl(place: Place) -> None:
    path = place.tree / "text"
    place.tree.chmod(0o755)
    os.chown(path, SOMEBODY.uid, 0)
    path.chmod(0o2770)
    by(SOMEBODY, lambda: os.setxattr(path, ACCESS, of_somebody(7)))
    assert mode_of(path) == 0o770

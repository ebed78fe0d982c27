"""The bits beside the permissions: set-user-id, set-group-id and sticky, on files and directories."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.mounted import NOBODY, Account
from tests.support.posix_places import Place, anyone, by, fails, only_root, only_users

pytestmark = posix.marks

STRANGER = Account(70_000, 70_000)


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@only_users
def test_writing_takes_the_set_id_bits(place: Place) -> None:
    Path("f").write_bytes(b"f")
    os.chmod("f", 0o6755)
    for path in (Path("f"), place.tree / "setuid"):
        assert mode_of(path) == 0o6755
        fd = os.open(path, os.O_WRONLY)
        assert mode_of(path) == 0o6755
        os.write(fd, b"w")
        assert mode_of(path) == 0o755
        os.chmod(path, 0o6755)
        os.ftruncate(fd, 1)
        assert mode_of(path) == 0o755


@anyone
def test_changing_the_owner_takes_the_set_id_bits(place: Place) -> None:
    Path("f").touch()
    os.chmod("f", 0o6755)
    for path in (Path("f"), place.tree / "setuid"):
        os.chown(path, *place.account)
        assert mode_of(path) == 0o755
    os.mkdir("d")
    os.chmod("d", 0o6755)
    os.chown("d", *place.account)
    assert mode_of("d") == 0o6755


@only_root
def test_root_writing_keeps_the_set_id_bits(place: Place) -> None:
    with (place.tree / "setuid").open("r+b") as file:
        file.write(b"root")
    assert mode_of(place.tree / "setuid") == 0o6755


@anyone
def test_directories_hand_their_group_bit_down(place: Place) -> None:
    os.mkdir("d")
    for path in (place.at / "d", place.tree / "directory"):
        os.chmod(path, 0o2755)
        (path / "new").mkdir()
        (path / "new/deeper").mkdir()
        (path / "file").touch()
        assert [mode_of(path / name) for name in ("new", "new/deeper", "file")] == [0o2755, 0o2755, 0o644]


@only_root
def test_a_set_group_id_directory_gives_its_group_to_new_files(place: Place) -> None:
    os.mkdir("d")
    for path in (place.at / "d", place.tree / "directory"):
        os.chown(path, -1, 80_000)
        os.chmod(path, 0o2777)

        def stranger(path: Path = path) -> None:
            (path / "file").touch()
            (path / "new").mkdir()
            (path / "link").symlink_to("x")
            os.close(os.open(path / "bit", os.O_CREAT | os.O_WRONLY, 0o2755))

        by(STRANGER, stranger)
        assert {os.lstat(path / name).st_gid for name in ("file", "new", "link", "bit")} == {80_000}
        assert {os.lstat(path / name).st_uid for name in ("file", "new", "link", "bit")} == {STRANGER.uid}
        assert mode_of(path / "bit") == 0o755, "no member of the group may have its bit"


@only_root
def test_the_group_bit_is_not_set_by_who_is_not_in_the_group(place: Place) -> None:
    os.chown(place.tree / "small", NOBODY.uid, 80_000)
    by(NOBODY, lambda: os.chmod(place.tree / "small", 0o2755))
    assert mode_of(place.tree / "small") == 0o755


@only_root
def test_in_a_sticky_directory_everyone_removes_their_own(place: Place) -> None:
    os.mkdir("d")
    for path in (place.at / "d", place.tree / "directory"):
        (path / "roots").touch()
        os.chmod(path, 0o1777)
        by(NOBODY, (path / "nobodys").touch)

        def stranger(path: Path = path) -> None:
            (path / "mine").touch()
            for name in ("roots", "nobodys"):
                with fails(errno.EPERM):
                    os.unlink(path / name)
                with fails(errno.EPERM):
                    os.rename(path / name, path / "other")
                with fails(errno.EPERM):
                    os.rename(path / "mine", path / name)
            os.rename(path / "mine", path / "still-mine")
            os.unlink(path / "still-mine")

        by(STRANGER, stranger)
        by(NOBODY, partial(os.unlink, path / "nobodys"))

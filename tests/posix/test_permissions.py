"""Who may do what: modes, owners, the umask, access(2)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.mounted import NOBODY, Account
from tests.support.posix_calls import AT_EACCESS, faccessat
from tests.support.posix_places import Place, anyone, by, fails, only_root, only_users
from tests.support.posix_tree import SMALL

pytestmark = posix.marks

STRANGER = Account(70_000, 70_000)


def mode_of(path: Path | str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


@anyone
def test_the_umask_takes_bits_from_new_files(place: Place) -> None:
    for directory in (place.at, place.tree / "bare"):
        os.chdir(directory)
        for umask in (0o000, 0o027, 0o777):
            os.umask(umask)
            os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir("d", 0o777)
            os.mkfifo("p", 0o666)
            assert [mode_of(name) for name in "fdp"] == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]
            os.unlink("f")
            os.rmdir("d")
            os.unlink("p")


@anyone
def test_a_file_made_without_permissions_is_written_by_its_maker(place: Place) -> None:
    for directory in (place.at, place.tree / "bare"):
        fd = os.open(directory / "f", os.O_CREAT | os.O_RDWR, 0)
        os.write(fd, b"written")
        os.close(fd)
        assert (mode_of(directory / "f"), os.stat(directory / "f").st_size) == (0, 7)


@only_users
def test_a_file_without_permission_is_not_opened(place: Place) -> None:
    Path("f").write_bytes(b"f")
    for path in (place.at / "f", place.tree / "small"):
        os.chmod(path, 0o400)
        with fails(errno.EACCES):
            os.open(path, os.O_WRONLY)
        with fails(errno.EACCES):
            os.truncate(path, 0)
        os.chmod(path, 0o200)
        with fails(errno.EACCES):
            os.open(path, os.O_RDONLY)
        os.chmod(path, 0o600)
        assert path.read_bytes()


@only_root
def test_root_may_open_everything(place: Place) -> None:
    os.chmod(place.tree / "small", 0)
    os.chmod(place.tree / "bare", 0)
    (place.tree / "small").write_bytes(b"root")
    (place.tree / "bare/f").write_bytes(b"root")
    assert (place.tree / "small").read_bytes() == b"root"


@only_users
def test_a_directory_without_permission_is_not_worked_in(place: Place) -> None:
    for path in (place.at / "d", place.tree / "directory"):
        path.mkdir(exist_ok=True)
        (path / "f").touch()
        os.chmod(path, 0o555)
        for change in (os.unlink, os.mkdir, lambda path: os.open(path, os.O_CREAT | os.O_EXCL)):
            with fails(errno.EACCES):
                change(path / "f" if change is os.unlink else path / "new")
        with fails(errno.EACCES):
            os.rename(path / "f", path / "g")
        os.chmod(path, 0o666)
        with fails(errno.EACCES):
            os.stat(path / "f")
        os.chmod(path, 0o333)
        with fails(errno.EACCES):
            os.listdir(path)
        os.chmod(path, 0o755)


@only_root
def test_a_stranger_may_do_what_others_may(place: Place) -> None:
    os.chmod(place.tree / "directory", 0o777)
    os.chmod(place.tree / "directory/a", 0o646)

    def stranger() -> None:
        (place.tree / "directory/a").write_bytes(b"stranger's")
        (place.tree / "directory/new").touch()
        assert os.stat(place.tree / "directory/new").st_uid == STRANGER.uid
        for call in (os.chmod, os.truncate):
            with fails(errno.EACCES, errno.EPERM):
                call(place.tree / "directory/b", 0)
        with fails(errno.EACCES):
            os.open(place.tree / "private", os.O_RDONLY)
        with fails(errno.EACCES):
            os.unlink(place.tree / "small")
        os.unlink(place.tree / "directory/b")

    by(STRANGER, stranger)
    assert sorted(os.listdir(place.tree / "directory")) == ["a", "new", "sub"]


@only_root
def test_only_the_owner_may_change_attributes(place: Place) -> None:
    os.chmod(place.tree / "small", 0o666)

    def stranger() -> None:
        with fails(errno.EPERM):
            os.chmod(place.tree / "small", 0o600)
        with fails(errno.EPERM):
            os.chown(place.tree / "small", *STRANGER)
        with fails(errno.EPERM):
            os.utime(place.tree / "small", ns=(0, 0))
        os.utime(place.tree / "small")  # "now" is open to who may write: utimensat(2)

    by(STRANGER, stranger)
    assert mode_of(place.tree / "small") == 0o666


@only_users
def test_a_user_cannot_give_files_away(place: Place) -> None:
    Path("f").touch()
    for path in (place.at / "f", place.tree / "small"):
        for owner in ((0, -1), (-1, 0), (70_000, 70_000)):
            with fails(errno.EPERM):
                os.chown(path, *owner)


@only_root
def test_a_given_file_belongs_to_its_new_owner(place: Place) -> None:
    os.chown(place.tree / "private", *NOBODY)
    by(NOBODY, lambda: (place.tree / "private").write_bytes(b"mine"))
    by(NOBODY, lambda: os.chmod(place.tree / "private", 0o640))
    assert (mode_of(place.tree / "private"), (place.tree / "private").read_bytes()) == (0o640, b"mine")


@anyone
def test_access_tells_what_may_be_done(place: Place) -> None:
    path = place.tree / "readonly"
    root = place.account.uid == 0
    assert os.access(path, os.R_OK)
    assert os.access(path, os.W_OK) == root
    assert not os.access(path, os.X_OK)
    assert os.access(place.tree / "script", os.X_OK | os.R_OK | os.W_OK)
    assert os.access(place.tree / "bare", os.X_OK | os.W_OK)
    assert not os.access(place.tree / "nothing", os.F_OK)
    faccessat(place.tree / "small", os.W_OK, AT_EACCESS)
    with fails(errno.EACCES):
        faccessat(path, os.X_OK, AT_EACCESS)
    assert (place.tree / "small").read_bytes() == SMALL

"""Directories made and removed, and what takes the place of something of the image, which stays gone."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails, not_by_overlayfs
from tests.support.posix_tree import SMALL, WIDE

pytestmark = posix.marks


@anyone
def test_a_new_directory_is_empty_and_its_makers(place: Place) -> None:
    os.mkdir("d", 0o750)
    info = os.stat("d")
    assert (info.st_mode, info.st_uid, info.st_gid, info.st_nlink) == (0o40750, *place.account, 2)
    assert os.listdir("d") == []


@anyone
def test_a_directory_counts_its_subdirectories_as_links(place: Place) -> None:
    os.mkdir("d")
    for number, name in enumerate("abc", 3):
        os.mkdir(f"d/{name}")
        Path(f"d/file-{name}").touch()
        assert os.stat("d").st_nlink == number
    os.rmdir("d/a")
    os.rename("d/b", "b")
    assert os.stat("d").st_nlink == 3


@not_by_overlayfs
def test_a_directory_of_the_image_counts_its_subdirectories_as_links(place: Place) -> None:
    directory = place.tree / "directory"
    assert os.stat(directory).st_nlink == 3
    assert os.stat(place.tree / "bare").st_nlink == 2
    os.mkdir(directory / "more")
    assert os.stat(directory).st_nlink == 4
    shutil.rmtree(directory / "sub")
    assert os.stat(directory).st_nlink == 3
    os.rename(directory / "more", place.tree / "more")
    assert os.stat(directory).st_nlink == 2


@anyone
def test_making_what_is_there_fails(place: Place) -> None:
    os.mkdir("d")
    for path in (Path("d"), place.tree / "bare", place.tree / "small", place.tree / "to-nowhere"):
        with fails(errno.EEXIST):
            os.mkdir(path)
    with fails(errno.ENOENT):
        os.mkdir("no/d")
    with fails(errno.ENOTDIR):
        os.mkdir(place.tree / "small/d")


@anyone
def test_only_an_empty_directory_can_be_removed(place: Place) -> None:
    os.makedirs("d/e")
    for path in (Path("d"), place.tree / "directory", place.tree / "wide"):
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            os.rmdir(path)
    for path in (place.tree / "small", place.tree / "to-directory"):
        with fails(errno.ENOTDIR):
            os.rmdir(path)
    with fails(errno.ENOENT):
        os.rmdir("nothing")
    with fails(errno.EINVAL):
        os.rmdir("d/.")


@anyone
def test_a_directory_is_not_unlinked(place: Place) -> None:
    os.mkdir("d")
    for path in (Path("d"), place.tree / "bare"):
        with fails(errno.EISDIR, errno.EPERM):
            os.unlink(path)
        assert path.is_dir()


@anyone
def test_unlinking_what_is_not_there_fails(place: Place) -> None:
    path = place.tree / "small"
    os.unlink(path)
    for gone in (path, Path("nothing"), place.tree / "directory/nothing"):
        with fails(errno.ENOENT):
            os.unlink(gone)


@anyone
def test_a_removed_file_of_the_image_is_gone_for_every_call(place: Place) -> None:
    path = place.tree / "small"
    os.unlink(path)
    for call in (os.stat, os.unlink, os.listxattr, os.listdir, os.readlink):
        with fails(errno.ENOENT):
            call(path)
    assert "small" not in os.listdir(place.tree)


@anyone
def test_a_file_made_in_place_of_one_of_the_image_is_new(place: Place) -> None:
    path = place.tree / "labelled"
    before = os.stat(path)
    os.unlink(path)
    path.touch(mode=0o600)
    after = os.stat(path)
    assert (after.st_size, stat.S_IMODE(after.st_mode), os.listxattr(path)) == (0, 0o600, [])
    assert after.st_mtime_ns > before.st_mtime_ns
    assert os.listdir(place.tree).count("labelled") == 1


@anyone
def test_a_directory_of_the_image_emptied_can_be_removed_and_made_anew(place: Place) -> None:
    path = place.tree / "wide"
    for name in WIDE:
        os.unlink(path / name)
    assert os.listdir(path) == []
    os.rmdir(path)
    assert not path.exists()
    path.mkdir()
    assert os.listdir(path) == []
    with fails(errno.ENOENT):
        os.stat(path / "00")


@anyone
def test_a_tree_of_the_image_removed_and_made_anew_shows_nothing_of_the_old(place: Place) -> None:
    path = place.tree / "directory"
    shutil.rmtree(path)
    path.mkdir()
    assert (os.listdir(path), os.listxattr(path), os.stat(path).st_nlink) == ([], [], 2)
    (path / "sub").mkdir()
    assert os.listdir(path / "sub") == []
    (path / "a").write_bytes(b"new")
    assert ((path / "a").read_bytes(), sorted(os.listdir(path))) == (b"new", ["a", "sub"])
    shutil.rmtree(path)
    path.mkdir()
    assert os.listdir(path) == []


@anyone
def test_removing_and_making_again_and_again_always_works(place: Place) -> None:
    path = place.tree / "directory/sub"
    for number in range(5):
        shutil.rmtree(path)
        path.mkdir()
        (path / str(number)).touch()
        assert os.listdir(path) == [str(number)]


@anyone
def test_a_directory_can_take_the_place_of_a_file(place: Place) -> None:
    path = place.tree / "small"
    os.unlink(path)
    path.mkdir()
    assert os.listdir(path) == []
    (path / "in").write_bytes(b"in")
    assert os.listdir(path) == ["in"]
    shutil.rmtree(path)
    assert not path.exists()


@anyone
def test_a_file_can_take_the_place_of_a_directory(place: Place) -> None:
    path = place.tree / "directory"
    shutil.rmtree(path)
    path.write_bytes(b"file")
    assert path.read_bytes() == b"file"
    with fails(errno.ENOTDIR):
        os.stat(path / "a")
    os.unlink(path)
    path.mkdir()
    assert os.listdir(path) == []


@anyone
def test_a_link_can_take_the_place_of_a_file_and_of_a_directory(place: Place) -> None:
    for path in (place.tree / "text", place.tree / "bare"):
        (os.rmdir if path.is_dir() else os.unlink)(path)
        path.symlink_to("small")
        assert path.read_bytes() == SMALL
        os.unlink(path)
        path.write_bytes(b"file")
        assert not path.is_symlink()


@anyone
def test_a_file_and_a_directory_can_take_the_place_of_a_link(place: Place) -> None:
    path = place.tree / "to-directory"
    os.unlink(path)
    path.mkdir()
    assert (os.listdir(path), path.is_symlink()) == ([], False)
    os.rmdir(path)
    path.write_bytes(b"file")
    assert path.read_bytes() == b"file"
    assert (place.tree / "directory/a").read_bytes() == b"a"


@anyone
def test_the_whole_tree_can_be_removed(place: Place) -> None:
    shutil.rmtree(place.tree)
    assert not place.tree.exists()
    place.tree.mkdir()
    assert os.listdir(place.tree) == []


@anyone
def test_making_and_removing_changes_the_directorys_times(place: Place) -> None:
    changes: list[Callable[[Path], object]] = [Path.touch, Path.unlink, Path.mkdir, Path.rmdir, os.mkfifo]
    for directory in (place.at, place.tree / "bare"):
        for change in changes:
            os.utime(directory, ns=(0, 0))
            before = os.stat(directory)
            change(directory / "x")
            after = os.stat(directory)
            assert after.st_mtime_ns > before.st_mtime_ns
            assert after.st_ctime_ns >= before.st_ctime_ns


@anyone
def test_the_working_directory_is_found_after_it_was_renamed(place: Place) -> None:
    os.mkdir("d")
    for path in (place.at / "d", place.tree / "directory/sub"):
        os.chdir(path)
        os.rename(path, path.with_name("renamed"))
        assert os.getcwd() == str(path.with_name("renamed"))
        Path("made").write_bytes(b"here")
        assert (path.with_name("renamed") / "made").read_bytes() == b"here"
        os.rename(path.parent, path.parent.with_name("above"))
        assert os.getcwd() == str(path.parent.with_name("above") / "renamed")
        os.rename(path.parent.with_name("above"), path.parent)

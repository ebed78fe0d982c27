"""Renaming files and directories: of the image, of the mount, and one over the other."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, fails
from tests.support.posix_tree import SMALL, TEXT, WIDE, large_body, mtime_of

pytestmark = posix.marks


def paths_below(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


@anyone
def test_a_renamed_file_is_the_same_file(place: Place) -> None:
    Path("f").write_bytes(b"f")
    for path in (Path("f"), place.tree / "text", place.tree / "to-small", place.tree / "pipe"):
        before = os.lstat(path)
        os.rename(path, "moved")
        after = os.lstat("moved")
        assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
        assert after.st_mtime_ns == before.st_mtime_ns
        assert after.st_nlink == 1
        assert not os.path.lexists(path)
        os.unlink("moved")


@anyone
def test_a_large_file_of_the_image_is_renamed_whole(place: Place, large: Path) -> None:
    os.rename(large, "moved")
    assert Path("moved").read_bytes() == large_body()
    os.rename("moved", large)
    assert large.read_bytes() == large_body()


@anyone
def test_a_renamed_file_of_the_image_leaves_its_name_free(place: Place) -> None:
    path = place.tree / "small"
    os.rename(path, place.tree / "moved")
    assert sorted(name for name in os.listdir(place.tree) if name in ("small", "moved")) == ["moved"]
    path.write_bytes(b"another")
    assert (path.read_bytes(), (place.tree / "moved").read_bytes()) == (b"another", SMALL)
    os.rename(place.tree / "moved", path)
    assert path.read_bytes() == SMALL


@anyone
@pytest.mark.parametrize("new", [False, True], ids=["of-the-image", "new"])
def test_a_file_takes_the_place_of_another(place: Place, new: bool) -> None:
    for target in ("text", "readonly", "to-small", "to-nowhere", "pipe", "linked-a"):
        Path("source").write_bytes(b"source")
        path = Path("target") if new else place.tree / target
        if new:
            path.write_bytes(b"target")
        os.rename("source", path)
        assert path.read_bytes() == b"source"
        assert not path.is_symlink()
    assert os.listdir(".") == (["target"] if new else [])
    assert (place.tree / "linked-b").read_bytes() == b"linked"
    assert (place.tree / "small").read_bytes() == SMALL


@anyone
def test_one_file_of_the_image_takes_the_place_of_another(place: Place) -> None:
    os.rename(place.tree / "text", place.tree / "small")
    os.rename(place.tree / "directory/a", place.tree / "last")
    assert (place.tree / "small").read_bytes() == TEXT
    assert (place.tree / "last").read_bytes() == b"a"
    assert os.stat(place.tree / "small").st_mtime_ns == mtime_of("text")
    assert not {"text", "a"} & {*os.listdir(place.tree), *os.listdir(place.tree / "directory")}


@anyone
def test_renaming_a_file_to_itself_or_to_its_other_name_changes_nothing(place: Place) -> None:
    first, second = place.tree / "linked-a", place.tree / "linked-b"
    os.rename(first, second)
    os.rename(first, first)
    assert (first.read_bytes(), os.path.samefile(first, second)) == (b"linked", True)
    os.link(place.tree / "small", "other")
    os.rename("other", place.tree / "small")
    assert (os.stat("other").st_nlink, Path("other").read_bytes()) == (2, SMALL)


@anyone
def test_a_name_of_a_hard_linked_file_can_be_renamed_over_a_third(place: Place) -> None:
    os.rename(place.tree / "linked-a", place.tree / "small")
    assert os.path.samefile(place.tree / "small", place.tree / "linked-b")
    assert os.stat(place.tree / "small").st_nlink == 2


@anyone
def test_a_renamed_directory_keeps_what_is_in_it(place: Place) -> None:
    os.makedirs("d/e")
    Path("d/e/f").write_bytes(b"f")
    os.rename("d", "moved")
    assert (paths_below(Path("moved")), Path("moved/e/f").read_bytes()) == (["e", "e/f"], b"f")
    assert not Path("d").exists()


@anyone
def test_a_renamed_directory_of_the_image_keeps_what_is_in_it(place: Place) -> None:
    path = place.tree / "directory"
    before, inside = os.stat(path), paths_below(path)
    os.rename(path, "moved")
    assert (paths_below(Path("moved")), path.exists()) == (inside, False)
    assert (os.stat("moved").st_ino, os.stat("moved").st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert Path("moved/sub/deep/d").read_bytes() == b"d"
    assert os.getxattr("moved", "user.directory") == b"d"
    assert stat.S_IMODE(os.stat("moved/sub").st_mode) == 0o750


@anyone
def test_a_renamed_directory_of_the_image_can_be_changed(place: Place) -> None:
    os.rename(place.tree / "directory", place.tree / "moved")
    moved = place.tree / "moved"
    (moved / "a").write_bytes(b"changed")
    (moved / "sub/new").write_bytes(b"new")
    os.unlink(moved / "sub/c")
    os.rename(moved / "b", moved / "sub/deep/b")
    os.rename(moved / "sub/deep", moved / "deep")
    assert paths_below(moved) == ["a", "deep", "deep/b", "deep/d", "sub", "sub/new"]
    assert [(moved / name).read_bytes() for name in ("a", "deep/b", "deep/d")] == [b"changed", b"b", b"d"]


@anyone
def test_a_name_that_a_directory_of_the_image_had_is_free_for_another(place: Place) -> None:
    path = place.tree / "directory"
    os.rename(path, place.tree / "moved")
    path.mkdir()
    assert os.listdir(path) == []
    os.rename(place.tree / "wide", place.tree / "bare")
    os.rename(place.tree / "bare", path)
    assert sorted(os.listdir(path)) == WIDE
    assert sorted(os.listdir(place.tree / "moved")) == ["a", "b", "sub"]


@anyone
def test_a_directory_of_the_image_goes_and_comes_back(place: Place) -> None:
    path = place.tree / "directory"
    inside = paths_below(path)
    for _ in range(3):
        os.rename(path, place.tree / "away")
        os.rename(place.tree / "away", path)
    assert paths_below(path) == inside
    shutil.rmtree(path)
    assert not path.exists()


@anyone
def test_a_directory_takes_the_place_of_an_empty_one(place: Place) -> None:
    os.mkdir("d")
    Path("d/in").touch()
    os.rename("d", place.tree / "bare")
    assert os.listdir(place.tree / "bare") == ["in"]
    os.mkdir("empty")
    os.rename(place.tree / "directory", "empty")
    assert sorted(os.listdir("empty")) == ["a", "b", "sub"]


@anyone
def test_a_directory_of_the_image_that_was_emptied_can_be_replaced(place: Place) -> None:
    for name in WIDE:
        os.unlink(place.tree / f"wide/{name}")
    os.rename(place.tree / "directory", place.tree / "wide")
    assert sorted(os.listdir(place.tree / "wide")) == ["a", "b", "sub"]


@anyone
def test_a_directory_that_is_not_empty_is_not_replaced(place: Place) -> None:
    os.makedirs("d/e")
    for source, target in ((Path("d"), place.tree / "wide"), (place.tree / "wide", Path("d"))):
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(source, target)
    assert sorted(os.listdir(place.tree / "wide")) == WIDE


@anyone
def test_files_and_directories_do_not_replace_each_other(place: Place) -> None:
    Path("f").touch()
    os.mkdir("d")
    for file in (Path("f"), place.tree / "small", place.tree / "to-directory"):
        for directory in (Path("d"), place.tree / "bare"):
            with fails(errno.EISDIR):
                os.rename(file, directory)
            with fails(errno.ENOTDIR):
                os.rename(directory, file)


@anyone
def test_a_directory_cannot_be_moved_into_itself(place: Place) -> None:
    os.makedirs("d/e")
    for path, inside in ((Path("d"), "e/x"), (place.tree / "directory", "sub/x"), (place.tree, "bare/x")):
        with fails(errno.EINVAL):
            os.rename(path, path / inside)
    for path in (Path("d"), place.tree / "directory"):
        with fails(errno.ENOTEMPTY):
            os.rename(next(entry for entry in path.iterdir() if entry.is_dir()), path)


@anyone
def test_what_is_not_there_is_not_renamed(place: Place) -> None:
    Path("f").touch()
    os.unlink(place.tree / "small")
    for source, target in (("nothing", "x"), (place.tree / "small", "x"), ("f", "no/x"), ("f", "")):
        with fails(errno.ENOENT):
            os.rename(source, target)
    with fails(errno.ENOTDIR):
        os.rename("f", place.tree / "text/x")
    with fails(errno.EXDEV):
        os.rename("f", "/proc/x")


@anyone
def test_open_files_stay_open_through_renames(place: Place) -> None:
    path = place.tree / "directory/sub/c"
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    os.rename(path, place.tree / "directory/c")
    os.pwrite(writer, b"written", 0)
    os.rename(place.tree / "directory", place.tree / "moved")
    os.pwrite(writer, b"W", 0)
    assert os.pread(reader, 100, 0) == (place.tree / "moved/c").read_bytes() == b"Written"
    assert os.readlink(f"/proc/self/fd/{reader}") == str(place.tree / "moved/c")


@anyone
def test_an_open_directory_is_worked_in_after_it_was_renamed(place: Place) -> None:
    fd = os.open(place.tree / "directory", os.O_RDONLY)
    os.rename(place.tree / "directory", "moved")
    os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.unlink("a", dir_fd=fd)
    assert sorted(os.listdir(fd)) == sorted(os.listdir("moved")) == ["b", "made", "sub"]


@anyone
def test_a_rename_changes_the_times_of_both_directories(place: Place) -> None:
    for directory in (place.tree / "directory", place.tree / "bare"):
        os.utime(directory, ns=(0, 0))
    os.rename(place.tree / "directory/a", place.tree / "bare/a")
    assert os.stat(place.tree / "directory").st_mtime_ns > 0
    assert os.stat(place.tree / "bare").st_mtime_ns > 0

"""renameat2: exchanging two names, and not replacing what is there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from tests.support.posix_places import Place, anyone, fails
from tests.support.posix_tree import SMALL, TEXT

pytestmark = posix.marks


@anyone
def test_nothing_is_replaced_if_that_is_forbidden(place: Place) -> None:
    Path("f").write_bytes(b"f")
    os.mkdir("d")
    taken = ("small", "bare", "directory", "to-nowhere", "pipe")
    for target in (place.tree / name for name in taken):
        for source in (Path("f"), Path("d"), place.tree / "text", place.tree / "wide"):
            with fails(errno.EEXIST):
                renameat2(source, target, RENAME_NOREPLACE)
    assert (place.tree / "small").read_bytes() == SMALL


@anyone
def test_a_free_name_is_taken_where_replacing_is_forbidden(place: Place) -> None:
    os.unlink(place.tree / "small")
    Path("f").write_bytes(b"f")
    renameat2("f", place.tree / "small", RENAME_NOREPLACE)
    renameat2(place.tree / "text", "text", RENAME_NOREPLACE)
    renameat2(place.tree / "directory", "directory", RENAME_NOREPLACE)
    assert (place.tree / "small").read_bytes() == b"f"
    assert Path("text").read_bytes() == TEXT
    assert sorted(os.listdir("directory")) == ["a", "b", "sub"]


@anyone
def test_two_files_are_exchanged(place: Place) -> None:
    Path("f").write_bytes(b"f")
    inodes = os.stat("f").st_ino, os.stat(place.tree / "small").st_ino
    renameat2("f", place.tree / "small", RENAME_EXCHANGE)
    assert (Path("f").read_bytes(), (place.tree / "small").read_bytes()) == (SMALL, b"f")
    assert (os.stat(place.tree / "small").st_ino, os.stat("f").st_ino) == inodes
    renameat2("f", place.tree / "text", RENAME_EXCHANGE)
    assert (Path("f").read_bytes(), (place.tree / "text").read_bytes()) == (TEXT, SMALL)


@anyone
def test_two_files_of_the_image_are_exchanged_and_back(place: Place) -> None:
    first, second = place.tree / "small", place.tree / "directory/a"
    renameat2(first, second, RENAME_EXCHANGE)
    assert (first.read_bytes(), second.read_bytes()) == (b"a", SMALL)
    renameat2(first, second, RENAME_EXCHANGE)
    assert (first.read_bytes(), second.read_bytes()) == (SMALL, b"a")


@anyone
def test_a_file_and_a_directory_are_exchanged(place: Place) -> None:
    renameat2(place.tree / "small", place.tree / "directory", RENAME_EXCHANGE)
    assert (place.tree / "directory").read_bytes() == SMALL
    assert sorted(os.listdir(place.tree / "small")) == ["a", "b", "sub"]
    assert (place.tree / "small/sub/deep/d").read_bytes() == b"d"
    os.mkdir("d")
    renameat2("d", place.tree / "text", RENAME_EXCHANGE)
    assert (Path("d").read_bytes(), os.listdir(place.tree / "text")) == (TEXT, [])


@anyone
def test_two_directories_that_are_not_empty_are_exchanged(place: Place) -> None:
    renameat2(place.tree / "directory", place.tree / "wide", RENAME_EXCHANGE)
    assert sorted(os.listdir(place.tree / "wide")) == ["a", "b", "sub"]
    assert len(os.listdir(place.tree / "directory")) == 20
    (place.tree / "wide/a").write_bytes(b"changed")
    renameat2(place.tree / "directory", place.tree / "wide", RENAME_EXCHANGE)
    assert (place.tree / "directory/a").read_bytes() == b"changed"


@anyone
def test_links_are_exchanged_and_not_followed(place: Place) -> None:
    renameat2(place.tree / "to-nowhere", place.tree / "small", RENAME_EXCHANGE)
    assert os.readlink(place.tree / "small") == "no/where"
    assert (place.tree / "to-nowhere").read_bytes() == SMALL


@anyone
def test_exchanged_directories_count_for_their_new_parents(place: Place) -> None:
    os.makedirs("one/sub")
    os.makedirs("two")
    Path("two/file").touch()
    renameat2("one/sub", "two/file", RENAME_EXCHANGE)
    assert (os.stat("one").st_nlink, os.stat("two").st_nlink) == (2, 3)
    assert os.path.samefile("two/file/..", "two")


@anyone
def test_exchanging_needs_both_names_and_no_inside(place: Place) -> None:
    for source, target in (("nothing", place.tree / "small"), (place.tree / "small", "nothing")):
        with fails(errno.ENOENT):
            renameat2(source, target, RENAME_EXCHANGE)
    for source, target in (("directory", "directory/sub"), ("directory/sub/deep", "directory")):
        with fails(errno.EINVAL):
            renameat2(place.tree / source, place.tree / target, RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(place.tree / "small", "x", RENAME_EXCHANGE | RENAME_NOREPLACE)


@anyone
def test_an_open_file_goes_with_its_name(place: Place) -> None:
    fd = os.open(place.tree / "small", os.O_RDWR)
    renameat2(place.tree / "small", place.tree / "text", RENAME_EXCHANGE)
    os.pwrite(fd, b"W", 0)
    assert (place.tree / "text").read_bytes() == b"W" + SMALL[1:]
    assert (place.tree / "small").read_bytes() == TEXT

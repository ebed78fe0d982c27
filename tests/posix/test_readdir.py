"""Listings: complete, without doubles, whatever happens meanwhile; positions that can be gone back to."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.posix_calls import DirectoryStream
from tests.support.posix_places import Place, anyone
from tests.support.posix_tree import MEMBERS, WIDE

pytestmark = posix.marks

MANY = 2000


@contextmanager
def listing(path: Path) -> Iterator[DirectoryStream]:
    stream = DirectoryStream(path)
    try:
        yield stream
    finally:
        stream.close()


def fill(path: Path, count: int, prefix: str = "f") -> list[str]:
    """Make `count` empty files; their names, so long that one reply of 32 KiB holds some 300."""
    names = [f"{prefix}{number:05}".ljust(80, "-") for number in range(count)]
    directory = os.open(path, os.O_RDONLY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    return names


@anyone
def test_a_listing_has_every_name_once_and_both_dots(place: Place) -> None:
    names = {member.path for member in MEMBERS if "/" not in member.path} - {""}
    with listing(place.tree) as stream:
        found = Counter(map(os.fsdecode, stream.rest()))
    assert found == Counter({".", ".."} | names)


@anyone
def test_a_changed_directory_of_the_image_lists_old_and_new_once(place: Place) -> None:
    path = place.tree / "wide"
    (path / "00").write_bytes(b"changed")
    os.unlink(path / "01")
    os.rename(path / "02", path / "moved")
    (path / "new").touch()
    os.unlink(path / "03")
    (path / "03").mkdir()
    expected = sorted([*(name for name in WIDE if name not in ("01", "02")), "moved", "new"])
    assert sorted(os.listdir(path)) == expected
    assert (path / "03").is_dir()


@anyone
def test_listings_and_stat_agree_on_inode_and_kind(place: Place) -> None:
    os.truncate(place.tree / "text", 3)
    os.rename(place.tree / "small", place.tree / "moved")
    (place.tree / "made").mkdir()
    for directory in (place.tree, place.tree / "directory", place.tree / "wide"):
        with os.scandir(directory) as entries:
            for entry in entries:
                info = os.lstat(entry.path)
                assert entry.inode() == info.st_ino, entry.name
                assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(info.st_mode), entry.name
                assert entry.is_symlink() == stat.S_ISLNK(info.st_mode), entry.name


@anyone
def test_the_dots_are_the_directory_and_the_one_above(place: Place) -> None:
    os.makedirs("a/b")
    for path in (Path("a/b"), place.tree / "directory/sub"):
        assert os.stat(path / ".").st_ino == os.stat(path).st_ino
        assert os.stat(f"{path}/..").st_ino == os.stat(path.parent).st_ino


@anyone
def test_thousands_of_names_are_all_listed(place: Place) -> None:
    names = fill(place.at, MANY)
    assert sorted(os.listdir(place.at)) == names
    for name in names[::2]:
        os.unlink(name)
    assert sorted(os.listdir(place.at)) == names[1::2]
    assert Counter(os.listdir(place.at)).most_common(1)[0][1] == 1


@anyone
def test_what_is_not_touched_is_listed_once_while_others_are_made_and_removed(place: Place) -> None:
    for directory, count in ((place.at, 600), (place.tree / "wide", 600)):
        fill(directory, count, "stays")
        going = fill(directory, count, "goes")
        untouched = {name for name in os.listdir(directory) if not name.startswith("goes")}
        found: Counter[str] = Counter()
        with listing(directory) as stream:
            for number, gone in enumerate(going):
                if name := stream.read():
                    found[os.fsdecode(name)] += 1
                os.unlink(directory / gone)
                if number % 3 == 0:
                    (directory / f"comes{number:05}").touch()
            found.update(map(os.fsdecode, stream.rest()))
        assert {name for name in found if name in untouched} == untouched
        assert {name: times for name, times in found.items() if times > 1} == {}


@anyone
def test_removing_each_name_as_it_is_listed_empties_the_directory(place: Place) -> None:
    fill(place.at, 700)
    for directory in (place.at, place.tree / "wide"):
        with os.scandir(directory) as entries:
            for entry in entries:
                os.unlink(entry.path)
        assert os.listdir(directory) == []
        os.rmdir(directory)


@anyone
def test_renaming_each_name_as_it_is_listed_loses_none(place: Place) -> None:
    names = fill(place.at, 700)
    with os.scandir(place.at) as entries:
        for entry in entries:
            if not entry.name.startswith("renamed-"):
                os.rename(entry.path, place.at / f"renamed-{entry.name}")
    assert sorted(os.listdir(place.at)) == [f"renamed-{name}" for name in names]


@anyone
def test_a_listing_begun_anew_shows_what_has_changed(place: Place) -> None:
    for directory in (place.at, place.tree / "wide"):
        (directory / "old").touch()
        with listing(directory) as stream:
            assert b"old" in stream.rest()
            os.unlink(directory / "old")
            (directory / "new").touch()
            stream.rewind()
            found = stream.rest()
            assert (b"old" in found, b"new" in found) == (False, True)


@anyone
def test_a_position_can_be_gone_back_to(place: Place) -> None:
    fill(place.at, 700)
    for directory in (place.at, place.tree / "wide"):
        with listing(directory) as stream:
            seen = [(stream.tell(), stream.read()) for _ in range(15)]
            after = stream.tell()
            rest = stream.rest()
            for position, name in (seen[7], seen[0], seen[14]):
                stream.seek(position)
                assert stream.read() == name
            stream.seek(after)
            assert stream.rest() == rest


@anyone
def test_a_position_holds_while_other_names_go(place: Place) -> None:
    names = fill(place.at, 700)
    with listing(place.at) as stream:
        first = [stream.read() for _ in range(300)]
        position = stream.tell()
        rest = stream.rest()
        for name in [name for name in first if name and name.startswith(b"f")][::2]:
            os.unlink(name)
        stream.seek(position)
        assert stream.rest() == rest
    assert len(first) + len(rest) == len(names) + 2


@anyone
def test_two_listings_at_once_do_not_disturb_each_other(place: Place) -> None:
    with listing(place.tree) as first, listing(place.tree) as second:
        pairs = [(first.read(), second.read()) for _ in range(len(MEMBERS))]
    assert all(one == other for one, other in pairs)


@anyone
def test_a_directory_renamed_while_it_is_listed_is_listed_to_its_end(place: Place) -> None:
    fill(place.at, 700)
    for directory in (place.at, place.tree / "wide"):
        expected = set(os.listdir(directory)) | {".", ".."}
        with listing(directory) as stream:
            first = [stream.read() for _ in range(5)]
            os.rename(directory, directory.with_name("renamed"))
            found = {os.fsdecode(name) for name in [*first, *stream.rest()] if name}
        assert found == expected
        os.rename(directory.with_name("renamed"), directory)

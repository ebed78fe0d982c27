"""Files of the image when they are first changed: whatever changes them, nothing else of them does."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import posix_places as posix
from tests.support.posix_places import Place, anyone, not_by_overlayfs, only_root
from tests.support.posix_tree import HEAD, HOLES, SMALL, TAIL, TEXT, WIDE, large_body, mtime_of

pytestmark = posix.marks


class Shown(NamedTuple):
    """All that a file shows but its times of access and change, and its number of blocks."""

    ino: int
    mode: int
    links: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    xattrs: dict[str, bytes]


def shown(path: Path) -> Shown:
    info = os.lstat(path)
    xattrs = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    owner = info.st_uid, info.st_gid
    return Shown(info.st_ino, info.st_mode, info.st_nlink, owner, info.st_size, info.st_mtime_ns, xattrs)


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "opening it for writing": (lambda path: os.close(os.open(path, os.O_RDWR)), set()),
    "its mode": (lambda path: os.chmod(path, 0o600), {"mode"}),
    "its owner": (lambda path: os.chown(path, os.getuid(), os.getgid()), set()),
    "its times": (lambda path: os.utime(path, ns=(5, 6)), {"mtime_ns"}),
    "an attribute": (lambda path: os.setxattr(path, "user.new", b"1"), {"xattrs"}),
    "a link": (lambda path: os.link(path, path.with_name("link")), {"links"}),
    "its size": (lambda path: os.truncate(path, path.stat().st_size // 2), {"size", "mtime_ns"}),
    "its bytes": (lambda path: os.pwrite(os.open(path, os.O_WRONLY), b"#", 0), {"mtime_ns"}),
}


@anyone
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_changes_nothing_else(place: Place, what: str) -> None:
    change, fields = CHANGES[what]
    for name in ("text", "labelled", "pair/one", "script", "holes"):
        path = place.tree / name
        before, body = shown(path), path.read_bytes()
        change(path)
        after = shown(path)
        changed = {field for field in Shown._fields if getattr(before, field) != getattr(after, field)}
        assert changed - {"size"} == fields - {"size"}, name
        if "size" not in fields:
            assert path.read_bytes()[1:] == body[1:], name
            assert after.size == before.size, name
        path.with_name("link").unlink(missing_ok=True)


@not_by_overlayfs
def test_a_change_leaves_the_directories_above_as_they_were(place: Place) -> None:
    above = [
        place.tree,
        place.tree / "directory",
        place.tree / "directory/sub",
        place.tree / "directory/sub/deep",
    ]
    before = [shown(path) for path in above]
    (place.tree / "directory/sub/deep/d").write_bytes(b"changed")
    os.chmod(place.tree / "directory/sub/c", 0o600)
    assert [shown(path) for path in above] == before
    assert stat.S_IMODE(os.stat(above[2]).st_mode) == 0o750


@anyone
def test_a_changed_directory_still_lists_what_the_image_has(place: Place) -> None:
    os.chmod(place.tree / "directory", 0o700)
    os.setxattr(place.tree / "directory", "user.new", b"1")
    (place.tree / "directory/sub/new").touch()
    assert sorted(os.listdir(place.tree / "directory")) == ["a", "b", "sub"]
    assert sorted(os.listdir(place.tree / "directory/sub")) == ["c", "deep", "new"]
    assert os.getxattr(place.tree / "directory", "user.directory") == b"d"


@anyone
def test_neighbours_of_a_changed_file_are_untouched(place: Place) -> None:
    before = {name: shown(place.tree / "wide" / name) for name in WIDE}
    (place.tree / "wide/07").write_bytes(b"changed")
    os.unlink(place.tree / "wide/08")
    after = {name: shown(place.tree / "wide" / name) for name in WIDE if name != "08"}
    assert {name for name, shows in after.items() if shows != before[name]} == {"07"}
    assert [(place.tree / "wide" / name).read_bytes() for name in ("06", "09")] == [b"06", b"09"]


@anyone
def test_a_file_opened_before_it_was_changed_shows_the_change(place: Place, large: Path) -> None:
    reader = os.open(large, os.O_RDONLY)
    assert os.pread(reader, 8, 0) == b"0000000\n"
    writer = os.open(large, os.O_WRONLY)
    assert os.fstat(reader).st_ino == os.fstat(writer).st_ino
    for offset in (0, 1_500_000, len(large_body()) - 8):
        os.pwrite(writer, b"CHANGED\n", offset)
        assert os.pread(reader, 8, offset) == b"CHANGED\n"
        assert (
            os.pread(reader, 8, offset - 8 if offset else 8) == large_body()[max(offset - 8, 0) :][:8]
            or offset == 0
        )
    os.pwrite(writer, b"more", len(large_body()))
    assert os.pread(reader, 100, len(large_body())) == b"more"
    os.fchmod(writer, 0o600)
    assert stat.S_IMODE(os.fstat(reader).st_mode) == 0o600


@anyone
def test_a_file_half_read_before_it_was_changed_is_read_on(place: Place, large: Path) -> None:
    with large.open("rb", buffering=0) as reader:
        first = reader.read(1_000_000)
        os.chmod(large, 0o600)
        with large.open("r+b") as writer:
            writer.seek(2_000_000)
            writer.write(b"W" * 100)
        rest = reader.readall()
    expected = large_body()[:2_000_000] + b"W" * 100 + large_body()[2_000_100:]
    assert first + rest == expected


@anyone
def test_writing_to_the_ends_keeps_the_middle(place: Place, large: Path) -> None:
    body = large_body()
    with large.open("r+b") as file:
        file.write(b"first")
        file.seek(0, os.SEEK_END)
        file.write(b"last")
    assert large.read_bytes() == b"first" + body[5:] + b"last"


@anyone
def test_an_appended_file_keeps_what_it_had(place: Place, large: Path) -> None:
    for path, body in ((large, large_body()), (place.tree / "text", TEXT), (place.tree / "empty", b"")):
        with path.open("ab") as file:
            assert file.tell() == len(body)
            file.write(b"appended")
        assert path.read_bytes() == body + b"appended"


@anyone
def test_a_change_of_attributes_can_be_followed_by_one_of_bytes(place: Place, large: Path) -> None:
    os.chmod(large, 0o600)
    os.rename(large, place.tree / "moved")
    os.link(place.tree / "moved", "linked")
    with Path("linked").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"late")
    body = large_body()
    assert (place.tree / "moved").read_bytes() == body[:1_000_000] + b"late" + body[1_000_004:]


@anyone
def test_a_sparse_file_stays_sparse_in_what_it_shows(place: Place) -> None:
    path = place.tree / "holes"
    os.chmod(path, 0o600)
    with path.open("ab") as file:
        file.write(b"more")
    assert path.read_bytes() == HEAD + bytes(HOLES - len(HEAD) - len(TAIL)) + TAIL + b"more"


@anyone
def test_links_of_the_image_are_changed_together(place: Place) -> None:
    one, two = place.tree / "pair/one", place.tree / "pair/two"
    reader = os.open(two, os.O_RDONLY)
    with one.open("ab") as file:
        file.write(b" changed")
    assert two.read_bytes() == os.pread(reader, 100, 0) == b"pair changed"
    assert shown(one) == shown(two)
    os.rename(one, "moved")
    os.chmod("moved", 0o600)
    assert stat.S_IMODE(os.stat(two).st_mode) == 0o600
    assert os.stat(two).st_nlink == 2


@anyone
def test_a_link_of_the_image_changed_after_its_other_name_went(place: Place) -> None:
    os.unlink(place.tree / "pair/one")
    before = os.stat(place.tree / "pair/two").st_ino
    (place.tree / "pair/two").write_bytes(b"alone")
    after = os.stat(place.tree / "pair/two")
    assert (after.st_ino, after.st_nlink, after.st_size) == (before, 1, 5)
    assert os.listdir(place.tree / "pair") == ["two"]


@anyone
def test_symbolic_links_and_fifos_are_changed_too(place: Place) -> None:
    for name, change in (("to-nowhere", {"mtime_ns"}), ("pipe", {"mtime_ns"})):
        before = shown(place.tree / name)
        os.utime(place.tree / name, ns=(5, 6), follow_symlinks=False)
        after = shown(place.tree / name)
        assert {field for field in Shown._fields if getattr(before, field) != getattr(after, field)} == change


@only_root
def test_a_setuid_file_given_away_and_back_keeps_its_bytes(place: Place) -> None:
    path = place.tree / "setuid"
    os.chown(path, 70_000, 80_000)
    os.chmod(path, 0o6755)
    info = os.stat(path)
    assert (info.st_mode, info.st_uid, info.st_gid) == (0o106755, 70_000, 80_000)
    assert path.read_bytes() == b"s" * 100


@anyone
def test_what_was_only_read_is_as_the_image_has_it(place: Place) -> None:
    assert (place.tree / "small").read_bytes() == SMALL
    os.close(os.open(place.tree / "small", os.O_RDONLY))
    os.listxattr(place.tree / "small")
    assert shown(place.tree / "small").mtime_ns == mtime_of("small")

"""Overlay xattrs on the files of an upper directory, and what fuse-overlayfs says with files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.overlay.interchange import convert_whiteout_files
from imgfs.overlay.upper import Upper
from imgfs.overlay.xattrs import (
    METACOPY,
    OVERRIDE,
    REDIRECT,
    TRUSTED,
    USER,
    Owner,
    XattrFormat,
    format_override,
    is_reserved,
    parse_overlay_xattrs,
    read_override,
    shown_xattrs,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="devices and trusted xattrs need root")

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)
PREFIXES = st.sampled_from([b"", TRUSTED, USER, b"user.", b"trusted.", b"security.", b"user.fuseoverlayfs."])
XATTRS = st.dictionaries(st.tuples(PREFIXES, NAMES).map(b"".join) | st.just(OVERRIDE), st.binary(max_size=40))
NUMBERS = st.integers(0, 0xFFFFFFFE)  # the last one means nobody
OWNERS = st.builds(Owner, NUMBERS, NUMBERS, st.integers(0, 0o7777))


@given(OWNERS)
def test_an_owner_is_read_as_it_was_written(owner: Owner) -> None:
    assert read_override({OVERRIDE: format_override(owner)}) == owner


@given(
    st.binary(max_size=60) | st.from_regex(rb"-?[0-9]{1,12}:-?[0-9]{1,12}:[0-9]{1,6}(:.*)?", fullmatch=True)
)
def test_any_override_is_an_owner_that_can_be_shown_or_none(value: bytes) -> None:
    owner = read_override({OVERRIDE: value})
    if owner is not None:
        assert 0 <= owner.uid < 0xFFFFFFFF
        assert 0 <= owner.gid < 0xFFFFFFFF
        assert 0 <= owner.mode <= 0o7777


@pytest.mark.parametrize(
    ("value", "owner"),
    [
        (b"0:0:0755", Owner(0, 0, 0o755)),
        (b"1000:50:4711", Owner(1000, 50, 0o4711)),
        (b"0:0:0100644", Owner(0, 0, 0o644)),  # with the kind of the file
        (b"1:2:755:dir", Owner(1, 2, 0o755)),  # fuse-overlayfs since 1.14 tells the kind behind the mode
        (b"1:2:644:block-8-1", Owner(1, 2, 0o644)),
        (b"", None),
        (b"1:2", None),
        (b"a:b:c", None),
        (b"1:2:9", None),
    ],
)
def test_owners_that_others_write(value: bytes, owner: Owner | None) -> None:
    assert read_override({OVERRIDE: value}) == owner


@given(XATTRS)
def test_marks_are_read_and_never_shown(xattrs: dict[bytes, bytes]) -> None:
    marks, shown = parse_overlay_xattrs(xattrs), shown_xattrs(xattrs)
    for prefix in (TRUSTED, USER):
        assert {name.removeprefix(prefix) for name in xattrs if name.startswith(prefix)} <= marks.keys()
    for name, value in shown.items():
        assert not is_reserved(name) or USER + b"imgfs.xattr." + name in xattrs
        assert value in xattrs.values()
    assert {name for name in xattrs if not is_reserved(name)} <= shown.keys()


@given(NAMES, st.sampled_from([TRUSTED, USER]))
def test_an_attribute_is_shown_under_the_name_it_was_set_by(name: bytes, prefix: bytes) -> None:
    for override in (False, True):
        marks = XattrFormat(prefix, override=override)
        for full in (b"user." + name, b"security." + name, b"trusted." + name):
            if not is_reserved(full):
                assert shown_xattrs({marks.stored_name(full): b"v"}) == {full: b"v"}


@given(st.integers(0, 0o7777), st.sampled_from([stat.S_IFREG, stat.S_IFDIR]))
def test_a_user_can_always_open_what_is_on_disk(mode: int, kind: int) -> None:
    disk = XattrFormat(USER, override=True).disk_mode(kind | mode)
    assert disk & 0o600 == 0o600
    assert kind == stat.S_IFREG or disk & 0o100
    assert not disk & 0o7000
    assert disk & 0o077 == mode & 0o077


# -- fuse-overlayfs's files


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[Upper]:
    (tmp_path / "upper").mkdir()
    with closing(Upper(tmp_path / "upper", tmp_path / "work")) as upper:
        yield upper


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


@needs_root
def test_whiteout_files_become_whiteouts(upper: Upper, tmp_path: Path) -> None:
    top = tmp_path / "upper"
    (top / "d").mkdir()
    for name in (".wh.a", "d/.wh.b", "d/.wh..hidden", "keep"):
        (top / name).touch()
    convert_whiteout_files(upper)
    assert sorted(os.listdir(top)) == ["a", "d", "keep"]
    assert sorted(os.listdir(top / "d")) == [".hidden", "b"]
    assert is_whiteout(top / "a")
    assert is_whiteout(top / "d/b")
    assert is_whiteout(top / "d/.hidden")
    assert (top / "keep").is_file()


@needs_root
def test_an_opaque_file_becomes_the_mark(upper: Upper, tmp_path: Path) -> None:
    directory = tmp_path / "upper/d"
    directory.mkdir()
    (directory / ".wh..wh..opq").touch()
    convert_whiteout_files(upper)
    assert os.listdir(directory) == []
    assert os.getxattr(directory, "trusted.overlay.opaque") == b"y"


@needs_root
def test_a_whiteout_file_beside_what_it_would_hide_hides_nothing(upper: Upper, tmp_path: Path) -> None:
    top = tmp_path / "upper"
    (top / ".wh.a").touch()
    (top / "a").write_bytes(b"new")
    convert_whiteout_files(upper)
    assert os.listdir(top) == ["a"]
    assert (top / "a").read_bytes() == b"new"


@needs_root
@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", ".wh..wh.", ".wh..wh..plnk", ".wh..wh.aufs"])
def test_names_that_mean_nothing_do_no_harm(upper: Upper, tmp_path: Path, name: str) -> None:
    """aufs's own; and what would be a whiteout of the directory itself, or of the one above."""
    top = tmp_path / "upper"
    (top / "d").mkdir()
    (top / "d" / name).touch()
    (top / "d/keep").touch()
    convert_whiteout_files(upper)
    assert os.listdir(top) == ["d"]
    assert os.listdir(top / "d") == ["keep"]
    assert sorted(os.listdir(tmp_path)) == ["upper", "work"]


@needs_root
def test_whiteout_directories_and_symlinks_do_no_harm(upper: Upper, tmp_path: Path) -> None:
    top = tmp_path / "upper"
    (top / "outside").mkdir()
    (top / "outside/.wh.x").touch()
    (top / ".wh.d").mkdir()
    (top / ".wh.d/file").touch()
    (top / ".wh.link").symlink_to(tmp_path)
    convert_whiteout_files(upper)
    assert sorted(os.listdir(tmp_path)) == ["upper", "work"]


@needs_root
def test_marks_are_set_and_taken_off_whatever_their_prefix(upper: Upper, tmp_path: Path) -> None:
    path = tmp_path / "upper/f"
    path.touch()
    at = upper.new()._replace(directory=upper.root, name=b"f")
    for prefix in (TRUSTED, USER):
        upper.set_xattr(at, prefix + METACOPY, b"")
        upper.set_xattr(at, prefix + REDIRECT, b"/x")
    upper.set_xattr(at, b"user.mine", b"1")
    upper.remove_overlay_xattrs(at, METACOPY, REDIRECT)
    assert upper.xattrs(at) == {b"user.mine": b"1"}

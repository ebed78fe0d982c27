"""Files that are read again when they change, and no sooner than that."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imgfs.errors import UsageError
from imgfs.registry.config.reload import Reader, Watched


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(path: Path) -> Callable[[Reader], list[bytes]]:
    """The file's lines; one that says `bad` makes no sense."""

    def load(reader: Reader) -> list[bytes]:
        lines = (reader.read(path) or b"").splitlines()
        if b"bad" in lines:
            raise UsageError(f"{path}: bad")
        return lines

    return load


def test_it_is_the_same_object_until_a_file_changes_and_a_second_has_passed(tmp_path: Path) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("one")
    watched = Watched(lines_of(path), clock=clock)
    first = watched.value()
    path.write_text("another")
    clock.now += 0.9
    assert watched.value() is first
    clock.now += 0.2
    assert watched.value() == [b"another"]


def test_a_file_touched_but_not_changed_makes_no_new_object(tmp_path: Path) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("one")
    watched = Watched(lines_of(path), clock=clock)
    first = watched.value()
    os.utime(path, (1, 1))
    clock.now += 2
    assert watched.value() is first


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    path, other, clock = tmp_path / "file", tmp_path / "other", Clock()
    for each, text in [(path, "one"), (other, "two")]:
        each.write_text(text)
        os.utime(each, (1, 1))
    watched = Watched(lines_of(path), clock=clock)
    assert watched.value() == [b"one"]
    other.rename(path)
    clock.now += 2
    assert watched.value() == [b"two"]


def test_files_that_come_and_go_are_noticed(tmp_path: Path) -> None:
    path, clock = tmp_path / "below/file", Clock()
    watched = Watched(lines_of(path), clock=clock)
    assert watched.value() == []
    path.parent.mkdir()
    path.write_text("one")
    clock.now += 2
    assert watched.value() == [b"one"]
    path.unlink()
    clock.now += 2
    assert watched.value() == []


def test_a_new_file_in_a_directory_is_noticed(tmp_path: Path) -> None:
    clock = Clock()
    watched = Watched(lambda reader: reader.names(tmp_path), clock=clock)
    assert watched.value() == []
    os.utime(tmp_path, (1, 1))
    (tmp_path / "file").touch()
    clock.now += 2
    assert watched.value() == ["file"]


def test_a_file_broken_from_the_start_is_an_error_until_it_is_mended(tmp_path: Path) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("bad")
    watched = Watched(lines_of(path), clock=clock)
    for _ in range(2):
        with pytest.raises(UsageError, match="bad"):
            watched.value()
    path.write_text("good")
    assert watched.value() == [b"good"]


def test_a_file_broken_later_changes_nothing_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, clock = tmp_path / "file", Clock()
    path.write_text("good")
    watched = Watched(lines_of(path), clock=clock)
    first = watched.value()
    path.write_text("bad")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += 2
            assert watched.value() is first
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: bad; what it said before still holds"
    ]
    path.write_text("mended")
    clock.now += 2
    assert watched.value() == [b"mended"]


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"^{tmp_path}: cannot be read: Is a directory$"):
        Reader().read(tmp_path)
    with pytest.raises(UsageError, match=r"^/dev/zero: larger than "):
        Reader().read(Path("/dev/zero"))


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert Reader().read(tmp_path / "fifo") == b""


@pytest.mark.parametrize("path", ["missing", "file/below", "x" * 300])
def test_what_cannot_be_there_is_not_there(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    reader = Reader()
    assert reader.read(tmp_path / path) is None
    assert reader.names(tmp_path / path) == []
    assert reader.stamp(tmp_path / path) is None

"""What a directory tree takes of the disk, also while a program changes it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.overlay import fdtree


def test_a_file_with_several_names_counts_once_and_directories_count(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/file").write_bytes(bytes(100_000))
    one = fdtree.disk_usage(tree)
    os.link(tree / "a/file", tree / "a/b/other")
    assert fdtree.disk_usage(tree) == one
    assert one[0] >= 100_000
    assert one[1] == 4  # the tree, a, b and the file


def test_there_is_nothing_where_no_directory_is(tmp_path: Path) -> None:
    assert fdtree.disk_usage(tmp_path / "none") == (0, 0)


def test_what_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has been removed since its name was read, and a directory that was moved away."""
    (tmp_path / "file").touch()

    def walk(top: int) -> Iterator[tuple[int, list[bytes]]]:
        yield top, [b"file", b"gone"]
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(fdtree, "walk", walk)
    assert fdtree.disk_usage(tmp_path)[1] == 2

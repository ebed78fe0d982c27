"""The upper directory of an ordinary user's container: whose it is, and how it is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.overlay.scratch import Scratch
from imgfs.overlay.scratches import make_upper
from imgfs.overlay.xattrs import OVERRIDE
from tests.support import tarmake as tar
from tests.support.layers import write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    write_tree(path, [tar.archive(tar.directory("", mode=0o750, uid=3, gid=4))], tmp_path)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", "box")


def test_a_new_one_has_owner_and_mode_aside_whatever_the_entry_says(scratch: Scratch, tree: Path) -> None:
    make_upper(scratch, tree)
    assert os.getxattr(scratch.upper, OVERRIDE) == b"0:0:0755"
    assert scratch.upper.stat().st_uid == os.geteuid()
    assert os.listdir(scratch.directory) == ["upper"]


def test_one_that_is_there_stays_as_it_is(scratch: Scratch, tree: Path) -> None:
    scratch.upper.mkdir(parents=True)
    make_upper(scratch, tree)
    assert os.listxattr(scratch.upper) == []


def test_a_link_in_the_way_is_not_followed(scratch: Scratch, tree: Path, tmp_path: Path) -> None:
    """Where the name of the new directory is known before, another user could lay a link there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    scratch.directory.mkdir()
    (scratch.directory / ".upper-new").symlink_to(elsewhere)
    make_upper(scratch, tree)
    assert not scratch.upper.is_symlink()
    assert os.listxattr(elsewhere) == []


def test_what_a_killed_process_has_left_is_removed(scratch: Scratch, tree: Path) -> None:
    (scratch.directory / ".upper-left").mkdir(parents=True)
    make_upper(scratch, tree)
    assert os.listdir(scratch.directory) == ["upper"]


def test_a_directory_that_others_may_write_to_is_refused(scratch: Scratch, tree: Path) -> None:
    scratch.directory.mkdir()
    scratch.directory.chmod(0o777)
    with pytest.raises(StoreError, match="other users may write"):
        make_upper(scratch, tree)


def test_what_is_left_goes_with_the_scratch(scratch: Scratch) -> None:
    (scratch.directory / ".upper-left").mkdir(parents=True)
    scratch.remove()
    assert not scratch.directory.exists()

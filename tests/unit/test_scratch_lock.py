"""A scratch's lock that a driver has let go of, tried by the next driver of the same mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.overlay.scratch_dir import LOCK, Lock
from imgfs.owned.inheritance import LockInheritance


def test_a_lock_that_was_closed_is_opened_anew_not_inherited(tmp_path: Path) -> None:
    inheritance = LockInheritance()
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        first = Lock(tmp_path, directory, inheritance)
        assert first.take(lambda _: True) is None
        first.close()
        assert inheritance.fd == -1
        second = Lock(tmp_path, directory, inheritance)
        assert second.take(lambda _: True) is None
        assert Lock(tmp_path, directory, inheritance).take(lambda _: True) is None  # the same, by inheritance
        second.close()
    finally:
        os.close(directory)


def test_a_lock_whose_file_its_holder_has_removed_is_not_had(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        first, waiting, third = (Lock(tmp_path, directory) for _ in range(3))
        assert first.take(lambda _: True) is None
        (tmp_path / LOCK).unlink()  # as a scratch that is removed does
        first.close()
        assert third.take(lambda _: True) is None
        assert waiting.take(lambda _: True) == "by another process"
        third.close()
        assert waiting.take(lambda _: True) is None
        waiting.close()
    finally:
        os.close(directory)


def test_a_scratch_that_was_removed_while_its_lock_was_waited_for_is_not_there(tmp_path: Path) -> None:
    place = tmp_path / "scratch"
    place.mkdir()
    directory = os.open(place, os.O_RDONLY)
    try:
        waiting = Lock(place, directory)
        (place / LOCK).unlink()
        place.rmdir()
        with pytest.raises(StoreError, match="has been removed meanwhile"):
            waiting.take(lambda _: True)
    finally:
        os.close(directory)

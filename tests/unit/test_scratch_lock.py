"""A scratch's lock that a driver has let go of, tried by the next driver of the same mount."""

from __future__ import annotations

import os
from pathlib import Path

from imgfs.overlay.scratch_dir import Lock
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

"""A file where anything may lie is opened without waiting, and no descriptor is left open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgfs.errors import UsageError
from imgfs.owned.opening import NotRegular, open_regular
from imgfs.registry.config.credential_stores import read_auth_file


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "link").symlink_to("directory")
    return {name: tmp_path / name for name in ("directory", "fifo", "device", "link")}


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_what_is_no_regular_file_is_said_and_nothing_stays_open(places: dict[str, Path]) -> None:
    before = descriptors()
    for path in places.values():
        with pytest.raises(NotRegular, match="not a regular file"):
            open_regular(path)
    with pytest.raises(NotRegular, match="it is a symbolic link"):
        open_regular(places["link"], follow=False)
    assert descriptors() == before


def test_a_credentials_file_that_is_none_leaves_nothing_open(places: dict[str, Path]) -> None:
    before = descriptors()
    for path in places.values():
        with pytest.raises(UsageError, match="not a regular file"):
            read_auth_file(path)
    assert descriptors() == before


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"body")
    (tmp_path / "to").symlink_to("file")
    with open_regular(tmp_path / "to") as file:
        assert (file.read(), os.get_blocking(file.fileno())) == (b"body", True)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing")

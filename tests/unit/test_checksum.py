"""The checksums in the store's SQLite files: any damage shows, and a file without one is taken as it is."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from imgfs.errors import StoreError
from imgfs.oci.descriptor import Digest
from imgfs.store.checksum import ChecksumCache, matches_checksum, write_checksum
from imgfs.store.store import Store
from scripts.proving.damage import damaged


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "index"
    with closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE a (b BLOB)")
        made.executemany(
            "INSERT INTO a VALUES (?)", [(Random(number).randbytes(5000),) for number in range(9)]
        )
    return path


def test_a_sealed_file_is_whole_and_says_the_same(database: Path) -> None:
    assert matches_checksum(database) is None
    size = database.stat().st_size
    write_checksum(database)
    assert matches_checksum(database) is True
    assert database.stat().st_size == size
    with closing(sqlite3.connect(database)) as opened:
        assert opened.execute("SELECT count(*) FROM a").fetchone() == (9,)
        assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert matches_checksum(database) is True


def test_to_seal_a_file_again_changes_nothing(database: Path) -> None:
    write_checksum(database)
    body = database.read_bytes()
    write_checksum(database)
    assert database.read_bytes() == body


def test_any_damage_shows(database: Path) -> None:
    write_checksum(database)
    body = database.read_bytes()
    for seed in range(300):
        database.write_bytes(damaged(body, Random(seed)))
        assert not matches_checksum(database), seed
    database.write_bytes(body)
    assert matches_checksum(database) is True


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    for body in (b"", b"tree", b"x" * 5000):
        (tmp_path / "file").write_bytes(body)
        write_checksum(tmp_path / "file")
        assert matches_checksum(tmp_path / "file") is None
        assert (tmp_path / "file").read_bytes() == body


def test_a_file_that_cannot_be_read_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Is a directory"):
        matches_checksum(tmp_path)


def test_small_files_are_looked_at_once_as_they_are_used(database: Path) -> None:
    write_checksum(database)
    checksums = ChecksumCache()
    assert checksums.is_intact(database)
    assert not checksums.is_intact(database.with_name("nothing"))
    body = database.read_bytes()
    database.write_bytes(body[:-1] + b"\xee")
    assert not checksums.is_intact(database)
    database.write_bytes(body)
    assert ChecksumCache().is_intact(database)


def test_what_would_take_long_is_not_looked_at(database: Path) -> None:
    write_checksum(database)
    size = database.stat().st_size
    database.write_bytes(database.read_bytes()[:-1] + b"\xee")
    assert ChecksumCache(size - 1).is_intact(database)
    assert not ChecksumCache(size).is_intact(database)
    other = database.with_name("other")
    other.write_bytes(database.read_bytes())
    both = ChecksumCache(2 * size - 1)
    assert [both.is_intact(path) for path in (database, other, database)] == [False, True, False]


def test_the_store_seals_indexes_and_trees_and_does_not_show_damaged_ones(
    database: Path, tmp_path: Path
) -> None:
    store, digest = Store(tmp_path / "store"), Digest.of(b"manifest")
    with store.new_tree(digest) as path:
        path.write_bytes(database.read_bytes())
    with store.layer(digest).new_index() as path:
        path.write_bytes(database.read_bytes())
    for file in (store.tree(digest), store.layer(digest).index):
        assert file
        assert matches_checksum(file) is True
        file.write_bytes(file.read_bytes()[:-1] + b"\xee")
    assert (store.tree(digest), store.layer(digest).index) == (None, None)

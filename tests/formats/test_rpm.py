"""rpm's databases, SQLite and ndb, written as rpm does; damaged and hostile ones end in an error, in time."""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest

from imgfs.errors import InvalidImage
from imgfs.packages.package import Package
from imgfs.packages.rpm import ndb_headers, rpm_package, sqlite_headers
from imgfs.packages.sqlite_file import SqliteFile
from tests.support.rpm_databases import header, ndb, sqlite_database


def reader(body: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: body[offset : offset + length]


HEADERS = [
    header(
        name=f"package{n}",
        version="1.0",
        release="2.fc40",
        arch="x86_64",
        license="MIT",
        more=b"d" * (n * 97),
    )
    for n in range(120)
]


def test_a_header_is_a_package() -> None:
    found = rpm_package(
        header(name="bash", version="5.2", release="1", arch="noarch", epoch=4, license="GPL")
    )
    assert found == Package("rpm", "bash", "5.2-1", architecture="noarch", license="GPL", epoch="4")
    assert rpm_package(header(name="gpg-pubkey", version="1", release="2")) is None


@pytest.mark.parametrize("cut", [0, 7, 8, 30])
def test_a_header_that_is_cut_is_refused(cut: int) -> None:
    with pytest.raises(InvalidImage, match="rpm header"):
        rpm_package(HEADERS[0][:cut])


@pytest.mark.parametrize("page", [512, 4096, 65536])
def test_every_header_of_a_sqlite_database_is_found(page: int, tmp_path: Path) -> None:
    body = sqlite_database(tmp_path / "db", HEADERS, page)
    assert list(sqlite_headers(reader(body), len(body))) == HEADERS


def test_values_are_as_sqlite_has_them(tmp_path: Path) -> None:
    rows = [
        (1, "\u00e4", b"\xff", None),
        (2, -(1 << 40), 0, 1),
        (3, 1 << 62, -1, 300),
        (1 << 40, "", b"", 70000),
    ]
    with closing(sqlite3.connect(tmp_path / "db")) as db:
        db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, a, b, c)")
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        db.commit()
    body = (tmp_path / "db").read_bytes()
    assert list(SqliteFile(reader(body), len(body)).rows("t")) == [(None, *row[1:]) for row in rows]
    with pytest.raises(InvalidImage, match="without a table"):
        list(SqliteFile(reader(body), len(body)).rows("u"))


def test_every_header_of_an_ndb_is_found() -> None:
    body = ndb(HEADERS)
    assert list(ndb_headers(reader(body), len(body))) == HEADERS


def test_damaged_databases_end_in_an_error_or_in_rows(tmp_path: Path) -> None:
    chance = random.Random(7)
    for body, read in (
        (sqlite_database(tmp_path / "db", HEADERS, 512), sqlite_headers),
        (ndb(HEADERS), ndb_headers),
    ):
        for _ in range(60):
            damaged = bytearray(body)
            for _ in range(chance.randrange(1, 40)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            del damaged[chance.randrange(len(damaged) // 2, len(damaged) + 1) :]
            found = 0
            with suppress(InvalidImage):
                for one in read(reader(bytes(damaged)), len(damaged)):
                    found += len(one)
                    with suppress(InvalidImage):
                        rpm_package(one)
            assert found <= 2 * len(body)


def test_pages_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    body = bytearray(sqlite_database(tmp_path / "db", HEADERS, 512))
    interior = next(n for n in range(1, len(body) // 512) if body[n * 512] == 5)
    struct.pack_into(">I", body, interior * 512 + 8, interior + 1)
    with pytest.raises(InvalidImage, match="do not make trees"):
        list(sqlite_headers(reader(bytes(body)), len(body)))


@pytest.mark.parametrize("slots", [[(1, 256, 1 << 27)], [(n, 256, 60_000) for n in range(1, 200)]])
def test_an_ndb_that_wants_more_than_it_has_is_refused(slots: Sequence[tuple[int, int, int]]) -> None:
    body = bytearray(ndb(HEADERS[:1]))
    for number, slot in enumerate(slots, 2):
        struct.pack_into("<4sIII", body, number * 16, b"Slot", *slot)
    with pytest.raises(InvalidImage, match="ndb"):
        list(ndb_headers(reader(bytes(body)), len(body)))

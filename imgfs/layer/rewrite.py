"""Rewrite a SQLite file made elsewhere: its rows are copied into a new file, and it is never opened again.

A hostile b-tree can have cycles, share pages or point anywhere (sqlite.org, "Defense Against The Dark Arts"),
at every later query again. So one connection that trusts nothing and has a budget copies the rows; the rules
are then checked on the copy, whose b-trees are sound.

The budget grows with the file's size (`layer.limits`): steps of SQLite's virtual machine, each of which
descends one b-tree at most, the length of a record, and the pages written.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.limits import RECORD_LIMIT, STEPS_EACH, STEPS_MORE
from imgfs.layer.rows import create_database, file_uri, first_invalid_table

_OBJECTS = "SELECT type, name, tbl_name, sql FROM {}sqlite_master ORDER BY type, name"
_LOOK = 10_000  # steps between looks at the budget
_PAGE = 4096  # bytes of a page of the copy: SQLite's default
# Pages of the copy for each of the original, and for any file: the copy may be packed less densely.
_PAGES_EACH, _PAGES_MORE = 2, 256
_ROOM = 8 << 20  # bytes: a disk with less than that may be what is full
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: RECORD_LIMIT,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 3,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 10,
    sqlite3.SQLITE_LIMIT_ATTACHED: 1,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


class DatabaseForm(NamedTuple):
    """A kind of file: its `name` in messages, its tables, the indexes on them, and a rule for each table."""

    name: str
    schema: str
    indexes: str
    rules: Mapping[str, str]


def rewrite_database(path: Path, form: DatabaseForm) -> None:
    """Replace the file at `path` by a copy with the same rows, if all of them obey the form's rules.

    Raises InvalidImage if it is of another form, damaged, or too much work for its size; StoreError.
    """
    copy = path.with_name(f"{path.name}.anew")
    copy.unlink(missing_ok=True)
    try:
        with closing(create_database(copy, form.schema)) as db:
            _copy(db, path, form)
            db.executescript(form.indexes)
        if wrong := first_invalid_table(copy, form.rules):
            raise InvalidImage(f"{form.name} with rows that make no sense: {wrong}", where=str(path))
        copy.replace(path)
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # SQLite may quote a name
        raise _explained(path, form, error) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            copy.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, path: Path, form: DatabaseForm) -> None:
    """Copy the rows under a budget, record by record: no page is copied as it is."""
    size = path.stat().st_size
    db.execute("COMMIT")
    for limit, value in _LIMITS.items():
        db.setlimit(limit, value)
    db.set_progress_handler(_Budget(STEPS_MORE + STEPS_EACH * size).is_spent, _LOOK)
    db.executescript("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;")
    db.execute(f"PRAGMA main.max_page_count = {_PAGES_EACH * (size // _PAGE) + _PAGES_MORE}")
    db.execute("ATTACH ? AS 'original'", (f"{file_uri(path)}?immutable=1&mode=ro",))
    if db.execute(_OBJECTS.format("original.")).fetchall() != _objects(form.schema + form.indexes):
        raise InvalidImage(f"not {form.name} of this imgfs", where=str(path))
    db.execute("BEGIN")
    for table in form.rules:
        db.execute(f"INSERT INTO main.{table} SELECT * FROM original.{table} WHERE true")
    db.execute("COMMIT")
    db.execute("DETACH original")
    db.set_progress_handler(None, _LOOK)


def _objects(schema: str) -> list[tuple[str, ...]]:
    """List the tables and indexes of a file of this schema, as `sqlite_master` does."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        return model.execute(_OBJECTS.format("")).fetchall()


class _Budget:
    """Counts the steps of the virtual machine that are left."""

    def __init__(self, steps: int) -> None:
        self._left = steps // _LOOK

    def is_spent(self) -> bool:
        """Return True if none are left; SQLite calls it every `_LOOK` steps."""
        self._left -= 1
        return self._left < 0


def _explained(path: Path, form: DatabaseForm, error: Exception) -> InvalidImage | StoreError:
    """SQLite says "full" of the limit as well as of the disk."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_INTERRUPT:
        return InvalidImage(f"{form.name} that takes more work than its size allows", where=str(path))
    if code == sqlite3.SQLITE_FULL and _free(path) > _ROOM:
        return InvalidImage(f"{form.name} of more rows than its size allows", where=str(path))
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"{path}: {error}")
    return InvalidImage(f"not {form.name} of this imgfs: {error}", where=str(path))


def _free(path: Path) -> int:
    found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize

"""Taking in a SQLite file that another has made: its rows are written anew, and it is never opened again.

A b-tree of others can go in circles, share pages or point anywhere (sqlite.org, "Defense Against The Dark
Arts"), and whoever opens the file later would walk it again. So it is read by one connection that trusts
nothing and has a budget, into a file of ours; rules are then asked of that, whose b-trees are sound.

The budget is of the file's size (`layer.limits`): steps of SQLite's virtual machine, of which each goes down
one b-tree at the most, the length of a record, and the pages of what is written.
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
_PAGE = 4096  # bytes of a page of ours: SQLite's default
_SWELL, _PAGES_MORE = 2, 256  # pages of ours for one of theirs, and for any file: rows may lie less close
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


class Form(NamedTuple):
    """What a kind of file has: `name` for people, tables, the indexes on them, and a rule for each table."""

    name: str
    schema: str
    indexes: str
    rules: Mapping[str, str]


def write_anew(path: Path, form: Form) -> None:
    """Replace the file at `path` by one of ours with the same rows, all of which obey the form's rules.

    Raises InvalidImage if it is of another form, damaged, or too much work for its size; StoreError.
    """
    ours = path.with_name(f"{path.name}.anew")
    ours.unlink(missing_ok=True)
    try:
        with closing(create_database(ours, form.schema)) as db:
            _copy(db, path, form)
            db.executescript(form.indexes)
        if wrong := first_invalid_table(ours, form.rules):
            raise InvalidImage(f"{form.name} with rows that make no sense: {wrong}", where=str(path))
        ours.replace(path)
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # SQLite may quote a name
        raise _explained(path, form, error) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            ours.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, path: Path, form: Form) -> None:
    """Copy the rows under a budget, record by record: none is taken over as it stands in the page."""
    size = path.stat().st_size
    db.execute("COMMIT")
    for limit, value in _LIMITS.items():
        db.setlimit(limit, value)
    db.set_progress_handler(_Budget(STEPS_MORE + STEPS_EACH * size).is_spent, _LOOK)
    db.executescript("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;")
    db.execute(f"PRAGMA main.max_page_count = {_SWELL * (size // _PAGE) + _PAGES_MORE}")
    db.execute("ATTACH ? AS 'theirs'", (f"{file_uri(path)}?immutable=1&mode=ro",))
    if db.execute(_OBJECTS.format("theirs.")).fetchall() != _objects(form.schema + form.indexes):
        raise InvalidImage(f"not {form.name} of this imgfs", where=str(path))
    db.execute("BEGIN")
    for table in form.rules:
        db.execute(f"INSERT INTO main.{table} SELECT * FROM theirs.{table} WHERE true")
    db.execute("COMMIT")
    db.execute("DETACH theirs")
    db.set_progress_handler(None, _LOOK)


def _objects(schema: str) -> list[tuple[str, ...]]:
    """What a file of this schema says that it has."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        return model.execute(_OBJECTS.format("")).fetchall()


class _Budget:
    """Steps of the virtual machine that may still be made."""

    def __init__(self, steps: int) -> None:
        self._left = steps // _LOOK

    def is_spent(self) -> bool:
        """Whether there are none left; asked once in `_LOOK` steps."""
        self._left -= 1
        return self._left < 0


def _explained(path: Path, form: Form, error: Exception) -> InvalidImage | StoreError:
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

"""SQLite files that are written once and then only read; and those made elsewhere, rewritten before that.

A hostile b-tree can have cycles, share pages or point anywhere (sqlite.org, "Defense Against The Dark Arts"),
at every later query again. So one connection that trusts nothing and has a budget copies the rows into a new
file, and the one made elsewhere is never opened again; the rules are then checked on the copy, whose b-trees
are sound.

The budget grows with the file's size (`layer.limits`): steps of SQLite's virtual machine, each of which
descends one b-tree at most, the length of a record, and the pages written.
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.limits import RECORD_LIMIT, STEPS_EACH, STEPS_MORE
from imgfs.owned.writing import explained

Row: TypeAlias = tuple[Any, ...]
Check: TypeAlias = Callable[[Path], None]  # of a file whose rows may break rules yet
_OBJECTS = "SELECT type, name, tbl_name, sql FROM {}sqlite_master ORDER BY type, name"
_LOOK = 10_000  # steps between looks at the budget
_PAGE = 4096  # bytes of a page of the copy: SQLite's default
# Pages of the copy for each of the original, and for any file: the copy may be packed less densely.
_PAGES_EACH, _PAGES_MORE = 2, 256
_FILE_HEADER, _PAGE_HEADER, _LEAF = (
    100,
    8,
    0x0D,
)  # fileformat2.html, 1.3 and 1.6: bytes, bytes, a table's leaf
_READING = 3600.0  # seconds for which a commit waits for a reader: it may be stopped
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


"""Of a table. SQLite enforces no column's type: what a row is turned into is checked there."""
_ABREAST = 2  # tables checked at once: SQLite runs without the interpreter's lock
_SMALL = 256 << 10  # bytes of a file whose tables are checked in less time than threads take to begin
LARGEST = 1 << 62  # bytes: sums of two still fit into what the kernel takes for an offset


def create_database(path: Path, schema: str, *, shared: bool = False) -> sqlite3.Connection:
    """Create a SQLite file for one writer: no journal, no syncs; the store syncs and renames it later.

    If it is `shared`, others may read what has been committed; a commit waits for those who do just then.
    """
    ensure_file(path)
    db = sqlite3.connect(
        file_uri(path), timeout=_READING, uri=True, isolation_level=None, check_same_thread=False
    )
    locking = "NORMAL" if shared else "EXCLUSIVE"
    pragmas = f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA locking_mode={locking};"
    return _prepared(db, pragmas, f"{schema}BEGIN;")


def _prepared(db: sqlite3.Connection, *scripts: str) -> sqlite3.Connection:
    """Run scripts; a database that one fails of is closed."""
    try:
        for script in scripts:
            db.executescript(script)
    except BaseException:
        db.close()
        raise
    return db


def ensure_file(path: Path) -> None:
    """Create a file that SQLite is to open for writing, of this user alone, unless it exists.

    SQLite itself does not say that the disk is full, only that it cannot open the file; and what it makes
    beside the file has the file's mode. Raises OSError.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def open_database(path: Path) -> sqlite3.Connection:
    """Open a finished SQLite file, which never changes again: no locks are taken. Raises StoreError."""
    try:
        db = sqlite3.connect(f"{file_uri(path)}?immutable=1&mode=ro", uri=True, check_same_thread=False)
        # The file may have been made elsewhere.
        return _prepared(db, "PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: {error}") from error


def has_schema(path: Path, schema: str) -> bool:
    """Return True if the SQLite file has exactly the tables and indexes of `schema`, and no trigger or view.

    To be called for a file made elsewhere before anything else is read of it (sqlite.org, "Defense Against
    The Dark Arts").
    """
    try:
        if not _has_objects(path, len(_objects(schema))):
            return False
        with closing(open_database(path)) as db:
            return db.execute(_OBJECTS.format("")).fetchall() == _objects(schema)
    except (sqlite3.Error, UnicodeDecodeError, StoreError, OSError):
        return False


def _has_objects(path: Path, count: int) -> bool:
    """Return True if the table of all tables is one page with so many rows (fileformat2.html, 1.6).

    To be asked before SQLite opens a file made elsewhere: it reads all of that table first, under no budget,
    in a time that grows with the square of the rows. In what imgfs writes it is one page.
    """
    with path.open("rb") as file:
        head = file.read(_FILE_HEADER + _PAGE_HEADER)
    rows = int.from_bytes(head[_FILE_HEADER + 3 : _FILE_HEADER + 5])
    return len(head) == _FILE_HEADER + _PAGE_HEADER and (head[_FILE_HEADER], rows) == (_LEAF, count)


def first_invalid_table(path: Path, rules: Mapping[str, str], checks: Sequence[Check] = ()) -> str | None:
    """Return a table with a row against its rule, an SQL expression; `has_schema` must be True of the file.

    None if all rows obey. SQLite does not enforce a column's type, so a rule checks types too. The `checks`
    are run at the same time; what they raise is raised if all rows obey.
    """
    look = partial(_has_invalid_row, path)
    others: list[Callable[[], None]] = []
    try:
        if path.stat().st_size <= _SMALL:
            found = list(map(look, rules, rules.values()))
            others += (partial(check, path) for check in checks)
        else:
            from imgfs.parallel import ThreadPool  # here: most commands check no file

            with ThreadPool(_ABREAST) as pool:
                others += [pool.submit(check, path).result for check in checks]
                found = list(pool.map(look, rules, rules.values()))
    except (sqlite3.Error, UnicodeDecodeError, StoreError) as error:
        return str(error)
    for table, is_invalid in zip(rules, found, strict=True):
        if is_invalid:
            return table
    for other in others:
        other()
    return None


def _has_invalid_row(path: Path, table: str, rule: str) -> bool:
    with closing(open_database(path)) as db:
        query = f"SELECT EXISTS (SELECT 1 FROM {table} WHERE ({rule}) IS NOT TRUE)"
        return bool(db.execute(query).fetchone()[0])


def integers(low: int, high: int, *columns: str) -> str:
    """Return a rule: these columns have integers from `low` to `high`.

    A function costs three times what an operator does, so one checks all columns: text and blobs are greater
    than any number, a real makes the sum real, a NULL makes it NULL (sqlite.org/datatype3.html, 4.1).
    """
    within = " AND ".join(f"{name} BETWEEN {low} AND {high}" for name in columns)
    return f"{within} AND typeof({' + '.join(f'0 * {name}' for name in columns)}) = 'integer'"


def typed(kind: str, *columns: str) -> str:
    """Return a rule: these columns have values of one of SQLite's types, or NULL if `kind` says so: `blob`,
    `blob null`."""
    one, _, is_optional = kind.partition(" ")
    nothing = "{0} IS NULL OR " if is_optional else ""
    return " AND ".join(f"({nothing}typeof({{0}}) = '{one}')".format(name) for name in columns)


def set_origin(path: Path, origin: str) -> None:
    """Write `origin` into the summary of a file that imgfs wrote. Raises StoreError."""
    _change(path, "UPDATE summary SET origin = ?", (origin,))


def set_format(path: Path, number: int, *, before: int) -> None:
    """Change the format number in a file's summary from `before` to `number`. Raises StoreError."""
    _change(path, "UPDATE summary SET format_number = ? WHERE format_number = ?", (number, before))


def note_import(path: Path, origin: str, number: int, *, before: int) -> None:
    """Do both for a file that has been imported. Raises StoreError."""
    _change(
        path,
        "UPDATE summary SET origin = ?, format_number = iif(format_number = ?, ?, format_number)",
        (origin, before, number),
    )


def _change(path: Path, query: str, values: tuple[object, ...]) -> None:
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript("PRAGMA trusted_schema=OFF; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            db.execute(query, values)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {explained(error, path)}") from error


def file_uri(path: Path) -> str:
    """Return the URI of a file whose name may be any bytes (sqlite.org/uri.html)."""
    return f"file:{quote(os.fsencode(path))}"


class DatabaseForm(NamedTuple):
    """A kind of file: its `name` in messages, its tables, the indexes on them, and a rule for each table."""

    name: str
    schema: str
    indexes: str
    rules: Mapping[str, str]


def rewrite_database(path: Path, form: DatabaseForm, checks: Sequence[Check] = ()) -> None:
    """Replace the file at `path` by a copy with the same rows, if all of them obey the form's rules.

    The `checks` look at the copy, too. Raises InvalidImage if it is of another form, damaged, or too much
    work for its size; StoreError; and what the checks raise.
    """
    copy = path.with_name(f"{path.name}.anew")
    copy.unlink(missing_ok=True)
    try:
        with closing(create_database(copy, form.schema)) as db:
            _copy(db, path, form)
            db.executescript(form.indexes)
        if wrong := first_invalid_table(copy, form.rules, checks):
            raise InvalidImage(f"{form.name} with rows that make no sense: {wrong}", where=str(path))
        copy.replace(path)
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # SQLite may quote a name
        raise _refused(path, copy, form, error) from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            copy.unlink(missing_ok=True)


def _copy(db: sqlite3.Connection, path: Path, form: DatabaseForm) -> None:
    """Copy the rows under a budget, record by record: no page is copied as it is."""
    size, objects = path.stat().st_size, _objects(form.schema + form.indexes)
    if not _has_objects(path, len(objects)):
        raise InvalidImage(f"not {form.name} of this imgfs", where=str(path))
    db.execute("COMMIT")
    for limit, value in _LIMITS.items():
        db.setlimit(limit, value)
    db.set_progress_handler(_Budget(STEPS_MORE + STEPS_EACH * size).is_spent, _LOOK)
    db.executescript("PRAGMA trusted_schema=OFF; PRAGMA cell_size_check=ON;")
    db.execute(f"PRAGMA main.max_page_count = {_PAGES_EACH * (size // _PAGE) + _PAGES_MORE}")
    db.execute("ATTACH ? AS 'original'", (f"{file_uri(path)}?immutable=1&mode=ro",))
    if db.execute(_OBJECTS.format("original.")).fetchall() != objects:
        raise InvalidImage(f"not {form.name} of this imgfs", where=str(path))
    db.execute("BEGIN")
    for table in form.rules:
        db.execute(f"INSERT INTO main.{table} SELECT * FROM original.{table} WHERE true")
    db.execute("COMMIT")
    db.execute("DETACH original")
    db.set_progress_handler(None, _LOOK)


@functools.cache
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


def _refused(path: Path, copy: Path, form: DatabaseForm, error: Exception) -> InvalidImage | StoreError:
    """Return what is raised for a file that cannot be copied: SQLite says "full" of the limit, too."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_INTERRUPT:
        return InvalidImage(f"{form.name} that takes more work than its size allows", where=str(path))
    if code == sqlite3.SQLITE_FULL and _free(path) > _ROOM:
        return InvalidImage(f"{form.name} of more rows than its size allows", where=str(path))
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StoreError(f"{path}: {explained(error, copy)}")
    return InvalidImage(f"not {form.name} of this imgfs: {error}", where=str(path))


def _free(path: Path) -> int:
    found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize

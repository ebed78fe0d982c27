"""What snapshots there are: rows in SQLite, which are the truth. Directories and mounts follow them.

    active      a container's changes, or a layer that containerd unpacks: has an upper directory
    view        read-only, of a committed one
    committed   a layer; its parent is the layer below. Without a directory it is one of an image that is
                mounted: `mounted` says of which

A committed snapshot never changes but for its labels; one that is the parent of others cannot be removed.
Each belongs to a plugin of containerd's, by its name: containerd may know one socket by several, and has each
remove the snapshots that it does not know (core/metadata, garbageCollect).
Images are written down when they are mounted, until what the store has of them is removed, too.
Every change is one transaction, synced: containerd's own database, which is, must not know more than this.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, TypeAlias

from imgfs.engines.refusal import Code, Refusal, already_exists, not_found
from imgfs.errors import StoreError
from imgfs.layer.sqlite import ensure_file
from imgfs.store.atomic import store_errors

_FORMAT = 2  # of the file, in its user_version
_WITHOUT_PLUGINS = 1
_COLUMNS = "id, name, parent, kind, created, updated, labels, size, inodes, image, manifest, depth"
_PRAGMAS = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"
_SNAPSHOTS = """
CREATE TABLE IF NOT EXISTS snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL, parent TEXT NOT NULL, kind INTEGER NOT NULL,
    created INTEGER NOT NULL, updated INTEGER NOT NULL, labels TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0,
    image TEXT, manifest TEXT, depth INTEGER,
    plugin TEXT NOT NULL DEFAULT '', UNIQUE (name, plugin)
);
"""
_ADD_PLUGINS = f"""
BEGIN;
ALTER TABLE snapshots RENAME TO before;
{_SNAPSHOTS}
INSERT INTO snapshots ({_COLUMNS}) SELECT {_COLUMNS} FROM before;
DROP TABLE before;
PRAGMA user_version={_FORMAT};
COMMIT;
"""
_SCHEMA = f"""
PRAGMA user_version={_FORMAT};
{_SNAPSHOTS}
CREATE INDEX IF NOT EXISTS children ON snapshots (parent);
CREATE INDEX IF NOT EXISTS mounted ON snapshots (manifest, depth) WHERE manifest IS NOT NULL;
CREATE TABLE IF NOT EXISTS images (manifest TEXT, image TEXT, PRIMARY KEY (manifest, image));
INSERT OR IGNORE INTO images SELECT manifest, image FROM snapshots WHERE manifest IS NOT NULL;
"""
_LABELS = "labels"
Row: TypeAlias = tuple[
    int, str, str, int, int, int, str, int, int, str | None, str | None, int | None, str
]  # of _COLUMNS, and the plugin


class SnapshotKind(IntEnum):
    """What a snapshot is (containerd, api/services/snapshots/v1)."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class SnapshotUsage(NamedTuple):
    """What a snapshot takes of the disk itself: bytes, and inodes."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class ImageChain:
    """The lowest `depth` layers of an image, 0 for all of them: what one mount shows.

    `image` is its reference as it was pulled; the `manifest`'s digest is what counts.
    """

    manifest: str
    depth: int
    image: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row. `name` is the key of an active one, times are nanoseconds since 1970; `mounted` shows it."""

    id: int
    name: str
    parent: str
    kind: SnapshotKind
    created: int
    updated: int
    labels: Mapping[str, str]
    usage: SnapshotUsage
    mounted: ImageChain | None
    plugin: str


class SnapshotRows:
    """The rows in the file at `path`. Safe in threads: transactions are one after the other.

    Raises StoreError where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        with store_errors(self._path), ExitStack() as failed:
            ensure_file(path)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            failed.callback(self._db.close)
            self._prepare()
            failed.pop_all()

    def _prepare(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > _FORMAT:
            raise StoreError(
                f"{self._path}: of format {found}, this imgfs knows {_FORMAT}: it is a newer one's"
            )
        self._db.executescript(_PRAGMAS)
        if found == _WITHOUT_PLUGINS:
            self._db.executescript(_ADD_PLUGINS)
        self._db.executescript(_SCHEMA)
        self._has_unclaimed = any(self._select("plugin = ''"))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Have what is changed in the block changed as a whole, or, if it raises, not at all."""
        with self._lock, store_errors(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def claim(self, plugin: str) -> None:
        """Give a plugin what was written before plugins were told apart: to the first that asks."""
        if self._has_unclaimed:
            self._run("UPDATE snapshots SET plugin = ? WHERE plugin = ''", plugin)
            self._has_unclaimed = False

    def get(self, plugin: str, name: str) -> Snapshot:
        """Return a snapshot; raises Refusal if the plugin has none of that name."""
        found = self.find(plugin, name)
        if found is None:
            raise not_found(name)
        return found

    def find(self, plugin: str, name: str) -> Snapshot | None:
        """Return a snapshot, None if the plugin has none of that name."""
        return next(self._select("name = ? AND plugin = ?", name, plugin), None)

    def find_shown(self, plugin: str, label: str, target: str, parent: str) -> Snapshot | None:
        """Return the plugin's layer upon `parent` that is shown by a mount and has this label."""
        found = self._select("parent = ? AND plugin = ? AND manifest IS NOT NULL", parent, plugin)
        return next((row for row in found if row.labels.get(label) == target), None)

    def all(self) -> Iterator[Snapshot]:
        """Yield every snapshot, of all plugins."""
        return self._select("1")

    def of_plugin(self, plugin: str) -> Iterator[Snapshot]:
        """Yield every snapshot of a plugin."""
        return self._select("plugin = ?", plugin)

    def ancestors(self, plugin: str, parent: str) -> Iterator[Snapshot]:
        """Yield the snapshot `parent`, its own parent, and so on; none if it is ""."""
        while parent:
            found = self.get(plugin, parent)
            yield found
            parent = found.parent

    def shows(self, chain: ImageChain) -> bool:
        """Return True if there is a layer that this chain's mount shows."""
        return any(self._select("manifest = ? AND depth = ?", chain.manifest, chain.depth))

    def has_layer_of(self, manifest: str) -> bool:
        """Return True if there is a layer of this image."""
        return any(self._select("manifest = ?", manifest))

    def note_image(self, image: ImageChain) -> None:
        """Write an image down whose mount is about to be made: should that fail, the store has some of it."""
        self._run("INSERT OR IGNORE INTO images VALUES (?, ?)", image.manifest, image.image)

    def removed_images(self) -> list[ImageChain]:
        """Return the images that were written down, and have no layers, or none any more."""
        with self._lock, store_errors(self._path):
            found = self._db.execute(
                "SELECT manifest, image FROM images WHERE manifest NOT IN "
                "(SELECT manifest FROM snapshots WHERE manifest IS NOT NULL)"
            ).fetchall()
        return [ImageChain(manifest, 0, image) for manifest, image in found]

    def forget_image(self, image: ImageChain) -> None:
        """Forget an image that is removed from the store, too."""
        self._run("DELETE FROM images WHERE manifest = ? AND image = ?", image.manifest, image.image)

    def is_stood_upon(self, chain: ImageChain) -> bool:
        """Return True if a snapshot with a directory of its own has the chain as its parent."""
        layers = self._select("manifest = ? AND depth = ?", chain.manifest, chain.depth)
        return any(child.mounted is None for layer in layers for child in self._children(layer))

    def add(
        self,
        plugin: str,
        name: str,
        parent: str,
        kind: SnapshotKind,
        labels: Mapping[str, str],
        mounted: ImageChain | None = None,
    ) -> Snapshot:
        """Add a snapshot, and return it. Raises Refusal as containerd's own snapshotters do."""
        _check_name(name)
        if parent and self.get(plugin, parent).kind != SnapshotKind.COMMITTED:
            raise Refusal(Code.INVALID_ARGUMENT, f"parent {parent}: is not committed")
        if self.find(plugin, name):
            raise already_exists(name)
        now = time.time_ns()
        values = plugin, name, parent, kind, now, now, _as_json(labels)
        more = (mounted.image, mounted.manifest, mounted.depth) if mounted else (None, None, None)
        self._run(
            "INSERT INTO snapshots "
            "(plugin, name, parent, kind, created, updated, labels, image, manifest, depth) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *values,
            *more,
        )
        if mounted:
            self.note_image(mounted)
        return self.get(plugin, name)

    def commit(
        self, row: Snapshot, name: str, labels: Mapping[str, str], usage: SnapshotUsage, parent: str = ""
    ) -> None:
        """Make an active snapshot the committed `name`; its labels are replaced.

        One without a parent is put upon `parent`.
        """
        _check_name(name)
        if self.find(row.plugin, name):
            raise already_exists(name)
        if row.kind != SnapshotKind.ACTIVE:
            raise Refusal(Code.FAILED_PRECONDITION, f"snapshot {row.name}: is not active")
        if parent and parent != row.parent:
            self._check_new_parent(row, parent)
        now = time.time_ns()
        values = name, SnapshotKind.COMMITTED, row.parent or parent, now, now, _as_json(labels), *usage
        self._run(
            "UPDATE snapshots SET name = ?, kind = ?, parent = ?, created = ?, updated = ?, labels = ?, "
            "size = ?, inodes = ? WHERE id = ?",
            *values,
            row.id,
        )

    def _check_new_parent(self, row: Snapshot, parent: str) -> None:
        if row.parent:
            raise Refusal(Code.INVALID_ARGUMENT, f"snapshot {row.name}: has another parent, {row.parent}")
        if self.get(row.plugin, parent).kind != SnapshotKind.COMMITTED:
            raise Refusal(Code.FAILED_PRECONDITION, f"parent {parent}: is not committed")

    def update(self, plugin: str, name: str, labels: Mapping[str, str], paths: list[str]) -> Snapshot:
        """Replace the labels that the field mask `paths` names, all if it is empty, and return the row."""
        row = self.get(plugin, name)
        kept = dict(row.labels)
        for path in paths or [_LABELS]:
            if path == _LABELS:
                kept = dict(labels)
            elif path.startswith(f"{_LABELS}."):
                label = path.partition(".")[2]
                kept[label] = labels.get(label, "")
            else:
                raise Refusal(Code.INVALID_ARGUMENT, f"snapshot {name}: {path} cannot be changed")
        values = _as_json(kept), time.time_ns(), row.id
        self._run("UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?", *values)
        return self.get(plugin, name)

    def remove(self, plugin: str, name: str) -> Snapshot:
        """Remove a snapshot, and return what it was; raises Refusal if it is the parent of another."""
        row = self.get(plugin, name)
        if any(self._children(row)):
            raise Refusal(
                Code.FAILED_PRECONDITION, f"snapshot {name}: cannot be removed: it is the parent of another"
            )
        self._run("DELETE FROM snapshots WHERE id = ?", row.id)
        return row

    def _children(self, row: Snapshot) -> Iterator[Snapshot]:
        return self._select("parent = ? AND plugin = ?", row.name, row.plugin)

    def _select(self, where: str, *values: str | int) -> Iterator[Snapshot]:
        statement = f"SELECT {_COLUMNS}, plugin FROM snapshots WHERE {where} ORDER BY id"
        with self._lock, store_errors(self._path):
            rows = self._db.execute(statement, values).fetchall()
        return map(_snapshot, rows)

    def _run(self, statement: str, *values: str | int | None) -> None:
        with self._lock, store_errors(self._path):
            self._db.execute(statement, values)


def _check_name(name: str) -> None:
    if not name:  # it would be the parent of all that have none
        raise Refusal(Code.INVALID_ARGUMENT, "a snapshot without a name")


def _snapshot(row: Row) -> Snapshot:
    number, name, parent, kind, created, updated, labels, size, inodes, image, manifest, depth, plugin = row
    mounted = ImageChain(manifest, depth or 0, image or "") if manifest is not None else None
    found = json.loads(labels)
    return Snapshot(
        number,
        name,
        parent,
        SnapshotKind(kind),
        created,
        updated,
        found,
        SnapshotUsage(size, inodes),
        mounted,
        plugin,
    )


def _as_json(labels: Mapping[str, str]) -> str:
    """Return labels as they are kept: containerd removes one by giving it no value."""
    return json.dumps({label: value for label, value in labels.items() if value})

"""Documents, references, layers and trees by digest, in one directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.store import part
from imgfs.store.flat import Flat, FlatWriter
from imgfs.store.part import Part

LAYOUT = "1"  # the number in `version`
_LOCKS = ("lock", "users")  # the names of the files in a layer's directory that are only locked
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_ASIDE = ".new-"  # begins the name of a file that is not complete yet


@dataclass(frozen=True, slots=True)
class Resolution:
    """A reference that was resolved: to `digest` (a manifest or an index) and, by platform, `manifest`."""

    reference: str
    digest: Digest
    manifest: Digest
    resolved: float  # seconds since the epoch


class Store:
    """The cache directory at `root`, made if it is not there. Raises StoreError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with _store_errors(root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("documents", "references", "layers", "trees", "profiles", "logs"):
                (root / name).mkdir(mode=0o700, exist_ok=True)
            self._check_version()

    def _check_version(self) -> None:
        version = self.root / "version"
        if not version.exists():
            with self._aside(version) as path:
                path.write_text(LAYOUT)
        found = version.read_text(errors="replace")[:20]
        if found != LAYOUT:
            raise StoreError(
                f"{self.root}: a store of layout {found!r}, this imgfs knows {LAYOUT!r}: use another --store"
            )

    @property
    def logs(self) -> Path:
        """Where daemons write their logs."""
        return self.root / "logs"

    def document(self, digest: Digest) -> bytes | None:
        """A manifest, index or config, if it is here and whole."""
        path = self._path("documents", digest)
        with _store_errors(path):
            try:
                body = path.read_bytes()
            except FileNotFoundError:
                return None
        return body if Digest.of(body, digest.algorithm) == digest else None

    def put_document(self, digest: Digest, body: bytes) -> None:
        """Keep a document whose digest has been checked."""
        with self._aside(self._path("documents", digest)) as path:
            path.write_bytes(body)

    def resolutions(self) -> Iterator[Resolution]:
        """Every reference that was resolved here, by name."""
        for path in sorted((self.root / "references").glob("*.json")):
            try:
                fields = json.loads(path.read_text())
                digests = Digest.parse(fields["digest"]), Digest.parse(fields["manifest"])
                yield Resolution(fields["reference"], *digests, float(fields["resolved"]))
            except (OSError, ValueError, KeyError, TypeError, InvalidImage):
                continue  # removed meanwhile, or no record of ours

    def resolved(self, reference: str) -> list[Resolution]:
        """What `reference` was resolved to here, by platform and as its tag moved, the last first."""
        found = (each for each in self.resolutions() if each.reference == reference)
        return sorted(found, key=lambda each: each.resolved, reverse=True)

    def put_resolution(self, reference: str, digest: Digest, manifest: Digest) -> None:
        """Remember what `reference` was resolved to, now."""
        fields = {
            "reference": reference,
            "digest": str(digest),
            "manifest": str(manifest),
            "resolved": time.time(),
        }
        with self._aside(self._reference(reference, manifest)) as path:
            path.write_text(json.dumps(fields))

    def forget(self, resolution: Resolution) -> None:
        """Remove a reference and its tree; its documents and layers go with `sweep`."""
        with _store_errors(self.root):
            self._reference(resolution.reference, resolution.manifest).unlink(missing_ok=True)

    def _reference(self, reference: str, manifest: Digest) -> Path:
        name = Digest.of(f"{reference} {manifest}".encode()).hex
        return self.root / "references" / f"{name}.json"

    def layer(self, digest: Digest) -> Layer:
        """The place of a layer, made if it is not there."""
        directory = self._path("layers", digest)
        with _store_errors(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Layer(directory, digest)

    def layers(self) -> Iterator[Layer]:
        """Every layer here."""
        found = (Layer(path, digest) for path, digest in self._stored("layers"))
        return (
            layer for layer in found if any(path.name not in _LOCKS for path in layer.directory.iterdir())
        )

    def tree(self, manifest: Digest) -> Path | None:
        """The tree of `manifest`, if it is here."""
        path = self._path("trees", manifest)
        return path if path.exists() else None

    @contextmanager
    def new_tree(self, manifest: Digest) -> Iterator[Path]:
        """A path to write the tree of `manifest` to; it is `tree` once the block ends without an error."""
        with self._aside(self._path("trees", manifest)) as path:
            yield path

    def remove_tree(self, manifest: Digest) -> None:
        """Remove the tree of `manifest`; whoever has it open keeps it."""
        with _store_errors(self.root):
            self._path("trees", manifest).unlink(missing_ok=True)
            for image in (self.root / "erofs").glob(f"{manifest.algorithm}-{manifest.hex}-*"):
                image.unlink(missing_ok=True)

    def erofs(self, manifest: Digest, number: int) -> Path:
        """The place of the EROFS image of the tree of `manifest`, in the format of that number."""
        return self.root / "erofs" / f"{manifest.algorithm}-{manifest.hex}-{number}"

    def remove_document(self, digest: Digest) -> None:
        """Remove a document."""
        with _store_errors(self.root):
            self._path("documents", digest).unlink(missing_ok=True)

    def profile(self, manifest: Digest, name: str) -> bytes | None:
        """What a workload named `name` reads of an image, if that has been recorded."""
        return self.profiles(manifest).get(name)

    def profiles(self, manifest: Digest) -> dict[str, bytes]:
        """All that has been recorded of an image, by name."""
        directory = self._path("profiles", manifest)
        with _store_errors(directory):
            paths = sorted(directory.glob("*.json"))
            return {path.stem: path.read_bytes() for path in paths if not path.name.startswith(_ASIDE)}

    def put_profile(self, manifest: Digest, name: str, body: bytes) -> None:
        """Keep what was recorded; raises UsageError for what is no name."""
        if not _PROFILE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a profile: letters, digits, '_', '.' and '-'")
        with self._aside(self._path("profiles", manifest) / f"{name}.json") as path:
            path.write_bytes(body)

    def remove_profiles(self, manifest: Digest) -> None:
        """Remove all that has been recorded of an image."""
        directory = self._path("profiles", manifest)
        with _store_errors(directory):
            shutil.rmtree(directory, ignore_errors=True)

    def profiled(self) -> Iterator[Digest]:
        """The manifests of which something has been recorded."""
        return (digest for _, digest in self._stored("profiles"))

    def trees(self) -> Iterator[Digest]:
        """The manifests whose trees are here."""
        return (digest for _, digest in self._stored("trees"))

    def documents(self) -> Iterator[Digest]:
        """Every document here."""
        return (digest for _, digest in self._stored("documents"))

    def _stored(self, kind: str) -> Iterator[tuple[Path, Digest]]:
        for path in sorted((self.root / kind).glob("*/*")):
            if not path.name.startswith(_ASIDE):
                yield path, Digest(path.parent.name, path.name)

    def _path(self, kind: str, digest: Digest) -> Path:
        return self.root / kind / digest.algorithm / digest.hex

    @contextmanager
    def _aside(self, path: Path) -> Iterator[Path]:
        with write_aside(path) as aside:
            yield aside


class Layer:
    """A layer's directory in the store."""

    def __init__(self, directory: Path, digest: Digest) -> None:
        self.directory = directory
        self.digest = digest

    @property
    def index(self) -> Path | None:
        """Its index, if it is here."""
        path = self.directory / "index"
        return path if path.exists() else None

    @contextmanager
    def new_index(self) -> Iterator[Path]:
        """A path to write the index to; it is `index` once the block ends without an error."""
        with write_aside(self.directory / "index") as path:
            yield path

    def flat_writer(self) -> FlatWriter:
        """A fresh flat layer, to be written by a scan under `lock`."""
        return FlatWriter(self.directory)

    def drop_flat(self) -> None:
        """Forget what is cached of it; whoever has that open keeps it."""
        with _store_errors(self.directory):
            for name in ("presence", "flat"):
                (self.directory / name).unlink(missing_ok=True)

    def part(self, size: int) -> Part:
        """What is here of its blob of `size` bytes, which is being downloaded under `lock`."""
        return Part(self.directory, size)

    def drop_part(self) -> None:
        """Forget what has been downloaded of its blob."""
        with _store_errors(self.directory):
            for name in part.NAMES:
                (self.directory / name).unlink(missing_ok=True)

    def flat(self, *, size: int, spans: int) -> Flat:
        """Its flat layer."""
        return Flat(self.directory, size=size, spans=spans)

    @contextmanager
    def lock(self, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Be the only one to scan or remove this layer; `on_wait` is called if another process is at it."""
        with _locked(self.directory / "lock", fcntl.LOCK_EX, on_wait):
            yield

    def is_locked(self) -> bool:
        """Whether some process scans it right now."""
        return _is_held(self.directory / "lock")

    @contextmanager
    def use(self) -> Iterator[None]:
        """Say that this process reads the layer, for as long as the block lasts."""
        with _locked(self.directory / "users", fcntl.LOCK_SH, lambda: None):
            yield

    def in_use(self) -> bool:
        """Whether any process has said `use` and not ended."""
        return _is_held(self.directory / "users")

    def refute(self, origin: str) -> None:
        """Remove it all, and note that what the repository `origin` says of the layer is wrong."""
        self.remove()
        with _store_errors(self.directory):
            (self.directory / "refuted").write_text(origin)

    def is_refuted(self, origin: str) -> bool:
        """Whether that has been noted; until the layer is removed."""
        with _store_errors(self.directory):
            try:
                return (self.directory / "refuted").read_text(errors="replace") == origin
            except FileNotFoundError:
                return False

    def remove(self) -> None:
        """Remove it all; whoever has its files open keeps them until it closes them.

        Only what the locks need stays: another process may be waiting for one.
        """
        with _store_errors(self.directory):
            for path in self.directory.iterdir():
                if path.name not in _LOCKS:
                    path.unlink(missing_ok=True)

    def disk_usage(self) -> int:
        """Bytes of disk it takes."""
        total = 0
        for path in self.directory.glob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:  # removed meanwhile
                continue
        return total


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, synced and renamed to it if the block ends well, removed otherwise.

    What a killed process left behind under a temporary name is removed on the way: its name carries the pid.
    """
    aside = path.with_name(f"{_ASIDE}{os.getpid()}-{time.monotonic_ns():x}-{path.name}"[:200])
    with _store_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(path.parent)
        try:
            yield aside
            _sync(aside)
            aside.rename(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _sweep(directory: Path) -> None:
    for left in directory.glob(f"{_ASIDE}*"):
        pid = left.name.removeprefix(_ASIDE).partition("-")[0]
        if not Path("/proc", pid).exists():
            left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _locked(path: Path, mode: int, on_wait: Callable[[], None]) -> Iterator[None]:
    with _store_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(fd, mode)
        yield
    finally:
        os.close(fd)


def _is_held(path: Path) -> bool:
    """Whether any process holds a lock on `path`."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error
    except sqlite3.Error as error:  # how SQLite says that the disk is full
        raise StoreError(f"{path}: {error}") from error

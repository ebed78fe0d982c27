"""Documents, references, layers and trees by digest, in one directory."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, StoreError, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.owned.opening import open_owned_directory, read_owned_file
from imgfs.owned.writing import new_directory, sweep
from imgfs.store.atomic import TEMPORARY, atomic_write, disk_usage, store_errors
from imgfs.store.checksum import ChecksumCache, write_checksum
from imgfs.store.layer import LOCKS, StoredLayer
from imgfs.store.limit import StoreLimit

LAYOUT = "1"  # the number in `version`
_DIRECTORIES = ("documents", "references", "layers", "trees", "profiles", "logs")
_OPTIONAL = ("erofs", "scratch", "containers", "archives")  # made when they are needed
_ELSEWHERE: tuple[int, ...] = (errno.EACCES, errno.EROFS)  # what another directory may do without
_LATEST = 1 << 37  # seconds since the epoch: no clock says more
NO_PROFILE = "none"  # of access profiles: what the user says to have none
_EXPORT, EXPORT_LOCK = ".tar", ".lock"  # of an engine's export, and of the lock of the process that writes it
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class Resolution(NamedTuple):
    """A reference that was resolved: to `digest` (a manifest or an index) and, by platform, `manifest`."""

    reference: str
    digest: Digest
    manifest: Digest
    resolved: float  # seconds since the epoch


def check_profile_name(name: str) -> None:
    """Raise UsageError if no access profile can have that name."""
    if not _PROFILE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for a profile: letters, digits, '_', '.' and '-'")


def _not_writable(root: Path) -> str:
    """Return why this process cannot write to a directory, nothing if it can."""
    if os.access(root, os.W_OK):
        return ""
    return os.strerror(errno.EROFS if os.statvfs(root).f_flag & os.ST_RDONLY else errno.EACCES)


class Store:
    """The cache directory at `root`, created if it does not exist.

    A user who can write to it decides what every mount shows, so it must be this user's own (`owned`), and so
    must its directories. Only what lists it may have one that is not `writable`: nothing is made then, and
    what is not there is empty. Raises StoreError.
    """

    def __init__(self, root: Path, *, writable: bool = True) -> None:
        self.root = root
        self.limit = StoreLimit(root, self.layers, self.kept)
        self._checksums = ChecksumCache()
        self._open_root(writable=writable)
        for path in (root / name for name in _DIRECTORIES if writable):
            os.close(open_owned_directory(path, make=True))
        for path in (root / name for name in (*_DIRECTORIES, *_OPTIONAL)):
            if os.path.lexists(path):
                os.close(open_owned_directory(path))
        self._check_version(writable=writable)

    def _open_root(self, *, writable: bool) -> None:
        """Make the directory, or find it usable; raises StoreError that says what else can be done."""
        what = "no store can be here"
        try:
            os.close(open_owned_directory(self.root, make=writable))
            reason = _not_writable(self.root) if writable else ""
            what = "a store here can be listed only"
        except StoreError as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            if number == errno.ENOENT and not writable:
                return
            if number not in _ELSEWHERE:
                raise
            reason = os.strerror(number)
        if reason:
            another = "name another directory: --store DIR, or $IMGFS_STORE"
            raise StoreError(f"{self.root}: {reason}: {what}; {another}")

    def _check_version(self, *, writable: bool) -> None:
        version = self.root / "version"
        if not os.path.lexists(version):
            if not writable:
                return
            with atomic_write(version) as path:
                path.write_text(LAYOUT)
        with store_errors(version):
            layout = read_owned_file(version).decode(errors="replace")[:20]
        if layout != LAYOUT:
            raise StoreError(
                f"{self.root}: a store of layout {layout!r}, this imgfs knows {LAYOUT!r}: use another --store"
            )

    @property
    def logs(self) -> Path:
        """Return the directory of the daemons' logs."""
        return self.root / "logs"

    @contextmanager
    def workplace(self, prefix: str) -> Iterator[Path]:
        """Yield a temporary directory; those of its prefix that killed processes have left are removed first.

        Raises StoreError.
        """
        import shutil  # here, as it loads three compressors

        with store_errors(self.root):
            sweep(self.root, prefix, shutil.rmtree)
            held = new_directory(self.root, prefix)
        try:
            yield held.path
        finally:
            shutil.rmtree(held.path, ignore_errors=True)
            held.release()

    def document(self, digest: Digest) -> bytes | None:
        """Return a manifest, image index or config; None if it is missing or does not match its digest."""
        path = self.document_file(digest)
        with store_errors(path):
            try:
                body = path.read_bytes()
            except FileNotFoundError:
                return None
        return body if Digest.of(body, digest.algorithm) == digest else None

    def document_file(self, digest: Digest) -> Path:
        """Return the path of a document, which may not exist."""
        return self._path("documents", digest)

    def put_document(self, digest: Digest, body: bytes) -> None:
        """Store a document whose digest has been checked."""
        with atomic_write(self._path("documents", digest)) as path:
            path.write_bytes(body)

    def resolutions(self) -> Iterator[Resolution]:
        """Yield every reference that was resolved, by name."""
        return (resolution for _, resolution in self._resolutions() if resolution)

    def broken_resolutions(self) -> Iterator[Path]:
        """Yield the records of references that cannot be parsed."""
        return (path for path, parsed in self._resolutions() if not parsed and path.exists())

    def _resolutions(self) -> Iterator[tuple[Path, Resolution | None]]:
        paths = sorted((self.root / "references").glob("*.json"))
        return ((path, _read_resolution(path)) for path in paths if not path.name.startswith(TEMPORARY))

    def resolved(self, reference: str) -> list[Resolution]:
        """Return what `reference` was resolved to, by platform and as its tag moved, the latest first."""
        matching = (each for each in self.resolutions() if each.reference == reference)
        return sorted(matching, key=lambda each: each.resolved, reverse=True)

    def put_resolution(self, reference: str, digest: Digest, manifest: Digest) -> None:
        """Record what `reference` is resolved to, now: later than all before, whatever the clock says."""
        before = max((each.resolved for each in self.resolved(reference)), default=0.0)
        fields = {
            "reference": reference,
            "digest": str(digest),
            "manifest": str(manifest),
            "resolved": max(time.time(), math.nextafter(before, math.inf)),
        }
        with atomic_write(self._reference(reference, manifest)) as path:
            path.write_text(json.dumps(fields))

    def forget(self, resolution: Resolution) -> None:
        """Remove a reference; what only it needs is removed by `maintenance.gc.remove_unreachable`."""
        with store_errors(self.root):
            self._reference(resolution.reference, resolution.manifest).unlink(missing_ok=True)

    def _reference(self, reference: str, manifest: Digest) -> Path:
        name = Digest.of(os.fsencode(f"{reference} {manifest}")).hex
        return self.root / "references" / f"{name}.json"

    def layer(self, digest: Digest) -> StoredLayer:
        """Return a layer's directory, created if it does not exist."""
        directory = self._path("layers", digest)
        with store_errors(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._layer(directory, digest)

    def find_layer(self, digest: Digest) -> StoredLayer | None:
        """Return a layer's directory, None if it does not exist."""
        directory = self._path("layers", digest)
        return self._layer(directory, digest) if directory.is_dir() else None

    def _layer(self, directory: Path, digest: Digest) -> StoredLayer:
        return StoredLayer(directory, digest, self._checksums, self.limit.note_written, self.limit.admits)

    def layers(self) -> Iterator[StoredLayer]:
        """Yield every stored layer."""
        layers = (self._layer(path, digest) for path, digest in self._stored("layers"))
        return (
            layer for layer in layers if any(path.name not in LOCKS for path in layer.directory.iterdir())
        )

    def tree(self, manifest: Digest) -> Path | None:
        """Return the path of the tree of `manifest`, None if it does not exist or is known to be damaged."""
        path = self.tree_file(manifest)
        return path if self._checksums.is_intact(path) else None

    def tree_file(self, manifest: Digest) -> Path:
        """Return the path of the tree of `manifest`, which may not exist."""
        return self._path("trees", manifest)

    @contextmanager
    def new_tree(self, manifest: Digest) -> Iterator[Path]:
        """Yield a path to write the tree of `manifest` to; it becomes `tree` if the block succeeds."""
        with atomic_write(self.tree_file(manifest)) as path:
            yield path
            write_checksum(path)

    def remove_tree(self, manifest: Digest) -> None:
        """Remove the tree of `manifest`; processes that have it open keep it."""
        with store_errors(self.root):
            self._path("trees", manifest).unlink(missing_ok=True)
            for image in self._erofs_images(manifest):
                image.unlink(missing_ok=True)

    def tree_usage(self, manifest: Digest) -> int:
        """Return the bytes of disk that `remove_tree` would free."""
        return disk_usage([self.tree_file(manifest), *self._erofs_images(manifest)])

    def _erofs_images(self, manifest: Digest) -> list[Path]:
        return list((self.root / "erofs").glob(f"{manifest.algorithm}-{manifest.hex}-*"))

    def erofs(self, manifest: Digest, number: int) -> Path:
        """Return the path of the EROFS image of the tree of `manifest`, of that format number."""
        return self.root / "erofs" / f"{manifest.algorithm}-{manifest.hex}-{number}"

    def kept(self) -> int:
        """Return the bytes of disk that indexes and trees take."""
        indexes = (layer.index_file for layer in self.layers())
        others = (self.root.glob(pattern) for pattern in ("trees/*/*", "erofs/*", "archives/*"))
        return disk_usage(chain(indexes, *others))

    def archive_index(self, name: str) -> Path:
        """Return the path of the index of a file outside (`transport.packed`), which may not exist."""
        return self.root / "archives" / name

    def export(self, image: Digest) -> Path:
        """Return the path of what an engine exported of an image, by its id; it may not exist."""
        return self.root / "archives" / f"{image.algorithm}-{image.hex}{_EXPORT}"

    def exports(self) -> dict[Digest, Path]:
        """Return the paths of all exports that are here, by the images' ids."""
        paths = sorted(self.root.glob(f"archives/*-*{_EXPORT}"))
        named = (path for path in paths if not path.name.startswith(TEMPORARY))
        return {Digest.parse(path.stem.replace("-", ":", 1)): path for path in named}

    def remove_export(self, image: Digest) -> None:
        """Remove an export: it is made again when it is needed; processes that have it open keep it."""
        path = self.export(image)
        with store_errors(path):
            path.unlink(missing_ok=True)
            path.with_suffix(EXPORT_LOCK).unlink(missing_ok=True)

    def remove_archive_indexes(self) -> None:
        """Remove the indexes of files outside, and exports of engines: they are made again when needed."""
        with store_errors(self.root):
            for path in self.root.glob("archives/*"):
                path.unlink(missing_ok=True)

    def remove_document(self, digest: Digest) -> None:
        """Remove a document."""
        with store_errors(self.root):
            self._path("documents", digest).unlink(missing_ok=True)

    def profile(self, manifest: Digest, name: str) -> bytes | None:
        """Return the access profile `name` of an image, if there is one."""
        return self.profiles(manifest).get(name)

    def profiles(self, manifest: Digest) -> dict[str, bytes]:
        """Return the access profiles of an image, by name."""
        with store_errors(self.root):
            return {path.stem: path.read_bytes() for path in self.profile_files(manifest)}

    def profile_files(self, manifest: Digest) -> list[Path]:
        """Return the paths of the access profiles of an image."""
        paths = sorted(self._path("profiles", manifest).glob("*.json"))
        return [path for path in paths if not path.name.startswith(TEMPORARY)]

    def put_profile(self, manifest: Digest, name: str, body: bytes) -> None:
        """Store an access profile. Raises UsageError for an invalid name."""
        check_profile_name(name)
        with atomic_write(self._path("profiles", manifest) / f"{name}.json") as path:
            path.write_bytes(body)

    def remove_profiles(self, manifest: Digest) -> None:
        """Remove the access profiles of an image."""
        import shutil

        directory = self._path("profiles", manifest)
        with store_errors(directory):
            shutil.rmtree(directory, ignore_errors=True)

    def profiled(self) -> Iterator[Digest]:
        """Yield the manifests that have access profiles."""
        return (digest for _, digest in self._stored("profiles"))

    def trees(self) -> Iterator[Digest]:
        """Yield the manifests whose trees are stored."""
        return (digest for _, digest in self._stored("trees"))

    def documents(self) -> Iterator[Digest]:
        """Yield the digest of every document."""
        return (digest for _, digest in self._stored("documents"))

    def _stored(self, kind: str) -> Iterator[tuple[Path, Digest]]:
        for path in sorted((self.root / kind).glob("*/*")):
            if not path.name.startswith(TEMPORARY):
                yield path, Digest(path.parent.name, path.name)

    def _path(self, kind: str, digest: Digest) -> Path:
        return self.root / kind / digest.algorithm / digest.hex


def _read_resolution(path: Path) -> Resolution | None:
    """Parse a record of `put_resolution`; None if it has been removed meanwhile, or is not valid."""
    try:
        fields = json.loads(path.read_text())
        digests = Digest.parse(fields["digest"]), Digest.parse(fields["manifest"])
        resolved = float(fields["resolved"])
        if not 0 <= resolved < _LATEST:
            return None
        return Resolution(str(fields["reference"]), *digests, resolved)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, InvalidImage):
        return None

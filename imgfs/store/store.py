"""Documents, references, layers and trees by digest, in one directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import InvalidImage, StoreError, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.owned.held import new_directory, sweep
from imgfs.owned.opening import open_owned_directory, read_owned_file
from imgfs.store.atomic import TEMPORARY, atomic_write, disk_usage, store_errors
from imgfs.store.checksum import ChecksumCache, write_checksum
from imgfs.store.layer import LOCKS, StoredLayer
from imgfs.store.limit import StoreLimit

LAYOUT = "1"  # the number in `version`
_DIRECTORIES = ("documents", "references", "layers", "trees", "profiles", "logs")
_SOMETIMES = ("erofs", "scratch", "containers")  # are made when they are needed
_PROFILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Resolution:
    """A reference that was resolved: to `digest` (a manifest or an index) and, by platform, `manifest`."""

    reference: str
    digest: Digest
    manifest: Digest
    resolved: float  # seconds since the epoch


class Store:
    """The cache directory at `root`, made if it is not there.

    Who can write to it decides what every mount shows, so it has to be this user's own (`owned`), and so has
    what lies in it. Raises StoreError.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.limit = StoreLimit(root, self.layers, self.kept)
        self._checksums = ChecksumCache()
        for path in (root, *(root / name for name in _DIRECTORIES)):
            os.close(open_owned_directory(path, make=True))
        for path in (root / name for name in _SOMETIMES):
            if os.path.lexists(path):
                os.close(open_owned_directory(path))
        self._check_version()

    def _check_version(self) -> None:
        version = self.root / "version"
        if not os.path.lexists(version):
            with atomic_write(version) as path:
                path.write_text(LAYOUT)
        with store_errors(version):
            found = read_owned_file(version).decode(errors="replace")[:20]
        if found != LAYOUT:
            raise StoreError(
                f"{self.root}: a store of layout {found!r}, this imgfs knows {LAYOUT!r}: use another --store"
            )

    @property
    def logs(self) -> Path:
        """Where daemons write their logs."""
        return self.root / "logs"

    @contextmanager
    def workplace(self, prefix: str) -> Iterator[Path]:
        """A directory for the length of the block; what killed processes have left of its kind is removed.

        Raises StoreError.
        """
        with store_errors(self.root):
            sweep(self.root, prefix, shutil.rmtree)
            held = new_directory(self.root, prefix)
        try:
            yield held.path
        finally:
            shutil.rmtree(held.path, ignore_errors=True)
            held.release()

    def document(self, digest: Digest) -> bytes | None:
        """A manifest, index or config, if it is here and whole."""
        path = self.document_file(digest)
        with store_errors(path):
            try:
                body = path.read_bytes()
            except FileNotFoundError:
                return None
        return body if Digest.of(body, digest.algorithm) == digest else None

    def document_file(self, digest: Digest) -> Path:
        """Where a document is, if it is anywhere."""
        return self._path("documents", digest)

    def put_document(self, digest: Digest, body: bytes) -> None:
        """Keep a document whose digest has been checked."""
        with atomic_write(self._path("documents", digest)) as path:
            path.write_bytes(body)

    def resolutions(self) -> Iterator[Resolution]:
        """Every reference that was resolved here, by name."""
        return (found for _, found in self._resolutions() if found)

    def broken_resolutions(self) -> Iterator[Path]:
        """The records of references that cannot be read."""
        return (path for path, found in self._resolutions() if not found and path.exists())

    def _resolutions(self) -> Iterator[tuple[Path, Resolution | None]]:
        paths = sorted((self.root / "references").glob("*.json"))
        return ((path, _read_resolution(path)) for path in paths if not path.name.startswith(TEMPORARY))

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
        with atomic_write(self._reference(reference, manifest)) as path:
            path.write_text(json.dumps(fields))

    def forget(self, resolution: Resolution) -> None:
        """Remove a reference and its tree; its documents and layers go with `sweep`."""
        with store_errors(self.root):
            self._reference(resolution.reference, resolution.manifest).unlink(missing_ok=True)

    def _reference(self, reference: str, manifest: Digest) -> Path:
        name = Digest.of(os.fsencode(f"{reference} {manifest}")).hex
        return self.root / "references" / f"{name}.json"

    def layer(self, digest: Digest) -> StoredLayer:
        """The place of a layer, made if it is not there."""
        directory = self._path("layers", digest)
        with store_errors(directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._layer(directory, digest)

    def _layer(self, directory: Path, digest: Digest) -> StoredLayer:
        return StoredLayer(directory, digest, self._checksums, self.limit.note_written, self.limit.admits)

    def layers(self) -> Iterator[StoredLayer]:
        """Every layer here."""
        found = (self._layer(path, digest) for path, digest in self._stored("layers"))
        return (layer for layer in found if any(path.name not in LOCKS for path in layer.directory.iterdir()))

    def tree(self, manifest: Digest) -> Path | None:
        """The tree of `manifest`, if it is here and not seen to be damaged."""
        path = self.tree_file(manifest)
        return path if self._checksums.is_intact(path) else None

    def tree_file(self, manifest: Digest) -> Path:
        """Where the tree of `manifest` is, if it is anywhere."""
        return self._path("trees", manifest)

    @contextmanager
    def new_tree(self, manifest: Digest) -> Iterator[Path]:
        """A path to write the tree of `manifest` to; it is `tree` once the block ends without an error."""
        with atomic_write(self.tree_file(manifest)) as path:
            yield path
            write_checksum(path)

    def remove_tree(self, manifest: Digest) -> None:
        """Remove the tree of `manifest`; whoever has it open keeps it."""
        with store_errors(self.root):
            self._path("trees", manifest).unlink(missing_ok=True)
            for image in self._erofs_images(manifest):
                image.unlink(missing_ok=True)

    def tree_usage(self, manifest: Digest) -> int:
        """Bytes of disk that `remove_tree` would free."""
        return disk_usage([self.tree_file(manifest), *self._erofs_images(manifest)])

    def _erofs_images(self, manifest: Digest) -> list[Path]:
        return list((self.root / "erofs").glob(f"{manifest.algorithm}-{manifest.hex}-*"))

    def erofs(self, manifest: Digest, number: int) -> Path:
        """The place of the EROFS image of the tree of `manifest`, in the format of that number."""
        return self.root / "erofs" / f"{manifest.algorithm}-{manifest.hex}-{number}"

    def kept(self) -> int:
        """Bytes of disk that indexes and trees take."""
        indexes = (layer.index_file for layer in self.layers())
        return disk_usage([*indexes, *self.root.glob("trees/*/*"), *self.root.glob("erofs/*")])

    def remove_document(self, digest: Digest) -> None:
        """Remove a document."""
        with store_errors(self.root):
            self._path("documents", digest).unlink(missing_ok=True)

    def profile(self, manifest: Digest, name: str) -> bytes | None:
        """What a workload named `name` reads of an image, if that has been recorded."""
        return self.profiles(manifest).get(name)

    def profiles(self, manifest: Digest) -> dict[str, bytes]:
        """All that has been recorded of an image, by name."""
        with store_errors(self.root):
            return {path.stem: path.read_bytes() for path in self.profile_files(manifest)}

    def profile_files(self, manifest: Digest) -> list[Path]:
        """Where that is."""
        found = sorted(self._path("profiles", manifest).glob("*.json"))
        return [path for path in found if not path.name.startswith(TEMPORARY)]

    def put_profile(self, manifest: Digest, name: str, body: bytes) -> None:
        """Keep what was recorded; raises UsageError for what is no name."""
        if not _PROFILE_NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a profile: letters, digits, '_', '.' and '-'")
        with atomic_write(self._path("profiles", manifest) / f"{name}.json") as path:
            path.write_bytes(body)

    def remove_profiles(self, manifest: Digest) -> None:
        """Remove all that has been recorded of an image."""
        directory = self._path("profiles", manifest)
        with store_errors(directory):
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
            if not path.name.startswith(TEMPORARY):
                yield path, Digest(path.parent.name, path.name)

    def _path(self, kind: str, digest: Digest) -> Path:
        return self.root / kind / digest.algorithm / digest.hex


def _read_resolution(path: Path) -> Resolution | None:
    """What the record says; None if it has been removed meanwhile, or is no record of ours."""
    try:
        fields = json.loads(path.read_text())
        digests = Digest.parse(fields["digest"]), Digest.parse(fields["manifest"])
        return Resolution(str(fields["reference"]), *digests, float(fields["resolved"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, InvalidImage):
        return None

"""Archives of images, written: `oci-archive:FILE` and `docker-archive:FILE`.

An archive is written under a temporary name beside its own, synced, and renamed when the image is complete: a
FILE that is there is replaced then, and a writer that fails or is killed leaves it as it was. Blobs come from
several threads, and each gets its place in the file before it is written: they do not wait for each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.errors import IntegrityError, InvalidImage, UsageError
from imgfs.layer.codec.blob import unpacked
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.tar.header import BLOCK
from imgfs.layer.tar.writer import header_of
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import CONFIG_TYPES, INDEX_TYPES, OCI_INDEX, Manifest, parse_config, parse_document
from imgfs.oci.reference import FileReference, parse_reference
from imgfs.owned.opening import follow_own_links
from imgfs.owned.writing import HeldPath, new_file, os_errors, pwrite_all, sweep
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.registry.messages import OpenAt
from imgfs.transport.destination import NO_BLOBS, FileDestination, tag_of
from imgfs.transport.layout_writer import LAYOUT_VERSION, entered

if TYPE_CHECKING:
    from hashlib import _Hash

    from imgfs.oci.artifact import Artifact

_ASIDE = ".imgfs-archive-"
_LARGEST_OCTAL = 1 << 33  # bytes: eleven octal digits


class ArchiveWriter:
    """Writes a tar file. Safe in threads. Raises StoreError where it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: HeldPath | None = None
        self._end = 0

    def add(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """Add a member of `size` bytes; what `chunks` raises leaves an archive that must not be finished."""
        length = BLOCK + size + -size % BLOCK
        with os_errors(self._path):
            with self._lock:
                fd, at = self._open(), self._end
                self._end += length
            pwrite_all(fd, _header(name, size), at)
            at += BLOCK
            for chunk in chunks:
                pwrite_all(fd, chunk, at)
                at += len(chunk)

    def add_unknown(self, chunks: Iterator[bytes]) -> _Unnamed:
        """Add a member whose size and name are only known at its end, alone; `name` it then."""
        with os_errors(self._path), self._lock:
            fd, start = self._open(), self._end
            at = start + BLOCK
            for chunk in chunks:
                pwrite_all(fd, chunk, at)
                at += len(chunk)
            self._end = at + -at % BLOCK
            return _Unnamed(self, start, at - start - BLOCK)

    def name(self, start: int, name: str, size: int) -> None:
        """Write the header of the member at `start`."""
        with os_errors(self._path):
            pwrite_all(self._open(), _header(name, size), start)

    def finish(self) -> None:
        """End the archive and give it its name."""
        with os_errors(self._path), self._lock:
            held = self._open_held()
            os.ftruncate(held.fd, self._end + 2 * BLOCK)  # two zero blocks end it (POSIX pax, ustar)
            held.put_in_place(self._path)
            self._held = None

    def close(self) -> None:
        """Remove what is not finished."""
        with self._lock:
            if self._held:
                self._held.path.unlink(missing_ok=True)
                self._held.release()
                self._held = None

    def _open(self) -> int:
        return self._open_held().fd

    def _open_held(self) -> HeldPath:
        if self._held is None:
            if self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode):
                raise UsageError(f"{self._path}: not a regular file, and an archive is renamed to it")
            self._path = follow_own_links(self._path)  # a link, as /dev/stdout is, stays
            sweep(self._path.parent, _ASIDE, Path.unlink)
            self._held = new_file(self._path.parent, _ASIDE)
        return self._held


class _Unnamed:
    """A member that is written, all but its header."""

    def __init__(self, writer: ArchiveWriter, start: int, size: int) -> None:
        self._writer = writer
        self._start = start
        self._size = size

    def name(self, name: str) -> None:
        """Write its header."""
        self._writer.name(self._start, name, self._size)


class _ArchiveDestination(FileDestination[FileReference]):
    """What both kinds of archive share: they are written whole, and nothing is added to one later."""

    def __init__(self, reference: FileReference) -> None:
        super().__init__(reference)
        self._writer = ArchiveWriter(reference.path)

    def put_artifact(self, artifact: Artifact, blobs: Mapping[Digest, OpenAt] = NO_BLOBS) -> Descriptor:
        """Refuse."""
        del artifact, blobs
        raise self._whole()

    def remove_artifact(self, descriptor: Descriptor, subject: Digest) -> None:
        """Refuse."""
        del descriptor, subject
        raise self._whole()

    def close(self) -> None:
        """Remove an archive that is not complete."""
        self._writer.close()

    def _whole(self) -> UsageError:
        return UsageError(f"{self._reference}: an archive is written whole; nothing can be added or removed")


class OciArchiveDestination(_ArchiveDestination):
    """An OCI layout in a tar file (image-layout.md)."""

    def __init__(self, reference: FileReference) -> None:
        super().__init__(reference)
        self._there: set[Digest] = set()

    def has(self, descriptor: Descriptor) -> bool:
        """Return True if it has been written."""
        return descriptor.digest in self._there

    def _write_blob(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> None:
        self._put(descriptor.digest, descriptor.size, chunks)

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Write a manifest; with what the reference names the archive is complete."""
        descriptor.digest.verify(body, "digest of a manifest to be written")
        if named:
            self.check_name(descriptor.digest)
        self._put(descriptor.digest, len(body), iter((body,)))
        if named:
            entries = entered([], descriptor, tag_of(self._reference))
            self._put_json("index.json", {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
            self._put_json("oci-layout", {"imageLayoutVersion": LAYOUT_VERSION})
            self._writer.finish()

    def _put(self, digest: Digest, size: int, chunks: Iterator[bytes]) -> None:
        with self._lock:
            if digest in self._there:
                return
            self._there.add(digest)
        self._writer.add(f"blobs/{digest.algorithm}/{digest.hex}", size, chunks)

    def _put_json(self, name: str, fields: Mapping[str, object]) -> None:
        body = json.dumps(fields).encode()
        self._writer.add(name, len(body), iter((body,)))


class DockerArchiveDestination(_ArchiveDestination):
    """What `docker load` and `podman load` read: one image, its layers unpacked, called by their DiffIDs."""

    def __init__(self, reference: FileReference) -> None:
        super().__init__(reference)
        self._layers: dict[Digest, tuple[Digest, _Unnamed]] = {}  # by the blob's digest: DiffID and member
        self._configs: dict[Digest, bytes] = {}

    def has(self, descriptor: Descriptor) -> bool:
        """Return True if it has been written."""
        return descriptor.digest in self._layers or descriptor.digest in self._configs

    def _write_blob(self, descriptor: Descriptor, chunks: Iterator[bytes]) -> None:
        """Unpack a layer into the archive, or keep a config for its end."""
        if descriptor.media_type in CONFIG_TYPES and descriptor.size <= MAX_DOCUMENT:
            self._configs[descriptor.digest] = b"".join(chunks)
            return
        hasher = hashlib.sha256()
        member = self._writer.add_unknown(_hashed(unpacked(chunks), hasher))
        self._layers[descriptor.digest] = Digest("sha256", hasher.hexdigest()), member

    def put_manifest(self, descriptor: Descriptor, body: bytes, *, named: bool) -> None:
        """Write what the archive says of its one image: it is complete then."""
        manifest = parse_document(body, descriptor.media_type)
        if not named or descriptor.media_type in INDEX_TYPES or not isinstance(manifest, Manifest):
            raise UsageError(
                f"{self._reference}: a docker-archive holds an image for one platform: say which (--platform)"
            )
        self.check_name(descriptor.digest)
        config = self._configs.get(manifest.config.digest)
        if config is None:
            raise InvalidImage(f"a config of type {manifest.config.media_type!r}, which docker cannot load")
        names = self._name_layers(manifest, parse_config(config).diff_ids)
        config_name = f"{manifest.config.digest.hex}.json"
        self._writer.add(config_name, len(config), iter((config,)))
        listed = json.dumps([{"Config": config_name, "RepoTags": self._names(), "Layers": names}]).encode()
        self._writer.add("manifest.json", len(listed), iter((listed,)))
        self._writer.finish()

    def _name_layers(self, manifest: Manifest, diff_ids: tuple[Digest, ...]) -> list[str]:
        """Give the layers their names, each once; raises IntegrityError for one with another DiffID."""
        if len(diff_ids) != len(manifest.layers):
            raise InvalidImage(f"{len(diff_ids)} DiffIDs for {len(manifest.layers)} layers")
        written: set[Digest] = set()
        for number, (layer, diff_id) in enumerate(zip(manifest.layers, diff_ids, strict=True)):
            if layer.digest not in self._layers:
                raise InvalidImage(f"layer {layer.digest.short} is not to be distributed, so it is missing")
            actual, member = self._layers[layer.digest]
            if actual != diff_id:
                raise IntegrityError(f"DiffID of layer {layer.digest.short}", expected=diff_id, actual=actual)
            # the same tar may have been packed twice: the other copy gets a name that is read by no tool
            member.name(f"{diff_id.hex}.tar" if diff_id not in written else f"{diff_id.hex}.{number}.tar")
            written.add(diff_id)
        return [f"{diff_id.hex}.tar" for diff_id in diff_ids]

    def _names(self) -> list[str]:
        return [str(parse_reference(f"docker://{self._reference.tag}"))] if self._reference.tag else []


def _hashed(chunks: Iterator[bytes], hasher: _Hash) -> Iterator[bytes]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _header(name: str, size: int) -> bytes:
    """Return a header of one block: a size that octal digits do not hold is in base 256 (GNU tar manual)."""
    if size < _LARGEST_OCTAL:
        return header_of(Entry(name.encode(), Kind.FILE, 0o644, 0, 0, size, 0))
    block = bytearray(header_of(Entry(name.encode(), Kind.FILE, 0o644, 0, 0, 0, 0)))
    block[124:136] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8  # the checksum counts its own field as spaces
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)

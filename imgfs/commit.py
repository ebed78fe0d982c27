"""An image out of another and what was changed in it: the layer's file, the config, the manifest.

Made here, put somewhere elsewhere: nothing in this room knows a registry, a layout or a mount. A layer's
members come from the caller, with their whiteouts (OCI layer.md, "Change Types") and sorted: each
directory before and next to what is in it, or GNU tar would not keep the directory's time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from imgfs.errors import InvalidImage, StoreError
from imgfs.layer.codec.compress import Compressed, compress
from imgfs.layer.tar.writer import Member, tar_of
from imgfs.oci.change import ConfigChange, extend_config, extend_manifest, layer_type
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_CONFIG, Manifest, check_layers, parse_config, parse_document
from imgfs.owned.writing import sync_directory

__all__ = ["BaseImage", "Committed", "Record", "commit"]


@dataclass(frozen=True, slots=True)
class BaseImage:
    """The image that was changed: its manifest and its config, byte for byte.

    A manifest of Docker's makes one again; for an OCI layout it is to go through `as_oci` first.
    """

    manifest: bytes
    config: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """What the new image says of its making (config.md, `history`); `created` has a time zone."""

    created: datetime
    created_by: str = ""
    author: str = ""
    message: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Committed:
    """A new image: put the layer, then the config, then the manifest. Without members it has no new layer."""

    layer: Descriptor | None
    layer_path: Path | None  # the file that holds the layer's blob, named by its digest's hex
    config: bytes
    config_descriptor: Descriptor
    manifest: bytes
    manifest_descriptor: Descriptor


def commit(
    members: Iterable[Member],
    base: BaseImage,
    directory: Path,
    *,
    record: Record,
    changes: Sequence[ConfigChange] = (),
    codec: str = "gzip",
) -> Committed:
    """Make the image that is `base` with `members` as one more layer and with `changes` to its config.

    The blob is packed by `codec`, "gzip" or "zstd", into a file in `directory`, where nothing half-made is
    left. Raises UsageError for a change or text that will not do, and InvalidImage for a base that is no
    image, both before a member is taken; InvalidImage for a member no tar can hold; StoreError if the file
    cannot be written. What `members` raises comes through.
    """
    _extended(base, None, record, changes)
    layer, path, diff_id = _layer(members, codec, directory)
    config = _extended(base, diff_id, record, changes)
    descriptor = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
    manifest = extend_manifest(base.manifest, descriptor, layer, record.annotations)
    document = _manifest(manifest)
    return Committed(
        layer=document.layers[-1] if layer else None,
        layer_path=path,
        config=config,
        config_descriptor=document.config,
        manifest=manifest,
        manifest_descriptor=Descriptor(document.media_type, Digest.of(manifest), len(manifest)),
    )


def _extended(
    base: BaseImage, diff_id: Digest | None, record: Record, changes: Sequence[ConfigChange]
) -> bytes:
    """Return the new config, of a base whose layers and DiffIDs agree."""
    manifest = _manifest(base.manifest)
    check_layers(manifest, parse_config(base.config, manifest.config.media_type))
    return extend_config(
        base.config,
        diff_id=diff_id,
        changes=changes,
        created=record.created,
        created_by=record.created_by,
        author=record.author,
        message=record.message,
    )


def _manifest(body: bytes) -> Manifest:
    document = parse_document(body, None)
    if not isinstance(document, Manifest):
        raise InvalidImage("an index, not the manifest of one image")
    return document


def _layer(
    members: Iterable[Member], codec: str, directory: Path
) -> tuple[Descriptor | None, Path | None, Digest | None]:
    """Return (descriptor, file, DiffID) of the layer; nothing at all if there are no members."""
    remaining = iter(members)
    first = next(remaining, None)
    if first is None:
        return None, None, None
    packed, path = _write(chain((first,), remaining), codec, directory)
    return Descriptor(layer_type(codec), packed.digest, packed.size), path, packed.diff_id


def _write(members: Iterable[Member], codec: str, directory: Path) -> tuple[Compressed, Path]:
    """Pack the members into a file that has its name, its digest, only when all of it is on the disk."""
    with _writing(directory):
        number, aside = tempfile.mkstemp(prefix=".layer-", dir=directory)
    try:
        with open(number, "wb", buffering=0) as file:
            packed = compress(tar_of(members), codec, _Sink(file, directory))
            with _writing(directory):
                os.fsync(number)
        with _writing(directory):
            os.replace(aside, directory / packed.digest.hex)
            sync_directory(directory)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return packed, directory / packed.digest.hex


class _Sink:
    """A file being written; its OSErrors are StoreErrors, unlike those of reading the members."""

    def __init__(self, file: BinaryIO, directory: Path) -> None:
        self._file = file
        self._directory = directory

    def write(self, piece: bytes, /) -> None:
        left = memoryview(piece)
        with _writing(self._directory):
            while left:
                left = left[self._file.write(left) :]


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{directory}: the layer cannot be written: {error.strerror}") from error

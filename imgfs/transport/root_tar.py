"""A root file system as a tar file, packed or not: an image with that one layer.

Its config says no more than it must: the platform is this machine's, there is nothing to run. The layer is
the file as it is. Its digest and DiffID are found by reading it once, and kept with its identity.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from imgfs.errors import InvalidImage, NotFound, UsageError
from imgfs.oci.artifact import encode
from imgfs.oci.descriptor import Descriptor, Digest, Platform, descriptor_fields
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST
from imgfs.oci.reference import FileReference
from imgfs.transport.files import Directory, FilesSource, RegularFile
from imgfs.transport.packed import open_index

if TYPE_CHECKING:
    from imgfs.store.store import Store

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_TYPES = {"gzip": f"{_LAYER}+gzip", "gzip members": f"{_LAYER}+gzip", "zstd": f"{_LAYER}+zstd"}


class RootTarSource(FilesSource):
    """The image that a tar file is taken for."""

    def __init__(self, reference: FileReference, open_store: Callable[[], Store] | None) -> None:
        super().__init__(Directory(reference.path.parent), f"tar:{reference.path}")
        self._reference = reference
        self._open_store = open_store
        self._lock = threading.Lock()
        self._documents: dict[Digest, bytes] = {}
        self._manifest: Descriptor | None = None

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Read the file, if it was not read before; raises NotFound if the reference has another digest."""
        found = self._load()
        if self._reference.digest not in (None, found.digest):
            raise NotFound(f"{self._place} is {found.digest}, not {self._reference.digest}")
        return found

    def made(self, digest: Digest) -> bytes | None:
        """Return the manifest or the config."""
        self._load()
        return self._documents.get(digest)

    def name_of(self, digest: Digest) -> str:
        """Return the file's name: whatever is asked for, it is in there or nowhere."""
        del digest
        return self._reference.path.name

    def _load(self) -> Descriptor:
        with self._lock:
            if self._manifest is None:
                self._manifest = self._make()
            return self._manifest

    def _make(self) -> Descriptor:
        path = self._reference.path
        try:
            with RegularFile(path) as file, open_index(file, file, (0, file.size), self._open_store) as index:
                found = index.summary
        except NotFound as error:
            raise UsageError(str(error)) from error
        except InvalidImage as error:
            raise error.at(path) from error
        layer = Descriptor(_TYPES.get(found.format, _LAYER), Digest.parse(found.digest), found.size)
        config = self._keep(OCI_CONFIG, _config(found.diff_id))
        fields: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor_fields(config),
            "layers": [descriptor_fields(layer)],
        }
        return self._keep(OCI_MANIFEST, fields)

    def _keep(self, media_type: str, fields: dict[str, object]) -> Descriptor:
        body = encode(fields)
        digest = Digest.of(body)
        self._documents[digest] = body
        return Descriptor(media_type, digest, len(body))


def _config(diff_id: str) -> dict[str, object]:
    platform = Platform.host()
    return {
        "architecture": platform.architecture,
        **({"variant": platform.variant} if platform.variant else {}),
        "os": platform.os,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "a tar file"}],
    }

"""An image in podman's own store (containers/storage), read where it lies.

    DRIVER-images/images.json     the images: names, config (its digest is the id), topmost layer
    DRIVER-images/ID/=BASE64      what belongs to one: `manifest`, and the config under its digest
    DRIVER-layers/layers.json     the layers: parent, DiffID (`diff-digest`)
    DRIVER-layers/ID.tar-split.gz with the unpacked files, the layer's tar (`transport.tar_split`)
    overlay/ID/diff, vfs/dir/ID   the unpacked files

Layers are kept unpacked, so the manifest that was pulled seldom fits; where it does not, one is made of the
DiffIDs. What is read is checked by them.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imgfs.config import podman_storage
from imgfs.errors import ImgfsError, InvalidImage, NotFound, UsageError
from imgfs.layer.limits import LAYERS_LIMIT
from imgfs.oci.artifact import encode
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST, Manifest, parse_config, parse_document
from imgfs.oci.reference import FileReference, parse_reference
from imgfs.registry.config.reload import Table
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.transport.files import Directory, FilesSource, StoredFile, open_regular
from imgfs.transport.tar_split import TarSplit, TarSplitFile
from imgfs.variables import variables

_DRIVERS = {"overlay": "overlay/{}/diff", "vfs": "vfs/dir/{}"}  # where each has a layer's files
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_ID = re.compile(r"[0-9a-f]{64}")
_SHORT_ID = re.compile(r"[0-9a-f]{12,64}")
_PLAIN = re.compile(r"[a-z0-9.]*")
_LARGEST = 64 << 20  # bytes of images.json or layers.json

Fields = Mapping[str, object]


class StoragePlace(NamedTuple):
    """The directory of a store, and the driver that it has been given; None for any."""

    root: Path
    driver: str | None = None


def usual_place() -> StoragePlace:
    """Return where this user's store is, by storage.conf; raises UsageError."""
    files, root = podman_storage(variables(), os.geteuid())
    for path in files:
        if not path.is_file():
            continue
        with open_regular(path) as file:
            storage = Table.parse(path, file.read(MAX_DOCUMENT)).fields.get("storage", {})
        fields = storage if isinstance(storage, dict) else {}
        named, driver = fields.get("graphroot"), fields.get("driver")
        return StoragePlace(
            Path(named) if isinstance(named, str) and named.startswith("/") else root,
            driver if driver in _DRIVERS else None,
        )
    return StoragePlace(root)


def big_data_file(name: str) -> str:
    """Return the file that what is kept of an image is in (containers/storage, makeBigDataBaseName)."""
    return name if _PLAIN.fullmatch(name) else "=" + base64.b64encode(name.encode()).decode()


class StorageSource(FilesSource):
    """An image of podman's store in a place: of its driver, where there are stores of several."""

    def __init__(self, reference: FileReference, place: StoragePlace) -> None:
        root, usual = place
        found = [driver for driver in _DRIVERS if (root / f"{driver}-images/images.json").exists()]
        found.sort(key=lambda driver: driver != usual)
        if not found:
            raise UsageError(f"{root}: no store of podman's with the driver overlay or vfs")
        self._root, self._driver = root, found[0]
        self._reference = reference
        self._lock = threading.Lock()
        self._documents: dict[Digest, bytes] = {}
        self._layers: dict[Digest, str] = {}  # ids, by DiffID
        self._splits: dict[Digest, TarSplit] = {}
        self._manifest: Descriptor | None = None
        super().__init__(Directory(root), str(reference))

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Look the image up by its name or id."""
        found = self._load()
        if self._reference.digest not in (None, found.digest):
            raise NotFound(f"{self._place}: its manifest is {found.digest}")
        return found

    def made(self, digest: Digest) -> bytes | None:
        """Return the manifest or the config."""
        self._load()
        return self._documents.get(digest)

    def name_of(self, digest: Digest) -> str:
        """Raise NotFound: what is not `made` is a layer."""
        raise NotFound(f"{self._place} has no {digest}")

    def open_blob(self, digest: Digest) -> StoredFile:
        """Open the tar of a layer."""
        self._load()
        layer = self._layers.get(digest)
        if layer is None:
            raise NotFound(f"{self._place} has no {digest}")
        with self._lock:
            if digest not in self._splits:
                split = self._root / f"{self._driver}-layers/{layer}.tar-split.gz"
                self._splits[digest] = TarSplit(split, self._root / _DRIVERS[self._driver].format(layer))
            return TarSplitFile(self._splits[digest])

    def close(self) -> None:
        """Close what is open of layers."""
        with self._lock:
            for split in self._splits.values():
                split.close()
            self._splits.clear()

    def _load(self) -> Descriptor:
        with self._lock:
            if self._manifest is None:
                self._manifest = self._read()
            return self._manifest

    def _read(self) -> Descriptor:
        image = self._image(self._reference.tag or "")
        identity = _identity(image.get("id"), "images.json")
        config = self._big_data(identity, f"sha256:{identity}")
        Digest("sha256", identity).verify(config, f"digest of the config of image {identity[:12]}")
        diff_ids = parse_config(config).diff_ids
        layers = list(self._chain(text_in(image, "layer", "images.json", default="")))[::-1]
        if [diff_id for _, diff_id, _ in layers] != list(diff_ids):
            raise InvalidImage("its layers are not those of its config", where=self._place)
        self._layers = {diff_id: layer for layer, diff_id, _ in layers}
        described = Descriptor(OCI_CONFIG, Digest("sha256", identity), len(config))
        self._documents[described.digest] = config
        body = self._kept(identity, diff_ids) or encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor_fields(described),
                "layers": [
                    descriptor_fields(Descriptor(_LAYER, diff_id, size)) for _, diff_id, size in layers
                ],
            }
        )
        digest = Digest.of(body)
        self._documents[digest] = body
        return Descriptor(parse_document(body, None).media_type, digest, len(body))

    def _kept(self, identity: str, diff_ids: tuple[Digest, ...]) -> bytes | None:
        """Return the image's own manifest, if its layers are the plain tars that can be read here."""
        try:
            body = self._big_data(identity, "manifest")
            manifest = parse_document(body, None)
        except ImgfsError:
            return None
        if not isinstance(manifest, Manifest) or manifest.config.digest.hex != identity:
            return None
        return body if tuple(layer.digest for layer in manifest.layers) == diff_ids else None

    def _image(self, wanted: str) -> Fields:
        images = list(self._listed("images"))
        if _SHORT_ID.fullmatch(wanted):
            for image in images:
                if str(image.get("id")).startswith(wanted):
                    return image
        whole = {_normal(wanted), f"localhost/{wanted}", f"localhost/{wanted}:latest"}
        names: list[str] = []
        for image in images:
            its = [str(name) for name in list_in(image, "names", "images.json")] if image.get("names") else []
            if whole.intersection(its) or wanted in its:
                return image
            names += its
        there = ", ".join(sorted(names)[:20]) or "none with a name"
        raise NotFound(f"{self._root}: no image {wanted!r}; there are: {there}")

    def _chain(self, top: str) -> Iterator[tuple[str, Digest, int]]:
        """Yield (id, DiffID, size of the tar) of a layer and those below it."""
        layers = {str(layer.get("id")): layer for layer in self._listed("layers")}
        for _ in range(LAYERS_LIMIT + 1):
            if not top:
                return
            if top not in layers:
                raise InvalidImage(f"layer {top[:12]!r} is not in layers.json", where=self._place)
            layer, size = layers[top], layers[top].get("diff-size", 0)
            if not isinstance(size, int) or size < 0:
                raise InvalidImage(f"layer {top[:12]!r} has no size", where=self._place)
            where = f"layers.json: {top[:12]}"
            yield _identity(top, where), Digest.parse(layer.get("diff-digest"), where=where), size
            top = text_in(layer, "parent", where, default="")
        raise InvalidImage(f"more than {LAYERS_LIMIT} layers", where=self._place)

    def _listed(self, what: str) -> Iterator[Fields]:
        where = f"{what}.json"
        listed = parse_json(self.read_small(f"{self._driver}-{what}/{where}", _LARGEST), where)
        for number, value in enumerate(listed if isinstance(listed, list) else [None]):
            yield object_at(value, f"{where}: [{number}]")

    def _big_data(self, identity: str, name: str) -> bytes:
        """Read what is kept of an image under a name."""
        return self.read_small(f"{self._driver}-images/{identity}/{big_data_file(name)}", MAX_DOCUMENT)


def _identity(text: object, where: str) -> str:
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise InvalidImage(f"{text!r:.80} is not an id", where=where)
    return text


def _normal(name: str) -> str:
    try:
        return str(parse_reference(f"docker://{name}"))
    except UsageError:
        return name

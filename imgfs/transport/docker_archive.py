"""An image in a docker-archive: a tar that `docker save`, `podman save` or `skopeo copy` has written.

`manifest.json` lists the images: their names, and the members with the config and, lowest first, the layers
(moby, image/spec, v1.2.md, "Combined Image JSON + Filesystem Changeset Format"). Its fields `Config` and
`Layers` have here the letters that `oci.fields.parse_json` gives them. There is no manifest: it is made here.
The digest of a plain layer is its DiffID, which the config has; a packed one's is in the name of its member,
or is found by reading it. What a digest says is checked as of any image, when it is read.

Docker 25 and later write an OCI layout into the archive, too: its manifest is used where it has the config,
so that the image has the digest it was pulled or built with.
"""

from __future__ import annotations

import posixpath
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, UsageError
from imgfs.layer.codec.blob import MAGIC_LENGTH, sniff
from imgfs.layer.limits import LAYERS_LIMIT
from imgfs.oci.artifact import encode
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Index, Manifest, parse_config, parse_document
from imgfs.oci.reference import DEFAULT_TAG, FileReference, parse_reference
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.transport.archive import Archive
from imgfs.transport.files import FilesSource

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_TYPES = {"tar": _LAYER, "gzip": f"{_LAYER}+gzip", "zstd": f"{_LAYER}+zstd"}
_IMAGES = 1000  # that an archive lists
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{64})")


class _Image(NamedTuple):
    """An image of the archive: its names as docker has them, `registry/repository:tag`, and its manifest."""

    names: tuple[str, ...]
    manifest: Descriptor


class DockerArchiveSource(FilesSource):
    """An image in a docker-archive."""

    _files: Archive

    def __init__(self, reference: FileReference, archive: Archive) -> None:
        super().__init__(archive, f"{reference.transport}:{reference.path}")
        self._reference = reference
        self._archive = archive
        self._lock = threading.Lock()
        self._images: list[_Image] = []
        self._names: dict[Digest, str] = {}  # of the members, by what they have to have
        self._documents: dict[Digest, bytes] = {}  # those made here

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Look the reference up in `manifest.json`; raises NotFound naming the images there are."""
        images = self._load()
        if self._reference.digest:
            found = [image for image in images if image.manifest.digest == self._reference.digest]
        else:
            found = _called(images, self._reference.tag)
        manifests = {image.manifest.digest: image.manifest for image in found}
        if len(manifests) == 1:
            return manifests.popitem()[1]
        wanted = self._reference.digest or self._reference.tag
        said = "has several images" if not wanted else f"has {len(manifests) or 'no'} images {str(wanted)!r}"
        names = ", ".join(name for image in images for name in image.names) or "without names"
        raise NotFound(f"{self._place} {said}; there are: {names}")

    def tags(self) -> list[str]:
        """Return the names of all images, as docker has them."""
        return [name for image in self._load() for name in image.names]

    def made(self, digest: Digest) -> bytes | None:
        """Return a manifest that was made here."""
        self._load()
        return self._documents.get(digest)

    def name_of(self, digest: Digest) -> str:
        """Return the member with a config or layer."""
        self._load()
        try:
            return self._names[digest]
        except KeyError as error:
            raise NotFound(f"{self._place} has no {digest}") from error

    def _load(self) -> list[_Image]:
        with self._lock:
            if not self._images:
                self._images = list(self._read_images())
        return self._images

    def _read_images(self) -> Iterator[_Image]:
        where = self._archive.path("manifest.json")
        try:
            body = self.read_small("manifest.json", MAX_DOCUMENT)
        except NotFound as error:
            raise UsageError(
                f"{self._place}: not an archive of docker save: it has no manifest.json{self._other_kind()}"
            ) from error
        listed = parse_json(body, where)
        if not isinstance(listed, list) or not 0 < len(listed) <= _IMAGES:
            raise InvalidImage(f"not a list of up to {_IMAGES} images", where=where)
        for number, value in enumerate(listed):
            at = f"{where}: [{number}]"
            fields = object_at(value, at)
            names = _texts(fields, "RepoTags", at)
            yield _Image(tuple(names), self._manifest(fields, at))

    def _other_kind(self) -> str:
        """Return what the archive is instead, and what to do, for the end of a message."""
        if self._archive.has("index.json"):
            return f"; it has an OCI image layout: oci-archive:{self._reference.path}"
        if self._archive.has("repositories"):
            return "; docker before 1.10 (2016) wrote it: load and save it by a newer one"
        return ""

    def _manifest(self, fields: Mapping[str, object], where: str) -> Descriptor:
        """Return the manifest of an image, and note where its config and layers are."""
        config_name = text_in(fields, "config", where)
        body = self.read_small(config_name, MAX_DOCUMENT)
        config = Descriptor(OCI_CONFIG, Digest.of(body), len(body))
        self._names[config.digest] = config_name
        if kept := self._kept_manifest(config.digest, config_name):
            return kept
        diff_ids = parse_config(body).diff_ids
        names = _texts(fields, "layers", where)
        if len(names) != len(diff_ids) or len(names) > LAYERS_LIMIT:
            raise InvalidImage(
                f"{len(names)} layers, and its config has {len(diff_ids)} DiffIDs", where=where
            )
        layers = [self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True)]
        document = encode(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor_fields(config),
                "layers": [descriptor_fields(layer) for layer in layers],
            }
        )
        digest = Digest.of(document)
        self._documents[digest] = document
        return Descriptor(OCI_MANIFEST, digest, len(document))

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        with self._archive.open(name) as member:
            head = b"".join(member.read(0, min(MAGIC_LENGTH, member.size)))
            size = member.size
        packing = sniff(head)
        if packing == "tar":
            digest = diff_id
        elif named := _BLOB.fullmatch(posixpath.normpath(name)):
            digest = Digest("sha256", named[1])
        else:
            digest = Digest.parse(self._archive.index_member(name)[0])
        self._names[digest] = name
        return Descriptor(_TYPES.get(packing, _LAYER), digest, size)

    def _kept_manifest(self, config: Digest, config_name: str) -> Descriptor | None:
        """Return the manifest of the OCI layout beside it that has this config, if there is one."""
        if not _BLOB.fullmatch(config_name) or not self._archive.has("index.json"):
            return None
        with suppress(InvalidImage, NotFound):
            index = parse_document(self.read_small("index.json", MAX_DOCUMENT), OCI_INDEX)
            for entry, body in self._manifests(index):
                manifest = parse_document(body, entry.media_type)
                if isinstance(manifest, Manifest) and manifest.config.digest == config:
                    self._documents[entry.digest] = body
                    self._names.update((layer.digest, _blob_name(layer.digest)) for layer in manifest.layers)
                    return Descriptor(manifest.media_type, entry.digest, len(body))
        return None

    def _manifests(self, index: Manifest | Index, depth: int = 2) -> Iterator[tuple[Descriptor, bytes]]:
        """Yield the manifests that an index leads to, and that are there, with their bytes."""
        for entry in index.manifests if isinstance(index, Index) else ():
            with suppress(NotFound):
                body = self.read_small(_blob_name(entry.digest), MAX_DOCUMENT)
                entry.digest.verify(body, f"digest of a document in {self._place}")
                yield entry, body
                if depth:
                    yield from self._manifests(parse_document(body, entry.media_type), depth - 1)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _texts(fields: Mapping[str, object], name: str, where: str) -> list[str]:
    """Return a list of texts, which may be null."""
    values = [] if fields.get(name) is None else list_in(fields, name, where)
    if not all(isinstance(value, str) for value in values):
        raise InvalidImage("expected texts", where=f"{where}.{name}")
    return [str(value) for value in values]


def _called(images: list[_Image], tag: str | None) -> list[_Image]:
    """Return the images of a name, short or whole, or of a tag alone; without one, `latest`, else all."""
    if tag is None:
        return images if len(images) == 1 else [i for i in images if _has_tag(i, DEFAULT_TAG)] or images
    if tag.startswith("@") and tag[1:].isdecimal():  # containers-transports(5): the number in the list
        return images[int(tag[1:]) :][:1]
    whole = [image for image in images if _normal(tag) in {_normal(name) for name in image.names}]
    return whole or [image for image in images if _has_tag(image, tag)]


def _has_tag(image: _Image, tag: str) -> bool:
    return any(name.rpartition(":")[2] == tag for name in image.names)


def _normal(name: str) -> str:
    try:
        return str(parse_reference(name))
    except UsageError:
        return name

"""What is published with an image to spare a reader the scan of its layers.

imgfs publishes an OCI artifact, `ARTIFACT_TYPE`, that refers to the image's manifest. Its layers, in any
order:

    TREE      the merged tree of the image                                          at most one
    LEAN      a layer's spans: what it takes to read files of a tree                one for each layer
    FULL      the same with the layer's entries: what it takes to merge it          one for each layer
    WINDOWS   the windows of its checkpoints, each a zstd frame, end to end         where there are any
    COPY      a seekable copy of the layer, whose spans LEAN and FULL then have     where there is one
    DIGESTS   the sha256 of each span's flat bytes, by which peers are checked      one for each layer
    PROFILE   what a workload reads, in which order                                 any number

TREE, LEAN and FULL are SQLite files (`tree.database`, `layer.index`), each one zstd frame of at most `size`
bytes. The annotation `LAYER_OF` says which layer of the image they belong to, `SIZE_OF` what a file unpacks
to, `NAME_OF` what a profile is called. Two annotations are the artifact's own. Lists of referrers repeat
them, so a reader can fetch what they name beside the artifact:

    TREE_AT   the digest and size of TREE
    FIRST_AT  the bytes that the usual profile begins with, as LAYER:START-END, separated by spaces: the layer
              counted from 0, the offset of the first byte in its blob, and that after the last

Another form gets another version number; versions of imgfs that do not know it pass it over. (LEAN and FULL
were once without the windows' digests.)

A SOCI index of version 2 is named by the image's manifest itself (`soci_v2_digest`; more in `oci.soci`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.artifact import Artifact
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest

ARTIFACT_TYPE = "application/vnd.imgfs.index.v1"
TREE = "application/vnd.imgfs.tree.v1.sqlite+zstd"
LEAN = "application/vnd.imgfs.layer.lean.v2.sqlite+zstd"
FULL = "application/vnd.imgfs.layer.full.v2.sqlite+zstd"
WINDOWS = "application/vnd.imgfs.layer.windows.v1"
COPY = "application/vnd.imgfs.layer.copy.v1+zstd"
DIGESTS = "application/vnd.imgfs.layer.digests.v1"
PROFILE = "application/vnd.imgfs.profile.v2+json"
LAYER_OF = "vnd.imgfs.layer"
SIZE_OF = "vnd.imgfs.size"
NAME_OF = "vnd.imgfs.profile"
TREE_AT = "vnd.imgfs.tree"
FIRST_AT = "vnd.imgfs.first"
CREATED = "org.opencontainers.image.created"  # annotations.md
MOST_FIRST = 4 << 20  # bytes that FIRST_AT names, in all: what a fast link brings while indexes are imported
_FIRST_RANGES = 64  # there, which make an annotation of 1.5 KiB
_FIRST_RANGE = re.compile(r"(\d{1,4}):(\d{1,18})-(\d{1,18})", re.ASCII)
INDEX_DIGEST = "com.amazon.soci.index-digest"  # on an image's manifest: its SOCI index, version 2


class PublishedLayer(NamedTuple):
    """What is published of one layer."""

    lean: Descriptor
    full: Descriptor
    windows: Descriptor | None = None
    copy: Descriptor | None = None
    digests: Descriptor | None = None

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Return all that is published."""
        found = (self.lean, self.full, self.windows, self.copy, self.digests)
        return tuple(blob for blob in found if blob)


class LayerRange(NamedTuple):
    """Bytes `[start, end)` of the blob of a manifest's layer, which is counted from 0."""

    layer: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Published:
    """What is published of an image; `first` is what its usual profile begins with."""

    tree: Descriptor | None
    layers: Mapping[Digest, PublishedLayer]
    profiles: Mapping[str, Descriptor] = field(default_factory=dict)
    first: Sequence[LayerRange] = ()


def published_in(artifact: Artifact) -> Published:
    """Read the layers of an artifact of this type; raises InvalidImage.

    Blobs of unknown types, and layers without LEAN or FULL, are passed over.
    """
    trees = [blob for blob in artifact.layers if blob.media_type == TREE]
    profiles = {
        blob.annotations[NAME_OF]: blob
        for blob in artifact.layers
        if blob.media_type == PROFILE and NAME_OF in blob.annotations
    }
    by_type: dict[Digest, dict[str, Descriptor]] = {}
    for number, blob in enumerate(artifact.layers):
        if blob.media_type in (LEAN, FULL, WINDOWS, COPY, DIGESTS):
            where = f"artifact.layers[{number}].annotations.{LAYER_OF}"
            layer = Digest.parse(blob.annotations.get(LAYER_OF), where=where)
            by_type.setdefault(layer, {})[blob.media_type] = blob
    layers = {
        layer: PublishedLayer(
            kinds[LEAN], kinds[FULL], kinds.get(WINDOWS), kinds.get(COPY), kinds.get(DIGESTS)
        )
        for layer, kinds in by_type.items()
        if LEAN in kinds and FULL in kinds
    }
    return Published(trees[0] if trees else None, layers, profiles)


def contents_of(published: Published) -> tuple[Descriptor, ...]:
    """Return the layers of the artifact: the inverse of `published_in`."""
    blobs = [published.tree] if published.tree else []
    for layer in published.layers.values():
        blobs += layer.blobs
    return (*blobs, *published.profiles.values())


def listed_annotations(published: Published) -> dict[str, str]:
    """Return what the artifact says of its tree, and of what is read first: in lists of referrers, too."""
    tree, found = published.tree, {}
    if tree:
        found[TREE_AT] = f"{tree.digest} {tree.size}"
    if published.first:
        found[FIRST_AT] = " ".join(f"{layer}:{start}-{end}" for layer, start, end in published.first)
    return found


def first_ranges(ranges: Iterable[LayerRange]) -> Iterator[LayerRange]:
    """Yield the first of some ranges: as many as FIRST_AT may name."""
    left = MOST_FIRST
    for each in islice(ranges, _FIRST_RANGES):
        left -= each.end - each.start
        if left < 0:
            return
        yield each


def listed_first(entry: Descriptor, layers: Sequence[Descriptor]) -> list[LayerRange]:
    """Return the ranges that an artifact in a list of referrers says are read first, of an image's `layers`.

    None of them if one is not of these layers, or if they are too many.
    """
    found: list[LayerRange] = []
    for text in entry.annotations.get(FIRST_AT, "").split(" ")[: _FIRST_RANGES + 1]:
        fields = _FIRST_RANGE.fullmatch(text)
        each = LayerRange(*map(int, fields.groups())) if fields else None
        if each is None or each.layer >= len(layers) or not each.start < each.end <= layers[each.layer].size:
            return []
        found.append(each)
    return found if len(list(first_ranges(found))) == len(found) else []


def listed_tree(entry: Descriptor) -> Descriptor | None:
    """Return the tree that an artifact in a list of referrers says to have; None if it does not say.

    It counts only if the artifact itself says the same.
    """
    digest, _, size = entry.annotations.get(TREE_AT, "").partition(" ")
    if not (size.isascii() and size.isdigit() and len(size) < 19):
        return None
    try:
        return Descriptor(TREE, Digest.parse(digest, where=TREE_AT), int(size))
    except InvalidImage:
        return None


def unpacked_size(descriptor: Descriptor, limit: int) -> int:
    """Return the unpacked size of a published blob in bytes; raises InvalidImage if it is above `limit`."""
    text = descriptor.annotations.get(SIZE_OF, "")
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) <= limit):
        raise InvalidImage(
            f"{text!r} is not a size of at most {limit} bytes", where=f"{SIZE_OF} of {descriptor.digest}"
        )
    return int(text)


def latest(referrers: list[Descriptor]) -> Descriptor | None:
    """Return the published artifact that was made last, by its annotation; None if there is none."""
    published = [entry for entry in referrers if entry.artifact_type == ARTIFACT_TYPE]
    return max(published, key=lambda entry: entry.annotations.get(CREATED, ""), default=None)


def soci_v2_digest(manifest: Manifest) -> Digest | None:
    """Return the digest of the SOCI index, version 2, that a manifest names, if any; raises InvalidImage."""
    text = manifest.annotations.get(INDEX_DIGEST)
    return None if text is None else Digest.parse(text, where=f"manifest.annotations[{INDEX_DIGEST!r}]")

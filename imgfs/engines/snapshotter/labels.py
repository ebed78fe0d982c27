"""What containerd says of a layer: labels of `Prepare` (containerd, pkg/snapshotters; core/unpack).

They have the image's name as it was pulled, and digests. There are never credentials among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from imgfs.engines.refusal import Code, Refusal
from imgfs.errors import ImgfsError
from imgfs.layer.limits import NO_OWNER
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import RegistryReference, parse_reference

TARGET = "containerd.io/snapshot.ref"  # the name that the layer will have, once it is committed
LAYER = "containerd.io/snapshot/cri.layer-digest"
_IMAGE = "containerd.io/snapshot/cri.image-ref"
_MANIFEST = "containerd.io/snapshot/cri.manifest-digest"
_LAYERS = "containerd.io/snapshot/cri.image-layers"  # digests from this layer to the top, or as fit 4 KiB
_UIDS, _GIDS = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
_MAP = re.compile(r"\d{1,10}:\d{1,10}:\d{1,10}(,\d{1,10}:\d{1,10}:\d{1,10})*")  # container:host:length


class OfferedLayer(NamedTuple):
    """A layer that containerd is about to fetch, unless it is shown: it will be the snapshot `target`."""

    target: str
    image: str
    manifest: str
    is_topmost: bool


def offered_layer(labels: Mapping[str, str]) -> OfferedLayer | None:
    """Return the layer that labels are about; None if they do not say of which image in a registry."""
    target, image, manifest = (labels.get(name, "") for name in (TARGET, _IMAGE, _MANIFEST))
    if not (target and image and manifest and labels.get(_LAYERS)):
        return None
    try:
        Digest.parse(manifest)
        reference = parse_reference(image)
    except ImgfsError:  # then containerd fetches it
        return None
    if not isinstance(reference, RegistryReference):
        return None
    return OfferedLayer(target, image, manifest, "," not in labels[_LAYERS])


class IdMaps(NamedTuple):
    """The owners in a container with a user namespace: maps of uids and gids, as containerd writes them."""

    uids: str
    gids: str

    def options(self) -> list[str]:
        """Return the options by which containerd has the lower directories shown so."""
        return [f"{name}={value}" for name, value in zip(("uidmap", "gidmap"), self, strict=True) if value]

    def root(self) -> tuple[int, int] | None:
        """Return the uid and gid that root of the container has outside, None if either is not mapped."""
        uid, gid = _host_of_root(self.uids), _host_of_root(self.gids)
        return None if uid is None or gid is None else (uid, gid)


def id_maps(labels: Mapping[str, str]) -> IdMaps | None:
    """Return the maps that labels ask for; raises Refusal for what is none."""
    found = IdMaps(labels.get(_UIDS, ""), labels.get(_GIDS, ""))
    if not any(found):
        return None
    for value in found:
        if not (_MAP.fullmatch(value) and all(map(_is_in_bounds, value.split(",")))):
            raise Refusal(Code.INVALID_ARGUMENT, f"{value!r} is not a map of ids, like 0:100000:65536")
    if found.root() is None:
        raise Refusal(Code.INVALID_ARGUMENT, f"{found.uids!r}, {found.gids!r}: root is not mapped")
    return found


def _is_in_bounds(part: str) -> bool:
    inside, outside, length = map(int, part.split(":"))
    return max(inside, outside) + length <= NO_OWNER


def _host_of_root(mapping: str) -> int | None:
    for part in mapping.split(","):
        inside, outside, length = map(int, part.split(":"))
        if inside == 0 and length:
            return outside
    return None

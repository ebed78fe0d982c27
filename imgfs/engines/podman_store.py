"""An additional image store for podman, buildah and CRI-O: images that are mounted, and never pulled.

It looks like a store of containers/storage, driver overlay, that is only read (containers-storage.conf(5),
`additionalimagestores`). An image has one layer there, whose `diff` is a mount of imgfs: all layers, merged.

    overlay-images/images.json   the images; overlay-images/ID/ has manifest and config
    overlay-layers/layers.json   one layer for each; its id is the image's ChainID, as podman itself calls the
                                 topmost of these layers
    overlay/LAYER/diff, link     the mount, and a short name for it in overlay/l

Manifest and config are those of an image with this one layer: buildah refuses to build upon an image whose
history has another number of layers than the disk. The image's id stays that of its own config, and its own
manifest is kept beside, so that its digest names it.

The layer's `diff-digest` is the ChainID, too: podman takes a layer for another by that, and the DiffID of the
topmost layer would have it take all of the image for that layer.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import NotFound, StoreError, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.image import DOCKER_MANIFEST
from imgfs.oci.reference import parse_reference
from imgfs.owned.writing import os_errors
from imgfs.store.atomic import atomic_write
from imgfs.transport.containers_storage import big_data_file

Record = dict[str, object]
_IMAGES, _LAYERS = "overlay-images/images.json", "overlay-layers/layers.json"
_LOCKS = ("overlay-images/images.lock", "overlay-layers/layers.lock")
_SHORT = 26  # characters of a link's name
_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class PodmanImage:
    """An image as podman is shown it. Its `name` is a reference, its `size` that of all layers, unpacked."""

    name: str
    manifest: bytes
    manifest_digest: Digest
    config: bytes
    config_digest: Digest
    chain: Digest
    size: int
    created: str | None

    @property
    def id(self) -> str:
        """Return podman's id of the image."""
        return self.config_digest.hex

    @property
    def layer(self) -> str:
        """Return podman's id of its layer."""
        return self.chain.hex


class PodmanStore:
    """The store in the directory `root`. Raises StoreError where that cannot be read or written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def diff(self, layer: str) -> Path:
        """Return where an image's layer is mounted."""
        return self.root / "overlay" / layer / "diff"

    def link(self, layer: str) -> str:
        """Return the short name of an image's layer, by which containers mount it."""
        return layer[:_SHORT].upper()

    def prepare(self, image: PodmanImage) -> Path:
        """Make the directory to mount an image on, unless it is there.

        As in podman's own store no other user gets at what is mounted there: an image may have set-uid
        programs of root's, and devices that all may open, and they count.
        """
        diff = self.diff(image.layer)
        with os_errors(diff):
            diff.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            diff.parent.parent.chmod(0o700)  # it may have been made before this rule
            diff.mkdir(mode=0o755, parents=True, exist_ok=True)
            links = self.root / "overlay" / "l"
            links.mkdir(mode=0o755, exist_ok=True)
            short = self.link(image.layer)
            (diff.parent / "link").write_text(short)
            if not (links / short).is_symlink():
                (links / short).symlink_to(f"../{image.layer}/diff")
        return diff

    def add(self, image: PodmanImage) -> None:
        """List an image that is mounted; one of the same id has all its names."""
        with self._locked():
            images, layers = self._read(_IMAGES), self._read(_LAYERS)
            known = next((one for one in images if one.get("id") == image.id), None)
            names = [image.name, *(name for name in _names(known or {}) if name != image.name)]
            for one in images:  # a name is that of one image: the latest
                one["names"] = [name for name in _names(one) if name != image.name]
            self._write_documents(image)
            record = _image_record(image, names)
            layers = [one for one in layers if one.get("id") != image.layer]
            self._write(_LAYERS, [*layers, _layer_record(image)])
            self._write(_IMAGES, [*(one for one in images if one.get("id") != image.id), record])

    def images(self) -> list[Record]:
        """Return the images, as podman reads them."""
        return self._read(_IMAGES)

    def find(self, wanted: str) -> Record:
        """Return the image of a name or id, as podman takes them; raises NotFound."""
        identity, written = wanted.removeprefix("sha256:"), _spellings(wanted)
        for one in self.images():
            is_its_id = len(identity) >= 12 and str(one.get("id", "")).startswith(identity)
            if is_its_id or written.intersection(_names(one)):
                return one
        raise NotFound(f"{wanted}: is not in {self.root}")

    def forget_name(self, image: Record, name: str) -> bool:
        """Take one of several names from an image, as `podman rmi` does; False if it is not that."""
        with self._locked():
            images = self._read(_IMAGES)
            known = next((one for one in images if one.get("id") == image["id"]), {})
            names = _names(known)
            kept = [one for one in names if one not in _spellings(name)]
            if kept == names or not kept:
                return False
            known["names"] = kept
            self._write(_IMAGES, images)
        return True

    def remove(self, image: Record) -> None:
        """Forget an image that is not mounted any more."""
        identity, layer = str(image["id"]), str(image["layer"])
        with self._locked():
            images = [one for one in self._read(_IMAGES) if one.get("id") != identity]
            self._write(_IMAGES, images)
            if any(one.get("layer") == layer for one in images):
                return
            self._write(_LAYERS, [one for one in self._read(_LAYERS) if one.get("id") != layer])
        with os_errors(self.root):
            (self.root / "overlay" / "l" / self.link(layer)).unlink(missing_ok=True)
            self.diff(layer).rmdir()  # never what is below a mount
            shutil.rmtree(self.root / "overlay" / layer)
            shutil.rmtree(self.root / "overlay-images" / identity, ignore_errors=True)

    def _write_documents(self, image: PodmanImage) -> None:
        place = self.root / "overlay-images" / image.id
        for name, body in _documents(image).items():
            with atomic_write(place / big_data_file(name)) as aside, os_errors(aside):
                aside.write_bytes(body)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the store's own lock; podman's lock files are there for podman."""
        with os_errors(self.root):
            for name in _LOCKS:
                (self.root / name).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                (self.root / name).touch(mode=0o644)
            fd = os.open(self.root / "imgfs.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _read(self, name: str) -> list[Record]:
        path = self.root / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read: not a list of podman's") from error
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def _write(self, name: str, records: Sequence[Record]) -> None:
        path = self.root / name
        with atomic_write(path) as aside, os_errors(path):
            aside.write_text(json.dumps(records))
            aside.chmod(0o644)


def _spellings(name: str) -> set[str]:
    """Return a name as it was given, and in full: with the registry and the tag that are meant."""
    with suppress(UsageError):
        return {name, str(parse_reference(name))}
    return {name}


def _names(record: Mapping[str, object]) -> list[str]:
    names = record.get("names")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _documents(image: PodmanImage) -> dict[str, bytes]:
    """Return what is kept of an image, by podman's names."""
    manifest, config = _with_one_layer(image)
    return {
        "manifest": manifest,
        f"manifest-{image.manifest_digest}": image.manifest,
        str(Digest.of(config)): config,
    }


def _with_one_layer(image: PodmanImage) -> tuple[bytes, bytes]:
    """Return the manifest and config of the image as it is here: all its layers in one.

    Of the history, the last entry that made a layer has that one, the others are said to have made none.
    """
    manifest, config = json.loads(image.manifest), json.loads(image.config)
    if len(manifest["layers"]) == 1:
        return image.manifest, image.config
    history = [dict(entry) for entry in config.get("history") or ()]
    made = [entry for entry in history if not entry.get("empty_layer")]
    if not made:
        made = [{"created": image.created or _EPOCH, "created_by": "imgfs: all layers, merged"}]
        history += made
    for entry in made[:-1]:
        entry["empty_layer"] = True
    config |= {"history": history, "rootfs": {"type": "layers", "diff_ids": [str(image.chain)]}}
    body = json.dumps(config).encode()
    kind = _DOCKER_LAYER if manifest.get("mediaType") == DOCKER_MANIFEST else _OCI_LAYER
    layer = {"mediaType": kind, "digest": str(image.chain), "size": image.size}
    named = {**manifest["config"], "digest": str(Digest.of(body)), "size": len(body)}
    return json.dumps({**manifest, "config": named, "layers": [layer]}).encode(), body


def _image_record(image: PodmanImage, names: list[str]) -> Record:
    kept = _documents(image)
    return {
        "id": image.id,
        "digest": str(image.manifest_digest),
        "names": names,
        "layer": image.layer,
        "metadata": "{}",
        "created": image.created or _EPOCH,
        "big-data-names": list(kept),
        "big-data-sizes": {name: len(body) for name, body in kept.items()},
        "big-data-digests": {name: str(Digest.of(body)) for name, body in kept.items()},
    }


def _layer_record(image: PodmanImage) -> Record:
    return {
        "id": image.layer,
        "created": image.created or _EPOCH,
        "diff-digest": str(image.chain),
        "diff-size": image.size,
    }

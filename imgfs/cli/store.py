"""imgfs store path, ls, rm."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from imgfs.cli.images import open_store
from imgfs.cli.output import say
from imgfs.cli.text import size
from imgfs.config import Environment
from imgfs.errors import MountError, StoreError, UsageError
from imgfs.layer.index import LayerIndex
from imgfs.maintenance.gc import contents_of, evict, refuse_if_used, remove_unreachable
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import imgfs_mounts
from imgfs.oci.descriptor import Digest
from imgfs.quoting import printable
from imgfs.registry.config.shortnames import candidates
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Resolution, Store


def path(options: argparse.Namespace) -> int:
    """Say where the store is."""
    say(open_store(options).root)
    return 0


def ls(options: argparse.Namespace) -> int:
    """List images and layers with their sizes."""
    store = open_store(options)
    found = {
        "store": str(store.root),
        "limit": store.limit.read(),
        "images": [_image(resolution, store) for resolution in store.resolutions()],
        "layers": [_layer(layer) for layer in store.layers()],
    }
    say(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove images, layers or cached bytes."""
    if bool(options.names) == options.all:
        raise UsageError("store rm: name what to remove, or say --all")
    store = open_store(options)
    resolutions, layers = _named(options.names, options.all, store)
    if options.data:
        of_images = {digest for found in resolutions for digest in contents_of(found, store).layers}
        freed = evict([*layers, *(store.layer(digest) for digest in sorted(of_images))])
        say(f"{size(freed)} freed")
        return 0
    if not options.force:
        _refuse_mounted(resolutions, store)
    for resolution in resolutions:
        store.forget(resolution)
    for layer in layers:
        if not options.force and (layer.in_use() or layer.is_locked()):
            raise UsageError(f"layer {layer.digest.short} is in use: unmount its image first, or use --force")
        layer.remove()
    remove_unreachable(store, force=options.force)
    return 0


def _refuse_mounted(resolutions: Sequence[Resolution], store: Store) -> None:
    """Raise StoreError, before anything is removed, if one of the images is mounted.

    The mounts say which they are, by manifest. A container's mount is not seen here: what it has in use, and
    no mount that is seen, tells of it.
    """
    mounted = _mounted(store)
    for resolution in resolutions:
        if resolution.manifest in mounted:
            raise StoreError(f"{resolution.reference} is mounted: unmount it first, or use --force")
    explained = {digest for layers in mounted.values() for digest in layers}
    for resolution in resolutions:
        refuse_if_used(resolution, store, explained)


def _mounted(store: Store) -> dict[Digest, list[Digest]]:
    """The layers of each image, by its manifest, that is mounted out of this store."""
    found: dict[Digest, list[Digest]] = {}
    for mount in imgfs_mounts():
        with suppress(MountError, UsageError, KeyError):  # it does not answer: what it has in use tells of it
            status = read_status(mount)
            if os.path.realpath(status["store"]) == os.path.realpath(store.root):
                layers = [Digest.parse(layer["digest"]) for layer in status["layers"]]
                found[Digest.parse(status["digest"])] = layers
    return found


def _named(
    names: Sequence[str], everything: bool, store: Store
) -> tuple[list[Resolution], list[StoredLayer]]:
    """The images and layers that `names` mean."""
    resolutions, layers = list(store.resolutions()), list(store.layers())
    if everything:
        return resolutions, layers
    found_images: list[Resolution] = []
    found_layers: list[StoredLayer] = []
    for name in names:
        meant = _meant(name)
        images = [image for image in resolutions if _is_named(image, name) or image.reference in meant]
        parts = [layer for layer in layers if _has_digest(layer.digest, name)]
        if not images and not parts:
            raise UsageError(f"{name}: no such image or layer in {store.root} (see: imgfs store ls)")
        found_images += images
        found_layers += parts
    return found_images, found_layers


def _is_named(image: Resolution, digest: str) -> bool:
    return _has_digest(image.manifest, digest) or _has_digest(image.digest, digest)


def _meant(name: str) -> list[str]:
    """The references that a person may mean, whichever of them were mounted; none if it is no reference."""
    with suppress(UsageError):
        return [str(one) for one in candidates(name, Environment.read().registry_files.registries)]
    return []


def _has_digest(digest: Digest, name: str) -> bool:
    """Twelve digits are enough, with or without the algorithm."""
    wanted = name.removeprefix(f"{digest.algorithm}:")
    return len(wanted) >= 12 and digest.hex.startswith(wanted)


def _image(resolution: Resolution, store: Store) -> dict[str, Any]:
    layers = contents_of(resolution, store).layers
    return {
        "reference": resolution.reference,
        "digest": str(resolution.manifest),
        "resolved": int(resolution.resolved),
        "layers": [str(digest) for digest in layers],
        "disk": sum(store.layer(digest).disk_usage() for digest in layers),
        "tree": store.tree(resolution.manifest) is not None,
    }


def _layer(layer: StoredLayer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "digest": str(layer.digest),
        "disk": layer.disk_usage(),
        "in_use": layer.in_use(),
        "last_used": int(layer.last_used()),
    }
    index = layer.index
    if index is None:
        return {**found, "state": "being indexed" if layer.is_locked() else "incomplete"}
    with LayerIndex(index) as opened:
        summary, spans, binding = opened.summary, opened.span_count(), opened.binding()
    flat = layer.flat(size=summary.flat_size, spans=spans)
    present = flat.count_present() if flat.is_bound_to(binding) else 0
    flat.close()
    sizes = {"size": summary.size, "flat_size": summary.flat_size, "entries": summary.entries}
    return {
        **found,
        "state": "indexed",
        "format": summary.format,
        **sizes,
        "spans": spans,
        "present": present,
    }


def _text(found: dict[str, Any]) -> str:
    lines = [f"{'IMAGE':<52} {'DIGEST':<12} {'LAYERS':>6} {'ON DISK':>9}  RESOLVED"]
    for image in found["images"]:
        short = image["digest"].partition(":")[2][:12]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(image["resolved"]))
        sizes = f"{len(image['layers']):>6} {size(image['disk']):>9}"
        lines.append(f"{printable(image['reference']):<52} {short:<12} {sizes}  {when}")
    lines += ["", f"{'LAYER':<12} {'FORMAT':<6} {'SIZE':>9} {'FLAT':>9} {'ON DISK':>9} {'CACHED':>7}  STATE"]
    for layer in found["layers"]:
        short = layer["digest"].partition(":")[2][:12]
        sizes = (
            f"{size(layer.get('size', 0)):>9} {size(layer.get('flat_size', 0)):>9} {size(layer['disk']):>9}"
        )
        cached = f"{100 * layer['present'] // max(1, layer['spans'])} %" if "spans" in layer else "-"
        state = layer["state"] + (", in use" if layer["in_use"] else "")
        lines.append(f"{short:<12} {layer.get('format', '-'):<6} {sizes} {cached:>7}  {state}")
    return "\n".join(lines)

"""imgfs store rm: remove images, layers or cached bytes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.options import Commands as Actions
from imgfs.cli.output import say
from imgfs.errors import MountError, StoreError, UsageError

if TYPE_CHECKING:
    from imgfs.oci.descriptor import Digest
    from imgfs.store.layer import StoredLayer
    from imgfs.store.store import Resolution, Store


def add_rm(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser("rm", help="remove images, layers or cached bytes")
    command.set_defaults(run=rm)
    command.add_argument("names", metavar="IMAGE|DIGEST", nargs="*", help="as `imgfs store ls` shows them")
    command.add_argument("--all", action="store_true", help="everything")
    command.add_argument(
        "--data", action="store_true", help="only cached bytes, which are fetched again when they are read"
    )
    command.add_argument("--force", action="store_true", help="also what a mount is using")
    return command


def rm(options: argparse.Namespace) -> int:
    """Remove images, layers or cached bytes."""
    from imgfs.cli.selection import open_store
    from imgfs.maintenance.gc import contents_of, evict, remove_unreachable

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

    Mounts have their manifest in their status. A container's mount is not visible here: locks of layers that
    no visible mount explains show it.
    """
    from imgfs.maintenance.gc import refuse_if_used

    mounted = _mounted(store)
    for resolution in resolutions:
        if resolution.manifest in mounted:
            raise StoreError(f"{resolution.reference} is mounted: unmount it first, or use --force")
    explained = {digest for layers in mounted.values() for digest in layers}
    for resolution in resolutions:
        refuse_if_used(resolution, store, explained)


def _mounted(store: Store) -> dict[Digest, list[Digest]]:
    """Return the layers of each image that is mounted from this store, by its manifest."""
    from imgfs.mounts.status_client import read_status
    from imgfs.mounts.table import imgfs_mounts
    from imgfs.oci.descriptor import Digest

    found: dict[Digest, list[Digest]] = {}
    for mount in imgfs_mounts():
        with suppress(
            MountError, UsageError, KeyError
        ):  # the daemon does not answer: its locks show what it uses
            status = read_status(mount)
            if os.path.realpath(status["store"]) == os.path.realpath(store.root):
                layers = [Digest.parse(layer["digest"]) for layer in status["layers"]]
                found[Digest.parse(status["digest"])] = layers
    return found


def _named(
    names: Sequence[str], everything: bool, store: Store
) -> tuple[list[Resolution], list[StoredLayer]]:
    """Return the images and layers that `names` name."""
    resolutions, layers = list(store.resolutions()), list(store.layers())
    if everything:
        return resolutions, layers
    found_images: list[Resolution] = []
    found_layers: list[StoredLayer] = []
    for name in names:
        references = _references(name)
        images = [image for image in resolutions if _is_named(image, name) or image.reference in references]
        parts = [layer for layer in layers if _has_digest(layer.digest, name)]
        if not images and not parts:
            raise UsageError(f"{name}: no such image or layer in {store.root} (see: imgfs store ls)")
        found_images += images
        found_layers += parts
    return found_images, found_layers


def _is_named(image: Resolution, digest: str) -> bool:
    return _has_digest(image.manifest, digest) or _has_digest(image.digest, digest)


def _references(name: str) -> list[str]:
    """Return the references that a short name may stand for; none if it is no reference."""
    from imgfs.config import Environment
    from imgfs.registry.config.shortnames import candidates

    with suppress(UsageError):
        return [str(one) for one in candidates(name, Environment.read().registry_files.registries)]
    return []


def _has_digest(digest: Digest, name: str) -> bool:
    """Return True if `name` is a digest's beginning, of twelve digits at least, with or without algorithm."""
    wanted = name.removeprefix(f"{digest.algorithm}:")
    return len(wanted) >= 12 and digest.hex.startswith(wanted)

"""imgfs store path, rm, check: where the cache is, what is removed from it, and whether it is right.

`store_list` has ls, and `prune` the two that free disk space.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from imgfs.cli.format import size
from imgfs.cli.options import Commands, add_command, json_option, open_store, store_option, store_root
from imgfs.cli.output import say
from imgfs.cli.prune import add_limit, add_prune
from imgfs.cli.store_list import add_ls
from imgfs.errors import InvalidImage, MountError, StoreError, UsageError
from imgfs.quoting import printable
from imgfs.variables import account, store_directory, variables

if TYPE_CHECKING:
    import argparse

    from imgfs.maintenance.fsck import Fault
    from imgfs.oci.descriptor import Digest
    from imgfs.store.layer import StoredLayer
    from imgfs.store.store import Resolution, Store


def add_store(commands: Commands) -> None:
    """`imgfs store`."""
    command = commands.add_parser(
        "store",
        help="show, limit, prune or check what is kept in the cache directory",
        description="""\
Indexes, trees and cached bytes are kept in one directory, shared by all mounts and images.

Examples:
  imgfs store path
  imgfs store ls                       images and layers, with sizes
  imgfs store rm debian:12             an image, and the layers only it uses
  imgfs store rm --data debian:12      its cached bytes; its indexes stay
  imgfs store rm --all
  imgfs store limit 20G                keep no more than 20 GB of cached bytes
  imgfs store prune --keep 5G          free disk space now
  imgfs store check --repair           after trouble with the disk

Each has its own help: imgfs store prune --help
""",
    )
    actions = command.add_subparsers(metavar="path|ls|rm|limit|prune|check", required=True)
    for add in (_add_path, add_ls, _add_rm, add_limit, add_prune, _add_check):
        store_option(add(actions))


def _add_path(actions: Commands) -> argparse.ArgumentParser:
    text = """\
Prints the path of the cache directory: $IMGFS_STORE; else for root /var/cache/imgfs, for others
$XDG_CACHE_HOME/imgfs or ~/.cache/imgfs.

Examples:
  imgfs store path
  du -sh "$(imgfs store path)"
"""
    return add_command(actions, "path", path, "print its path", text)


def path(options: argparse.Namespace) -> int:
    """Print the store's path."""
    environ = variables()
    usual = store_directory(environ, account(environ, os.geteuid()))
    say(store_root(options) if options.store else usual.rstrip("/"))
    return 0


def _add_rm(actions: Commands) -> argparse.ArgumentParser:
    text = """\
Removes an image, and the layers that only it uses; or a layer, by its digest's first twelve digits or more.
What is mounted is refused.

Examples:
  imgfs store rm debian:12
  imgfs store rm --data debian:12      its cached bytes; its indexes stay
  imgfs store rm 0123456789ab          a layer, as `imgfs store ls` shows it
  imgfs store rm --all
"""
    command = add_command(actions, "rm", rm, "remove images, layers or cached bytes", text)
    command.add_argument(
        "names", metavar="IMAGE|DIGEST", nargs="*", default=[], help="as `imgfs store ls` shows them"
    )
    command.add_argument("--all", action="store_true", help="everything")
    command.add_argument(
        "--data", action="store_true", help="only cached bytes, which are fetched again when they are read"
    )
    command.add_argument("--force", action="store_true", help="also what a mount is using")
    return command


def rm(options: argparse.Namespace) -> int:
    """Remove images, layers or cached bytes."""
    from imgfs.maintenance.gc import contents_of, evict, remove_unreachable

    if bool(options.names) == options.all:
        raise UsageError("name what to remove: IMAGE|DIGEST…, or --all")
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
        # the daemon does not answer: its locks show what it uses
        with suppress(MountError, InvalidImage):
            status = read_status(mount)
            if os.path.realpath(status.store) == os.path.realpath(store.root):
                layers = [Digest.parse(layer.digest) for layer in status.layers]
                found[Digest.parse(status.digest)] = layers
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


def _add_check(actions: Commands) -> argparse.ArgumentParser:
    command = actions.add_parser(
        "check",
        help="verify everything in the store",
        description="""\
Reads the whole store and verifies documents by their digests, indexes and trees by their checksums, cached
bytes by the digests known of them, or by their layer's DiffID. Cached bytes of a compressed
layer that is not here whole cannot be checked: --strict counts them as wrong. Exits with 1 if something is
wrong and has been left as it is.

Examples:
  imgfs store check                    look only
  imgfs store check --repair           remove what is wrong: it is fetched or made again when it is needed
  imgfs store check --repair --strict  after trouble with the disk, keep only what is known to be right
""",
    )
    command.set_defaults(run=check)
    command.add_argument("--repair", action="store_true", help="remove what is wrong")
    command.add_argument("--strict", action="store_true", help="count what cannot be checked as wrong")
    json_option(command)
    return command


def check(options: argparse.Namespace) -> int:
    """Verify everything in the store, and with --repair remove what is wrong."""
    import json

    from imgfs.maintenance.fsck import check as check_store

    store = open_store(options)
    found, left = [], 0
    for fault in check_store(store):
        state = _mended(fault) if options.repair and _counts(fault, options) else _judged(fault, options)
        left += state in ("wrong", "not removed")
        found.append({"file": str(fault.where), "what": fault.what, "state": state})
        if not options.json:
            line = f"{fault.where.relative_to(store.root)}: {fault.what}: {state}"
            say(printable(line), flush=True)
    if options.json:
        say(json.dumps({"store": str(store.root), "found": found}, indent=2))
    elif not found:
        say(f"{store.root}: everything is what it was")
    return int(left > 0)


def _counts(fault: Fault, options: argparse.Namespace) -> bool:
    return options.strict or not fault.is_doubt


def _judged(fault: Fault, options: argparse.Namespace) -> str:
    return "wrong" if _counts(fault, options) else "unknown"


def _mended(fault: Fault) -> str:
    try:
        fault.mend()
    except (StoreError, OSError):
        return "not removed"
    return "removed"

"""imgfs podman: images that podman, buildah and CRI-O use without pulling them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, driver_option, image_options, json_option
from imgfs.cli.output import complain, say
from imgfs.errors import ImgfsError, MountError, UsageError

if TYPE_CHECKING:
    from imgfs.engines.podman_store import PodmanImage, PodmanStore
    from imgfs.image.resolve import Resolved
    from imgfs.store.store import Store

_ROOT = "/var/lib/imgfs/podman"


def add_podman(commands: Commands) -> None:
    """`imgfs podman`."""
    command = commands.add_parser(
        "podman",
        help="serve images to podman, buildah and CRI-O, lazily",
        description=f"""\
Keeps a store of images for podman, each a mount: podman has them at once, and reads what it needs. As root,
or as an ordinary user inside `podman unshare`, where podman has its mounts. podman is told of the store by
--storage-opt, or for ever in /etc/containers/storage.conf:

  [storage.options]
  additionalimagestores = ["{_ROOT}"]

Nothing of podman works, `podman unshare` neither, while a store that is named there is missing: add an image
first, or make the directory.

Examples:
  imgfs podman add docker.io/library/debian:12
  podman --storage-opt additionalimagestore={_ROOT} run --rm docker.io/library/debian:12 ls
  imgfs podman ls
  imgfs podman rm docker.io/library/debian:12
  podman unshare imgfs podman add docker.io/library/debian:12      as an ordinary user
""",
    )
    actions = command.add_subparsers(metavar="add|ls|rm", required=True)
    for action in (_add_add(actions), _add_ls(actions), _add_rm(actions)):
        action.add_argument(
            "--root",
            metavar="DIR",
            help=f"the store (default: {_ROOT}, inside `podman unshare` ~/.local/share/imgfs/podman)",
        )


def _add_add(actions: Commands) -> argparse.ArgumentParser:
    command = add_command(
        actions,
        "add",
        add,
        "mount an image for podman",
        """\
Mounts IMAGE and lists it in the store. After a restart of the machine, the same again mounts it again.

Examples:
  imgfs podman add docker.io/library/debian:12
""",
    )
    image_options(command)
    driver_option(command)
    return command


def _add_ls(actions: Commands) -> argparse.ArgumentParser:
    command = add_command(
        actions, "ls", ls, "list the images", "List the images.\n\nExamples:\n  imgfs podman ls\n"
    )
    json_option(command)
    return command


def _add_rm(actions: Commands) -> argparse.ArgumentParser:
    command = add_command(
        actions,
        "rm",
        rm,
        "unmount and forget images",
        """\
Unmounts images and forgets them; of one that has other names it forgets that name alone. Not one that
containers and images stand upon, but with --force: those in the stores of podman (storage.conf) and of CRI-O
(crio.conf) are found, and what runs, wherever its store is; what does not run, in a store that only
`podman --root DIR` names, with --podman-root DIR.

Examples:
  imgfs podman rm docker.io/library/debian:12
  imgfs podman rm --podman-root /srv/ci/storage docker.io/library/debian:12
""",
    )
    command.add_argument(
        "--podman-root",
        metavar="DIR",
        action="append",
        default=[],
        help="a further store of podman's to look into, as `podman --root` has it; may be repeated",
    )
    command.add_argument("names", metavar="IMAGE", nargs="+", help="its name or id, as ls shows it")
    command.add_argument(
        "-f", "--force", action="store_true", help="even if an engine uses it: what does is broken"
    )
    return command


def add(options: argparse.Namespace) -> int:
    """Mount an image for podman."""
    from imgfs.cli.engine_server import mounts_survive
    from imgfs.cli.selection import select_image
    from imgfs.mount.daemon import Mounting
    from imgfs.mount.options import MountOptions
    from imgfs.mounts.mountpoint import checked_mountpoint
    from imgfs.mounts.unmount import detach_all
    from imgfs.oci.reference import RegistryReference

    store = _store(options)
    with Mounting.fork(writable=False, offline=options.offline) as mounting:
        image = select_image(options)
        if not isinstance(image.reference, RegistryReference):
            raise UsageError(f"{image.reference}: podman names images by a registry: copy it to one")
        resolved = image.prepare()
        shown = _shown(resolved, image.store)
        place = store.prepare(shown)
        if not _is_mounted(place):
            detach_all(place)
            with checked_mountpoint(place, nonempty=False) as checked:
                how = MountOptions(
                    mountpoint=place,
                    fuse=frozenset({"allow_other", "suid", "dev"}),
                    driver=options.driver,
                    trust=image.trust,
                    checked=checked,
                    restart=mounts_survive(),
                )
                mounting.mount(resolved, image.connect, image.store, how)
        store.add(shown)
    say(shown.name)
    return 0


def ls(options: argparse.Namespace) -> int:
    """List the images."""
    store = _store(options)
    images = store.images()
    if options.json:
        say(json.dumps([{**one, "mounted": _is_mounted(store.diff(str(one["layer"])))} for one in images]))
        return 0
    for one in images:
        names = one.get("names")
        name = ", ".join(map(str, names)) if isinstance(names, list) and names else "<none>"
        state = "" if _is_mounted(store.diff(str(one["layer"]))) else "  (not mounted)"
        say(f"{str(one['id'])[:12]}  {name}{state}")
    return 0


def rm(options: argparse.Namespace) -> int:
    """Unmount and forget images: all are tried, and each that fails is told."""
    code = 0
    further = [_podmans_store(Path(place).absolute()) for place in options.podman_root]
    for name in options.names:
        try:
            _remove(_store(options), name, further, force=options.force)
        except ImgfsError as error:
            complain(error)
            code = 1
    return code


def _podmans_store(place: Path) -> Path:
    """Return the path if it is a store of podman's: any other would seem to use nothing."""
    if not (place / "overlay-layers").is_dir():
        raise UsageError(f"--podman-root: {place} is not a store of podman's: it has no overlay-layers")
    return place


def _remove(store: PodmanStore, name: str, further: Iterable[Path], *, force: bool) -> None:
    from imgfs.engines.podman_users import users_of
    from imgfs.mounts.unmount import detach_all

    image = store.find(name)
    if store.forget_name(image, name):
        say(name)
        return
    layer = str(image["layer"])
    if not force and (users := users_of(layer, store.link(layer), further)):
        raise MountError(f"{name}: {users} (--force removes it all the same)")
    others = [one for one in store.images() if one["layer"] == layer and one["id"] != image["id"]]
    if not others:
        detach_all(store.diff(layer))
    store.remove(image)
    say(name)


def _store(options: argparse.Namespace) -> PodmanStore:
    from imgfs.cli.engine_server import checked_path
    from imgfs.config import podman_images
    from imgfs.engines.podman_store import PodmanStore
    from imgfs.variables import variables

    if os.geteuid():
        raise UsageError(
            "an ordinary user's podman sees mounts of its own namespace: podman unshare imgfs podman …"
        )
    root = options.root or podman_images(variables(), os.geteuid())
    return PodmanStore(checked_path(Path(root)))


def _shown(resolved: Resolved, store: Store) -> PodmanImage:
    """Return an image, which is prepared, as podman is shown it."""
    from dataclasses import replace

    from imgfs.engines.podman_store import PodmanImage
    from imgfs.image.trust import open_index
    from imgfs.oci.image import chain_id
    from imgfs.oci.reference import parse_reference

    wanted = resolved.manifest.config.digest
    manifest, config = store.document(resolved.digest), store.document(wanted)
    if manifest is None or config is None:
        raise UsageError(f"{resolved.reference}: its manifest is not kept: copy it to a registry or a layout")
    size = 0
    for layer in resolved.manifest.layers:
        with open_index(store.layer(layer.digest)) as index:
            size += index.summary.flat_size
    reference = parse_reference(resolved.reference)
    return PodmanImage(
        name=str(replace(reference, digest=None) if reference.tag else reference),
        manifest=manifest,
        manifest_digest=resolved.digest,
        config=config,
        config_digest=wanted,
        chain=chain_id(resolved.config.diff_ids),
        size=size,
        created=resolved.config.created,
    )


def _is_mounted(place: Path) -> bool:
    from imgfs.engines.liveness import is_answering

    return is_answering(place)

"""imgfs bundle: write an OCI runtime bundle with the image mounted in it, for another engine to run."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from imgfs.cli.container_mount import bundle_mount_options, scratch_of
from imgfs.cli.container_options import container_options, image_and_command
from imgfs.cli.container_request import request_of
from imgfs.cli.container_setup import container_in, settled
from imgfs.cli.options import Commands, add_command
from imgfs.cli.output import warn
from imgfs.cli.selection import select_image
from imgfs.errors import UsageError
from imgfs.mount.daemon import Mounting
from imgfs.mounts.mountpoint import check_mountable
from imgfs.mounts.table import imgfs_mount_at
from imgfs.mounts.unmount import unmount
from imgfs.oci.descriptor import Platform
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.devices import complete_host_facts
from imgfs.runtime.emulation import emulators_to_show
from imgfs.runtime.host import unbarred_devices
from imgfs.runtime.host_facts import HostFacts, IdMaps, IdRange
from imgfs.runtime.request import ImageDefaults
from imgfs.runtime.rootfs import Rootfs
from imgfs.runtime.spec import runtime_config


def add_bundle(commands: Commands) -> None:
    """`imgfs bundle`."""
    command = add_command(
        commands,
        "bundle",
        bundle,
        "make an OCI runtime bundle of an image, for another engine",
        """\
Writes DIR/config.json and mounts IMAGE at DIR/rootfs, for an OCI runtime to run. The image's volumes are not
mounts of their own there. Unmount it with: imgfs umount DIR/rootfs

Examples:
  imgfs bundle debian:12 ./box
  runc run -b ./box name
  imgfs bundle --scratch work debian:12 ./box bash -c 'echo hello >/greeting'
""",
        own_h=True,
    )
    command.usage = "imgfs bundle [OPTIONS] IMAGE DIR [CMD…]"
    container_options(command)
    image_and_command(command, directory=True)


def bundle(options: argparse.Namespace) -> int:
    """Write a bundle with the image mounted in it, for another engine; raises ImgfsError."""
    request = request_of(options)
    if request.volumes:
        raise UsageError(f"{request.volumes[0].target}: a bundle has no volumes; for a directory: DIR:DST")
    if named := next((one for one in request.binds if one.volume), None):
        raise UsageError(
            f"{named.source!r}: a bundle has no named volumes; for a directory: ./{named.source}"
        )
    made = Bundle(Path(options.directory).absolute())
    made.begin()
    check_mountable(made.rootfs, nonempty=False)
    uid, gid, is_root = os.getuid(), os.getgid(), os.geteuid() == 0
    maps: IdMaps | None = None if is_root else ((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))
    with Mounting.fork(writable=True) as mounting:
        image = select_image(options)
        resolved = image.prepare(mounting=mounting)
        how = bundle_mount_options(
            made, scratch_of(options, image), (uid, gid) if maps else None, options, for_all=is_root
        )
        mounting.mount(resolved, image.connect, image.store, how)
    try:
        defaults = ImageDefaults.parse(resolved.config.config)
        rootfs = Rootfs(made.rootfs)
        host = complete_host_facts(HostFacts(maps=maps, single_id=maps is not None), request)
        container = container_in(made.directory.name, rootfs, defaults, request, host, maps)
        if unbarred := unbarred_devices(request, host):
            warn(unbarred)
        host = replace(host, emulators=emulators_to_show(resolved.config.platform, Platform.host()))
        config = runtime_config(resolved.config, request, container, host)
        made.write_config(settled(config, rootfs, host), indent=1)
    except BaseException:
        unmount(imgfs_mount_at(made.rootfs))
        raise
    if is_root and made.is_open_to_others():
        warn(f"{made.directory}: other users may run the image's set-uid programs here: chmod go-x it")
    return 0

"""imgfs mount, umount, ps."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgfs.errors import MountError, UsageError
from imgfs.mounts.mountpoint import check_mountable
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import Mount, imgfs_mount_at, imgfs_mounts
from imgfs.mounts.unmount import unmount

if TYPE_CHECKING:
    from imgfs.cli.images import Wanted
    from imgfs.mount.serving import MountOptions
    from imgfs.overlay.scratch import Scratch
    from imgfs.store.store import Store


def mount(options: argparse.Namespace) -> int:
    """Mount an image."""
    from imgfs.mount.daemon import Mounting, mount_in_foreground

    if options.fill and options.offline:
        raise UsageError("--fill fetches everything, --offline nothing: say one of them")
    if options.foreground:
        image, how = _meant(options)
        mount_in_foreground(image.prepare(options.upto_layer), image.connect, image.store, how)
    with Mounting.fork() as mounting:
        image, how = _meant(options)
        mounting.mount(image.prepare(options.upto_layer), image.connect, image.store, how)
    return 0


def _meant(options: argparse.Namespace) -> tuple[Wanted, MountOptions]:
    """What to mount, and how; raises ImgfsError before anything is fetched, if it cannot be."""
    from imgfs.cli.images import wanted
    from imgfs.content.background import BackgroundFetchOptions
    from imgfs.mount.serving import MountOptions

    image = wanted(options)
    scratch = _scratch(options, image.store)
    squashed = options.squash_owner or (scratch is not None and os.geteuid() != 0)
    how = MountOptions(
        mountpoint=Path(os.path.abspath(options.mountpoint)),
        fuse=_fuse_options(options.fuse_options),
        owner=(os.getuid(), os.getgid()) if squashed else None,
        log_level=options.log_level.upper(),
        foreground=options.foreground,
        scratch=scratch,
        write_through=options.write_through,
        record=options.record,
        replay=options.replay,
        fill=BackgroundFetchOptions(options.limit_rate) if options.fill else None,
        metrics=options.metrics,
        driver=options.driver,
        trust=image.trust,
    )
    if "rw" in how.fuse and scratch is None:
        raise UsageError("-o rw: an image never changes; --rw or --scratch keeps what you change beside it")
    check_mountable(how.mountpoint, nonempty="nonempty" in how.fuse)
    return image, how


def umount(options: argparse.Namespace) -> int:
    """Unmount one or several, all of which are tried; raises MountError, having told of all but the last."""
    if options.all == bool(options.mountpoints):
        raise UsageError("say which to unmount: MOUNTPOINT…, or --all")
    failed: list[MountError] = []
    for path in _all() if options.all else options.mountpoints:
        try:
            unmount(imgfs_mount_at(Path(path)), lazy=options.lazy)
        except MountError as error:
            failed.append(error)
    for other in failed[:-1]:
        print(f"imgfs: {other}", file=sys.stderr)
    if failed:
        raise failed[-1]
    return 0


def _all() -> list[Path]:
    """Where this user's mounts are, the latest first; root's are all."""
    mine = (mount for mount in imgfs_mounts() if os.geteuid() in (0, mount.user))
    return [mount.mountpoint for mount in mine][::-1]


def ps(options: argparse.Namespace) -> int:
    """List the mounts."""
    found = [_shown(mount) for mount in imgfs_mounts()]
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{'MOUNTPOINT':<28} {'IMAGE':<44} {'DRIVER':<7} {'PID':>7}  SCRATCH")
    for one in found:
        pid = "?" if one["pid"] is None else str(one["pid"])
        scratch = one["scratch"] or "-"
        print(f"{one['mountpoint']:<28} {one['image']:<44} {one['driver']:<7} {pid:>7}  {scratch}")
    return 0


def _shown(mount: Mount) -> dict[str, Any]:
    """A mount, and of its daemon, if it answers, who it is and what scratch it has."""
    status: dict[str, Any] = {}
    with contextlib.suppress(MountError):
        status = read_status(mount)
    scratch = status.get("scratch") or {}
    return {
        "mountpoint": str(mount.mountpoint),
        "image": mount.name,
        "driver": "kernel" if mount.runtime else "fuse",
        "pid": status.get("pid"),
        "scratch": scratch.get("name"),
    }


def _scratch(options: argparse.Namespace, store: Store) -> Scratch | None:
    """The scratch that --rw and --scratch ask for."""
    from imgfs.overlay.scratch import find_scratch, volatile_scratch

    if options.scratch is not None:
        return find_scratch(options.scratch, store.root)
    return volatile_scratch(store.root) if options.rw else None


def _fuse_options(given: list[str]) -> frozenset[str]:
    """The -o options; root's mounts are for everybody, as mounts of the kernel's own are."""
    names = {name for text in given for name in text.split(",") if name}
    return frozenset(names | ({"allow_other"} if os.geteuid() == 0 else set()))

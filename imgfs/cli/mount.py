"""imgfs mount, umount, status."""

from __future__ import annotations

import argparse
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from imgfs.cli.text import size
from imgfs.mounts import check_mountable, our_mount_at, read_status, unmount
from imgfs.overlay.scratch import Scratch, named, volatile
from imgfs.store import Store


def mount(options: argparse.Namespace) -> int:
    """Mount an image."""
    from imgfs.cli.images import wanted
    from imgfs.content import FillOptions
    from imgfs.mount import MountOptions
    from imgfs.mount import mount as mount_image

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
        fill=FillOptions(options.limit_rate) if options.fill else None,
    )
    check_mountable(how.mountpoint, nonempty="nonempty" in how.fuse)
    mount_image(image.prepare(options.upto_layer), image.connect, image.store, how)
    return 0


def umount(options: argparse.Namespace) -> int:
    """Unmount."""
    unmount(our_mount_at(Path(options.mountpoint)), lazy=options.lazy)
    return 0


def status(options: argparse.Namespace) -> int:
    """Show what a mount has fetched and served."""
    found = read_status(our_mount_at(Path(options.mountpoint)))
    print(json.dumps(found, indent=2) if options.json else _status_text(found))
    return 0


def _scratch(options: argparse.Namespace, store: Store) -> Scratch | None:
    """The scratch that --rw and --scratch ask for."""
    if options.scratch is not None:
        return named(options.scratch, store.root)
    return volatile(store.root) if options.rw else None


def _fuse_options(given: list[str]) -> frozenset[str]:
    """The -o options; root's mounts are for everybody, as mounts of the kernel's own are."""
    names = {name for text in given for name in text.split(",") if name}
    return frozenset(names | ({"allow_other"} if os.geteuid() == 0 else set()))


def _status_text(found: dict[str, Any]) -> str:
    lines = [
        f"image     {found['image']}",
        f"digest    {found['digest']}",
        f"platform  {found['platform']}",
        f"mounted   {found['mountpoint']}, {found['seconds']:.0f} s ago, by pid {found['pid']}",
        *_scratch_line(found.get("scratch")),
        *_fill_line(found.get("fill")),
        f"fetched   {size(found['bytes_fetched'])} in {found['requests_fetched']} requests",
        f"served    {size(found['bytes_served'])}",
        "layers",
    ]
    for layer in found["layers"]:
        there = f"{layer['spans_present']}/{layer['spans']} spans here"
        fetched = f"{size(layer['bytes_fetched'])} fetched"
        short = layer["digest"].partition(":")[2][:12]
        lines.append(f"  {short}  {layer['format']:12}  {size(layer['size']):>8}  {there:>22}  {fetched}")
        lines += _layer_lines(layer)
    return "\n".join(lines)


def _layer_lines(layer: dict[str, Any]) -> list[str]:
    """What was fetched for which reason, and how much of that has been read; and what went wrong last."""
    parts = [
        f"{cause} {size(brought['bytes'])}, {100 * brought['bytes_used'] // brought['bytes']} % used"
        for cause, brought in layer["brought"].items()
        if brought["bytes"]
    ]
    lines = [f"      {'; '.join(parts)}"] if parts else []
    if error := layer["last_error"]:
        when = datetime.fromtimestamp(error["time"]).isoformat(" ", "seconds")
        lines.append(f"      {layer['errors']} errors, the last at {when}: {error['text']}")
    return lines


def _fill_line(fill: dict[str, Any] | None) -> list[str]:
    return [f"fill      {fill['state']}, {size(fill['missing'])} missing"] if fill else []


def _scratch_line(scratch: dict[str, Any] | None) -> list[str]:
    if scratch is None:
        return []
    return [f"scratch   {scratch['name']}" if scratch["kept"] else "scratch   goes with the mount"]

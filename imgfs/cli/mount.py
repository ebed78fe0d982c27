"""imgfs mount: show an image at an empty directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import (
    Commands,
    add_command,
    driver_option,
    image_options,
    log_level_option,
    rate,
    refusal,
)
from imgfs.cli.output import warn
from imgfs.errors import UsageError

if TYPE_CHECKING:
    import argparse

    from imgfs.cli.first_request import FirstRequest
    from imgfs.cli.selection import ImageSelection
    from imgfs.content.background import BackgroundFetchOptions
    from imgfs.image.resolve import Resolved
    from imgfs.metrics.endpoint import MetricsAddress
    from imgfs.mount.daemon import Mounting
    from imgfs.mount.options import MountOptions
    from imgfs.overlay.scratch import Scratch
    from imgfs.store.store import Store

# Options that libfuse 3 knows (lib/mount.c, fuse_mount_opts; lib/fuse_lowlevel.c, fuse_ll_opts), and imgfs's
# own: with others it would refuse the mount after the image has been fetched.
_FUSE_FLAGS = {
    "allow_other", "allow_root", "async", "atime", "auto_unmount", "blkdev", "debug", "default_permissions",
    "dev", "diratime", "dirsync", "exec", "history", "noatime", "nodev", "nodiratime", "noexec", "nonempty",
    "nopassthrough", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "relatime", "ro", "rw",
    "strictatime", "suid", "symfollow", "sync",
}  # fmt: skip
_FUSE_SETTINGS = {"blksize", "context", "defcontext", "fscontext", "max_read", "rootcontext", "user"}


def add_mount(commands: Commands) -> None:
    """`imgfs mount`."""
    command = add_command(
        commands,
        "mount",
        mount,
        "mount an image",
        """\
Mounts IMAGE at MOUNTPOINT, an empty directory, and returns when the mount is ready. The image never changes:
with --rw or --scratch, changes are kept beside it.
A layer without an index is streamed once; after that it is read lazily (see: imgfs index).

Examples:
  imgfs mount debian:12 /mnt
  imgfs mount --squash-owner registry.example.com/team/app:v2 ~/app
  imgfs mount --platform linux/arm64 debian:12 /mnt
  imgfs mount --rw debian:12 /mnt      change it; the changes go when it is unmounted
  imgfs mount --scratch work debian:12 /mnt
  imgfs mount --record start app:v2 /mnt && /mnt/app/start && imgfs umount /mnt && imgfs index push app:v2
  imgfs mount --fill --limit-rate 2M debian:12 /mnt
  imgfs pull debian:12 && imgfs mount --offline debian:12 /mnt
  imgfs mount -f -o suid,dev debian:12 /mnt
  mount -t fuse.imgfs debian:12 /mnt -o platform=linux/arm64
""",
    )
    image_options(command)
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory")
    command.add_argument("-f", "--foreground", action="store_true", help="stay until it is unmounted")
    command.add_argument(
        "--squash-owner", action="store_true", help="show every file as owned by you, so that you may read it"
    )
    command.add_argument(
        "--upto-layer",
        metavar="N|DIGEST",
        help="the image as it was after an earlier layer, counted from 1 as `imgfs inspect` lists them",
    )
    _change_options(command)
    _fetch_options(command)
    _daemon_options(command)


def _change_options(command: argparse.ArgumentParser) -> None:
    """Add whether the mount is writable, and where its changes are kept."""
    command.add_argument(
        "--rw", action="store_true", help="make it writable; the changes are removed with the mount"
    )
    command.add_argument(
        "--scratch",
        metavar="NAME|DIR",
        help="make it writable, and keep the changes: by name in the store, or in a directory (has a slash)",
    )
    command.add_argument(
        "--write-through",
        action="store_true",
        help="lose nothing written to a scratch even if the daemon is killed; slower",
    )


def _fetch_options(command: argparse.ArgumentParser) -> None:
    """Add what is fetched before it is read, and what is recorded for that."""
    command.add_argument(
        "--record",
        metavar="PROFILE",
        help="record what is read, in its order, as a profile (default: as `auto`, for the next mount)",
    )
    command.add_argument(
        "--replay",
        metavar="PROFILE",
        help="prefetch what a profile has recorded; none: nothing (default: `default`, else `auto`)",
    )
    command.add_argument(
        "--no-predict",
        action="store_true",
        help="fetch nothing because of what is opened: no libraries of a program, no modules beside one",
    )
    command.add_argument(
        "--fill", action="store_true", help="fetch everything in the background, while no read waits"
    )
    command.add_argument(
        "--limit-rate",
        metavar="RATE",
        type=rate,
        help="limit --fill, in bytes per second: 500k, 2M (default: none)",
    )


def _daemon_options(command: argparse.ArgumentParser) -> None:
    """Add how the mount is served."""
    command.add_argument(
        "--metrics",
        metavar="ADDRESS",
        type=_address,
        help="serve the status to Prometheus at [HOST:]PORT (default: on loopback) or unix:PATH",
    )
    command.add_argument(
        "--restart",
        action="store_true",
        help="start the daemon again if it is killed: readers wait meanwhile, and go on (Linux 6.9)",
    )
    command.add_argument(
        "--exit-idle",
        metavar="SECONDS",
        type=_idle_seconds,
        help="with --restart: end the daemon, which frees its memory, once nothing was read for so long, or "
        "5 seconds where `imgfs serve` runs; the next reader has it started again",
    )
    driver_option(command)
    command.add_argument(
        "-o",
        dest="fuse_options",
        metavar="OPT[,OPT…]",
        action="append",
        default=[],
        help="FUSE options: allow_other (root: always), suid, dev, noexec, nonempty, …; nopassthrough: with "
        "the kernel driver, all data is read through imgfs; history: .imgfs/layers/N is what layer N left",
    )
    log_level_option(command, "how much the daemon logs")


def _idle_seconds(text: str) -> float:
    if text.isascii() and text.isdecimal() and 0 < int(text[:9]) == int(text):
        return float(text)
    raise refusal(f"{text!r} is not a number of seconds, 1 or more")


def _address(text: str) -> MetricsAddress:
    from imgfs.metrics.endpoint import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        raise refusal(str(error)) from error


def mount(options: argparse.Namespace) -> int:
    """Mount an image."""
    from imgfs.mount.daemon import Mounting, mount_in_foreground

    if options.fill and options.offline:
        raise UsageError("--fill fetches everything, --offline nothing: say one of them")
    if options.foreground:
        with _plan(options) as (image, how):
            resolved = _prepared(image, options, how)
            mount_in_foreground(resolved, image.connect, image.store, how)
    forked, options.mounting = options.mounting, None  # the daemon is sent the options, to open sources by
    with ExitStack() as stack:
        first = None if forked else _first_request(options, stack)
        writable = options.rw or options.scratch is not None
        begun = forked or Mounting.fork(
            writable=writable, offline=options.offline, driver=options.driver, fetches=first is not None
        )
        mounting = stack.enter_context(begun)
        if first:
            first.send()
        image, how = stack.enter_context(_plan(options, first))
        resolved = _prepared(image, options, how, mounting, first)
        mounting.mount(resolved, image.connect, image.store, how)
    return 0


def _first_request(options: argparse.Namespace, stack: ExitStack) -> FirstRequest | None:
    """Return what a registry is asked before the rest is loaded; None if nothing is."""
    from imgfs.cli.first_request import FirstRequest

    return FirstRequest.of(options, stack)


def _prepared(
    image: ImageSelection,
    options: argparse.Namespace,
    how: MountOptions,
    mounting: Mounting | None = None,
    first: FirstRequest | None = None,
) -> Resolved:
    """Prepare the image, and its earlier states; warn if it has no profile of the name that --replay says."""
    from imgfs.store.store import NO_PROFILE

    name = options.replay
    resolved = image.prepare(
        options.upto_layer, mounting=mounting, replay=name, question=options.question, first=first
    )
    if how.history:
        image.prepare_states(resolved)
    if name in (None, NO_PROFILE):
        return resolved
    from imgfs.image.profiles import profile_for  # here: it loads what reads files, which the daemon does

    if profile_for(resolved, image.store, name) is None:
        known = image.store.profiles(resolved.digest)
        there = f"there are: {', '.join(sorted(known))}" if known else "there are none yet (see --record)"
        warn(f"--replay {name}: the image has no profile of that name, so nothing is fetched ahead; {there}")
    return resolved


@contextmanager
def _plan(
    options: argparse.Namespace, first: FirstRequest | None = None
) -> Iterator[tuple[ImageSelection, MountOptions]]:
    """Select the image and the mount's options, until it is mounted.

    Raises ImgfsError before any request but the `first`.
    """
    from imgfs.cli.selection import select_image
    from imgfs.mount.options import MountOptions
    from imgfs.mounts.mountpoint import checked_mountpoint
    from imgfs.store.store import check_profile_name

    for profile in (options.record, options.replay):
        if profile is not None:
            check_profile_name(profile)
    if not options.mountpoint:  # of a variable that is not set: it would be the working directory
        raise UsageError("MOUNTPOINT is empty: name a directory")
    _check_order(options.image, options.mountpoint)
    image = select_image(options)
    scratch = _scratch(options, image.store)
    squashed = options.squash_owner or (scratch is not None and os.geteuid() != 0)
    fuse = _fuse_options(options.fuse_options)
    how = MountOptions(
        mountpoint=Path(os.path.abspath(options.mountpoint)),
        fuse=fuse,
        owner=(os.getuid(), os.getgid()) if squashed else None,
        log_level=options.log_level.upper(),
        foreground=options.foreground,
        scratch=scratch,
        write_through=options.write_through,
        record=options.record,
        replay=options.replay,
        fill=_fill(options),
        predict=not (options.no_predict or options.offline or "history" in fuse),
        metrics=options.metrics,
        driver=options.driver,
        trust=image.trust,
        history="history" in fuse,
        restart=options.restart,
        exit_idle=options.exit_idle or 0.0,
    )
    _check_together(how)
    if first:
        yield image, replace(how, checked=first.directory)
        return
    with checked_mountpoint(how.mountpoint, nonempty="nonempty" in how.fuse) as checked:
        yield image, replace(how, checked=checked)


def _check_together(how: MountOptions) -> None:
    """Raise UsageError, or MountError, for options that do not go together."""
    if "rw" in how.fuse and how.scratch is None:
        raise UsageError("-o rw: an image never changes; --rw or --scratch keeps what you change beside it")
    if how.history and how.scratch is not None:
        raise UsageError("-o history: of an image alone, not with --rw or --scratch")
    if how.restart:
        _check_restart(how)
    if how.exit_idle:
        _check_exit_idle(how)


def _check_restart(how: MountOptions) -> None:
    """Raise UsageError, or MountError, if --restart cannot be."""
    from imgfs.mount.resume import check_kernel

    reasons = {
        "-o auto_unmount unmounts what a daemon leaves behind": "auto_unmount" in how.fuse,
        "whatever started a daemon in the foreground has to start it again": how.foreground,
    }
    for reason in [reason for reason, holds in reasons.items() if holds]:
        raise UsageError(f"--restart: {reason}")
    check_kernel()


def _check_exit_idle(how: MountOptions) -> None:
    """Raise UsageError if a daemon that does nothing could not end."""
    reasons = {
        "it takes --restart: a holder, which starts the daemon again": not how.restart,
        "a daemon with a scratch has more to do than to answer": how.scratch is not None,
        "the daemon has --metrics to serve": how.metrics is not None,
    }
    for reason in [reason for reason, holds in reasons.items() if holds]:
        raise UsageError(f"--exit-idle: {reason}")


def _fill(options: argparse.Namespace) -> BackgroundFetchOptions | None:
    """Return what --fill asks for."""
    if not options.fill:
        return None
    from imgfs.content.background import BackgroundFetchOptions

    return BackgroundFetchOptions(options.limit_rate)


def _scratch(options: argparse.Namespace, store: Store) -> Scratch | None:
    """Return the scratch of --rw or --scratch."""
    if options.scratch is None and not options.rw:
        return None
    from imgfs.overlay.scratches import find_scratch, volatile_scratch

    if options.scratch is None:
        return volatile_scratch(store.root)
    return find_scratch(options.scratch, store.root)


def _check_order(image: str, mountpoint: str) -> None:
    """Raise UsageError if the mountpoint stands where the image has to, as for a bind mount of mount(8)."""
    is_path = image.startswith(("/", ".")) or ":" in mountpoint
    if is_path and os.path.isdir(image) and not os.path.lexists(mountpoint):
        raise UsageError(f"the image comes before the directory: imgfs mount {mountpoint} {image}")


def _fuse_options(given: list[str]) -> frozenset[str]:
    """Return the -o options; root's mounts are for all users, as those of kernel file systems are."""
    names = {name for text in given for name in text.split(",") if name}
    for name in sorted(names):
        word, has_value, _ = name.partition("=")
        known = _FUSE_SETTINGS if has_value else _FUSE_FLAGS
        if word not in known:
            from imgfs.cli.fstab import OPTIONS, is_option  # here: it loads the mount table,
            from imgfs.cli.parser import meant  # and this loads argparse

            names = {*known, *OPTIONS}
            hint = f"; here it is --{word.replace('_', '-')}" if is_option(word) else meant(word, names)
            raise UsageError(f"-o {name}: FUSE has no such option{hint}")
    return frozenset(names | ({"allow_other"} if os.geteuid() == 0 else set()))

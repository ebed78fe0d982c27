"""What both ways to serve a mount have in common: options, signals, syncs, the kernel's read-ahead."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgfs.errors import StoreError, describe
from imgfs.overlay.scratch import ScratchBase

if TYPE_CHECKING:
    from imgfs.content.background import BackgroundFetchOptions
    from imgfs.image.image import Image
    from imgfs.image.trust import Trust
    from imgfs.metrics.endpoint import MetricsAddress
    from imgfs.overlay.scratch import Scratch


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `fuse` are options for libfuse and the kernel, `owner` the (uid, gid) that all files are
    shown with, `log_level` a name of the logging module's; with a `scratch` the mount can be written to.
    With `write_through` what is written is here at once, instead of waiting in the kernel for more. `record`
    names the profile that what is read is kept as, `replay` the one that is fetched ahead; with a `fill`
    everything is fetched. `metrics` is where Prometheus may ask for the status. `driver` is `fuse`, `kernel`,
    or `auto` for the kernel where it can. `trust` is whose indexes count: those of the reference's repository
    by default."""

    mountpoint: Path
    fuse: frozenset[str] = frozenset()
    owner: tuple[int, int] | None = None
    log_level: str = "INFO"
    foreground: bool = False
    scratch: Scratch | None = None
    write_through: bool = False
    record: str | None = None
    replay: str | None = None
    fill: BackgroundFetchOptions | None = None
    metrics: MetricsAddress | None = None
    driver: str = "fuse"
    trust: Trust | None = None


log = logging.getLogger("imgfs.mount")

UNWRITTEN = 32 << 20  # bytes that the kernel may gather of what is written: so late a full disk is noticed
READ_AHEAD_KIB = 1024  # the kernel's, where the daemon may set it: as much as one FUSE request can carry
_SYNC_EVERY = 30.0  # seconds: how much cached data the power may take with it
_GRACE = 1.0  # seconds for requests under way when a signal ends the mount


def base_of(image: Image, mountpoint: Path) -> tuple[ScratchBase, str]:
    """What a scratch lies on, and what it is used for."""
    resolved = image.resolved
    base = ScratchBase(resolved.reference, str(resolved.digest), len(resolved.manifest.layers))
    return base, f"mounted at {mountpoint} (pid {os.getpid()})"


async def end_on_signal(
    terminate: Callable[[], None],
    cancel: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """End well, or, where a request waits for a dead registry, without it."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: unmounting", signal.Signals(number).name)
            terminate()
            await trio.sleep(_GRACE)
            cancel()


async def sync_now_and_then(image: Image) -> None:
    """Get what was fetched to the disk; if the disk fails, it is fetched again, and the mount lives."""
    while True:
        await trio.sleep(_SYNC_EVERY)
        try:
            await trio.to_thread.run_sync(image.content.sync, abandon_on_cancel=True)
        except StoreError as error:
            log.warning("what was fetched does not stay: %s", error)


def raise_read_ahead(device: str) -> None:
    """Let the kernel read ahead further than its 128 KiB, which only root may."""
    _set(Path("/sys/class/bdi", device, "read_ahead_kb"), READ_AHEAD_KIB)


def limit_unwritten(device: str) -> None:
    """Have the kernel gather no more than `UNWRITTEN`, which only root may ask for (Linux 6.2).

    Of itself it gathers for a FUSE mount a hundredth of all it would: 1/500 of the memory that is free.
    """
    setting = Path("/sys/class/bdi", device, "max_bytes")
    with contextlib.suppress(OSError, ValueError):
        if int(setting.read_text()) > UNWRITTEN:
            _set(setting, UNWRITTEN)


def _set(setting: Path, value: int) -> None:
    try:
        setting.write_text(str(value))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
            log.warning("cannot set %s to %d: %s", setting, value, describe(error))

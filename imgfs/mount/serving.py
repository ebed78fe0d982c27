"""What both ways to serve a mount have in common: signals, syncs, its status, the kernel's read-ahead."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgfs import __version__
from imgfs.errors import MountError, StoreError, describe
from imgfs.layer.origin import repositories_in
from imgfs.mount import holder
from imgfs.mount.options import MountOptions
from imgfs.status import MountStatus, ScratchStatus
from imgfs.store.store import Store

if TYPE_CHECKING:
    from imgfs.content.content import Content
    from imgfs.fuse.session import Session
    from imgfs.image.image import Image
    from imgfs.mount.resume import Succession
    from imgfs.overlay.interchange import HandleLookup
    from imgfs.overlay.scratch import ScratchBase
    from imgfs.owned.inheritance import LockInheritance
    from imgfs.tree.reader import Tree

log = logging.getLogger("imgfs.mount")

UNWRITTEN = 32 << 20  # bytes that the kernel may gather of what is written: so late a full disk is noticed
READ_AHEAD_KIB = 1024  # the kernel's, where the daemon may set it: as much as one FUSE request can carry
_SYNC_EVERY = 30.0  # seconds: how much cached data the power may take with it
_GRACE = 1.0  # seconds for requests under way when a signal ends the mount


@dataclass(frozen=True, slots=True)
class ServedMount:
    """An image of `store` that is mounted as `options` say, and served by this process.

    `tell` gives its status; `on_ready` is called once it answers. With a `succession` another process serves
    it if this one is killed; `before_heir` lets go of what an heir has to have.
    """

    image: Image
    store: Store
    options: MountOptions
    tell: Callable[[], MountStatus]
    on_ready: Callable[[], None]
    succession: Succession | None = None
    before_heir: Callable[[], None] = lambda: None

    def scratch_terms(
        self,
    ) -> tuple[Tree, Content, ScratchBase, str, HandleLookup, LockInheritance | None]:
        """What a scratch has to know of the mount (`Scratch.overlay`, `Scratch.for_kernel`)."""
        from imgfs.kernel.erofs_format import ino_resolver
        from imgfs.overlay.scratch import ScratchBase

        resolved = self.image.resolved
        base = ScratchBase(resolved.reference, str(resolved.digest), len(resolved.manifest.layers))
        use = f"mounted at {self.options.mountpoint} (pid {os.getpid()})"
        lock = self.succession.lock if self.succession else None
        return self.image.tree, self.image.content, base, use, ino_resolver(resolved.tree, self.store), lock

    def announce(self, by: str = "") -> None:
        """Say that the mount answers."""
        log.info("mounted %s at %s%s", self.image.resolved.reference, self.options.mountpoint, by)
        self.on_ready()


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


def follow(mount: ServedMount, session: Session, nursery: trio.Nursery) -> None:
    """Give the holder signs of life, and do what it says, from now on."""
    assert mount.succession
    nursery.start_soon(_hand_over_when_told, mount, session)
    if not mount.succession.is_taken_over:
        nursery.start_soon(_beat, mount.succession)


async def _beat(succession: Succession) -> None:
    """Give the holder signs of life: to be run by the thread that reads /dev/fuse."""
    while True:
        succession.say(holder.BEATS)
        await trio.sleep(succession.state.beat)


async def resume(succession: Succession, session: Session, nursery: trio.Nursery) -> None:
    """Go on, in the place of another process, once its turn has come. Raises MountError."""
    succession.check(session)
    nursery.start_soon(_beat, succession)
    resend = await _wait_for_turn(succession) if succession.is_heir else True
    session.resume(succession.state.offered, resend=resend)


async def _wait_for_turn(succession: Succession) -> bool:
    """Wait, as an heir, for the predecessor to stop; return whether it was killed. Raises MountError."""
    succession.say(holder.READY)
    await trio.lowlevel.wait_readable(succession.told)
    word = succession.take_word()
    if word not in (holder.GO, holder.GO_AGAIN):
        raise MountError("the holder has been killed")
    succession.has_turn = True
    succession.restarts += word == holder.GO_AGAIN
    return word == holder.GO_AGAIN


async def _hand_over_when_told(mount: ServedMount, session: Session) -> None:
    """Stop reading when the holder has an heir; what is under way is answered still."""
    succession = mount.succession
    assert succession
    await trio.lowlevel.wait_readable(succession.told)
    if succession.take_word() != holder.HAND_OVER:
        return
    with trio.CancelScope(shield=True):
        succession.has_turn = False
        session.end()
        await session.has_ended.wait()
        log.info("handing over %s", mount.options.mountpoint)
        mount.before_heir()
        succession.say(holder.STOPPED_READING)


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


def status(image: Image, store: Store, options: MountOptions, began: float, restarts: int = 0) -> MountStatus:
    """The status of a mount that `began` at a time in seconds since 1970."""
    resolved, scratch = image.resolved, options.scratch
    counts = image.content.snapshot()
    traffic = image.source.traffic()  # after the layers' counts, which it includes
    return MountStatus(
        image=resolved.reference,
        digest=str(resolved.digest),
        platform=str(resolved.config.platform),
        mountpoint=str(options.mountpoint),
        store=str(store.root),
        scratch=ScratchStatus(str(scratch.directory), scratch.name, not scratch.volatile)
        if scratch
        else None,
        tree=repositories_in(image.tree.origin) or "verified",
        metrics=str(options.metrics) if options.metrics else None,
        endpoints=tuple(image.source.health()),
        pid=os.getpid(),
        began=began,
        restarts=restarts,
        version=__version__,
        seconds=round(time.time() - began, 3),
        requests_fetched=traffic.requests,
        bytes_fetched=traffic.bytes,
        bytes_served=counts.served,
        spans_recorded=counts.recorded,
        fill=counts.fill,
        timeline=counts.timeline,
        layers=counts.layers,
    )

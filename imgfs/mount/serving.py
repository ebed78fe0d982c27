"""What both ways to serve a mount have in common: signals, syncs, its status, the kernel's read-ahead."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgfs import __version__
from imgfs.errors import MountError, StoreError, describe
from imgfs.layer.origin import repositories_in
from imgfs.mount.holder_protocol import BEATS, GO, GO_AGAIN, HAND_OVER, READY, STOPPED_READING
from imgfs.mount.options import MountOptions
from imgfs.starting import try_thread
from imgfs.store.store import Store

if TYPE_CHECKING:
    from types import FrameType

    from imgfs.fuse.session import Session
    from imgfs.image.image import Image
    from imgfs.mount.resume import KernelMount, Succession
    from imgfs.overlay.scratch_opened import ScratchTerms
    from imgfs.status import MountStatus

log = logging.getLogger("imgfs.mount")

UNWRITTEN = 32 << 20  # bytes that the kernel may gather of what is written: so late a full disk is noticed
# The kernel's, where the daemon may set it. It reads as much around a page that is touched at random in a
# mapped file: with all that a request carries, 1 MiB, two spans would be fetched for each page. A reader in
# sequence is no faster with more.
READ_AHEAD_KIB = 256
_SYNC_EVERY = 30.0  # seconds: how much cached data the power may take with it
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SELDOM = 86_400.0  # seconds between looks at nothing
_GRACE = 1.0  # seconds for requests under way when a signal ends the mount


@dataclass(frozen=True, slots=True)
class ServedMount:
    """An image of `store` that is mounted as `options` say, and served by this process.

    `tell` gives its status; `on_ready` is called once it answers. With a `succession` another process serves
    it if this one is killed; `before_heir` lets go of what an heir has to have. `at_end` is closed before the
    image is.
    """

    image: Image
    store: Store
    options: MountOptions
    tell: Callable[[], MountStatus]
    on_ready: Callable[[], None]
    succession: Succession | None = None
    before_heir: Callable[[], None] = lambda: None
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def scratch_terms(self) -> ScratchTerms:
        """Return what a scratch has to know of the mount."""
        from imgfs.kernel.erofs_format import ino_resolver
        from imgfs.overlay.scratch_dir import ScratchBase
        from imgfs.overlay.scratch_opened import ScratchTerms

        resolved = self.image.resolved
        base = ScratchBase(resolved.reference, str(resolved.digest), len(resolved.manifest.layers))
        use = f"mounted at {self.options.mountpoint} (pid {os.getpid()})"
        lock = self.succession.lock if self.succession else None
        ino_of = ino_resolver(resolved.tree, self.store)
        return ScratchTerms(self.image.tree, self.image.content, base, use, ino_of, lock)

    def announce(self, by: str = "") -> None:
        """Say that the mount answers."""
        log.info("mounted %s at %s%s", self.image.resolved.reference, self.options.mountpoint, by)
        self.on_ready()


class EndSignals(contextlib.AbstractContextManager["EndSignals"]):
    """Has SIGTERM, SIGINT and SIGHUP end a session: `terminate` begins that, and it has _GRACE seconds.

    They are caught while this is entered, but noticed only once the session serves. In another thread than
    the first nothing is caught: what ends the process is no concern of one mount.
    """

    def __init__(self, session: Session, terminate: Callable[[], None]) -> None:
        self._session = session
        self._terminate = terminate
        self._caught: int | None = None
        self._is_told = self._is_over = False

    def __enter__(self) -> EndSignals:
        self.woken, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # Python runs a handler between two of its instructions: one right before poll(2) would come after
            signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
            self._before = {number: signal.signal(number, self._catch) for number in _ENDING}
        self._session.watch(self.woken, self.act)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:  # nothing can write to it any more
            os.close(self.woken)
            os.close(self._wakes)
            return
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def act(self) -> None:
        """End the session, if there is a signal for that, or no more time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.woken, 512)
        if self._is_over:
            self._session.abort()
        elif self._caught and not self._is_told:
            self._is_told = True
            log.info("%s: unmounting", signal.Signals(self._caught).name)
            self._terminate()
            if not try_thread(self._leave_later, "imgfs-grace"):
                self._leave()

    def _catch(self, number: int, _: FrameType | None) -> None:
        self._caught = self._caught or number
        self._wake()

    def _leave_later(self) -> None:
        time.sleep(_GRACE)
        self._leave()

    def _leave(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is woken already
            os.write(self._wakes, b"\0")


@contextlib.contextmanager
def syncing(image: Image) -> Iterator[None]:
    """Get what is fetched to the disk now and then; if that fails, it is fetched again."""
    stopped = threading.Event()

    def sync() -> None:
        while not stopped.wait(_SYNC_EVERY):
            try:
                image.content.sync()
            except StoreError as error:
                log.warning("what was fetched does not stay: %s", error)

    try_thread(sync, "imgfs-sync")
    try:
        yield
    finally:
        stopped.set()


def serve_on(mount: ServedMount, session: Session, kernel: KernelMount | None = None) -> None:
    """Have the mount go on whatever becomes of this process, if it is to, once it has served for a while.

    Raises MountError if it is to at once, and cannot.
    """
    succession = mount.succession
    if succession is None:
        return
    due = time.monotonic() + (0.0 if succession.is_taken_over else mount.options.restart_after)

    def start() -> None:
        if time.monotonic() < due:
            return
        try:
            succession.serves(session.descriptor, mount, session, kernel)
        except OSError as error:
            reason = f"no process can be started that has the mount served again: {describe(error)}"
            if not mount.options.restart_after:
                raise MountError(f"--restart: {reason}") from error
            log.warning("%s", reason)
            session.every(_SELDOM, lambda: None)
        else:
            _follow(mount, succession, session, drains=mount.options.scratch is not None and not kernel)

    start()
    if time.monotonic() < due:
        session.every(mount.options.restart_after, start)


def _follow(mount: ServedMount, succession: Succession, session: Session, *, drains: bool) -> None:
    """Give the holder signs of life, and do what it says, from now on.

    An heir begins as soon as no more requests are taken, or, if all are answered first (`drains`), after
    `hand_over`.
    """

    idle_exit, period = None, succession.state.beat
    if mount.options.exit_idle:
        from imgfs.mount.idle import IdleExit  # here: few mounts end when they are idle

        idle_exit = IdleExit(mount, session, succession)
        period = min(period, idle_exit.patience() / 2)

    def beat() -> None:
        succession.pipes.say(BEATS)
        mount.image.traffic()  # noted: the next daemon goes on with it
        if idle_exit:
            idle_exit.look()

    _hand_over_when_told(mount, succession, session, drains=drains)
    session.every(period, beat)


def resume(succession: Succession, session: Session, signals: EndSignals) -> None:
    """Go on, in the place of another process, once its turn has come. Raises MountError."""
    succession.check(session)
    wait_for_turn(succession, signals.woken)
    session.resume(succession.state.offered, resend=succession.resends)


def wait_for_turn(succession: Succession, woken: int | None = None) -> None:
    """Wait, as an heir, for the predecessor to stop, unless `woken` can be read first. Raises MountError."""
    if succession.has_turn:
        return
    poll = select.poll()
    for descriptor in (succession.pipes.told, *([] if woken is None else [woken])):
        poll.register(descriptor, select.POLLIN)
    succession.pipes.say(READY)
    ready: list[tuple[int, int]] = []
    while not ready:
        succession.pipes.say(BEATS)
        ready = poll.poll(1000 * succession.state.beat)
    if ready[0][0] == woken:
        raise MountError("told to end before the predecessor stopped")
    word = succession.pipes.take_word()
    if word not in (GO, GO_AGAIN):
        raise MountError("the holder has been killed")
    succession.has_turn = True
    succession.resends = word == GO_AGAIN
    succession.restarts += succession.resends


def _hand_over_when_told(
    mount: ServedMount, succession: Succession, session: Session, *, drains: bool
) -> None:
    """Stop reading when the holder has an heir; what is under way is answered still."""

    def stop() -> None:
        session.unwatch(succession.pipes.told)
        if succession.pipes.take_word() == HAND_OVER:
            succession.has_turn = False
            if not drains:
                session.at_stop.append(partial(hand_over, mount, succession))
            session.end()

    session.watch(succession.pipes.told, stop)


def hand_over(mount: ServedMount, succession: Succession) -> None:
    """Let an heir begin."""
    log.info("handing over %s", mount.options.mountpoint)
    mount.before_heir()
    mount.image.traffic()
    succession.pipes.say(STOPPED_READING)


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
    """Return the status of a mount that `began` at a time in seconds since 1970."""
    from imgfs.status import MountStatus, ScratchStatus  # here: a mount answers before it is asked for that

    resolved, scratch = image.resolved, options.scratch
    counts = image.content.snapshot()
    traffic = image.traffic()  # after the layers' counts, which it includes
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

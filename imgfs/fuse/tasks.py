"""Requests that wait: each is a trio task whose work runs in a thread. The only module here that loads trio.

One task reads the requests, as `session` does until the first has to wait. It polls /dev/fuse itself for up
to a millisecond; only if no request comes, or after many in a row, does it wait in trio, where the other
tasks get their turn. A request may be interrupted while it waits (see `interrupts`): its work is then
abandoned or undone.
"""

from __future__ import annotations

import contextlib
import errno
import math
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

from imgfs.errors import LimitReached
from imgfs.fuse.busy_poll import BusyPoll
from imgfs.fuse.errors import errno_of
from imgfs.fuse.interrupts import GiveUp, is_killed

if TYPE_CHECKING:
    from outcome import Outcome

    from imgfs.fuse.session import Session, Waiting

_MOST = 256  # requests in a row without a look at anything else
_PATIENCE = 1  # milliseconds to wait for a request outside of trio, while no other task waits
_TRIES, _PAUSE = 50, 0.1  # at starting a thread: another may end meanwhile; seconds between them
_POLL = 0.1  # seconds between looks whether a caller is killed: the kernel reports its first signal alone
T = TypeVar("T")


def limiter(threads: int) -> trio.CapacityLimiter:
    """Return a limiter that lets so many threads work at once."""
    return trio.CapacityLimiter(threads)


def serve_by_tasks(session: Session) -> bool:
    """Go on with a session in which a request waits, as `Session.serve` does."""
    if threading.current_thread() is not threading.main_thread():  # which alone has to do with signals
        return trio.run(_serve, session)
    before = signal.set_wakeup_fd(-1)  # trio has its own, and warns of another
    try:
        return trio.run(_serve, session)
    finally:
        signal.set_wakeup_fd(before)


async def _serve(session: Session) -> bool:
    is_unmounted = False
    async with trio.open_nursery() as others:
        async with trio.open_nursery() as requests:
            session.tasks = tasks = Tasks(session, requests, others)
            for descriptor in session.watched:
                tasks.watch(descriptor)
            tasks.go_on_beating()
            try:
                with tasks.reading:
                    await tasks.read_all()
                    is_unmounted = True  # no request waits for an answer
                    requests.cancel_scope.cancel()
            finally:
                session.stopped()
        others.cancel_scope.cancel()
    return is_unmounted


class UnderWay(NamedTuple):
    """A request that waits, and what cancels that."""

    waiting: Waiting
    scope: trio.CancelScope


class Tasks:
    """The requests of `session` that wait, as tasks of `nursery`; its watches and beats are in `others`."""

    def __init__(self, session: Session, nursery: trio.Nursery, others: trio.Nursery) -> None:
        self._session = session
        self._nursery = nursery
        self._others = others
        self._under_way: dict[int, UnderWay] = {}  # by their numbers
        self._beating = trio.CancelScope()
        self.reading = trio.CancelScope()

    def watch(self, descriptor: int) -> None:
        """Call the function that the session has for a descriptor, each time it can be read."""
        self._others.start_soon(self._watch, descriptor)

    async def _watch(self, descriptor: int) -> None:
        session = self._session
        while descriptor in session.watched:
            await trio.lowlevel.wait_readable(descriptor)
            if act := session.watched.get(descriptor):
                act()
            if session.is_aborted:
                self._others.cancel_scope.cancel()
            elif session.is_ending:
                self.reading.cancel()

    def go_on_beating(self) -> None:
        """Call the session's `beat` every `period` seconds from now on."""
        self._beating.cancel()
        if self._session.period < math.inf:
            self._beating = trio.CancelScope()
            self._others.start_soon(self._beat, self._beating)

    async def _beat(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                self._session.beat()
                if self._session.is_ending:
                    self.reading.cancel()
                await trio.sleep(self._session.period)

    async def read_all(self) -> None:
        """Answer requests until the mount is gone."""
        poll, row = select.poll(), 0
        poll.register(self._session.descriptor, select.POLLIN)
        busy = BusyPoll(poll.poll)
        while True:
            if waiting := self._session.take_waiting():
                self._start(waiting)
                row = _MOST  # let it begin
            if row >= _MOST or not (poll.poll(0) if self._under_way else busy.wait(_PATIENCE)):
                row = 0
                await trio.lowlevel.wait_readable(self._session.descriptor)
            row += 1
            if not self._session.answer_next():
                return

    def any_waits(self) -> bool:
        """Return True if a request waits for its answer."""
        return bool(self._under_way)

    def take_back(self, unique: int) -> bool:
        """Interrupt a waiting request: it fails with EINTR unless it is done first. False if none waits."""
        found = self._under_way.get(unique)
        if found is None:
            return False
        if found.waiting.until_killed:
            self._nursery.start_soon(self._cancel_when_killed, found)
        else:
            found.scope.cancel()
        return True

    def _start(self, waiting: Waiting) -> None:
        self._under_way[waiting.head.unique] = found = UnderWay(waiting, trio.CancelScope())
        self._nursery.start_soon(self._answer, found)

    async def _answer(self, found: UnderWay) -> None:
        head, number, body = found.waiting.head, errno.EINTR, b""
        try:
            with found.scope:
                body = await found.waiting.answer
                number = 0
        except Exception as error:  # noqa: BLE001  (the mount lives)
            number = errno_of(error, head)
        finally:
            del self._under_way[head.unique]
        self._session.send(head.unique, number, body)

    async def _cancel_when_killed(self, found: UnderWay) -> None:
        """Cancel a request once its caller is being killed, unless it is answered before that."""
        head = found.waiting.head
        while head.unique in self._under_way:
            if is_killed(head.pid):
                found.scope.cancel()
                return
            await trio.sleep(_POLL)


async def undone_or_done(work: Callable[[GiveUp], T]) -> T:
    """Return the result of `work` in a thread. When cancelled, tell it to give up, and wait until it has."""
    result = await done_in_part(work)
    await trio.lowlevel.checkpoint_if_cancelled()
    return result


async def done_in_part(work: Callable[[GiveUp], T]) -> T:
    """Run `work` in a thread and return its result, even if it was cancelled and gave up in the middle."""
    given_up: GiveUp = Future()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def deliver(result: Outcome[T]) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    def abort(_: object) -> trio.lowlevel.Abort:
        given_up.set_result(None)
        return trio.lowlevel.Abort.FAILED  # the thread will wake the task

    await _begun(lambda: trio.lowlevel.start_thread_soon(lambda: work(given_up), deliver))
    result: T = await trio.lowlevel.wait_task_rescheduled(abort)
    return result


async def abandoned_or_done(work: Callable[[GiveUp], T], limiter: trio.CapacityLimiter) -> T:
    """Return the result of `work` in a thread. When cancelled, tell it to give up, and do not wait."""
    given_up: GiveUp = Future()
    try:
        return await _abandoned(lambda: work(given_up), limiter)
    except trio.Cancelled:
        given_up.set_result(None)
        raise


async def abandoned(work: Callable[[], None]) -> None:
    """Run `work` in a thread. When cancelled, do not wait for it."""
    await _abandoned(work, None)


async def _abandoned(work: Callable[[], T], limiter: trio.CapacityLimiter | None) -> T:
    has_begun = False

    def begun() -> T:
        nonlocal has_begun
        has_begun = True
        return work()

    for _ in range(_TRIES):
        try:
            return await trio.to_thread.run_sync(begun, limiter=limiter, abandon_on_cancel=True)
        except RuntimeError:
            if has_begun:
                raise
        await trio.sleep(_PAUSE)
    raise LimitReached


async def _begun(start: Callable[[], None]) -> None:
    """Start a thread; where the system gives none, once more for a while. Raises LimitReached."""
    for _ in range(_TRIES):
        with contextlib.suppress(RuntimeError):
            return start()
        await trio.sleep(_PAUSE)
    raise LimitReached

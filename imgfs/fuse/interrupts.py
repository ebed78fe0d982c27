"""Requests that the kernel takes back (FUSE_INTERRUPT): which callers get EINTR, how work in threads ends.

The kernel names a request by its number when a signal reaches its caller. What then waits for the network or
for another's copy-up is cancelled, and answered with EINTR. The answer tells the truth: either the work has
been done, or it has been undone.

A call that may be begun anew is interrupted by every signal. A read that fills the page cache is not: it
may be a page fault, which cannot fail with EINTR (the program would get SIGBUS), or stand below another file
system, which would make EIO of it. A caller that is being killed hears of neither, so only that ends it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from imgfs.fuse.opcodes import READ_LOCKOWNER, Opcode
from imgfs.fuse.protocol import READ_FLAGS, Head

if TYPE_CHECKING:
    from outcome import Outcome

_POLL = 0.1  # seconds between looks whether a caller is killed: the kernel reports its first signal alone
_PENDING = re.compile(rb"^SigPnd:\s*([0-9a-f]+)$", re.MULTILINE)
T = TypeVar("T")

GiveUp = Future[None]
"""Settled once no request waits any more for what a thread does: the thread may end with InterruptedError."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A request that waits. `until_killed` if no other signal may end it."""

    head: Head
    until_killed: bool
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def cancel_when_killed(self, is_waiting: Callable[[], bool]) -> None:
        """Cancel it when its caller is being killed, if that comes before it is answered."""
        while is_waiting():
            if is_killed(self.head.pid):
                self.scope.cancel()
                return
            await trio.sleep(_POLL)


def fills_page_cache(head: Head, body: memoryview) -> bool:
    """Return True if a request reads for the page cache, so that a page fault may be its caller."""
    if head.opcode != Opcode.READ or len(body) < READ_FLAGS.size:
        return False
    return not READ_FLAGS.unpack_from(body)[0] & READ_LOCKOWNER


def is_killed(thread: int) -> bool:
    """Return True if a thread is about to die: what ends a process is SIGKILL to its threads (proc(5)).

    One that is not seen, as in another PID namespace, is not known to be.
    """
    try:
        found = _PENDING.search(Path(f"/proc/{thread}/status").read_bytes())
    except OSError:
        return False
    return bool(found and int(found[1], 16) >> (signal.SIGKILL - 1) & 1)


async def undone_or_done(work: Callable[[GiveUp], T]) -> T:
    """What `work` returns, done in a thread; on cancellation tell it to give up, and wait for its end."""
    result = await done_in_part(work)
    await trio.lowlevel.checkpoint_if_cancelled()
    return result


async def done_in_part(work: Callable[[GiveUp], T]) -> T:
    """The same of work that may return what it has done until it was told to give up: that is the answer."""
    given_up: GiveUp = Future()
    task, token = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()

    def deliver(result: Outcome[T]) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    def abort(_: object) -> trio.lowlevel.Abort:
        given_up.set_result(None)
        return trio.lowlevel.Abort.FAILED  # the thread will wake the task

    trio.lowlevel.start_thread_soon(lambda: work(given_up), deliver)
    result: T = await trio.lowlevel.wait_task_rescheduled(abort)
    return result


async def abandoned_or_done(work: Callable[[GiveUp], T], limiter: trio.CapacityLimiter) -> T:
    """What `work` returns, done in a thread; on cancellation tell it to give up, and do not wait."""
    given_up: GiveUp = Future()
    try:
        return await trio.to_thread.run_sync(work, given_up, limiter=limiter, abandon_on_cancel=True)
    except trio.Cancelled:
        given_up.set_result(None)
        raise

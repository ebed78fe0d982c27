"""Requests that the kernel takes back (FUSE_INTERRUPT): which callers get EINTR.

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
from concurrent.futures import Future
from pathlib import Path

from imgfs.fuse.opcodes import READ_LOCKOWNER, Opcode
from imgfs.fuse.protocol import READ_FLAGS, Head

_PENDING = re.compile(rb"^SigPnd:\s*([0-9a-f]+)$", re.MULTILINE)

GiveUp = Future[None]
"""Settled once no request waits any more for what a thread does: the thread may end with InterruptedError."""


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

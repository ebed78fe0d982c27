"""FUSE_INTERRUPT: which callers get EINTR.

The kernel sends the number of a request when a signal reaches its caller. A request that waits for the
network or for another caller's copy-up is then cancelled and answered with EINTR. The answer is true: its
work has either been done, or undone.

A call that can be restarted is interrupted by every signal. A read that fills the page cache is not: it may
be a page fault, which cannot fail with EINTR (the program would get SIGBUS), or come from another file system
on top, which would turn it into EIO. Only the caller's death cancels such a read: it sees neither.
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
    """Return True if a request fills the page cache, so that its caller may be in a page fault."""
    if head.opcode != Opcode.READ or len(body) < READ_FLAGS.size:
        return False
    return not READ_FLAGS.unpack_from(body)[0] & READ_LOCKOWNER


def is_killed(thread: int) -> bool:
    """Return True if SIGKILL is pending for a thread, which is what ends each thread of a process (proc(5)).

    False for a thread that /proc does not show, such as one in another PID namespace.
    """
    try:
        found = _PENDING.search(Path(f"/proc/{thread}/status").read_bytes())
    except OSError:
        return False
    return bool(found and int(found[1], 16) >> (signal.SIGKILL - 1) & 1)

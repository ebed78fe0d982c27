"""The callers of requests, by /proc: a mount's status is for the host, not for containers that see it."""

from __future__ import annotations

import os


def is_contained(thread: int) -> bool:
    """Return True if a thread is in a PID namespace below this process's, as a container's are.

    A thread without a number here (0) is in a namespace above or beside; /proc may hide another user's
    threads.
    """
    if not thread:
        return False
    try:
        return os.readlink(f"/proc/{thread}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False

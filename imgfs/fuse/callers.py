"""Who asks, by /proc: what is told of a mount is for this machine, not for containers that it is shown to."""

from __future__ import annotations

import os


def is_contained(thread: int) -> bool:
    """Return True if a thread is in a PID namespace below this process's, as a container's are.

    One without a number here (0) is above or beside; of another user's thread nothing may be known.
    """
    if not thread:
        return False
    try:
        return os.readlink(f"/proc/{thread}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:
        return False

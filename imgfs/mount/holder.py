"""The holder of a mount: it keeps /dev/fuse open, and has the mount served again if its daemon is killed.

A process of its own, run as a script by an interpreter that loads no packages (`python -I -S`): few
megabytes. It reads neither the store nor anything that comes from outside, and so outlives what its daemon
dies of.

    holder.py FUSE STATE CONTROL PID PROGRAM [ARGUMENT…]

FUSE (the open /dev/fuse) and STATE (a file in memory) are descriptors that each successor of the daemon PID
inherits. CONTROL is the reading end of the daemon's pipe, by which it says that it SERVES, and that the mount
has ENDED. PROGRAM is run as the successor, with FUSE, STATE, the writing end of its own pipe, and how many
there have been, as further arguments.

While no process serves, readers wait. The holder gives up after so many successors, one after the other, that
ended without serving, or were killed before they could: then the connection ends, and readers get ENOTCONN,
as without a holder.
"""

from __future__ import annotations

import os
import select
import sys
import time

SERVES, ENDED = b"s", b"e"
TRIES = 5  # successors that end without serving,
KILLS = 40  # or are killed before they serve, one after the other
_AT_ONCE, _PERIOD = 40, 60.0  # restarts in so many seconds without a pause before each further one,
_PAUSE = 1.0  # of so many seconds: what kills the daemon may be a request that is sent again


def hold(fuse: int, state: int, control: int, pid: int, words: list[str]) -> int:
    """Restart the daemon `pid` until the mount has ended, or it cannot be served: 0, or 1."""
    restarts, failures, kills, moments = 0, 0, 0, [0.0] * _AT_ONCE
    while True:
        said, was_killed = _end_of(pid, control)
        if ENDED in said:
            return 0
        if SERVES in said:
            failures = kills = 0
        elif was_killed:
            kills += 1
        else:
            failures += 1
        if failures >= TRIES or kills >= KILLS:
            return 1
        if time.monotonic() - moments[restarts % _AT_ONCE] < _PERIOD and restarts >= _AT_ONCE:
            time.sleep(_PAUSE)
        moments[restarts % _AT_ONCE] = time.monotonic()
        restarts += 1
        pid, control = _start([*words, str(fuse), str(state)], restarts)


def _end_of(pid: int, control: int) -> tuple[bytes, bool]:
    """Wait for the end of a daemon; return all that it has said, and whether a signal has ended it."""
    was_killed = _wait_for(pid)
    os.set_blocking(control, False)  # a process that the daemon has forked may have it open
    try:
        return os.read(control, 4096), was_killed
    except BlockingIOError:
        return b"", was_killed
    finally:
        os.close(control)


def _wait_for(pid: int) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    select.select([fd], [], [])
    os.close(fd)
    try:
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # the first daemon is no child of the holder
        return False


def _start(words: list[str], restarts: int) -> tuple[int, int]:
    """Start a successor; return its pid, and the reading end of its pipe."""
    control, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.set_inheritable(written, True)
            os.execv(words[0], [*words, str(written), str(restarts)])
        finally:
            os._exit(127)
    os.close(written)
    return pid, control


if __name__ == "__main__":
    fuse, state, control, pid = map(int, sys.argv[1:5])
    sys.exit(hold(fuse, state, control, pid, sys.argv[5:]))

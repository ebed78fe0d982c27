"""The end of a container: it is stopped or killed in its time, its image is unmounted, its daemon ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from imgfs import syscalls
from imgfs.mounts.holders import awaiting_holder
from imgfs.runtime.process_id import first_process, held_process
from imgfs.runtime.signals import signal_number
from imgfs.starting import try_thread

_ANSWER = 10.0  # seconds that a mount may take to answer once the container has ended
_MOMENT = 0.005  # seconds between two looks whether a child has ended, if its end cannot be waited for
_UNMOUNT = 60.0  # seconds that a daemon has to end after unmounting, and again once it is told to


class Stopper:
    """Ends a container whose caller has gone: its stop signal first, SIGKILL after `patience` seconds.

    One whose caller tells it to end, and that goes on, is killed as late: process 1 of a container ignores
    what it has no handler for (pid_namespaces(7)).
    """

    def __init__(self, pid_file: Path, stop_signal: str, patience: int = 10) -> None:
        self._pid_file = pid_file
        self._patience = patience
        self._number = signal_number(stop_signal)

    def __call__(self) -> None:
        """Begin."""
        self.kill_later()
        self._send(self._number if self._patience else signal.SIGKILL)

    def kill_later(self) -> None:
        """Kill it after its time, if it has not ended before."""
        signal.signal(signal.SIGALRM, lambda *_: self._kill())
        signal.alarm(self._patience or 1)

    def _kill(self) -> None:
        if not self._send(signal.SIGKILL):
            signal.alarm(1)  # it has not begun yet

    def _send(self, number: int) -> bool:
        """Send it a signal; return False if it has not begun, or has ended."""
        with contextlib.suppress(OSError), first_process(self._pid_file) as process:
            signal.pidfd_send_signal(process.fd, number)
            return True
        return False


@contextlib.contextmanager
def unmounting(rootfs: Path, holder_after: float) -> Iterator[None]:
    """After the block, unmount the image and wait for its daemon, the only other child, to have ended.

    The mount has no holder (`mounts.holders`) for `holder_after` seconds: only then one is looked for, among
    all processes of the machine. A daemon that does not hear of it, because another process still holds the
    mount, is told to end; one that answers nothing at all is left behind: no wait is endless.
    """
    due = time.monotonic() + holder_after
    try:
        yield
    finally:
        _settle(rootfs)
        is_held = time.monotonic() >= due
        with awaiting_holder(rootfs, _UNMOUNT) if is_held else contextlib.nullcontext():
            with contextlib.suppress(OSError):  # it was not mounted
                syscalls.detach_mount(str(rootfs))
            if not _children_end(_UNMOUNT):
                for pid in _children():
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGTERM)
                _children_end(_UNMOUNT)


def _settle(rootfs: Path) -> None:
    """Have a mount answer, which it does after all files that the container's end has closed."""

    def ask() -> None:
        with contextlib.suppress(OSError):
            os.statvfs(rootfs)

    if requested := try_thread(ask, "imgfs-settle"):
        requested.join(_ANSWER)


def _children_end(seconds: float) -> bool:
    """Wait for all children to end, so long at most; whether they have."""
    ends = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while (left := ends - time.monotonic()) > 0:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                _wait_for_a_child(left)
        return False
    return True


def _wait_for_a_child(seconds: float) -> None:
    """Wait until a child ends, so long at most; a moment, where the kernel does not list children."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(held_process(pid)) for pid in _children()]
        select.select(held, [], [], seconds if held else _MOMENT)


def _children() -> list[int]:
    """Return the pids of this process's children (proc(5), task/TID/children)."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return [int(word) for word in text.split()]
    return []

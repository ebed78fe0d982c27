"""Processes that are sure to be the ones that are meant: a pid alone may be another process's by now.

`ProcessId` names one in a file: by its pid, when it was started (proc(5), stat, field 22), in which boot of
the machine and in which PID namespace. A pidfd holds one; `first_process` so holds a container's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

_STARTED = 19  # of the fields of a stat that stand behind the command's name, from 0


class ProcessId(NamedTuple):
    """A process: `started` in clock ticks since the boot `boot`, `namespace` its reader's PID namespace."""

    pid: int
    started: int
    boot: str
    namespace: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """Name a process that runs now; None if it has ended."""
        started = _started(pid)
        return None if started is None else cls(pid, started, *_here())

    @classmethod
    def parse(cls, fields: object) -> ProcessId | None:
        """Read what `to_json` has made; None for anything else."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if isinstance(fields, dict):
                numbers = int(fields["pid"]), int(fields["started"])
                return cls(*numbers, str(fields["boot"]), int(fields["namespace"]))
        return None

    def to_json(self) -> dict[str, object]:
        """Return its fields, to be written to a file."""
        return self._asdict()

    @property
    def is_elsewhere(self) -> bool:
        """Whether it may run where this process cannot see it: in another PID namespace."""
        boot, namespace = _here()
        return self.boot == boot and self.namespace != namespace

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        with self.opened() as fd:
            return fd is not None

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """A pidfd (pidfd_open(2)) for the block, None if it has ended, or is elsewhere."""
        fd = self._open()
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)

    def _open(self) -> int | None:
        if (self.boot, self.namespace) != _here():
            return None
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if _started(self.pid) == self.started:  # looked at once it is open: it is that one for good
            return fd
        os.close(fd)
        return None


def _here() -> tuple[str, int]:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.stat("/proc/self/ns/pid").st_ino


def _started(pid: int) -> int | None:
    """Return when a process was started, None if it has ended: a zombie has, too."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[_STARTED])
    return None


@contextmanager
def held_process(pid: int) -> Iterator[int]:
    """Hold a process by a pidfd for the block (pidfd_open(2)); raises ProcessLookupError if there is none."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def end_process(fd: int, patience: float) -> None:
    """Tell the process that a pidfd leads to to end, and wait for that; after so many seconds, kill it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(fd, number)
        if select.select([fd], [], [], patience)[0]:
            return


class FirstProcess(NamedTuple):
    """A container's first process: its pid, which is its own as long as it has not ended, and a pidfd."""

    pid: int
    fd: int

    def has_ended(self) -> bool:
        """Return True if it has ended, reaped or not."""
        return bool(select.select([self.fd], [], [], 0)[0])  # pidfd_open(2)

    def wait(self) -> None:
        """Wait until it has ended."""
        select.select([self.fd], [], [])


@contextmanager
def first_process(pid_file: Path) -> Iterator[FirstProcess]:
    """Open a container's first process: the one whose pid its runtime has written into a file.

    The rule: a number is no process. Once it has ended its pid may be any other's, so it is held by a pidfd,
    and counts only as the child of a living child of this process: that is its runtime, which has not reaped
    it.

    Raises FileNotFoundError if the runtime has not written it yet, ProcessLookupError if it has ended.
    """
    try:
        pid = int(pid_file.read_text())
    except ValueError as error:  # half of it
        raise FileNotFoundError(pid_file) from error
    with held_process(pid) as fd:
        process = FirstProcess(pid, fd)
        is_ours = _parent(_parent(pid)) == os.getpid()
        if not is_ours or process.has_ended():  # in this order: a living one's pid is no other's
            raise ProcessLookupError(pid)
        yield process


def _parent(pid: int) -> int:
    """Return the pid of a process's parent (proc(5), stat), 0 for none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0

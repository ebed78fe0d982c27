"""Run commands to the millisecond and never for ever; count their CPU and turns; forget the page cache."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = 600.0  # seconds; the slowest single command of the bench takes about 60


@dataclass(frozen=True)
class Effort:
    """What processes have used: CPU seconds, and how often they gave the CPU away to wait."""

    cpu: float = 0.0
    switches: int = 0

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.cpu + other.cpu, self.switches + other.switches)

    def __sub__(self, other: Effort) -> Effort:
        return Effort(self.cpu - other.cpu, self.switches - other.switches)


class CommandFailed(Exception):
    """A command that failed, hung or is not installed; the message ends with its last words."""


def run(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> float:
    """Run a command, its output thrown away, and return the seconds it took."""
    return _run(command, env, timeout)[0]


def output_of(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float = TIMEOUT
) -> str:
    """Run a command and return what it wrote to its standard output."""
    return _run(command, env, timeout)[1]


def _run(command: Sequence[str | Path], env: Mapping[str, str] | None, timeout: float) -> tuple[float, str]:
    words = [str(word) for word in command]
    # Files, not pipes: a daemon that a command leaves behind would hold a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                words,
                env=dict(os.environ) | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        except OSError as problem:
            raise CommandFailed(f"{words[0]}: {problem.strerror}") from problem
        ended = _wait(child, timeout)
        seconds = time.perf_counter() - start
        if child.returncode:
            err.seek(0)
            said = err.read().decode(errors="replace").strip().splitlines()
            why = f"exit {child.returncode}" if ended else f"no end after {timeout:.0f} s"
            raise CommandFailed(f"{' '.join(words)[:200]}: {why}: {' / '.join(said[-3:])}")
        out.seek(0)
        return seconds, out.read().decode(errors="replace")


def _wait(child: subprocess.Popen[bytes], timeout: float) -> bool:
    """Wait through a pidfd, precisely (Popen.wait with a timeout looks only every 50 ms); False if killed."""
    ended = False
    pidfd = os.pidfd_open(child.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = bool(poll.poll(timeout * 1000))
    finally:
        os.close(pidfd)
        if not ended:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return ended


def effort_of_children() -> Effort:
    """Say what all commands run so far have used, with the processes they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Effort(used.ru_utime + used.ru_stime, used.ru_nvcsw)


def effort_of(pid: int) -> Effort:
    """Say what a process has used; threads that have ended do not tell how often they waited."""
    switches = 0
    for path in Path(f"/proc/{pid}/task").glob("*/status"):  # proc(5): one for each thread
        with contextlib.suppress(OSError):  # has just ended
            words = path.read_text().partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)
            switches += int(words[0])
    return Effort(cpu_of(pid), switches)


def cpu_of(pid: int) -> float:
    """Say how many CPU seconds a process has used (proc(5), /proc/pid/stat: utime 14, stime 15, in ticks)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # 11 = 14 - 2 cut off - from 1


def cpu_with_children(pid: int) -> float:
    """Say how many CPU seconds a process and those it has waited for have used (cutime 16, cstime 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def drop_page_cache() -> None:
    """Forget everything cached of files and directories (root only)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def warm(files: Sequence[Path]) -> None:
    """Bring files into the page cache."""
    for path in files:
        with path.open("rb") as stream:
            while stream.read(1 << 20):
                pass

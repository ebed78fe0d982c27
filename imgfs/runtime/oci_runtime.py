"""An OCI runtime started on a bundle: the signals passed to it, its exit code, what it leaves.

The size of a container's terminal: crun 1.8 lets that follow neither the beginning nor changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgfs import syscalls
from imgfs.config import variables
from imgfs.errors import MountError
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.host import Cgroups, RuntimeCommand, capabilities
from imgfs.runtime.preflight import NOT_EXECUTABLE, NOT_FOUND
from imgfs.runtime.signals import SignalRelay, signal_number
from imgfs.runtime.stdio import StdioPipes

_FIRST_PTS, _LAST_PTS = 136, 143  # majors of pseudo-terminals (Linux devices.txt)
_WINSIZE = 8  # bytes of a struct winsize (ioctl_tty(2))


def follow_size(pid_file: Path) -> None:
    """Give the terminal of the process whose pid is in a file the size of ours, if both have one."""
    with contextlib.suppress(OSError, ValueError):
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(_WINSIZE))
        fd = os.open(f"/proc/{int(pid_file.read_text())}/fd/0", os.O_PATH | os.O_CLOEXEC)
        try:
            _set_size(fd, size)
        finally:
            os.close(fd)


def _set_size(path: int, size: bytes) -> None:
    """The container may have put anything in its terminal's place: it is only opened if it is a terminal."""
    found = os.fstat(path)
    if stat.S_ISCHR(found.st_mode) and _FIRST_PTS <= os.major(found.st_rdev) <= _LAST_PTS:
        fd = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
        finally:
            os.close(fd)


_NOT_HANDED_ON = ("LISTEN_", "NOTIFY_SOCKET", "_LIBCONTAINER_", "_CONTAINERS_")  # how variables begin
_DELETE = 30.0  # seconds that a runtime may take to remove what it keeps
_ANSWER = 10.0  # seconds that a mount may take to answer once the container has ended
_UNMOUNT = 60.0  # seconds that a daemon has to end after unmounting, and again once it is told to


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """A runtime and how it is to be started here; without a cgroup it makes none."""

    command: RuntimeCommand
    cgroups: Cgroups

    @property
    def no_device_cgroup(self) -> str | None:
        """Why no cgroup limits the access to devices, None if one does.

        In version 2 that is done by BPF, for which crun raises a limit.
        """
        if self.cgroups.parent is None:
            return "cgroups cannot be written"
        if not self.cgroups.unified:
            return None if "devices" in self.cgroups.controllers else "its cgroup controller is not here"
        if self.command.is_crun and "CAP_SYS_RESOURCE" not in capabilities():
            return "for that, crun needs CAP_SYS_RESOURCE (runc does not)"
        return None

    def run(self, bundle: Bundle, name: str, relay: SignalRelay, pipes: StdioPipes | None) -> int:
        """Run the container to its end; its exit code. Without streams it has a terminal.

        Raises MountError if there is no such program, or what the container says cannot be written.
        """
        if pipes:
            relay.ending_caught = partial(pipes.abandon_after, bundle.pid_file)
        if relay.ending is not None:
            return 128 + relay.ending
        self._prepare()
        relay.resized = partial(follow_size, bundle.pid_file) if self.command.is_crun else None
        words = [*self._command(bundle), "run", "--bundle", str(bundle.directory)]
        process = _start([*words, "--pid-file", str(bundle.pid_file), name], pipes)
        with relay.to(process.pid):
            code = process.wait()
            signal.alarm(0)  # no container is left to be killed
            self._clear(bundle, name)
            try:
                if pipes:
                    pipes.finish(lambda: relay.ending is not None)
            except MountError:
                if not code:
                    raise
        return code if code >= 0 else 128 - code

    def _prepare(self) -> None:
        """Have the runtime find what it can work with: crun wants cgroups of one version only."""
        if self.command.is_crun and self.cgroups.hidden:
            syscalls.cover_with_tmpfs(self.cgroups.hidden)

    def _command(self, bundle: Bundle) -> list[str]:
        words = [self.command.path, "--root", str(bundle.state), "--log", str(bundle.log)]
        if self.cgroups.parent is not None:
            return words
        return [*words, "--cgroup-manager=disabled"] if self.command.is_crun else [*words, "--rootless=true"]

    def _clear(self, bundle: Bundle, name: str) -> None:
        """Have the runtime remove what it keeps, should it have been killed."""
        if (bundle.state / name).exists():
            words = [*self._command(bundle), "delete", "--force", name]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DELETE
                )


def _start(words: Sequence[str], pipes: StdioPipes | None) -> subprocess.Popen[bytes]:
    """Start a runtime; raises MountError.

    It does not see what a service manager tells imgfs by variables: runtimes hand those descriptors and that
    socket on to the container (sd_listen_fds(3), sd_notify(3)), and take their own for them.
    """
    environment = {name: value for name, value in variables().items() if not name.startswith(_NOT_HANDED_ON)}
    files = (pipes.stdin, pipes.stdout, pipes.stderr) if pipes else (None, None, None)
    try:
        process = subprocess.Popen(words, env=environment, stdin=files[0], stdout=files[1], stderr=files[2])
    except OSError as error:
        raise MountError(f"{words[0]}: {error.strerror}") from error
    if pipes:
        pipes.begin()
    return process


def start_failure(bundle: Bundle) -> int | None:
    """The exit code of a command that never ran, None if it did. The runtime has said why."""
    if bundle.pid_file.exists():
        return None
    try:
        lines = bundle.log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return _code(lines[-1] if lines else "")


def _code(reason: str) -> int:
    """podman's reading of a runtime's words."""
    words = reason.lower()
    is_missing = "executable file" in words and "not found" in words
    return NOT_FOUND if is_missing or "no such file or directory" in words else NOT_EXECUTABLE


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
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._pid_file.read_text()), number)
            return True
        return False


@contextlib.contextmanager
def unmounting(rootfs: Path) -> Iterator[None]:
    """After the block, unmount the image and wait for its daemon, the only other child, to have ended.

    A daemon that does not hear of it, because another process still holds the mount, is told to end; one that
    answers nothing at all is left behind: no wait is endless.
    """
    try:
        yield
    finally:
        _settle(rootfs)
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

    requested = threading.Thread(target=ask, daemon=True)
    requested.start()
    requested.join(_ANSWER)


def _children_end(seconds: float) -> bool:
    """Wait for all children to end, so long at most; whether they have."""
    pause, ends = 0.001, time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < ends:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(pause)
                pause = min(pause * 1.2, 0.05)
        return False
    return True


def _children() -> list[int]:
    """The pids of this process's children (proc(5), task/TID/children)."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        return [int(word) for word in text.split()]
    return []

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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import MountError
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.host import Cgroups, RuntimeCommand
from imgfs.runtime.process_id import first_process
from imgfs.runtime.rootfs import NOT_EXECUTABLE, NOT_FOUND
from imgfs.runtime.signals import SignalRelay
from imgfs.runtime.stdio import StdioPipes
from imgfs.variables import variables

_FIRST_PTS, _LAST_PTS = 136, 143  # majors of pseudo-terminals (Linux devices.txt)
_WINSIZE = 8  # bytes of a struct winsize (ioctl_tty(2))


def follow_size(pid_file: Path) -> None:
    """Give the terminal of the process whose pid is in a file the size of ours, if both have one."""
    with contextlib.suppress(OSError), first_process(pid_file) as process:
        size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(_WINSIZE))
        fd = os.open(f"/proc/{process.pid}/fd/0", os.O_PATH | os.O_CLOEXEC)
        try:
            if not process.has_ended():  # so that it was its descriptor
                _set_size(fd, size)
        finally:
            os.close(fd)


def _set_size(path: int, size: bytes) -> None:
    """Set a terminal's size, if it is one: the container may have put anything in its place."""
    found = os.fstat(path)
    if stat.S_ISCHR(found.st_mode) and _FIRST_PTS <= os.major(found.st_rdev) <= _LAST_PTS:
        fd = os.open(f"/proc/self/fd/{path}", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
        finally:
            os.close(fd)


_NOT_HANDED_ON = ("LISTEN_", "NOTIFY_SOCKET", "_LIBCONTAINER_", "_CONTAINERS_")  # how variables begin
_LOOK = 0.005  # seconds between two looks whether a container has begun
_DELETE = 30.0  # seconds that a runtime may take to remove what it keeps


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """A runtime and how it is to be started here; without a cgroup it makes none."""

    command: RuntimeCommand
    cgroups: Cgroups

    def run(
        self,
        bundle: Bundle,
        name: str,
        relay: SignalRelay,
        pipes: StdioPipes | None,
        on_started: Callable[[int], None],
    ) -> int:
        """Run the container to its end; its exit code. Without streams it has a terminal.

        `on_started` is called with the pid of its first process once it runs. Raises MountError if there is
        no such program, or what the container says cannot be written.
        """
        if relay.ending is not None:
            return 128 + relay.ending
        self.prepare()
        words = [*self._command(bundle, bundle.log), "run", "--bundle", str(bundle.directory)]
        words += ["--pid-file", str(bundle.pid_file), name]

        def ended() -> None:
            signal.alarm(0)  # no container is left to be killed
            self.clear(bundle, name)

        return self._attend(words, bundle.pid_file, relay, pipes, on_started, ended)

    def exec(
        self, bundle: Bundle, place: Bundle, name: str, relay: SignalRelay, pipes: StdioPipes | None
    ) -> int:
        """Run the process.json in `place` in a running container; return its exit code. Raises as `run`."""
        words = [*self.exec_words(bundle, place), name]
        return self._attend(words, place.pid_file, relay, pipes, lambda _: None, lambda: None)

    def exec_detached(self, bundle: Bundle, place: Bundle, name: str) -> int:
        """Start it, and return 0 once it runs: it has neither input nor output."""
        words = [*self.exec_words(bundle, place), "--detach", name]
        with open(os.devnull, "r+b") as null:
            return subprocess.run(
                words, env=_environment(), check=False, stdin=null, stdout=null, stderr=null
            ).returncode

    def exec_words(self, bundle: Bundle, place: Bundle) -> list[str]:
        """Return the words that start a process.json, but for the container's name."""
        process = str(place.directory / "process.json")
        return [
            *self._command(bundle, place.log),
            "exec",
            "--process",
            process,
            "--pid-file",
            str(place.pid_file),
        ]

    def _attend(
        self,
        words: Sequence[str],
        pid_file: Path,
        relay: SignalRelay,
        pipes: StdioPipes | None,
        on_started: Callable[[int], None],
        on_ended: Callable[[], None],
    ) -> int:
        """Start the runtime, and wait for its end; its exit code."""
        if pipes:
            relay.ending_caught = partial(pipes.abandon_after, pid_file)
        relay.resized = partial(follow_size, pid_file) if self.command.is_crun else None
        process = _start(words, pipes)
        with relay.to(process.pid):
            code = _wait(process, pid_file, relay, on_started)
            on_ended()
            try:
                if pipes:
                    pipes.finish(lambda: relay.ending is not None)
            except MountError:
                if not code:
                    raise
        return code if code >= 0 else 128 - code

    def prepare(self) -> None:
        """Have the runtime find, in this mount namespace, what it can work with: crun wants cgroups of one
        version only."""
        if self.command.is_crun and self.cgroups.hidden:
            syscalls.cover_with_tmpfs(self.cgroups.hidden)

    def _command(self, bundle: Bundle, log: Path) -> list[str]:
        words = [self.command.path, "--root", str(bundle.state), "--log", str(log)]
        if self.cgroups.parent is not None:
            return words
        return [*words, "--cgroup-manager=disabled"] if self.command.is_crun else [*words, "--rootless=true"]

    def clear(self, bundle: Bundle, name: str) -> None:
        """Have the runtime remove what it keeps, should it have been killed."""
        if (bundle.state / name).exists():
            words = [*self._command(bundle, bundle.log), "delete", "--force", name]
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    words, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_DELETE
                )


def _wait(
    process: subprocess.Popen[bytes], pid_file: Path, relay: SignalRelay, on_started: Callable[[int], None]
) -> int:
    """Wait for a runtime's end; call `on_started` when the process whose pid is in a file runs."""
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(ProcessLookupError), first_process(pid_file) as first:
                on_started(first.pid)
            break
        time.sleep(_LOOK)
    relay.wait_for_end()
    return process.wait()


def _start(words: Sequence[str], pipes: StdioPipes | None) -> subprocess.Popen[bytes]:
    """Start a runtime, what it says being copied; raises MountError, LimitReached."""
    files = (pipes.stdin, pipes.stdout, pipes.stderr) if pipes else (None, None, None)
    if pipes:
        pipes.begin()
    try:
        process = subprocess.Popen(
            words, env=_environment(), stdin=files[0], stdout=files[1], stderr=files[2]
        )
    except OSError as error:
        raise MountError(f"{words[0]}: {error.strerror}") from error
    if pipes:
        pipes.handed_on()
    return process


def _environment() -> dict[str, str]:
    """Return a runtime's variables: not what a service manager tells imgfs by them.

    Runtimes hand those descriptors and that socket on to the container (sd_listen_fds(3), sd_notify(3)), and
    take their own for them.
    """
    return {name: value for name, value in variables().items() if not name.startswith(_NOT_HANDED_ON)}


def start_failure(bundle: Bundle) -> int | None:
    """Return the exit code of a command that never ran, None if it did. The runtime has said why."""
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

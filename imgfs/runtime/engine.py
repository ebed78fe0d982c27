"""An OCI runtime started on a bundle: the signals passed to it, its exit code, what it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgfs.errors import MountError
from imgfs.runtime import linux
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.host import Cgroups, Runtime, capabilities
from imgfs.runtime.program import NOT_EXECUTABLE, NOT_FOUND, OUR_FAULT
from imgfs.runtime.signals import Relay, signal_number
from imgfs.runtime.terminal import follow_size


@dataclass(frozen=True, slots=True)
class Engine:
    """A runtime and how it is to be started here; without a cgroup it makes none."""

    runtime: Runtime
    cgroups: Cgroups

    @property
    def guards_devices(self) -> bool:
        """Whether access to devices can be limited: in version 2 by BPF, for which crun raises a limit."""
        return not (
            self.runtime.is_crun and self.cgroups.unified and "CAP_SYS_RESOURCE" not in capabilities()
        )

    def run(self, bundle: Bundle, name: str, relay: Relay, *, interactive: bool) -> int:
        """Run the container to its end; its exit code. Raises MountError if there is no such program."""
        if relay.ending is not None:
            return 128 + relay.ending
        self._prepare()
        relay.resized = partial(follow_size, bundle.pid_file) if self.runtime.is_crun else None
        words = [*self._command(bundle), "run", "--bundle", str(bundle.directory)]
        stdin = None if interactive else subprocess.DEVNULL
        try:
            process = subprocess.Popen([*words, "--pid-file", str(bundle.pid_file), name], stdin=stdin)
        except OSError as error:
            raise MountError(f"{self.runtime.path}: {error.strerror}") from error
        with relay.to(process.pid):
            code = process.wait()
        self._clear(bundle, name)
        return code if code >= 0 else 128 - code

    def _prepare(self) -> None:
        """Have the runtime find what it can work with: crun wants cgroups of one version only."""
        if self.runtime.is_crun and self.cgroups.hidden:
            linux.cover(self.cgroups.hidden)

    def _command(self, bundle: Bundle) -> list[str]:
        words = [self.runtime.path, "--root", str(bundle.state), "--log", str(bundle.log)]
        if self.cgroups.parent is not None:
            return words
        return [*words, "--cgroup-manager=disabled"] if self.runtime.is_crun else [*words, "--rootless=true"]

    def _clear(self, bundle: Bundle, name: str) -> None:
        """Have the runtime remove what it keeps, should it have been killed."""
        if (bundle.state / name).exists():
            words = [*self._command(bundle), "delete", "--force", name]
            subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def failure(bundle: Bundle) -> int | None:
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
    if "executable file" in words and "not found" in words:
        return NOT_FOUND
    if "permission denied" in words or "is a directory" in words:
        return NOT_EXECUTABLE
    return NOT_FOUND if "no such file or directory" in words else OUR_FAULT


class Stopper:
    """Ends a container whose caller has gone: its stop signal first, SIGKILL after `patience` seconds."""

    def __init__(self, pid_file: Path, stop_signal: str, patience: int = 10) -> None:
        self._pid_file = pid_file
        self._patience = patience
        self._number = signal_number(stop_signal)

    def __call__(self) -> None:
        """Begin."""
        signal.signal(signal.SIGALRM, lambda *_: self._send(signal.SIGKILL))
        signal.alarm(self._patience)  # none for no seconds
        self._send(self._number if self._patience else signal.SIGKILL)

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._pid_file.read_text()), number)


@contextlib.contextmanager
def taken_down(rootfs: Path) -> Iterator[None]:
    """After the block, unmount the image and wait for its daemon, the only other child, to have ended."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.statvfs(rootfs)  # answered after all files that the container's end has closed
        with contextlib.suppress(OSError):  # it was not mounted
            linux.detach(str(rootfs))
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

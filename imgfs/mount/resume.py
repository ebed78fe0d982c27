"""Serving a mount that another process has mounted, and was killed: what is handed on, and how.

The kernel keeps the requests that a killed daemon has read and not answered. Asked to (FUSE_NOTIFY_RESEND,
Linux 6.9, include/uapi/linux/fuse.h) it sends them again to the process that reads /dev/fuse next. That goes
by what the first daemon has agreed to, and gives files the same inode numbers: those of the image's tree.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs import syscalls
from imgfs.errors import MountError
from imgfs.mount import holder
from imgfs.mount.options import MountOptions
from imgfs.mounts.table import mounts

if TYPE_CHECKING:
    from imgfs.image.resolve import Resolved
    from imgfs.store.store import Store
    from imgfs.transport.source import Source

NEEDED_KERNEL = (6, 9)
_START = "import sys; sys.path.insert(0, sys.argv[1]); from imgfs.mount.successor import main; main()"


@dataclass(frozen=True, slots=True)
class MountState:
    """What a successor has to know. `connect` is pickled; `device` is the mount's, major:minor.

    `offered` is what the kernel can do (InitFlag), `began` when it was mounted, in seconds since 1970, `beat`
    the seconds from one sign of life to the next.
    """

    resolved: Resolved
    connect: bytes
    store: Store
    options: MountOptions
    began: float
    offered: int = 0
    device: str = ""
    beat: float = field(default_factory=lambda: holder.BEAT)


@dataclass(slots=True)
class Succession:
    """Has another process serve a mount if this one is killed. `restarts` counts its predecessors."""

    state: MountState
    descriptor: int = -1  # the open /dev/fuse that was taken over, -1 in the first daemon
    control: int = -1  # the pipe to the holder
    restarts: int = 0
    _holder: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def is_taken_over(self) -> bool:
        """Return True if another process has mounted it."""
        return self.descriptor >= 0

    def serves(self, descriptor: int, options: MountOptions, offered: int, device: str) -> None:
        """Note that this process answers; the first one starts the holder. Raises OSError."""
        if not self.is_taken_over:
            self.state = replace(self.state, options=options, offered=offered, device=device)
            self._start_holder(descriptor)
        self._tell(holder.SERVES)

    def ended(self) -> None:
        """Tell the holder that the mount has ended."""
        if self.control >= 0:
            self._tell(holder.ENDED)

    def beats(self) -> None:
        """Tell the holder that the thread which reads /dev/fuse has come round to this."""
        self._tell(holder.BEATS)

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(
            BrokenPipeError, BlockingIOError
        ):  # the holder was killed itself, or stopped
            os.write(self.control, word)

    def unmount(self) -> None:
        """Detach a mount that was taken over, unless the kernel has let go of it already."""
        polled = select.poll()
        polled.register(self.descriptor, 0)
        if polled.poll(0):  # POLLERR; its number may be another mount's by now
            return
        for mount in [mount for mount in mounts() if mount.device == self.state.device]:
            if os.geteuid() == 0:
                with contextlib.suppress(OSError):
                    syscalls.detach_mount(str(mount.mountpoint))
            else:
                subprocess.run(["fusermount3", "-u", "-z", "--", mount.mountpoint], check=False)

    def _start_holder(self, descriptor: int) -> None:
        state = os.memfd_create("imgfs-mount")
        with open(state, "wb", closefd=False) as file:
            pickle.dump(self.state, file)
        control, self.control = os.pipe()
        package = Path(holder.__file__).parents[2]
        successor = [sys.executable, "-I", "-c", _START, str(package)]
        os.set_blocking(self.control, False)
        numbers = (descriptor, state, control, os.getpid(), self.state.beat)
        given = [str(self.state.options.mountpoint), self.state.device, *map(str, numbers)]
        self._holder = subprocess.Popen(
            [sys.executable, "-I", "-S", holder.__file__, *given, *successor],
            pass_fds=(descriptor, state, control),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(state)
        os.close(control)


def check_kernel() -> None:
    """Raise MountError if this kernel does not send again what a killed daemon has left unanswered."""
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    if numbers < NEEDED_KERNEL:
        raise MountError(f"--restart: this kernel is Linux {release}, and has to be 6.9 or newer")


def connector(pickled: bytes) -> Callable[[], Source]:
    """Return what opens a source; what that takes is loaded when it is needed."""

    def connect() -> Source:
        source: Source = pickle.loads(pickled)()
        return source

    return connect

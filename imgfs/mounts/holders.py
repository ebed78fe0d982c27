"""Holders (`mount.holder`): the processes that have a mount served again if its daemon dies or hangs.

One is found by its command line, which says what device it holds. It takes orders by a pipe of its own, and
answers in a file: both are opened by /proc, which only its user and root may.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgfs.errors import MountError
from imgfs.mounts.table import Mount, mount_at

SCRIPT = "imgfs/mount/holder.py"
_DEVICE, _ORDERS = 2, 5  # among its arguments
_PATIENCE, _POLL = 120.0, 0.03  # seconds that an upgrade may take, and between looks


def holder_of(mount: Mount) -> int | None:
    """Return the pid of the holder of a mount, None if it has none."""
    return next((pid for pid in map(int, _processes()) if _holds(pid, mount)), None)


def idle_mounts(mounts: Iterable[Mount]) -> set[Path]:
    """Return the mountpoints of those whose daemon has ended, as nothing was read; it is not woken by this.

    Their holders have no process (`imgfs mount --exit-idle`), or, for a moment, are starting one again.
    """
    held = {
        words[1]: (words[_DEVICE], pid) for pid in map(int, _processes()) if (words := _words(pid))[_DEVICE:]
    }
    found = set()
    for mount in mounts:
        device, pid = held.get(str(mount.mountpoint), ("", 0))
        if pid and (mount.runtime or device == mount.device) and _has_no_child(pid):
            found.add(mount.mountpoint)
    return found


def is_holder(pid: int) -> bool:
    """Return True if a process is some mount's holder."""
    return bool(held_device(pid))


def held_device(pid: int) -> str:
    """Return the device (major:minor) of the mount that a process holds, nothing if it is no holder."""
    return next(iter(_words(pid)[_DEVICE:]), "")


def _words(pid: int) -> list[str]:
    """Return the arguments of a holder, its script first; none of any other process."""
    with suppress(OSError, StopIteration):
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return words[next(number for number, word in enumerate(words) if word.endswith(SCRIPT)) :]
    return []


@contextmanager
def awaiting_holder(path: Path, seconds: float) -> Iterator[None]:
    """Wait after the block for the holder of the mount at a path to end, if it has one; so long at most."""
    mount = mount_at(path)
    pid = holder_of(mount) if mount else None
    with _opened(pid) as fd:
        yield
        if fd is not None:
            select.select([fd], [], [], seconds)


def end_held(mountpoint: Path, seconds: float) -> None:
    """End what serves a mount of another mount namespace, if it has a holder, and wait for that."""
    pid = next((pid for pid in map(int, _processes()) if _words(pid)[1:2] == [str(mountpoint)]), None)
    with _opened(pid) as fd:
        if pid is None or fd is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in _children(pid):
                with suppress(ProcessLookupError):
                    os.kill(child, number)
            if select.select([fd], [], [], seconds)[0]:
                return
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)


@contextmanager
def _opened(pid: int | None) -> Iterator[int | None]:
    """Open a process for waiting (pidfd_open(2)); None if there is none."""
    try:
        fd = None if pid is None else os.pidfd_open(pid)
    except OSError:
        fd = None
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _has_no_child(pid: int) -> bool:
    with suppress(OSError):
        return not Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return False


def hand_over(mount: Mount, protocol: str, holder: list[str], program: list[str]) -> None:
    """Have `program` serve a mount in the place of its daemon, and be held by `holder`.

    Raises MountError: then its daemon serves on.
    """
    pid = holder_of(mount)
    if pid is None:
        raise MountError(f"{mount.mountpoint}: mounted without --restart, so it cannot be handed over")
    nonce = f"{os.getpid()}-{time.monotonic_ns()}"
    order = "".join(f"{word}\0" for word in (protocol, nonce, *holder, *program)) + "\0"
    try:
        orders, outcome = _words(pid)[_ORDERS : _ORDERS + 2]
        with open(f"/proc/{pid}/fd/{orders}", "wb", buffering=0) as pipe:
            pipe.write(os.fsencode(order))
        said = _outcome(Path(f"/proc/{pid}/fd/{outcome}"), nonce)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is of another version"
        raise MountError(f"{mount.mountpoint}: its holder (pid {pid}) takes no orders: {reason}") from error
    if said:
        raise MountError(f"{mount.mountpoint}: {said}")


def _outcome(path: Path, nonce: str) -> str:
    """Wait for what becomes of an order; return why it could not be carried out, nothing if it was."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        found, _, said = path.read_text(errors="replace").partition(" ")
        if found == nonce:
            return said.strip()
        time.sleep(_POLL)
    return f"it is not handed over within {_PATIENCE:.0f} s: see the log"


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def _holds(pid: int, mount: Mount) -> bool:
    """Return True if a process is the holder of a mount, and its user's, or root's."""
    with suppress(OSError):
        return held_device(pid) == mount.device and os.stat(f"/proc/{pid}").st_uid in (0, mount.user)
    return False

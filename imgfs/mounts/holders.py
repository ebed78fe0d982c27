"""Holders (`mount.holder`): the processes that have a mount served again if its daemon dies or hangs.

One is found by its command line, which says what device it holds. It takes orders by a pipe of its own, and
answers in a file in memory: both are opened by /proc, which only its user and root may.

The rule: any process can say of itself what a holder says, and any user can run a program of root's with such
words. So it counts only if all its ids are those of the mount's user, or root's; and what root opens of it
is a pipe and memory of that user, and nothing else that a number, or a path in its place, may lead to.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import MountError
from imgfs.mounts.table import Mount, mount_at, pids

SCRIPT = "imgfs/mount/holder.py"
_SCRIPT = os.fsencode(SCRIPT)
_PATIENCE, _POLL = 120.0, 0.03  # seconds that an upgrade may take, and between looks
_LARGEST_OUTCOME = 1 << 16  # bytes
_LONGEST_LINE = 1 << 17  # bytes of a command line that are read: a holder's has far fewer
_PIPE, _MEMORY = "pipe:", "/memfd:"  # what /proc calls them: asked of no file system, which may not answer


class HolderProcess(NamedTuple):
    """A process that says that it holds a mount; `user` is its only uid. Its descriptors are as it says."""

    pid: int
    user: int
    mountpoint: str
    device: str  # major:minor
    orders: str
    outcome: str
    servers: frozenset[str] = frozenset()  # pids of the daemons that it was told of when it was started

    @classmethod
    def of(cls, pid: int) -> HolderProcess | None:
        """Return what a process says; None if it says nothing such, or runs with the rights of two users."""
        with suppress(OSError, ValueError):
            said = _command_line(pid)
            if _SCRIPT not in said:  # as of nearly all
                return None
            words = os.fsdecode(said).split("\0")
            script = next((at for at, word in enumerate(words) if word.endswith(SCRIPT)), None)
            if script is not None and len(words) > script + 6:
                mountpoint, device, _, _, orders, outcome = words[script + 1 : script + 7]
                (user,) = set(_uids(pid))
                told = "".join(words[script + 10 : script + 11]).split(",")  # PID/…, each
                servers = frozenset(one.partition("/")[0] for one in told)
                return cls(pid, user, mountpoint, device, orders, outcome, servers)
        return None

    def holds(self, mount: Mount) -> bool:
        """Return True if it is the holder of a mount: of its device, and its user's, or root's."""
        return self.device == mount.device and self.user in (0, mount.user)


def holder_of(mount: Mount) -> int | None:
    """Return the pid of the holder of a mount, None if it has none."""
    found = _holder_of(mount)
    return found.pid if found else None


def _holder_of(mount: Mount) -> HolderProcess | None:
    return next((one for one in _holders() if one.holds(mount)), None)


def idle_mounts(mounts: Iterable[Mount]) -> set[Path]:
    """Return the mountpoints of those whose daemon has ended, as nothing was read; it is not woken by this.

    Their holders have no daemon (`imgfs mount --exit-idle`), or, for a moment, are starting one again: as
    their child, while the first one of a mount is their parent.
    """
    held: dict[str, list[HolderProcess]] = {}
    for holder in _holders():
        held.setdefault(holder.mountpoint, []).append(holder)
    return {
        mount.mountpoint
        for mount in mounts
        for holder in held.get(str(mount.mountpoint), ())
        if (holder.user in (0, mount.user) if mount.runtime else holder.holds(mount))
        and not _has_daemon(holder)
    }


def is_holder(pid: int) -> bool:
    """Return True if a process is some mount's holder."""
    return HolderProcess.of(pid) is not None


@contextmanager
def awaiting_holder(path: Path, seconds: float) -> Iterator[None]:
    """Wait after the block for the holder of the mount at a path to end, if it has one; so long at most."""
    mount = mount_at(path)
    pid = holder_of(mount) if mount else None
    with opened_process(pid) as fd:
        yield
        if fd is not None:
            select.select([fd], [], [], seconds)


def end_held(mountpoint: Path, seconds: float) -> None:
    """End the holder that this user has of a mount in another mount namespace, if any: SIGTERM, then SIGKILL.

    Its daemons get each signal first: once they have ended, the holder ends of itself. It is signalled, too,
    if it has not within `seconds`.
    """
    import signal  # here: a list of mounts has no use for it

    mine = (one.pid for one in _holders() if (one.mountpoint, one.user) == (str(mountpoint), os.geteuid()))
    pid = next(mine, None)
    with opened_process(pid) as fd:
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
def opened_process(pid: int | None) -> Iterator[int | None]:
    """Open a process for waiting (pidfd_open(2)); None if it has ended, or is in another PID namespace."""
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


def _has_daemon(holder: HolderProcess) -> bool:
    """Return whether a holder has a process that serves: its child, its parent, or one that it watches."""
    with suppress(OSError):
        if Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text():
            return True
        lines = Path(f"/proc/{holder.pid}/status").read_text(errors="replace").splitlines()
        parent = next(line.split()[1] for line in lines if line.startswith("PPid:"))
        return parent in holder.servers or _watches_process(holder.pid)
    return True


def _watches_process(pid: int) -> bool:
    """Return whether a process has another one open (pidfd_open(2)), as far as this one may know."""
    with suppress(PermissionError):
        return any("pidfd" in os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


def hand_over(mount: Mount, protocol: str, holder: list[str], program: list[str]) -> None:
    """Have `program` serve a mount in the place of its daemon, and be held by `holder`.

    Raises MountError: then its daemon serves on.
    """
    found = _holder_of(mount)
    if found is None:
        raise MountError(f"{mount.mountpoint}: mounted without --restart, so it cannot be handed over")
    nonce = f"{os.getpid()}-{time.monotonic_ns()}"
    order = "".join(f"{word}\0" for word in (protocol, nonce, *holder, *program)) + "\0"
    try:
        with (
            _opened_of(found, found.orders, _PIPE, os.O_WRONLY) as orders,
            _opened_of(found, found.outcome, _MEMORY, os.O_RDONLY) as outcome,
        ):
            os.write(orders, os.fsencode(order))
            said = _outcome(outcome, nonce)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is of another version"
        raise MountError(
            f"{mount.mountpoint}: its holder (pid {found.pid}) takes no orders: {reason}"
        ) from error
    if said:
        raise MountError(f"{mount.mountpoint}: {said}")


@contextmanager
def _opened_of(holder: HolderProcess, number: str, kind: str, access: int) -> Iterator[int]:
    """Open again what a holder has open: a pipe or memory (`kind`) of its user, and nothing else.

    Raises OSError; ValueError if it is of another kind. It is looked at before it is opened: a device may act
    on that.
    """
    if not (number.isascii() and number.isdecimal()):
        raise ValueError(number)
    path = f"/proc/{holder.pid}/fd/{number}"
    if not os.readlink(path).startswith(kind):
        raise ValueError(number)
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        found = os.fstat(seen)
        if found.st_dev != _device_of(kind) or found.st_uid != holder.user:
            raise PermissionError(errno.EPERM, "what it names is not its own")
        opened = os.open(f"/proc/self/fd/{seen}", access | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(seen)
    try:
        yield opened
    finally:
        os.close(opened)


def _device_of(kind: str) -> int:
    """Return the device (st_dev) of all pipes, or of all memory: no file is on it that has a path."""
    numbers = os.pipe() if kind == _PIPE else (os.memfd_create("imgfs"),)
    try:
        return os.fstat(numbers[0]).st_dev
    finally:
        for number in numbers:
            os.close(number)


def _outcome(outcome: int, nonce: str) -> str:
    """Wait for what becomes of an order; return why it could not be carried out, nothing if it was."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        body = os.pread(outcome, _LARGEST_OUTCOME, 0).decode(errors="replace")
        found, _, said = body.partition(" ")
        if found == nonce:
            return said.strip()
        time.sleep(_POLL)
    return f"it is not handed over within {_PATIENCE:.0f} s: see the log"


def _holders() -> Iterator[HolderProcess]:
    return filter(None, map(HolderProcess.of, pids()))


def _command_line(pid: int) -> bytes:
    """Return a process's command line (proc(5)), by as few calls as can be: each of the machine's is read."""
    fd = os.open(f"/proc/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LONGEST_LINE)
    finally:
        os.close(fd)


def _uids(pid: int) -> list[int]:
    """Return the real, effective, saved and file system uid of a process (proc(5), status)."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return [int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]]

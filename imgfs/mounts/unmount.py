"""Ending a mount, and waiting for its daemon to end.

The rule: root unmounts what it has found in the mount table, at the path there, without a symbolic link on it
(`syscalls.unmount`). Another user's daemon is asked in between, and its user may change the path meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import MountError, describe
from imgfs.mounts.holders import holder_of, opened_process
from imgfs.mounts.in_use import overlays_over, user_of
from imgfs.mounts.status_client import (
    DaemonSilent,
    ask_in_child,
    daemon_of,
    is_killed_process,
    is_served_by_none,
    is_stopped_process,
    read_status,
)
from imgfs.mounts.table import Mount, mount_at, process_with_mount
from imgfs.status import MountStatus

log = logging.getLogger(__name__)

_CONNECTIONS = Path("/sys/fs/fuse/connections")  # of fusectl: each by its device's minor number
_PATIENCE = 20.0  # seconds for the daemon to end once its mount is gone,
_PATIENCE_WITH_SCRATCH = 600.0  # or has files to complete or to remove
_HELD = 5.0  # seconds that another mount namespace may have it still: a container's lets go of it at once
_POLL = 1.0  # seconds between checks whether it is stopped
_TRIES_MORE, _BUSY = 3, 0.25  # at unmounting what is busy, and seconds before each


class HeldElsewhere(MountError):
    """A mount is gone here, as after umount(8), but an overlay or another mount namespace has it still."""


def unmount(mount: Mount, *, lazy: bool = False, ask: bool = True) -> None:
    """Unmount, and wait until the daemon has ended; if `lazy` or not to `ask` it, do not wait.

    Raises HeldElsewhere, or MountError, for example when the mount is busy or its daemon does not answer.
    """
    if lazy and _is_held_in_kernel(mount) and end_connection(mount):
        return
    try:
        status = _status(mount) if ask and not lazy else MountStatus()
    except DaemonSilent:
        if not _is_held_in_kernel(mount):
            raise
        if end_connection(mount):
            return
        status = _status(mount)
    pid = daemon_of(mount) if status.pid else None
    if status.pid and pid is None and mount.runtime is None:
        pid = status.pid  # in the daemon's PID namespace: an older kernel has no other
    # while it serves the mount: later its pid may be another process's
    with opened_process((pid and holder_of(mount)) or pid) as daemon:
        over = [] if lazy else overlays_over(mount.mountpoint)  # later the path leads elsewhere
        _take_down(mount, lazy=lazy)
        if mount.runtime and not status.pid:
            _remove_if_left(mount.runtime)
        if pid and daemon is not None:
            patience = _PATIENCE_WITH_SCRATCH if status.scratch else _PATIENCE
            _wait_for_end(pid, daemon, mount, patience, over)


def end_connection(mount: Mount) -> bool:
    """Have all that waits for the daemon of a FUSE mount fail, now and later; return whether it is unmounted.

    What is in use is not. Root does that by MNT_FORCE (umount(2)), others by fusectl (linux:
    Documentation/filesystems/fuse.rst, "Aborting a filesystem connection"). Raises MountError.
    """
    if mount.runtime:
        pid, todo = daemon_of(mount), f"imgfs umount {mount.mountpoint}"
        stuck = f"kill -9 {pid}, its daemon," if pid else f"imgfs umount --lazy {mount.mountpoint}"
        reason = (
            f"by the kernel's driver there is nothing to be forced: {todo}; if that hangs, {stuck} before it"
        )
        raise MountError(f"{mount.mountpoint}: {reason}")
    try:
        if os.geteuid():
            (_CONNECTIONS / mount.device.partition(":")[2] / "abort").write_bytes(b"1")
            return False
        syscalls.unmount(str(mount.mountpoint), syscalls.MNT_FORCE)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        hint = "" if os.geteuid() == 0 else f"; as root: umount -f {mount.mountpoint}"
        raise MountError(f"{mount.mountpoint}: cannot be forced: {describe(error)}{hint}") from error
    return True


def _is_held_in_kernel(mount: Mount) -> bool:
    """Return True if a mount's daemon was killed, a thread of it waits in the kernel, and there is no holder.

    No process will answer what waits for it, so its connection is to be ended.
    """
    pid = None if mount.runtime else daemon_of(mount)
    if pid is None or not is_killed_process(pid) or holder_of(mount):
        return False
    log.info(
        "%s: its daemon (pid %d) was killed, and the kernel waits for it: that ends", mount.mountpoint, pid
    )
    return True


def detach_all(mountpoint: Path) -> None:
    """Take down every mount at `mountpoint`, as root, and ask no daemon: what still uses one keeps it.

    Raises MountError.
    """
    while mount := mount_at(mountpoint):
        if mount.is_imgfs and _is_held_in_kernel(mount) and end_connection(mount):
            continue
        try:
            syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH)
        except OSError as error:
            raise MountError(f"{mountpoint}: cannot unmount: {describe(error)}") from error


def detach_and_wait(mountpoint: Path, patience: float) -> None:
    """Detach all mounts at a path, and wait `patience` seconds at most for the last one's daemon to end.

    One with a holder may serve other mounts, too: the holder ends once it is done with this one.
    """
    mount = mount_at(mountpoint)
    pid = (holder_of(mount) or daemon_of(mount)) if mount and mount.is_imgfs else None
    with opened_process(pid) as process:
        detach_all(mountpoint)
        if process is not None and not select.select([process], [], [], patience)[0]:
            log.info("%s: process %s goes on after %.0f s", mountpoint, pid, patience)


def _status(mount: Mount) -> MountStatus:
    try:
        return read_status(mount)
    except DaemonSilent:
        raise
    except MountError:
        return MountStatus()  # dead already: there is nothing to wait for


def _take_down(mount: Mount, *, lazy: bool) -> None:
    """Have it unmounted, again if it is busy for a moment: another imgfs may ask for its status."""
    reason = _try(mount, lazy=lazy)
    for _ in range(_TRIES_MORE):
        if "busy" not in reason:
            break
        time.sleep(_BUSY)
        reason = _try(mount, lazy=lazy)
    if "busy" in reason:
        at = mount.mountpoint
        user = user_of(at) or f"some process uses it (see: fuser -vm {at})"
        raise MountError(f"{at}: cannot unmount: it is busy: {user}; or imgfs umount --lazy {at}")
    if reason:
        raise MountError(f"{mount.mountpoint}: cannot unmount: {reason}")


def _try(mount: Mount, *, lazy: bool) -> str:
    """Unmount it, and return why that cannot be done, nothing if it is.

    It may wait for the daemon in the kernel. Raises DaemonSilent, and leaves it there, if the daemon is
    stopped, or takes longer than a daemon may.
    """
    end = time.monotonic() + _PATIENCE_WITH_SCRATCH
    if os.geteuid():
        return _by_fusermount(mount, end, lazy=lazy)
    try:
        ask_in_child(lambda: _by_kernel(mount, lazy=lazy), mount, end)
    except TimeoutError:
        raise DaemonSilent(mount) from None
    except OSError as error:
        return "target is busy" if error.errno == errno.EBUSY else describe(error)
    return ""


def _by_kernel(mount: Mount, *, lazy: bool) -> bytes:
    syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH if lazy else 0)
    return b""


def _by_fusermount(mount: Mount, end: float, *, lazy: bool) -> str:
    """Have fusermount3 unmount, which refuses what this user has not mounted; return what failed."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mount.mountpoint)]
    if shutil.which(command[0]) is None:
        raise MountError(f"{command[0]} is not installed (Debian: apt install fuse3)")
    running = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while True:
        try:
            _, output = running.communicate(timeout=_POLL)
        except subprocess.TimeoutExpired:
            if time.monotonic() > end or is_served_by_none(daemon_of(mount)):
                running.kill()  # not waited for: it may stay until the daemon goes on
                raise DaemonSilent(mount) from None
        else:
            said = output.strip().splitlines()[-1:] or ["fusermount3 failed"]
            return said[0] if running.returncode else ""


def _remove_if_left(runtime: Path) -> None:
    """Remove the directory that a dead daemon has left: a living one holds its lock."""
    try:
        fd = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(runtime, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(fd)


def _wait_for_end(pid: int, fd: int, mount: Mount, patience: float, over: Sequence[Path]) -> None:
    """Wait for a daemon, or its holder, open at `fd`, to end: a holder does once its daemon has.

    Raises MountError if it is stopped or takes too long, HeldElsewhere if it has to go on: overlays may be
    mounted `over` it, or another process may have the mount in a namespace of its own (unshare -m where `/`
    is private), for as long as it lives.
    """
    began, daemon = time.monotonic(), f"its daemon (pid {pid})"
    end, held = began + patience, began + _HELD
    while not select.select([fd], [], [], _POLL)[0]:
        if over:
            raise HeldElsewhere(
                f"unmounted here, but {daemon} goes on: the overlay at {over[0]} stands on it: "
                f"umount {' '.join(map(str, over))}"
            )
        if time.monotonic() > held and (other := process_with_mount(mount)):
            holds = f"process {other} has the mount in another mount namespace"
            raise HeldElsewhere(f"unmounted here, but {daemon} goes on: {holds}")
        if is_stopped_process(pid):
            raise MountError(f"unmounted, but {daemon} is stopped: kill -CONT {pid}")
        if time.monotonic() > end:
            raise MountError(f"unmounted, but {daemon} has not ended within {patience:.0f} s")

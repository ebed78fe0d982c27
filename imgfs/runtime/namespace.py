"""A child process in a mount namespace and, for ordinary users, a user namespace of its own.

No other process sees what is mounted there, and the kernel unmounts it when the last process there ends. An
ordinary user is root there, over their own id and those that subuid(5) lends them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs import syscalls
from imgfs.errors import MountError
from imgfs.starting import fork

if TYPE_CHECKING:
    from imgfs.runtime.host_facts import IdMaps, IdRange
    from imgfs.runtime.signals import SignalRelay

_FAILED = 125
_READY = b"\0"


class NamespacedChild:
    """A child process and its namespaces, seen from the parent; `fork` starts it."""

    def __init__(self, pid: int, maps: IdMaps | None, entered: int, go: int) -> None:
        self.pid = pid
        self._maps = maps
        self._entered = entered  # the child writes to its other end once it is in its namespaces
        self._go = go  # the parent writes to it once the ids of a user namespace are mapped

    @classmethod
    def fork(cls, work: Callable[[Callable[[], None]], int], maps: IdMaps | None) -> NamespacedChild:
        """Fork a child that runs `work(enter)` and exits with its result.

        The child begins in the namespaces of its parent; `enter()` moves it into its own.
        """
        going, go = os.pipe()
        has_entered, entered = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = fork()
        if pid == 0:
            os.close(go)
            os.close(has_entered)
            _run_child(work, lambda: _enter(maps, parent, entered, going))
        os.close(going)
        os.close(entered)
        return cls(pid, maps, has_entered, go)

    def wait(self, relay: SignalRelay, told: int | None = None) -> int | bytes:
        """Map the child's ids, wait for its end, passing on signals meanwhile, and return its exit code.

        If it writes to the pipe `told`, return that: it goes on alone. Raises MountError if it cannot be
        given the ids.
        """
        said = b""
        try:
            if os.read(self._entered, 1):  # else it could not, and says why
                self._lend_ids()
                os.write(self._go, _READY)
        finally:
            os.close(self._go)
            os.close(self._entered)
            with relay.to(self.pid):
                said = b"" if told is None else _said(relay, told)
                code = 0 if said else _ended(relay, self.pid)
        return said or (code if code >= 0 else 128 - code)

    def _lend_ids(self) -> None:
        if self._maps and not _has_single_id(self._maps):
            _lend("newuidmap", self.pid, self._maps[0])
            _lend("newgidmap", self.pid, self._maps[1])


class JoinedChild:
    """A child process that moves itself into namespaces that are there; `fork` starts it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def fork(cls, work: Callable[[], int]) -> JoinedChild:
        """Fork a child, of one thread, that exits with the result of `work`."""
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = fork()
        if pid == 0:

            def work_while_parent_lives(_: Callable[[], None]) -> int:
                _end_with(parent)
                return work()

            _run_child(work_while_parent_lives, lambda: None)
        return cls(pid)

    def wait(self, relay: SignalRelay) -> int:
        """Wait for its end, passing on signals meanwhile, and return its exit code."""
        with relay.to(self.pid):
            code = _ended(relay, self.pid)
        return code if code >= 0 else 128 - code


def _end_with(parent: int) -> None:
    """Have the kernel send this process SIGTERM when its parent ends; end at once if it has ended already.

    Not by that signal, as `syscalls` would do it: this process may catch it by now, for a container.
    """
    syscalls.set_parent_death_signal(signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(_FAILED)


def _ended(relay: SignalRelay, pid: int) -> int:
    """Wait for a child to end, passing on signals meanwhile; its exit code, or minus its signal."""
    relay.wait_for_end()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _said(relay: SignalRelay, told: int) -> bytes:
    """Return what a child writes to a pipe; nothing if it ends before. Others may have the pipe open, too."""
    return os.read(told, 4096) if relay.wait_for_end(told) else b""


def go_on_alone() -> None:
    """Have this process, the child of a caller that will end now, outlive it, and hold nothing of its."""
    syscalls.set_parent_death_signal(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _run_child(work: Callable[[Callable[[], None]], int], enter: Callable[[], None]) -> None:
    """Run `work` in the child and exit with its result; never return."""
    code = _FAILED
    try:
        os.setsid()  # the terminal's signals are the parent's, who passes them on
        code = work(enter)
    except SystemExit as error:  # argparse's
        code = 0 if error.code in (0, None) else _FAILED  # a wrong option is 125 too, as podman has it
    except BaseException:  # noqa: BLE001  (told as Python tells it: the fork must not go on as its parent)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _enter(maps: IdMaps | None, parent: int, entered: int, going: int) -> None:
    """Go into the namespaces; raises MountError where the machine does not allow them."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWUSER if maps else 0))
    except OSError as error:
        what = "a user namespace" if maps else "a mount namespace (CAP_SYS_ADMIN)"
        raise MountError(f"this machine does not let you have {what}: {error.strerror}") from error
    if maps and _has_single_id(maps):
        _map_itself(maps)
    os.write(entered, _READY)
    if os.read(going, 1) != _READY:
        os._exit(_FAILED)  # the parent has failed, and has said why
    for fd in (entered, going):
        os.close(fd)
    if maps:
        _become_root(has_groups=not _has_single_id(maps))
    syscalls.make_mounts_slave()
    _end_with(parent)


def detach_other_mounts(needed: Iterable[Path]) -> None:
    """Unmount here the mounts of imgfs that were there before, but for those that hold what is `needed`.

    Where `/` is a private mount they would stay here when they are unmounted outside, and their daemons with
    them (mount_namespaces(7)). An ordinary user cannot: for him they are locked.
    """
    from imgfs.mounts.table import imgfs_mounts  # here: the waiting parent needs none of it

    places = [Path(os.path.realpath(path)) for path in needed]
    for mount in reversed(imgfs_mounts()):
        if not any(place.is_relative_to(mount.mountpoint) for place in places):
            with contextlib.suppress(OSError):
                syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH)


def _has_single_id(maps: IdMaps) -> bool:
    from imgfs.runtime.host_facts import has_single_id  # here: root has no maps

    return has_single_id(maps)


def _map_itself(maps: IdMaps) -> None:
    """Map the one id that needs no privilege, for which groups are given up (user_namespaces(7))."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", "{0.inside} {0.outside} 1".format(*maps[0])),
        ("gid_map", "{0.inside} {0.outside} 1".format(*maps[1])),
    ):
        Path("/proc/self", name).write_text(text)


def _become_root(*, has_groups: bool) -> None:
    if has_groups:
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _lend(command: str, pid: int, ids: Sequence[IdRange]) -> None:
    import subprocess  # here: root needs none of it

    words = [str(number) for one in ids for number in one]
    done = subprocess.run([command, str(pid), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MountError(f"{command} failed: {done.stderr.strip() or done.returncode}")

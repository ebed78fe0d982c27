"""Another process in a container that runs: what it is (runtime-spec config.md, Process), and started there.

It is confined as the container's first one: the same namespaces, cgroup, seccomp filter, bounding set, limits
and no_new_privs. The runtime is started in the namespaces of the container's monitor, where the image is
mounted and, for an ordinary user, where it is root.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgfs import syscalls
from imgfs.errors import MountError, UsageError
from imgfs.owned.writing import new_directory, os_errors
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.container_record import ContainerRecord, SpecProcess, StoredContainer
from imgfs.runtime.host import RuntimeCommand, cgroups_of_this_machine
from imgfs.runtime.oci_runtime import OciRuntime, start_failure
from imgfs.runtime.rootfs import NOT_EXECUTABLE, NOT_FOUND, Refused, check_modes, command_places
from imgfs.runtime.signals import SignalRelay
from imgfs.runtime.stdio import StdioPipes
from imgfs.runtime.user import User, find_user

_LARGEST = 4 << 20  # bytes of a passwd or group
_EXEC = "exec-"
_LED_ASTRAY = (errno.ELOOP, errno.EXDEV)  # by /proc's links to what is open (openat2(2), RESOLVE_IN_ROOT)


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """What is to be run, and how; None leaves it to the container's first process."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    user: str | None = None
    workdir: str | None = None
    terminal: bool = False
    interactive: bool = False
    detach: bool = False


def exec_process(record: ContainerRecord, request: ExecRequest, user: User | None) -> SpecProcess:
    """Return a runtime-spec Process; `user` is None for that of the container's first one."""
    first = dict(record.process)
    variables = dict(text.partition("=")[::2] for text in first["env"])
    if user:
        first["user"] = {**first["user"], "uid": user.uid, "gid": user.gid}
        first["user"].pop("additionalGids", None)
        if user.groups:
            first["user"]["additionalGids"] = list(user.groups)
        first["capabilities"] = record.capabilities["root" if user.uid == 0 else "user"]
        variables["HOME"] = user.home
    variables |= request.env
    first.pop("consoleSize", None)
    return {
        **first,
        "args": list(request.command),
        "env": [f"{name}={value}" for name, value in variables.items()],
        "cwd": request.workdir or first["cwd"],
        "terminal": request.terminal,
    }


def join(container: StoredContainer) -> None:
    """Move this process, which has one thread, into the namespaces of a container's monitor.

    Raises MountError if that has ended.
    """
    running = container.running
    monitor = running.monitor if running else None
    if monitor is None:
        raise MountError(f"{container.record.name} is not running")
    with monitor.opened() as fd:
        if fd is None:
            name = container.record.name
            raise MountError(f"the monitor of {name} was killed: imgfs stop {name} ends what is left of it")
        kinds = syscalls.CLONE_NEWNS
        if os.stat(f"/proc/{monitor.pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
            kinds |= syscalls.CLONE_NEWUSER
        try:
            syscalls.setns(fd, kinds)
        except OSError as error:
            raise MountError(
                f"{container.record.name}: cannot enter its namespaces: {error.strerror}"
            ) from error
    if kinds & syscalls.CLONE_NEWUSER:
        if Path("/proc/self/setgroups").read_text().strip() == "allow":
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


@contextlib.contextmanager
def root_of(container: StoredContainer) -> Iterator[int]:
    """The root directory that a container's first process sees, open; raises MountError if that has ended.

    The container's processes may change paths in it meanwhile: so they are walked by the kernel, and lead
    nowhere out of it (openat2(2), RESOLVE_IN_ROOT).
    """
    running = container.running
    init = running.init if running else None
    if init is None:
        raise MountError(f"{container.record.name} is not running")
    try:
        top = os.open(f"/proc/{init.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(f"{container.record.name}: its files cannot be seen: {error.strerror}") from error
    try:
        if not init.is_alive:  # looked at once it is open: it was that process's
            raise MountError(f"{container.record.name} is not running")
        yield top
    finally:
        os.close(top)


def look_up(top: int, text: str | None) -> User | None:
    """Return a user by the passwd and group that a container has now, None for None; raises UsageError."""
    return None if text is None else find_user(text, _read(top, "etc/passwd"), _read(top, "etc/group"))


def check_exec(top: int, process: SpecProcess) -> None:
    """Raise Refused if the command of a Process cannot be run: the runtime's words are not for people.

    Nor does it begin in a directory that the kernel finds only for the runtime: the container may have a path
    lead to one that is open there (`mount_targets.make_workdir`).
    """
    _check_workdir(top, process["cwd"])
    command: str = process["args"][0]
    modes = [_mode(top, place) for place in command_places(command, process["cwd"], process["env"])]
    check_modes(command, modes, "container")


def _check_workdir(top: int, path: str) -> None:
    try:
        os.close(syscalls.open_in_root(top, path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except PermissionError:  # the process may be another user's, who may enter it
        return
    except OSError as error:
        where = f"the working directory {path} of the container"
        if error.errno in _LED_ASTRAY:
            raise Refused(f"{where}: it is a process's, or leads in circles", NOT_EXECUTABLE) from error
        code = NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE
        raise Refused(f"{where}: {error.strerror}", code) from error


def _mode(top: int, path: str) -> int | None:
    try:
        fd = syscalls.open_in_root(top, path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _read(top: int, path: str) -> bytes:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = syscalls.open_in_root(top, path, flags)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"/{path} of the container: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(f"/{path} of the container is not a file")
        with open(fd, "rb", closefd=False) as file:
            return file.read(_LARGEST)
    finally:
        os.close(fd)


def run_exec(container: StoredContainer, request: ExecRequest, process: SpecProcess) -> int:
    """Run a process in a container, in whose monitor's namespaces this is; its exit code.

    That is 126 or 127, podman's, for a command that cannot be run.
    """
    runtime = OciRuntime(RuntimeCommand(container.record.runtime), cgroups_of_this_machine())
    bundle, name = Bundle(container.directory), container.record.name
    with SignalRelay() as relay, _place(bundle.directory) as place:
        with os_errors(place.directory):
            (place.directory / "process.json").write_text(json.dumps(process))
        if request.detach:
            code = runtime.exec_detached(bundle, place, name)
        elif request.terminal:
            code = runtime.exec(bundle, place, name, relay, None)
        else:
            owner = process["user"]["uid"], process["user"]["gid"]
            with StdioPipes(owner, has_input=request.interactive) as pipes:
                code = runtime.exec(bundle, place, name, relay, pipes)
        reason = start_failure(place) if code else None
        return code if reason is None else reason


@contextlib.contextmanager
def _place(directory: Path) -> Iterator[Bundle]:
    """A directory for one process, which goes with it, or with its container."""
    with os_errors(directory):
        held = new_directory(directory, _EXEC)
    try:
        yield Bundle(held.path)
    finally:
        held.release()
        shutil.rmtree(held.path, ignore_errors=True)

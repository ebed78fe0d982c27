"""The containers of a store: found by name or id, told to stop, removed.

A signal goes to a pidfd, so never to another process than the container's first. What a killed monitor has
left is taken down here.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from imgfs.errors import ImgfsError, MountError, StoreError
from imgfs.mounts.holders import end_held
from imgfs.owned.opening import open_owned_directory
from imgfs.owned.writing import try_lock
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.container_record import StoredContainer, containers_in
from imgfs.runtime.host import RuntimeCommand, cgroups_of_this_machine
from imgfs.runtime.host_facts import IdMaps
from imgfs.runtime.names import is_id_prefix
from imgfs.runtime.namespace import NamespacedChild
from imgfs.runtime.oci_runtime import OciRuntime
from imgfs.runtime.process_id import ProcessId, end_process
from imgfs.runtime.signals import SignalRelay, signal_number

_KILLED = 60.0  # seconds that a killed container may take to be taken down by its monitor
_BEGINS = 30.0  # seconds that one which is being started may take to run
_LOCK = 5.0  # seconds in which those that look at a container let go of it
_POLL = 0.05


class NoSuchContainer(MountError):
    """No container has that name or id."""

    def __init__(self, text: str) -> None:
        super().__init__(f"no container with name or ID {text!r} found: no such container")


class ContainerRuns(MountError):
    """A container runs, and what was asked for is only done to containers that have ended."""


def find_container(store_root: Path, text: str) -> StoredContainer:
    """Return the container of that name, id, or beginning of an id; raises NoSuchContainer, MountError."""
    found = list(containers_in(store_root))
    exact = next((one for one in found if text in (one.record.name, one.record.id)), None)
    if exact:
        return exact
    alike = [one for one in found if is_id_prefix(text) and one.record.id.startswith(text)]
    if len(alike) > 1:
        raise MountError(f"{text!r} is the beginning of the ids of {len(alike)} containers: more digits")
    if not alike:
        raise NoSuchContainer(text)
    return alike[0]


def send_signal(container: StoredContainer, number: int) -> bool:
    """Send a signal to a container's first process; return False if there is none any more."""
    running = container.running
    init = running.init if running else None
    if init is None:
        return False
    if init.is_elsewhere:
        raise MountError(f"{container.record.name} runs in another PID namespace: from here it has no pid")
    with init.opened() as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise MountError(f"{container.record.name}: {error.strerror}") from error
    return True


def stop_container(container: StoredContainer, seconds: int | None = None) -> None:
    """Send the stop signal and, after that many seconds, SIGKILL; return once it has ended.

    Raises MountError if it does not.
    """
    patience = container.record.stop_timeout if seconds is None else seconds
    _begun(container)
    if container.state != "running":
        return
    number = signal_number(container.record.stop_signal)
    is_told = bool(patience) and send_signal(container, number)
    if is_told and container.wait(time.monotonic() + patience) is not None:
        return
    send_signal(container, signal.SIGKILL)
    if container.wait(time.monotonic() + _KILLED) is None:
        raise MountError(f"{container.record.name}: it was killed, and has not ended within {_KILLED:.0f} s")


def _begun(container: StoredContainer) -> None:
    """Wait until a container that is being started runs, or does not."""
    ends = time.monotonic() + _BEGINS
    while container.state == "created" and time.monotonic() < ends:
        time.sleep(_POLL)


def remove_container(
    container: StoredContainer, maps: IdMaps | None, *, force: bool = False, seconds: int | None = None
) -> None:
    """Remove a container; one that runs only if forced. `maps` are an ordinary user's ids.

    Raises ContainerRuns, MountError, StoreError.
    """
    if container.state in ("running", "created"):
        if not force:
            raise ContainerRuns(
                f"cannot remove container {container.record.name} as it is running: "
                "stop it before, or remove it by force (-f)"
            )
        stop_container(container, seconds)
    try:
        fd = open_owned_directory(container.directory)
    except StoreError:
        if not container.directory.exists():  # it was to go with its end
            return
        raise
    try:
        _lock(fd, container)
        if container.ended:
            Bundle(container.directory).remove()
        else:
            _take_down(container, maps)
    finally:
        os.close(fd)


def _lock(fd: int, container: StoredContainer) -> None:
    ends = time.monotonic() + _LOCK
    while not try_lock(fd):
        if time.monotonic() > ends:
            raise MountError(f"{container.record.name}: another process is at work on it")
        time.sleep(_POLL)


def _take_down(container: StoredContainer, maps: IdMaps | None) -> None:
    """End and remove what a killed monitor has left; files may be those of an ordinary user's lent ids."""
    running = container.running
    if running:
        for process in (running.daemon, running.network):
            _end(process)
    end_held(Bundle(container.directory).rootfs, _LOCK)
    runtime = OciRuntime(RuntimeCommand(container.record.runtime), cgroups_of_this_machine())
    bundle = Bundle(container.directory)

    def work() -> None:
        runtime.prepare()
        runtime.clear(bundle, container.record.name)
        bundle.remove()

    in_namespaces(work, maps)


def in_namespaces(work: Callable[[], None], maps: IdMaps | None) -> None:
    """Do something in a mount namespace of its own, an ordinary user's as root; raises MountError.

    `work` says itself what fails.
    """

    def inside(enter: Callable[[], None]) -> int:
        try:
            enter()
            work()
        except ImgfsError as error:
            return _failed(tell, str(error))
        except OSError as error:
            return _failed(tell, f"{error.filename}: {error.strerror}")
        return 0

    told, tell = os.pipe()
    child = NamespacedChild.fork(inside, maps)
    os.close(tell)
    with open(told, "rb") as pipe, SignalRelay() as relay:
        code = child.wait(relay)
        said = pipe.read().decode(errors="replace")
    if code:
        raise MountError(said or "it ended before it could say why")


def _failed(tell: int, said: str) -> int:
    os.write(tell, said.encode(errors="backslashreplace"))
    return 1


def _end(process: ProcessId | None) -> None:
    """Tell a process to end, and wait for that, for a while."""
    if process is None:
        return
    with process.opened() as fd:
        if fd is not None:
            end_process(fd, _LOCK)

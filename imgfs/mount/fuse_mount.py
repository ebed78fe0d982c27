"""A FUSE mount made and unmade: by root with the kernel's own calls, by others with fusermount3.

That takes a millisecond, and libfuse by pyfuse3, which loads trio, a tenth of a second. So libfuse mounts
where an option is unknown here, and where the kernel has not let root mount: it knows other ways, and says
why none works.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs import syscalls
from imgfs.errors import MountError
from imgfs.mount.options import MountOptions
from imgfs.mounts.attributes import attributes_of
from imgfs.mounts.mountpoint import open_mountpoint
from imgfs.mounts.table import mount_at, mounts
from imgfs.variables import variables

_OURS = {"rw", "nopassthrough", "history", "nonempty"}  # options that are neither libfuse's nor the kernel's
_PARAMETERS = {"default_permissions", "allow_other"}  # of the kernel's FUSE (fs/fuse/inode.c)
_DEVICE, _SUBTYPE, _ROOT_MODE = "/dev/fuse", "imgfs", "40000"
_COMMUNICATION = "_FUSE_COMMFD"  # a variable of fusermount3's: the socket that it sends the descriptor to
_OPEN = "/proc/self/fd"


class FuseMount(NamedTuple):
    """A mount: the open /dev/fuse that its requests come from, and what ends it."""

    descriptor: int
    unmount: Callable[[], None]


def mount_fuse(options: MountOptions, source: str, *, read_only: bool) -> FuseMount:
    """Mount at an empty directory; `source` is what the mount table shows. Raises MountError.

    Root's mount is on the open directory. For a user fusermount3 mounts, which sees to that by itself.
    """
    asked = {"default_permissions", *options.fuse} - _OURS | ({"ro"} if read_only else set())
    directory = open_mountpoint(options.mountpoint, options.checked)
    try:
        attributes, others = attributes_of(asked)
        if others <= _PARAMETERS:
            if os.geteuid():
                return _by_fusermount(options.mountpoint, asked, source)
            with contextlib.suppress(OSError):  # libfuse knows other ways, and will say why
                return _by_kernel(directory, attributes, others, source)
        return _by_libfuse(options.mountpoint, directory, asked, source)
    finally:
        os.close(directory)


def _by_kernel(directory: int, attributes: int, parameters: set[str], source: str) -> FuseMount:
    """Mount on an open directory. Raises OSError."""
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        ids = [("user_id", str(os.getuid())), ("group_id", str(os.getgid()))]
        given: list[tuple[str, str | None]] = [("source", source), ("subtype", _SUBTYPE)]
        given += [("fd", str(descriptor)), ("rootmode", _ROOT_MODE), *ids]
        given += [(name, None) for name in sorted(parameters)]
        if attributes & syscalls.MOUNT_ATTR_RDONLY:
            given.append(("ro", None))
        mount = syscalls.new_mount("fuse", given, attributes)
        try:
            syscalls.attach_mount(mount, directory)
        finally:
            os.close(mount)
    except OSError:
        os.close(descriptor)
        raise
    return FuseMount(descriptor, partial(_detach, descriptor, _device_at(directory)))


def _by_fusermount(mountpoint: Path, options: set[str], source: str) -> FuseMount:
    """Have fusermount3 mount, which sends the descriptor. Raises MountError with its last words."""
    import subprocess  # here: root has no use for it

    words = ",".join([*sorted(options), f"fsname={_escaped(source)}", f"subtype={_SUBTYPE}"])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            ["fusermount3", "-o", words, "--", str(mountpoint)],
            env={**variables(), _COMMUNICATION: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if done.returncode or not descriptors:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise MountError(f"{mountpoint}: {said[-1] if said else 'fusermount3 does not mount'}")
    os.set_inheritable(descriptors[0], False)
    return FuseMount(descriptors[0], partial(_unmount_by_fusermount, descriptors[0], mountpoint))


def _unmount_by_fusermount(descriptor: int, mountpoint: Path) -> None:
    import subprocess

    is_mounted = not _has_let_go(descriptor)
    os.close(descriptor)
    if is_mounted:
        words = ["fusermount3", "-u", "-q", "-z", "--", str(mountpoint)]
        subprocess.run(words, stdin=subprocess.DEVNULL, check=False)


def _by_libfuse(mountpoint: Path, directory: int, options: set[str], source: str) -> FuseMount:
    """Have libfuse mount. Raises MountError."""
    import pyfuse3  # here: it takes long

    nothing = pyfuse3.Operations()  # libfuse never hears of a request
    given = options | {f"fsname={_escaped(source)}", f"subtype={_SUBTYPE}"}
    place = str(mountpoint) if os.geteuid() else f"{_OPEN}/{directory}"
    with _library_messages() as messages:
        try:
            descriptor = _device_of(lambda: pyfuse3.init(nothing, place, given))
        except RuntimeError as error:
            said = (messages() or str(error)).replace(place, str(mountpoint))
            raise MountError(f"{mountpoint}: {said}") from error
    if os.geteuid():
        return FuseMount(descriptor, partial(pyfuse3.close, unmount=True))

    def unmount() -> None:
        """Unmount where libfuse does not know the path."""
        _detach(os.dup(descriptor), device)
        pyfuse3.close(unmount=False)

    device = _device_at(directory)
    return FuseMount(descriptor, unmount)


def _device_at(directory: int) -> str | None:
    """Return the device (major:minor) that is mounted on an open directory, without a request to it."""
    mounted = mount_at(Path(os.readlink(f"{_OPEN}/{directory}")))
    return mounted.device if mounted else None


def _detach(descriptor: int, device: str | None) -> None:
    """Detach root's mount, unless it is unmounted already: its number may be another mount's by then."""
    if not _has_let_go(descriptor):
        for mount in [mount for mount in mounts() if mount.device == device]:
            with contextlib.suppress(OSError):
                syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH)
    os.close(descriptor)


def _has_let_go(descriptor: int) -> bool:
    """Return True if the kernel has unmounted it (POLLERR)."""
    polled = select.poll()
    polled.register(descriptor, 0)
    return bool(polled.poll(0))


def _device_of(mount: Callable[[], None]) -> int:
    """Return the descriptor of /dev/fuse that `mount` opens. Raises MountError if it opens none."""
    before = _devices()
    mount()
    opened = _devices() - before
    if not opened:
        raise MountError("libfuse has mounted, but has not opened /dev/fuse")
    return opened.pop()


def _devices() -> set[int]:
    found = set()
    for name in os.listdir(_OPEN):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            if os.readlink(f"{_OPEN}/{name}") == _DEVICE:
                found.add(int(name))
    return found


def _escaped(text: str) -> str:
    """Escape commas, which would end the option, and what is not ASCII, which pyfuse3 does not take."""
    ascii_text = text.encode("ascii", "backslashreplace").decode("ascii")
    return ascii_text.replace("\\", "\\\\").replace(",", "\\,")


@contextlib.contextmanager
def _library_messages() -> Iterator[Callable[[], str]]:
    """What libfuse and fusermount3 write to standard error meanwhile: their last line is why they failed."""
    sys.stderr.flush()
    with open(os.memfd_create("imgfs"), "w+b") as capture:  # no directory need be writable
        kept = os.dup(2)
        os.dup2(capture.fileno(), 2)

        def last_line() -> str:
            capture.seek(0)
            lines = capture.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield last_line
        finally:
            os.dup2(kept, 2)
            os.close(kept)

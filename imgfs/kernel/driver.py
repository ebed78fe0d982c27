"""What stands between the flat files that imgfs serves and a mount point: EROFS, for a scratch overlayfs.

    MOUNTPOINT   the tree (EROFS), or overlayfs with the scratch's upper directory over it
    EROFS        nowhere but there: its metadata is a file of the store, its devices the flat files
    flat files   a FUSE file system that is mounted nowhere: only EROFS has its files open; in the place of
                 one whose layer is whole, the store's own (`passthrough`)

Each is held only by what stands above it. So unmounting MOUNTPOINT takes everything down, in whichever way,
and the daemon notices by the end of its FUSE file system; and if the daemon is killed, that unmount is all
that is left to do. A directory in RUNTIME belongs to each mount: it has the link that EROFS takes as its
source, which shows in the mount table whose it is, the image's whole name, and the socket that tells the
status.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs import syscalls
from imgfs.errors import MountError, is_full
from imgfs.kernel.erofs_format import Unsuitable
from imgfs.mounts.attributes import attributes_of
from imgfs.mounts.mountpoint import DirectoryId, open_mountpoint
from imgfs.mounts.table import REFERENCE, RUNTIME, STATUS_SOCKET, mounts
from imgfs.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)

if TYPE_CHECKING:
    from imgfs.overlay.scratch import Scratch

log = logging.getLogger(__name__)

_FILE_SYSTEMS = ("erofs", "overlay", "fuse")
_INNER = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
NO_PASSTHROUGH = "nopassthrough"  # an option: all is served, so all that is read is counted
_MEANINGLESS = {"rw", "nonempty", "allow_other", "default_permissions", NO_PASSTHROUGH}  # or always so
_UPPER_BUSY, _PAUSE = 20.0, 0.05  # seconds for an upper directory to be free, and between looks
_PART_LIMIT, _PARTS_LIMIT = 200, 16  # of an image's name that is shown: bytes of a part, parts
_ODD = re.compile(r"[^A-Za-z0-9._:@+-]+")


def mount_attributes(options: Iterable[str]) -> int:
    """Return the kernel's attributes for the options of a mount, by default `nosuid,nodev`.

    Raises Unsuitable.
    """
    attributes, others = attributes_of(set(options) - {"ro"})
    for option in sorted(others - _MEANINGLESS):
        raise Unsuitable(f"-o {option} is for FUSE")
    return attributes


def check_host(*, owner: tuple[int, int] | None) -> None:
    """Raise Unsuitable if it is clear beforehand that this process may not mount so, or the kernel cannot."""
    if os.geteuid() or syscalls.is_in_user_namespace():
        raise Unsuitable("only root may mount EROFS")
    if owner is not None:
        raise Unsuitable("--squash-owner is for FUSE")
    for filesystem in _FILE_SYSTEMS:
        if not syscalls.can_mount(filesystem):
            raise Unsuitable(f"this kernel offers us no {filesystem}")


class RuntimeDirectory(NamedTuple):
    """A directory in RUNTIME for one mount: the link in it that leads to the EROFS image, and its lock.

    The link's path ends in the image's name, which so shows in the mount table, findmnt(8) and df(1). The
    lock is a descriptor; it is held for as long as any process has that open (flock(2)).
    """

    link: Path
    lock: int

    @property
    def path(self) -> Path:
        """The directory itself."""
        return RUNTIME / self.link.relative_to(RUNTIME).parts[0]

    @property
    def status_socket(self) -> Path:
        """Where the status of the mount is to be told."""
        return self.path / STATUS_SOCKET


@contextlib.contextmanager
def runtime_directory(reference: str, image: Path) -> Iterator[RuntimeDirectory]:
    """A directory in RUNTIME, for as long as a mount of `image`, an EROFS image, lasts. Raises Unsuitable."""
    directory = RUNTIME / f"{os.getpid()}-{time.time_ns():x}"
    link = directory.joinpath(*_parts(reference))
    with contextlib.ExitStack() as stack:
        try:
            RUNTIME.mkdir(mode=0o755, exist_ok=True)
            with _locked(RUNTIME):
                _sweep()
                directory.mkdir(mode=0o700)
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                lock = stack.enter_context(_locked(directory))
            (directory / REFERENCE).write_bytes(os.fsencode(reference))
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            link.symlink_to(image)
        except OSError as error:
            raise Unsuitable(f"{error.filename}: {error.strerror}") from error
        yield RuntimeDirectory(link, lock)


def remove_inherited(directory: RuntimeDirectory) -> None:
    """Remove one that another process has made, at the end of the mount."""
    shutil.rmtree(directory.path, ignore_errors=True)


def _parts(reference: str) -> list[str]:
    """Return an image's name as the parts of a path, of signs that mount tables take, and none of ours."""
    parts = [_ODD.sub("_", part)[-_PART_LIMIT:] for part in reference.split("/")]
    parts = [part for part in parts if part not in ("", ".", "..")][-_PARTS_LIMIT:] or ["image"]
    ours = parts[0] in (REFERENCE, STATUS_SOCKET)
    return [f"_{parts[0]}", *parts[1:]] if ours else parts


@contextlib.contextmanager
def _locked(directory: Path, mode: int = fcntl.LOCK_EX) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, mode)
        yield fd
    finally:
        os.close(fd)


def _sweep() -> None:
    """Remove the directories of mounts that are gone, of daemons that were killed."""
    in_use = {mount.runtime for mount in mounts()}
    for left in RUNTIME.iterdir():
        with contextlib.suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if left not in in_use:
                shutil.rmtree(left)


class KernelDriver:
    """The mounts of one image at `mountpoint`; `link` leads to its EROFS image (`place`), of so many devices.

    In the place of a flat file that is served, the kernel reads that of the same number in `passthrough`.
    It is mounted only on the directory that was `checked`.

    First `open_flat_files`; once those are served, `attach`, in another thread than they are served in.
    """

    def __init__(
        self,
        link: Path,
        passthrough: Sequence[Path | None],
        devices: int,
        mountpoint: Path,
        attributes: int,
        checked: DirectoryId | None = None,
    ) -> None:
        self._link = link
        self._devices = [*passthrough, *[None] * (devices - len(passthrough))]
        self._mountpoint = mountpoint
        self._checked = checked
        self._attributes = attributes
        self._flat = -1

    def open_flat_files(self) -> int:
        """Return a FUSE file system that is mounted nowhere: the descriptor to serve it by.

        Raises MountError.
        """
        with _as_mount_errors("FUSE"):
            fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            options = {"fd": str(fuse), "rootmode": "40000", "user_id": "0", "group_id": "0"}
            source = {"source": "imgfs", "subtype": "imgfs"}
            self._flat = syscalls.new_mount("fuse", [*source.items(), *options.items()], _INNER)
        return fuse

    def attach(self, scratch: Scratch | None, tune: Callable[[str], None]) -> None:
        """Mount it all; raises MountError, and nothing is mounted then, nor are the flat files in use.

        `tune` is given the device number of the flat files' file system, major:minor.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            with _as_mount_errors("FUSE"):
                device = os.stat(f"/proc/self/fd/{self._flat}").st_dev
            tune(f"{os.major(device)}:{os.minor(device)}")
            top = tree = self._tree(0 if scratch else self._attributes)
            stack.callback(os.close, tree)
            if scratch:
                top = self._over(tree, scratch)
                stack.callback(os.close, top)
            directory = open_mountpoint(self._mountpoint, self._checked)
            stack.callback(os.close, directory)
            with _as_mount_errors(str(self._mountpoint)):
                syscalls.attach_mount(top, directory)

    def detach(self) -> None:
        """Detach it from the mount point, although processes may still use it."""
        mine = [mount for mount in mounts() if mount.source == str(self._link)]
        for mount in mine:
            with contextlib.suppress(OSError):
                syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH)

    def close(self) -> None:
        """Let go of the flat files: they stay as long as EROFS uses them."""
        if self._flat >= 0:
            os.close(self._flat)
            self._flat = -1

    def _tree(self, attributes: int) -> int:
        served = f"/proc/self/fd/{self._flat}"
        devices = (str(file or f"{served}/{number}") for number, file in enumerate(self._devices))
        options = [("source", str(self._link)), *(("device", device) for device in devices)]
        with _as_mount_errors("EROFS"):
            try:
                return syscalls.new_mount("erofs", options, attributes | MOUNT_ATTR_RDONLY)
            except OSError as error:
                if error.errno != errno.ENOTBLK:
                    raise
                raise OSError(
                    error.errno, "the kernel (or the store's file system) has it on devices only"
                ) from error

    def _over(self, tree: int, scratch: Scratch) -> int:
        """overlayfs, as imgfs's own scratch is: data is copied up when it is written to, directories move,
        a file of several names stays one (`index`), and everything is on one device (`xino`).
        """
        options: syscalls.MountParameters = [
            ("source", str(self._link)),
            ("lowerdir+", f"/proc/self/fd/{tree}"),
            ("upperdir", str(scratch.upper.resolve())),
            ("workdir", str(scratch.work.resolve())),
            ("redirect_dir", "on"),
            ("metacopy", "on"),
            ("index", "on"),
            ("xino", "on"),
            *([("volatile", None)] if scratch.volatile else []),
        ]
        with _as_mount_errors("overlayfs"), _saying_what_is_full():
            return _retry_while_busy(lambda: syscalls.new_mount("overlay", options, self._attributes))


def _retry_while_busy(mount: Callable[[], int]) -> int:
    """Mount once no namespace has the upper directory mounted any more, which may be after its unmounting."""
    ends = time.monotonic() + _UPPER_BUSY
    while True:
        try:
            return mount()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if time.monotonic() > ends:
                reason = "the scratch is in use still, perhaps in another mount namespace"
                raise OSError(error.errno, reason) from error
        time.sleep(_PAUSE)


@contextlib.contextmanager
def _saying_what_is_full() -> Iterator[None]:
    """Say of ENOSPC what to do: overlayfs makes files of its own before it mounts (ovl_get_workdir)."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        todo = "the scratch is full, and overlayfs begins with files of its own: empty it by --driver fuse"
        raise OSError(error.errno, f"{error.strerror}: {todo}") from error


@contextlib.contextmanager
def _as_mount_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MountError(f"{what}: {error.strerror}") from error

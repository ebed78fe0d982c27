"""A container's directory: the bundle that its runtime reads, and what else belongs to it alone.

    config.json  rootfs/        the bundle (OCI runtime-spec bundle.md); the image is mounted at rootfs
    files/  volumes/            shown in the container: /etc/hosts and its like, volumes without a name
    state/  pid  log            the runtime's
    lock                        locked like the directory itself, for an imgfs that looks for that
    container.json  running.json  exit.json  output.log     what is listed (`container_record`, `output_log`)

It lies in the store, under `containers`, by the container's name. Who runs it has the directory locked
(`owned.writing`): one whose lock is free is left over, unless it is of a detached container, of which the
last line stays until it is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import MountError, StoreError, UsageError
from imgfs.overlay.fdtree import empty_directory, remove_tree
from imgfs.owned.opening import open_owned_directory, open_owned_file, open_regular
from imgfs.owned.writing import new_directory, os_errors, sweep, write_all
from imgfs.runtime.container_record import EXIT, RECORD, RUNNING, StoredContainer, is_held, is_to_stay
from imgfs.runtime.mount_targets import check_volume
from imgfs.runtime.names import CONTAINERS
from imgfs.runtime.output_log import LOG, OLDER
from imgfs.runtime.request import Bind, ContainerRequest, Network
from imgfs.runtime.rootfs import Rootfs
from imgfs.runtime.volumes import fill

if TYPE_CHECKING:
    from imgfs.runtime.spec import RuntimeConfig

_RECORDS = (RECORD, RUNNING, EXIT, LOG, OLDER)
_NEW = ".new-"  # begins the name of a directory that is not locked yet


class Bundle(NamedTuple):
    """A container's directory."""

    directory: Path

    @property
    def rootfs(self) -> Path:
        """Where the image is mounted."""
        return self.directory / "rootfs"

    @property
    def state(self) -> Path:
        """Where the runtime keeps what it knows."""
        return self.directory / "state"

    @property
    def network(self) -> Path:
        """Where its network namespace is, if it has one that is connected."""
        return self.directory / "netns"

    @property
    def pid_file(self) -> Path:
        """Where the runtime writes the pid of the container's first process, once it runs."""
        return self.directory / "pid"

    @property
    def log(self) -> Path:
        """What the runtime has to say."""
        return self.directory / "log"

    def begin(self) -> None:
        """Have it be there, and be this user's own: what lies in it says what is run, as this user.

        If it is made, no other user gets into it: its image may have set-uid programs of root's.
        """
        with os_errors(self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.rootfs.mkdir(parents=True, exist_ok=True)
            for place in (self.directory, self.rootfs):
                os.close(open_owned_directory(place))

    def is_open_to_others(self) -> bool:
        """Return True if other users may enter it: what is set-uid in its image is so for them, too."""
        return bool(self.directory.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH))

    def write_config(self, config: RuntimeConfig, indent: int | None = None) -> None:
        """Write config.json, for people with an `indent`; raises UsageError for words that are not UTF-8,
        StoreError."""
        try:
            body = json.dumps(config, indent=indent, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UsageError("a runtime takes UTF-8 only, in commands, variables and paths") from error
        with os_errors(self.directory):
            path = self.directory / "config.json"
            fd = open_owned_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                write_all(fd, body)
            finally:
                os.close(fd)

    def write_files(self, name: str, request: ContainerRequest) -> tuple[Bind, ...]:
        """Return the files of /etc that say where the container of this name is, as binds."""
        hostname = request.hostname or name
        contents = {
            "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n",
            "hostname": f"{hostname}\n",
        }
        if request.network is Network.HOST:
            contents["hosts"] = _host_file("/etc/hosts") + f"127.0.1.1\t{hostname}\n"
            contents["resolv.conf"] = _host_file("/etc/resolv.conf")
        if request.network is Network.PASTA:
            from imgfs.runtime.pasta import resolv_conf_for_pasta  # here: few containers have one

            contents["resolv.conf"] = resolv_conf_for_pasta(_host_file("/etc/resolv.conf"))
        added = "".join(f"{address}\t{name}\n" for name, address in request.hosts)
        contents["hosts"] = added + contents["hosts"]
        place = self.directory / "files"
        place.mkdir(exist_ok=True)
        for name, text in contents.items():
            (place / name).write_text(text)
            (place / name).chmod(0o644)
        return tuple(Bind(str(place / name), f"/etc/{name}") for name in contents)

    def make_volumes(self, volumes: Sequence[Bind], rootfs: Rootfs) -> tuple[Bind, ...]:
        """Return a directory for each volume, with what the image has there. Raises Refused, StoreError."""
        for one in volumes:
            check_volume(rootfs, one.target)
        return tuple(
            one._replace(source=str(self._volume(number, rootfs.host_path(one.target))))
            for number, one in enumerate(volumes)
        )

    def _volume(self, number: int, image: Path) -> Path:
        place = self.directory / "volumes" / str(number)
        place.mkdir(mode=0o755, parents=True)
        if image.is_dir():
            fill(place, image)
        return place

    def remove_all_but_records(self) -> None:
        """Remove what a container needs only while it runs; raises StoreError."""
        with os_errors(self.directory):
            if self.rootfs.exists():
                self.rootfs.rmdir()  # never what is mounted there
            for path in self.directory.iterdir():
                if path.name in _RECORDS:
                    continue
                remove_tree(path)

    def remove(self) -> None:
        """Remove it, unless something is still mounted there; raises StoreError."""
        with os_errors(self.directory):
            if self.rootfs.exists():
                self.rootfs.rmdir()  # never what is mounted there: a scratch may be below
            empty_directory(self.directory)
            self.directory.rmdir()


def bundle_of(store_root: Path, name: str) -> Bundle:
    """Return the directory of the container of this name, which need not be there."""
    return Bundle(store_root / CONTAINERS / name)


@contextlib.contextmanager
def new_bundle(store_root: Path, name: str) -> Iterator[Bundle]:
    """A container's directory, for as long as it runs; what killed ones have left is removed.

    Raises MountError if a container of that name runs, StoreError.
    """
    directory = bundle_of(store_root, name).directory
    containers = directory.parent
    with os_errors(containers):
        os.close(open_owned_directory(containers, make=True))
        sweep(containers, "", _remove_left)
        held = new_directory(containers, _NEW)
    with contextlib.ExitStack() as stack:
        stack.callback(held.release)
        with os_errors(containers):
            stack.callback(os.close, _lock(held.path))
            bundle = _named(held.path, directory)
        stack.callback(_finish, bundle)
        yield bundle


def _finish(bundle: Bundle) -> None:
    """Remove what has no use after a container's end: all of it, unless it was started to be kept."""
    found = StoredContainer.read(bundle.directory)
    if found and found.record.is_kept and found.ended:
        bundle.remove_all_but_records()
    else:
        bundle.remove()


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _named(aside: Path, directory: Path) -> Bundle:
    """Give a new directory the name of its container; raises MountError if that is taken."""
    try:
        (aside / "rootfs").mkdir()
        aside.rename(directory)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if directory.exists():
            raise MountError(_taken(directory)) from error
        raise
    return Bundle(directory)


def _taken(directory: Path) -> str:
    name = directory.name
    if is_held(directory) or not is_to_stay(directory):
        return f"a container called {name} is running: choose another --name"
    return f"there is a container called {name} already: imgfs rm {name}, or choose another --name"


def _remove_left(directory: Path) -> None:
    """Remove what a killed process has left; raises OSError if it is held after all, or cannot be removed."""
    if is_to_stay(directory):
        return
    with contextlib.suppress(FileNotFoundError), open(directory / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.suppress(StoreError):
        Bundle(directory).remove()


def _host_file(path: str) -> str:
    try:
        with open_regular(Path(path)) as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""

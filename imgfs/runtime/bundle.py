"""A container's directory: the bundle that its runtime reads, and what else belongs to it alone.

    config.json  rootfs/        the bundle (OCI runtime-spec bundle.md); the image is mounted at rootfs
    files/  volumes/            shown in the container: /etc/hosts and its like, volumes nobody has named
    state/  pid  log            the runtime's
    lock                        held by whoever runs it: a directory whose lock is free is left over

It lies in the store, under `containers`, and goes with the container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgfs.errors import MountError, StoreError, UsageError
from imgfs.runtime.rootfs import Rootfs
from imgfs.runtime.wishes import Bind, Network, Wishes

_NEW = ".new-"  # begins the name of a directory that is not locked yet


@dataclass(frozen=True, slots=True)
class Bundle:
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
    def pid_file(self) -> Path:
        """Where the runtime writes the pid of the container's first process, once it runs."""
        return self.directory / "pid"

    @property
    def log(self) -> Path:
        """What the runtime has to say."""
        return self.directory / "log"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json; raises UsageError for words that are not UTF-8, StoreError."""
        try:
            body = json.dumps(config, indent=1, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UsageError("a runtime takes UTF-8 only, in commands, variables and paths") from error
        with _as_store_errors(self.directory):
            (self.directory / "config.json").write_bytes(body)

    def write_files(self, name: str, wishes: Wishes) -> tuple[Bind, ...]:
        """The files of /etc that say where the container of this name is, as binds."""
        hostname = wishes.hostname or name
        contents = {
            "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{hostname}\n",
            "hostname": f"{hostname}\n",
        }
        if wishes.network is Network.HOST:
            contents["hosts"] = _host_file("/etc/hosts") + f"127.0.1.1\t{hostname}\n"
            contents["resolv.conf"] = _host_file("/etc/resolv.conf")
        added = "".join(f"{address}\t{name}\n" for name, address in wishes.hosts)
        contents["hosts"] = added + contents["hosts"]
        place = self.directory / "files"
        place.mkdir(exist_ok=True)
        for name, text in contents.items():
            (place / name).write_text(text)
            (place / name).chmod(0o644)
        return tuple(Bind(str(place / name), f"/etc/{name}") for name in contents)

    def make_volumes(self, paths: Sequence[str], rootfs: Rootfs) -> tuple[Bind, ...]:
        """A directory for each volume, with what the image has there."""
        return tuple(
            Bind(str(self._volume(number, rootfs.resolve(path))), path) for number, path in enumerate(paths)
        )

    def _volume(self, number: int, image: Path) -> Path:
        place = self.directory / "volumes" / str(number)
        place.mkdir(mode=0o755, parents=True)
        if image.is_dir():
            done = subprocess.run(
                ["cp", "-a", "--", f"{image}/.", place], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise StoreError(f"{place}: cannot fill a volume: {done.stderr.strip().splitlines()[-1:]}")
        return place

    def remove(self) -> None:
        """Remove it, unless something is still mounted there; raises StoreError."""
        with _as_store_errors(self.directory):
            if self.rootfs.exists():
                self.rootfs.rmdir()  # never what is mounted there: a scratch may be below
            shutil.rmtree(self.directory)


@contextlib.contextmanager
def new_bundle(store_root: Path, name: str) -> Iterator[Bundle]:
    """A container's directory, for as long as it runs; what killed ones have left is removed.

    Raises MountError if a container of that name runs, StoreError.
    """
    containers = store_root / "containers"
    with _as_store_errors(containers):
        containers.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(containers)
        fd, bundle = _claim(containers, name)
    try:
        yield bundle
    finally:
        try:
            bundle.remove()
        finally:
            os.close(fd)


def _claim(containers: Path, name: str) -> tuple[int, Bundle]:
    """Make the directory, locked from the moment others see it."""
    aside, bundle = containers / f"{_NEW}{os.getpid()}", Bundle(containers / name)
    aside.mkdir(mode=0o700)
    (aside / "rootfs").mkdir()
    fd = os.open(aside / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        aside.rename(bundle.directory)
    except OSError as error:
        os.close(fd)
        shutil.rmtree(aside, ignore_errors=True)
        if bundle.directory.exists():
            raise MountError(f"a container called {name} is running: choose another --name") from error
        raise
    return fd, bundle


def _sweep(containers: Path) -> None:
    """Remove what nobody holds."""
    for path in containers.iterdir():
        if path.name.startswith(_NEW):
            if not Path("/proc", path.name.removeprefix(_NEW)).exists():
                shutil.rmtree(path, ignore_errors=True)
            continue
        with contextlib.suppress(OSError, StoreError), open(path / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Bundle(path).remove()


def _host_file(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _as_store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from error

"""Volumes that are published: an image's mount, shown at a directory of a pod.

A volume that is only read shows a mount that is shared by all volumes of the same image that were asked for
with the same secret: a pod without the password does not see what another's has fetched. One that may be
written is a mount of its own, whose changes go with it.

What is published is written down, a file for each target, before it is mounted and until it is gone: so a
later process of the driver goes on where this one ended. Mounts outlive the driver. All is below one
directory in /run, as mounts are.

Locks: a target's while it is published or taken down, and within that a shared mount's. kubelet gives up
after two minutes and asks again: the second call waits for what the first has begun.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import logging
import operator
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imgfs import syscalls
from imgfs.engines.command import run_imgfs
from imgfs.engines.csi.grants import Grants
from imgfs.engines.csi.messages import Unit, VolumeUsage
from imgfs.engines.liveness import is_answering, statvfs_within
from imgfs.engines.refusal import Code, Refusal
from imgfs.errors import StoreError, describe
from imgfs.mounts.table import mount_at
from imgfs.mounts.unmount import detach_all
from imgfs.store.atomic import atomic_write

_BOUND = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_BIND
MOUNT_FLAGS = {  # what a volume's mount may be restricted by, beside ro: always nosuid and nodev
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}
_ANSWER = 5.0  # seconds that a file system has to say how large it is
_MOST = (1 << 63) - 1  # what an int64 of a message holds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pod asks for: an image, a platform or "", a file of credentials in docker's format or "".

    `flags` are of MOUNT_FLAGS.
    """

    volume: str
    target: str
    image: str
    platform: str
    is_writable: bool
    secret: str
    flags: frozenset[str]

    @property
    def how(self) -> str:
        """Return what of it distinguishes volumes of one image, but for who may write."""
        return f"{self.platform} {','.join(sorted(self.flags))}"


class PublishedVolume(NamedTuple):
    """What is written down of a volume; `shared` is the shared mount's name, "" for one of its own.

    `how` is that of what was wanted; None in what an earlier version has written.
    """

    volume: str
    target: str
    image: str
    is_writable: bool
    shared: str
    how: str | None = None

    def is_like(self, wanted: Wanted) -> bool:
        """Return True if this is what is wanted at its target."""
        known, other = ((one.volume, one.image, one.is_writable) for one in (self, wanted))
        return known == other and self.how in (None, wanted.how)


class Locks:
    """A lock for each name, for as long as it is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def holding(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`."""
        with self._lock:
            lock, users = self._held.get(name, (threading.Lock(), 0))
            self._held[name] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._held[name]
                self._held[name] = lock, users - 1
                if users == 1:
                    del self._held[name]


class Volumes:
    """The volumes of this node, below `root`.

    `options` are words for all commands of imgfs, `mounting` for `imgfs mount`, `sharing` for that of a
    shared mount; `grants` say who may see what.
    """

    def __init__(
        self,
        root: Path,
        options: Sequence[str],
        mounting: Sequence[str],
        sharing: Sequence[str],
        grants: Grants,
    ) -> None:
        self._grants = grants
        self._options = options
        self._mounting = mounting
        self._sharing = sharing
        self._records, self._shared, self._secrets = (root / name for name in ("volumes", "mnt", "secrets"))
        self._root = root
        self._locks = Locks()
        try:
            for directory in (root, self._records, self._shared, self._secrets):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{root}: {describe(error)}") from error

    def publish(self, wanted: Wanted) -> None:
        """Show an image at a target. Raises Refusal."""
        with self._locks.holding(wanted.target):
            known = self._record(wanted.target)
            if known and not known.is_like(wanted):
                raise Refusal(Code.ALREADY_EXISTS, f"{wanted.target}: another volume is published there")
            if known and is_answering(Path(known.target)):
                return
            if known:
                self._take_down(known)
            _make_target(Path(wanted.target))
            try:
                if wanted.is_writable:
                    self._mount_alone(wanted)
                else:
                    self._show_shared(wanted)
            except BaseException:  # kubelet takes down only what was published
                self._give_up(wanted.target)
                raise

    def take_down(self, volume: str, target: str) -> None:
        """Have a volume be no longer at a target; nothing is there, and all is well, if it never was.

        What is there is another's if it is another volume, or no mount of imgfs: then it stays. Raises
        Refusal, as a directory stays that cannot be removed.
        """
        with self._locks.holding(target):
            known = self._record(target)
            if known and known.volume != volume:
                return
            mount = mount_at(Path(target))
            if known:
                self._take_down(known)
            elif mount and mount.is_imgfs:  # its record is lost: /run of another container
                detach_all(Path(target))
            with suppress(FileNotFoundError, NotADirectoryError):
                _remove_directory(Path(target))

    def usage(self, volume: str, path: str) -> list[VolumeUsage]:
        """Return how much of a volume is used. Raises Refusal for what is not published there."""
        known = self._record(path)
        if known is None or known.volume != volume:
            raise Refusal(Code.NOT_FOUND, f"{path}: volume {volume} is not published there")
        found = statvfs_within(Path(path), _ANSWER)
        if found is None:
            raise Refusal(Code.UNAVAILABLE, f"{path}: does not answer")
        size, inodes = found.f_frsize, found.f_files
        usages = [_usage(found.f_bavail * size, found.f_blocks * size, found.f_bfree * size, Unit.BYTES)]
        if 0 < inodes <= _MOST:  # EROFS says 2^64 - 1, which is negative to kubelet
            usages.append(_usage(found.f_favail, inodes, found.f_ffree, Unit.INODES))
        return usages

    def _mount_alone(self, wanted: Wanted) -> None:
        secret = self._keep_secret(wanted, _name_of(wanted.target))
        self._write(_published(wanted, ""))
        self._granted(wanted, secret)
        flags = ",".join(sorted({"nosuid", "nodev", *wanted.flags}))
        words = ["-o", flags, "--rw", *_platform(wanted), wanted.image, wanted.target]
        self._run(["mount", *self._options, *self._mounting, *words], secret)

    def _show_shared(self, wanted: Wanted) -> None:
        """Show the shared mount of an image: what its tag names now, by what the pod's secret opens."""
        image = self._granted(wanted, self._keep_secret(wanted, _name_of(wanted.target)))
        # by the platform, too: the digest may be that of an index
        name = _name_of(image, _name_of(wanted.secret), *_platform(wanted))
        self._write(_published(wanted, name))
        with self._locks.holding(name):
            place = self._shared / name
            if not is_answering(place):
                self._mount_shared(wanted, image, place)
            syscalls.bind_mount(str(place), wanted.target)
            flags = functools.reduce(operator.or_, (MOUNT_FLAGS[flag] for flag in wanted.flags), _BOUND)
            syscalls.remount(os.path.realpath(wanted.target), flags)  # kubelet's directory may be a link
        self._drop_secret(_name_of(wanted.target))

    def _granted(self, wanted: Wanted, secret: Path | None) -> str:
        """Return the image with its digest; raises Refusal if the registry does not give it to the secret.

        An empty store makes sure that the registry is asked.
        """
        words = ["inspect", "--json", *self._options, *_platform(wanted)]
        found = json.loads(self._run([*words, wanted.image], secret))
        reference, digest = found["reference"], found["digest"]
        image = reference if "@" in reference else f"{reference}@{digest}"
        if not self._grants.has(wanted.secret, f"{image} {digest}"):
            with tempfile.TemporaryDirectory(dir=self._root) as empty:
                self._run([*words, "--store", empty, image], secret)
            self._grants.add(wanted.secret, f"{image} {digest}")
        return str(image)

    def _mount_shared(self, wanted: Wanted, image: str, place: Path) -> None:
        detach_all(place)
        place.mkdir(mode=0o700, exist_ok=True)
        secret = self._keep_secret(wanted, place.name)
        index = "auto" if "@" in wanted.image else "any"  # what a tag named is asked for by its digest
        words = ["-o", "nosuid,nodev", "--index", index, *_platform(wanted), image, str(place)]
        self._run(["mount", *self._options, *self._mounting, *self._sharing, *words], secret)

    def _take_down(self, known: PublishedVolume) -> None:
        detach_all(Path(known.target))
        self._record_path(known.target).unlink(missing_ok=True)
        self._drop_secret(_name_of(known.target))
        if not known.shared:
            return
        with self._locks.holding(known.shared):
            place = self._shared / known.shared
            if any(other.shared == known.shared for other in self._all()):
                return
            detach_all(place)
            _remove_directory(place)
            self._drop_secret(known.shared)

    def _give_up(self, target: str) -> None:
        """Leave nothing of a volume that could not be published: no record, mount, directory or secret."""
        if known := self._record(target):
            self._take_down(known)
        self._drop_secret(_name_of(target))
        with suppress(OSError):
            Path(target).rmdir()

    def _run(self, words: Sequence[str], secret: Path | None) -> str:
        """Run a command; what it says reaches the pod's owner as an event, who has no shell on the node."""
        try:
            return run_imgfs(words, {"REGISTRY_AUTH_FILE": str(secret)} if secret else {})
        except Refusal as error:
            reason = str(error).replace("see: imgfs login", "the pod can name some: nodePublishSecretRef")
            raise Refusal(error.code, reason) from error

    # What is written down

    def _keep_secret(self, wanted: Wanted, name: str) -> Path | None:
        """Keep credentials for as long as their mount: it asks anew. None if there are none."""
        if not wanted.secret:
            return None
        path = self._secrets / f"{name}.json"
        keep_file(path, wanted.secret.encode())
        return path

    def _drop_secret(self, name: str) -> None:
        (self._secrets / f"{name}.json").unlink(missing_ok=True)

    def _record_path(self, target: str) -> Path:
        return self._records / f"{_name_of(target)}.json"

    def _record(self, target: str) -> PublishedVolume | None:
        return _read(self._record_path(target))

    def _all(self) -> Iterator[PublishedVolume]:
        for path in self._records.iterdir():
            if known := _read(path):
                yield known

    def _write(self, published: PublishedVolume) -> None:
        keep_file(self._record_path(published.target), json.dumps(published._asdict()).encode())


def keep_file(path: Path, body: bytes) -> None:
    """Write a file that root alone may read."""
    with atomic_write(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_bytes(body)


def _published(wanted: Wanted, shared: str) -> PublishedVolume:
    return PublishedVolume(wanted.volume, wanted.target, wanted.image, wanted.is_writable, shared, wanted.how)


def _read(path: Path) -> PublishedVolume | None:
    try:
        return PublishedVolume(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path}: damaged") from error


def _platform(wanted: Wanted) -> list[str]:
    return ["--platform", wanted.platform] if wanted.platform else []


def _name_of(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def _make_target(target: Path) -> None:
    """Make the directory: kubelet has made the one that it is in.

    It is no symbolic link, behind which nothing would find what is mounted there; those above it may be.
    """
    try:
        target.mkdir(mode=0o750, exist_ok=True)
    except OSError as error:
        raise Refusal(Code.INTERNAL, f"{target}: {describe(error)}") from error
    if target.is_symlink():
        raise Refusal(Code.INTERNAL, f"{target}: is a symbolic link")


def _remove_directory(path: Path) -> None:
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise Refusal(Code.INTERNAL, f"{path}: {describe(error)}") from error
        log.warning("%s: stays: it has files", path)


def _usage(available: int, total: int, free: int, unit: Unit) -> VolumeUsage:
    available, total, free = (min(each, _MOST) for each in (available, total, free))
    return VolumeUsage(available, total, max(0, total - free), unit)

"""The disks that images are on, as kubelet is told of them (CRI v1, ImageFsInfo).

containerd lists a file system for each of its snapshotters, the default one first, and kubelet reads only
the first: with a RuntimeClass for imgfs it never sees the disk of imgfs's images, nor ever that of its store
where that is another one. So they come in another order here: the disk with the smallest part left is the
first, since that is where kubelet has to remove images; what several have on one disk is summed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imgfs.errors import ImgfsError, describe
from imgfs.store.disk_share import disk_use
from imgfs.store.limit import cached
from imgfs.store.store import Store
from imgfs.transport.protobuf import ProtobufMessage, decode_message, encode_message

METHOD = "ImageFsInfo"
_LISTS = (1, 2)  # image_filesystems, container_filesystems

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageDisk:
    """A file system of images: where, the bytes and inodes that images take there, and when (ns)."""

    mountpoint: str
    used: int
    inodes: int
    timestamp: int


class ImageDisks:
    """Tells of the disks of containerd's snapshotters and of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, method: str, body: bytes) -> bytes:
        """Return containerd's answer as kubelet gets it: unchanged, but for that about disks."""
        try:
            return self._told(body) if method == METHOD else body
        except (ImgfsError, OSError) as error:
            log.warning("the disks of images are told as containerd does: %s", describe(error))
            return body

    def _told(self, body: bytes) -> bytes:
        answer = ProtobufMessage(body, METHOD)
        images, containers = ([_decoded(one) for one in answer.messages(field)] for field in _LISTS)
        if not images:
            return body
        told = [_encoded(one) for one in self._in_order([*images, self._stores_own()])]
        others = [field for field in decode_message(body, METHOD) if field[0] not in _LISTS]
        return encode_message(
            *((field, one) for field in _LISTS[: 2 if containers else 1] for one in told), *others
        )

    def _stores_own(self) -> ImageDisk:
        taken = sum(layer.size for layer in cached(self._store.layers())) + self._store.kept()
        return ImageDisk(str(self._store.root), taken, 0, time.time_ns())

    def _in_order(self, disks: Iterable[ImageDisk]) -> list[ImageDisk]:
        found = list(_by_device(disks, lambda path: os.stat(path).st_dev))
        return sorted(found, key=lambda disk: _free_share(disk.mountpoint))


def _by_device(disks: Iterable[ImageDisk], device_of: Callable[[str], int]) -> Iterator[ImageDisk]:
    """Yield one for each disk, with the mountpoint that was named first.

    The store comes last, and is left out on a disk of a snapshotter, who has counted what is cached.
    """
    *of_engine, store = disks
    summed: dict[int, ImageDisk] = {}
    for disk in of_engine:
        try:
            device = device_of(disk.mountpoint)
        except OSError as error:
            log.warning("%s: %s", disk.mountpoint, error.strerror)
            yield disk
            continue
        known = summed.get(device)
        summed[device] = (
            replace(known, used=known.used + disk.used, inodes=known.inodes + disk.inodes) if known else disk
        )
    yield from summed.values()
    if device_of(store.mountpoint) not in summed:
        yield store


def _free_share(mountpoint: str) -> float:
    try:
        return disk_use(Path(mountpoint)).free_share
    except OSError:  # it is not there (yet): nothing to be removed
        return 1.0


def _decoded(usage: ProtobufMessage) -> ImageDisk:
    return ImageDisk(
        usage.message(2).text(1), usage.message(3).number(1), usage.message(4).number(1), usage.number(1)
    )


def _encoded(disk: ImageDisk) -> bytes:
    name = encode_message((1, disk.mountpoint))
    return encode_message((1, disk.timestamp), (2, name)) + _number(3, disk.used) + _number(4, disk.inodes)


def _number(field: int, value: int) -> bytes:
    """Return a UInt64Value, which is there if it is 0, too: kubelet reads it without a look (and panics)."""
    body = encode_message((1, value))
    return bytes([field << 3 | 2, len(body)]) + body

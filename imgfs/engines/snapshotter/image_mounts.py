"""Mounts of imgfs, one for each chain of layers in use, made when they are needed and shared by all who do.

Each is made by `imgfs mount`, and served by a process of its own: it outlives this one. Where a mount is, its
name says (`DIGEST` or `DIGEST.DEPTH` below one directory), so that a later process finds it again.

Locks: a chain's `lock` is held while it is looked at, mounted or unmounted. `_lock` is only for the tables
here, and is held for no call that may wait.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgfs.engines.command import run_imgfs
from imgfs.engines.liveness import is_answering
from imgfs.engines.refusal import Refusal
from imgfs.engines.snapshotter.rows import ImageChain
from imgfs.errors import ImgfsError, StoreError, describe
from imgfs.mounts.unmount import detach_all, detach_and_wait
from imgfs.oci.descriptor import Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import parse_reference
from imgfs.parallel import ThreadPool

_END = 2.0  # seconds for a daemon to end: what it has used can be removed then
_AT_ONCE = 8  # images that are prepared at the same time

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """What is known of one chain: how many use it just now, and the mount that was begun ahead."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    begun: Future[Path] | None = None


class ImageMounts:
    """The mounts below `place`; `options` are further words for `imgfs mount`.

    `policy` says which published indexes count, AUTO those that do for an image's name as it was pulled.
    """

    def __init__(self, place: Path, options: Sequence[str], policy: Policy = Policy.AUTO) -> None:
        self._place = place
        self._options = options
        self._policy = policy
        self._lock = threading.Lock()
        self._slots: dict[ImageChain, _Slot] = {}
        self._pool = ThreadPool(_AT_ONCE, "imgfs-mount")
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{place}: {describe(error)}") from error

    def begin(self, chain: ImageChain, ended: Callable[[], None]) -> None:
        """Begin to mount a chain, unless that is under way; `ended` is called at the end."""
        slot = self._slot(chain)
        with self._lock:
            if slot.begun is None or slot.begun.done():
                slot.begun = self._pool.submit(self._mounted, chain, slot)
                slot.begun.add_done_callback(lambda _: ended())

    @contextmanager
    def used(self, chain: ImageChain) -> Iterator[Path]:
        """Mount a chain, if it does not answer already, and keep it from being swept within the block.

        What was begun ahead, and is under way, is waited for; what has failed by now is tried again. Raises
        Refusal with the reason if it cannot be mounted.
        """
        slot = self._slot(chain)
        with self._lock:
            slot.users += 1
            begun, slot.begun = slot.begun, None
        try:
            if begun and not begun.done():
                begun.result()
            yield self._mounted(chain, slot)
        finally:
            with self._lock:
                slot.users -= 1

    def sweep(self, needs: Callable[[ImageChain, bool], bool]) -> None:
        """Unmount what no snapshot needs; `needs` is also told whether a mount was begun ahead."""
        for path in sorted(self._place.iterdir()):
            chain = _chain_of(path.name)
            if chain is None:
                continue
            slot = self._slot(chain)
            if not slot.lock.acquire(blocking=False):  # it is being mounted, which ends with another sweep
                continue
            try:
                with self._lock:
                    in_use, begun = slot.users > 0, slot.begun is not None
                if not in_use and not needs(chain, begun):
                    _take_down(path)
                    with self._lock:
                        slot.begun = None
            except ImgfsError as error:
                log.warning("%s", error)
            finally:
                slot.lock.release()

    @contextmanager
    def kept_away(self, chain: ImageChain) -> Iterator[bool]:
        """Have a chain not be mounted within the block; yields False if it is mounted, or about to be."""
        slot = self._slot(chain)
        is_mine = slot.lock.acquire(blocking=False)
        try:
            yield is_mine and not slot.users and not (self._place / _name_of(chain)).exists()
        finally:
            if is_mine:
                slot.lock.release()

    def _slot(self, chain: ImageChain) -> _Slot:
        with self._lock:
            return self._slots.setdefault(chain, _Slot())

    def _mounted(self, chain: ImageChain, slot: _Slot) -> Path:
        """Return where a chain is mounted and answers."""
        path = self._place / _name_of(chain)
        with slot.lock:
            if not is_answering(path):
                detach_all(path)
                self._mount(chain, path)
        return path

    def _mount(self, chain: ImageChain, path: Path) -> None:
        """Run `imgfs mount`; raises Refusal with what it says."""
        path.mkdir(mode=0o700, exist_ok=True)
        try:
            run_imgfs(["mount", *self._options, *_words(chain, self._policy), str(path)])
        except Refusal as error:
            raise Refusal(error.code, f"imgfs cannot mount {chain.image}: {error}") from error


def mounted_reference(chain: ImageChain) -> str:
    """Return the reference by which an image is mounted: as it was pulled, with what containerd resolved."""
    return str(replace(parse_reference(chain.image), digest=Digest.parse(chain.manifest)))


def _words(chain: ImageChain, policy: Policy) -> list[str]:
    """Return the words for `imgfs mount` that name a chain.

    The digest is what containerd has resolved a tag to, so that published indexes count as for the tag.
    """
    if policy is Policy.AUTO and not parse_reference(chain.image).digest:
        policy = Policy.ANY
    part = ["--upto-layer", str(chain.depth)] if chain.depth else []
    return ["--index", policy, *part, mounted_reference(chain)]


def _name_of(chain: ImageChain) -> str:
    digest = Digest.parse(chain.manifest)
    return f"{digest.algorithm}-{digest.hex}{f'.{chain.depth}' if chain.depth else ''}"


def _chain_of(name: str) -> ImageChain | None:
    """Return the chain whose mount has this name, None if none has."""
    digest, _, depth = name.partition(".")
    with suppress(ImgfsError, ValueError):
        return ImageChain(str(Digest.parse(digest.replace("-", ":", 1))), int(depth or 0), "")
    return None


def _take_down(path: Path) -> None:
    log.info("unmounting %s", path)
    detach_and_wait(path, _END)
    with suppress(OSError):
        path.rmdir()

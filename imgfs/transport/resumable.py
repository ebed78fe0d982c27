"""Whole blobs that resume: what has come is kept in the store until the layer has its index.

A layer without an index is streamed from its start to its end. If that breaks off, by a signal, a full disk
or a registry that goes away, what has come must not be fetched again: so the bytes are kept in the store
(`store.partial`) as they come, and handed on in order. Nothing of them is believed: the scan checks the
digest of the whole blob, whichever process fetched which part of it, from whichever registry.

Where there are peers that download the same blob, each fetches a part of it, and has the rest from the others
(`transport.shared_download`). If the digest does not hold then, what peers have brought is fetched again, and
shows which of them has sent wrong bytes.

The download runs ahead of its reader, as fast as the link: what has been sent is on disk, not in a socket.
It may come by several ranges at once, as one connection seldom fills a link; but not from a registry that
answers a range with the whole blob, which RFC 9110 (14.2) allows: there one request fetches what is missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING

from imgfs.errors import IntegrityError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.layer import StoredLayer
from imgfs.store.partial import UNIT, PartialBlob, StoredPiece
from imgfs.transport.download import Download
from imgfs.transport.source import Source

if TYPE_CHECKING:
    from imgfs.peers.pool import Peer

AT_ONCE = 8  # requests under way for all layers together
_WORTHWHILE = 4 * UNIT  # bytes of a blob: a smaller one is streamed, and begun anew
# Bytes that a blob says it has: a larger one, too. Its marks, a byte for each unit, would be what the image's
# author likes; those of this are 512 KiB.
_LARGEST_KEPT = 128 << 30


class ResumableDownloads:
    """Downloads of whole blobs, each by up to `connections` at once."""

    def __init__(self, connections: int = 1) -> None:
        self._connections = connections
        self._turns = threading.BoundedSemaphore(AT_ONCE)
        self._brought: dict[Digest, dict[int, Peer]] = {}  # by blob and unit: who has sent it
        self._doubted: dict[Digest, dict[int, bytes]] = {}  # digests of what they have sent of wrong blobs

    def blob(
        self, descriptor: Descriptor, source: Source, stored: StoredLayer, found: Callable[[int], None]
    ) -> Iterator[bytes | StoredPiece]:
        """Yield a blob, whole: what is kept of it, and the rest from `source`; what is kept is not read here.

        The caller holds the layer's lock, and removes what is kept with `drop_part`. `found` is told how many
        bytes of it were kept already.
        """
        if not _is_kept(descriptor):
            yield from source.blob(descriptor)
            return
        with closing(stored.part(descriptor.size)) as part:
            found(part.here())
            with closing(self._download(descriptor, source, part)) as download:
                download.begin()
                for unit in range(part.units):
                    download.wait_for(unit)
                    yield part.piece(unit)

    def _download(self, descriptor: Descriptor, source: Source, part: PartialBlob) -> Download:
        peers = source.peers()
        if peers is None or descriptor.digest in self._doubted:
            return Download(descriptor, source, part, self._turns, self._connections)
        from imgfs.transport.shared_download import SharedDownload  # here: most have no peers

        brought = self._brought.setdefault(descriptor.digest, {})
        return SharedDownload(
            descriptor, source, part, self._turns, self._connections, peers=peers, brought=brought
        )

    def doubt_peers(self, descriptor: Descriptor, stored: StoredLayer) -> bool:
        """Have what peers have brought of a blob fetched again, from the source; False if that is nothing.

        Raises StoreError.
        """
        if not _is_kept(descriptor):
            return False
        with closing(stored.part(descriptor.size)) as part:
            units = part.by_peers()
            if units:
                self._doubted[descriptor.digest] = {unit: _digest(part, unit) for unit in units}
            for unit in units:
                part.forget(unit)
        return bool(units)

    def judge_peers(self, descriptor: Descriptor, source: Source, stored: StoredLayer) -> None:
        """Name the peers that have sent other bytes than are kept now, which have the digest."""
        peers, doubted = source.peers(), self._doubted.get(descriptor.digest)
        if peers is None or doubted is None:
            return
        brought = self._brought.get(descriptor.digest, {})
        with closing(stored.part(descriptor.size)) as part:
            for unit, digest in doubted.items():
                peer = brought.get(unit)
                if peer and part.has(unit) and _digest(part, unit) != digest:
                    what = (
                        f"bytes {part.bounds(unit)[0]} to {part.bounds(unit)[1]} of {descriptor.digest.short}"
                    )
                    peers.expel(peer, IntegrityError(what, expected="those of the digest", actual="others"))


def _is_kept(descriptor: Descriptor) -> bool:
    return _WORTHWHILE <= descriptor.size <= _LARGEST_KEPT


def _digest(part: PartialBlob, unit: int) -> bytes:
    return sha256(part.piece(unit).read()).digest()

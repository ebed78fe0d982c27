"""A source out of memory: it counts what it is asked, and can lie, cut, be away, or hold its answers back."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator, Sequence

from imgfs.errors import IntegrityError, NotFound, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from imgfs.peers.pool import PeerPool
from imgfs.registry.endpoint import Traffic
from imgfs.status import EndpointStatus
from imgfs.transport.source import inline

_CHUNK = 64 * 1024


class FakeSource:
    """Blobs and documents by digest; `resolve` gives `root`.

    `ranges` are the byte ranges asked for, in order, `documents_asked` the documents. Faults, until changed:
    `flips` counts, by blob offset, how many more times that byte is sent inverted; `cut_at` is a blob offset
    before which answers end in silence; while `away`, everything is Unavailable; while `gate` is clear,
    blobs wait; while `rangeless`, ranges are said to cost as much as the whole blob.
    """

    def __init__(self, root: Descriptor | None = None) -> None:
        self.root = root
        self.bodies: dict[Digest, bytes] = {}
        self.doubted: list[Digest] = []
        self.ranges: list[tuple[int, int]] = []
        self.documents_asked: list[Digest] = []
        self.resolved = 0
        self.flips: dict[int, int] = {}
        self.cut_at: int | None = None
        self.away = False
        self.rangeless = False
        self.tags: dict[str, Descriptor] = {}
        self.referring: dict[Digest, list[Descriptor]] = {}  # what refers to a manifest
        self.referrers_asked: list[Digest] = []
        self.broken: set[Digest] = set()  # blobs and documents that are not there
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()  # a blob has been asked for
        self.pool: PeerPool | None = None  # other machines' imgfs
        self._lock = threading.Lock()
        self._sent = 0

    def add(self, body: bytes, media_type: str = "application/octet-stream") -> Descriptor:
        """Have `body`, and return its descriptor."""
        digest = Digest.of(body)
        self.bodies[digest] = body
        return Descriptor(media_type, digest, len(body))

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """Return the descriptor that was given as the root."""
        del whole
        self.resolved += 1
        self._check_there()
        if self.root is None:
            raise NotFound("nothing has that name")
        return self.root

    def document(self, descriptor: Descriptor) -> bytes:
        """Return a document, as it was added."""
        self._check_there()
        self.documents_asked.append(descriptor.digest)
        if descriptor.digest in self.broken:
            raise NotFound(f"no document {descriptor.digest.short}")
        return self.bodies[descriptor.digest]

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes `[start, end)` of a blob, with the faults asked for; a registry's 416 beyond its end."""
        if (carried := inline(descriptor)) is not None:
            yield carried[start:end]
            return
        body = self.bodies[descriptor.digest]
        end = len(body) if end is None else end
        assert 0 <= start <= end <= max(len(body), descriptor.size), "a range that nothing promised"
        if end > len(body):
            raise IntegrityError(f"length of {descriptor.digest.short}", expected=end, actual=len(body))
        with self._lock:
            self.ranges.append((start, end))
        self.waiting.set()
        self.gate.wait(30)
        self._check_there()
        if descriptor.digest in self.broken:
            raise NotFound(f"no blob {descriptor.digest.short}")
        yield from self._chunks(body, start, end if self.cut_at is None else min(end, self.cut_at))

    def tagged(self, tag: str) -> Descriptor:
        """Return what is in `tags`."""
        self._check_there()
        if tag not in self.tags:
            raise NotFound(f"no tag {tag!r}")
        return self.tags[tag]

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return what is in `referring`."""
        self._check_there()
        self.referrers_asked.append(digest)
        found = self.referring.get(digest, [])
        return [entry for entry in found if artifact_type in (None, entry.artifact_type)]

    def ignores_ranges(self, _descriptor: Descriptor) -> bool:
        """Return what `rangeless` says."""
        return self.rangeless

    def doubt(self, descriptor: Descriptor) -> bool:
        """Note the blob in `doubted`."""
        self.doubted.append(descriptor.digest)
        return False

    def peers(self) -> PeerPool | None:
        """Return what is in `pool`."""
        return self.pool

    def health(self) -> list[EndpointStatus]:
        """Nothing to tell."""
        return []

    def traffic(self) -> Traffic:
        """Return requests for blobs and documents, and the bytes of blobs sent."""
        return Traffic(len(self.ranges) + len(self.documents_asked), self._sent)

    def expect(self, _requests: int) -> None:
        """Nothing to get ready."""

    def close(self) -> None:
        """Nothing to let go of."""

    def forget_requests(self) -> None:
        """Count from zero again."""
        self.ranges.clear()
        self.documents_asked.clear()
        self.referrers_asked.clear()
        self.resolved = self._sent = 0

    def _check_there(self) -> None:
        if self.away:
            raise Unavailable("the registry does not answer")

    def _chunks(self, body: bytes, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, _CHUNK):
            chunk = bytearray(body[at : min(at + _CHUNK, end)])
            with self._lock:
                self._sent += len(chunk)
                for offset in self.flips:
                    if at <= offset < at + len(chunk) and self.flips[offset] > 0:
                        self.flips[offset] -= 1
                        chunk[offset - at] ^= 0xFF
            yield bytes(chunk)


LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def gzipped(tar: bytes) -> bytes:
    """Pack a layer."""
    return gzip.compress(tar, 6, mtime=0)


def add_image(
    source: FakeSource,
    layers: Sequence[bytes],
    *,
    diff_ids: Sequence[Digest] = (),
    pack: Callable[[bytes], bytes] = gzipped,
) -> Descriptor:
    """Have an image of `layers`, tar streams, the lowest first; it becomes the root. Returns its manifest."""
    blobs = [source.add(pack(tar), LAYER_GZIP) for tar in layers]
    rootfs = {"type": "layers", "diff_ids": [str(name) for name in diff_ids or map(Digest.of, layers)]}
    config = _add_json(source, OCI_CONFIG, os="linux", architecture="amd64", rootfs=rootfs)
    fields = {"config": _fields(config), "layers": [_fields(blob) for blob in blobs]}
    source.root = _add_json(source, OCI_MANIFEST, **fields)
    return source.root


def add_index(source: FakeSource, manifest: Descriptor) -> Descriptor:
    """Have an index of one image for linux/amd64; it becomes the root. Returns its descriptor."""
    entry = {**_fields(manifest), "platform": {"os": "linux", "architecture": "amd64"}}
    source.root = _add_json(source, OCI_INDEX, manifests=[entry])
    return source.root


def _add_json(source: FakeSource, media_type: str, **fields: object) -> Descriptor:
    document = {"schemaVersion": 2, "mediaType": media_type, **fields}
    return source.add(json.dumps(document).encode(), media_type)


def _fields(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }

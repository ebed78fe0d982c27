"""One image in every format there is, its lower layer always the same, and what is published beside it."""

from __future__ import annotations

import gzip
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from imgfs.errors import IntegrityError, InvalidImage, NotFound
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import resolve
from imgfs.image.trust import Trust
from imgfs.oci.artifact import Artifact, artifact_manifest
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import OCI_MANIFEST
from imgfs.oci.policy import Policy
from imgfs.oci.published import ARTIFACT_TYPE, contents_of
from imgfs.oci.reference import parse_reference
from imgfs.oci.soci import CONFIG_BODY, SOCI_V1, soci_index, ztoc_descriptor
from imgfs.publish import publication_of
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.blobs import prose
from tests.support.fake_source import FakeSource
from tests.support.mounted import Stored, documents, gzipped, gzipped_in_members, plain, sha256, zstd
from tests.support.tocmake import Made, chunked_layer, estargz_layer
from tests.support.ztocs import scanned
from tests.unit.test_prepare import Journal

AMD64 = Platform("linux", "amd64")
NAME = "app:1"
ELSEWHERE = "evil.example/app:1"  # the same image at another registry
_CHANCE = random.Random(8)
_NOISE = _CHANCE.randbytes(270_000)  # a layer under 256 KiB is streamed, whatever index it has

LOWER = tarmake.archive(
    tarmake.directory("etc"),
    tarmake.file("etc/old", b"old"),
    tarmake.file("etc/passwd", b"root", mode=0o600, uid=7, gid=8),
)
UPPER = tarmake.archive(
    tarmake.directory("usr", mode=0o1777, xattrs={b"user.directory": b"\0\xff"}),
    tarmake.file("usr/noise", _NOISE),
    *(tarmake.file(f"usr/{number}", prose(_CHANCE.randrange(9_000), number)) for number in range(30)),
    tarmake.file("usr/capable", b"c", mode=0o4755, xattrs={b"security.capability": b"\1\0\0\2\xff"}),
    tarmake.file("usr/prose", prose(120_000, 99)),
    tarmake.file("usr/" + "long" * 40, b"long"),
    tarmake.symlink("link", "usr/prose"),
    tarmake.hardlink("again", "usr/noise"),
    tarmake.device("null", "c", 1, 3),
    tarmake.fifo("pipe"),
    tarmake.whiteout("etc/old"),
    tarmake.file("zeros", bytes(40_000)),
)


class Shelf(FakeSource):
    """A source that answers as a registry's does: documents have their digests, blobs their ranges."""

    def document(self, descriptor: Descriptor) -> bytes:
        """Return a document; raises IntegrityError, NotFound."""
        if descriptor.digest not in self.bodies:
            raise NotFound(f"no document {descriptor.digest.short}")
        body = super().document(descriptor)
        descriptor.digest.verify(body, "digest of a document")
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes `[start, end)`, as far as there are any; raises InvalidImage, NotFound."""
        end = descriptor.size if end is None else end
        if descriptor.data is not None:
            return iter((descriptor.data[start:end],))
        if not 0 <= start <= end <= descriptor.size:
            raise InvalidImage(f"bytes {start}-{end} of {descriptor.size}", where=str(descriptor.digest))
        if descriptor.digest not in self.bodies:
            raise NotFound(f"no blob {descriptor.digest.short}")
        size = len(self.bodies[descriptor.digest])
        if end > size:
            raise IntegrityError("length of a blob", expected=descriptor.size, actual=size)
        return super().blob(descriptor, start, end)


@dataclass(frozen=True, eq=False)
class Specimen:
    """An image of `LOWER` and another layer; `made` if that has a table of contents."""

    name: str
    layer: Stored
    made: Made | None = None
    lower: Stored = field(default_factory=lambda: gzipped(LOWER))

    def shelf(self) -> Shelf:
        """Return a source that has the image."""
        shelf = Shelf()
        made = documents([self.lower, self.layer])
        shelf.bodies = {Digest.parse(name): body for name, body in made.blobs.items()}
        shelf.root = shelf.add(made.manifest, OCI_MANIFEST)
        return shelf

    def with_layer(self, blob: bytes, **more: object) -> Specimen:
        """Return the image with another blob, named by what it is."""
        return replace(self, layer=self.layer._replace(blob=blob, **more))  # type: ignore[arg-type]


def _with_toc(name: str, made: Made, flat: bytes) -> Specimen:
    stored = Stored(made.blob, sha256(flat), made.layer.media_type, annotations=made.layer.annotations)
    return Specimen(name, stored, made)


@cache
def tars() -> tuple[Specimen, ...]:
    """Return the image with a layer as it is."""
    return (Specimen("tar", plain(UPPER)),)


@cache
def gzips() -> tuple[Specimen, ...]:
    """With a layer in gzip: one member, several."""
    return (Specimen("gzip", gzipped(UPPER, 6)), Specimen("gzip members", gzipped_in_members(UPPER)))


@cache
def zstds() -> tuple[Specimen, ...]:
    """With a layer in zstd: one frame, several."""
    return (Specimen("zstd", zstd(UPPER)), Specimen("zstd frames", zstd(UPPER, 60_000)))


@cache
def estargzes() -> tuple[Specimen, ...]:
    """With layers in eStargz."""
    made = {
        "estargz": estargz_layer(UPPER, chunk=40_000),
        "estargz, shared": estargz_layer(UPPER, chunk=40_000, shared=20_000),
        "estargz, legacy": estargz_layer(UPPER, footer="legacy"),
    }
    return tuple(_with_toc(name, one, gzip.decompress(one.blob)) for name, one in made.items())


@cache
def chunkeds() -> tuple[Specimen, ...]:
    """With layers in zstd:chunked, in each dialect."""
    made = {
        f"chunked {year}": chunked_layer(UPPER, chunk=40_000, dialect=year)
        for year in ("2021", "2022", "2023")
    }
    made["chunked, surplus"] = chunked_layer(UPPER, surplus=True)
    return tuple(_with_toc(name, one, UPPER) for name, one in made.items())


def every() -> tuple[Specimen, ...]:
    """Return all of them."""
    return (*tars(), *gzips(), *zstds(), *estargzes(), *chunkeds())


@dataclass(frozen=True)
class Publication:
    """What imgfs and SOCI publish of an image."""

    subject: Descriptor
    layers: tuple[Descriptor, ...]
    bodies: dict[Digest, bytes]
    ztocs: tuple[Descriptor, ...]

    def refer(self, shelf: Shelf, *, soci: bool) -> None:
        """Have the shelf hold it, referring to the image."""
        shelf.bodies |= self.bodies
        body, kind = artifact_manifest(Artifact(ARTIFACT_TYPE, self.layers, self.subject)), ARTIFACT_TYPE
        if soci:
            body, kind = soci_index(1, self.ztocs, subject=self.subject, tool="fuzz"), SOCI_V1
            shelf.add(CONFIG_BODY)
        entry = replace(shelf.add(body, OCI_MANIFEST), artifact_type=kind)
        shelf.referring = {self.subject.digest: [entry]}

    def with_body(self, old: Descriptor, body: bytes, **more: object) -> Publication:
        """Return the same with another body for `old`, named by what it is."""
        new = replace(old, digest=Digest.of(body), size=len(body), data=None, **more)  # type: ignore[arg-type]

        def changed(those: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
            return tuple(new if one is old else one for one in those)

        bodies = {**self.bodies, new.digest: body}
        return replace(self, layers=changed(self.layers), ztocs=changed(self.ztocs), bodies=bodies)


@cache
def publication(specimen: Specimen) -> Publication:
    """Make all that can be published of a specimen."""
    directory = Path(tempfile.mkdtemp(prefix="imgfs-fuzz-"))
    try:
        shelf, store = specimen.shelf(), Store(directory / "store")
        resolved = resolve(NAME, shelf, store, AMD64)
        prepare(resolved, shelf, store, Quiet(), Trust.of(parse_reference(NAME), Policy.NONE))
        with Image(resolved, shelf, store) as image:
            made = publication_of(image, store, directory, repack=True, on_layer=lambda _: None)
        bodies = {digest: path.read_bytes() for digest, path in made.files.items()}
        assert shelf.root is not None
        ztocs = []
        if specimen in (*tars(), gzips()[0]):  # which SOCI can speak of; publishing leaves small layers out
            body = scanned(specimen.layer.blob, step=40_000).ztoc()
            ztocs.append(ztoc_descriptor(resolved.manifest.layers[1], body))
            bodies[Digest.of(body)] = body
        return Publication(shelf.root, contents_of(made.published), bodies, tuple(ztocs))
    finally:
        shutil.rmtree(directory)


class Quiet(Journal):
    """A Reporter that discards what it is told."""

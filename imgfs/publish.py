"""Publish an image's indexes: as an imgfs artifact that refers to it, and as SOCI indexes.

Everything is made from the store, but for two things that take the layers' blobs once more: which bytes of a
window its span refers to (the others are zeroed, and a window packs to a fifth), and the digests of SOCI's
larger spans. What may be pushed has been verified here: an index that another has published is not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.content.layer import LayerContent
from imgfs.content.profile import AccessProfile, origin_of, published_profile
from imgfs.content.storing import split
from imgfs.errors import IntegrityError, InvalidImage, StoreError
from imgfs.image.image import Image
from imgfs.image.profiles import AUTOMATIC, DEFAULT, touches_without_tree
from imgfs.image.trust import Trust, open_index
from imgfs.layer.artifact import Windows, pack, write_shared, write_windows
from imgfs.layer.codec.compress import seekable
from imgfs.layer.codec.frames import FRAMED
from imgfs.layer.codec.gzip import sparse_window
from imgfs.layer.codec.span import decode_span
from imgfs.layer.entry import Checkpoint, Span
from imgfs.layer.flat_digests import flat_digests
from imgfs.layer.index import LayerIndex
from imgfs.layer.scan import merge_spans
from imgfs.layer.schema import TAR, ExternalBlob
from imgfs.layer.soci.ztoc_writer import Inexpressible, build_ztoc, members, soci_spans
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.oci.published import (
    COPY,
    DIGESTS,
    FULL,
    LAYER_OF,
    LEAN,
    NAME_OF,
    PROFILE,
    SIZE_OF,
    TREE,
    WINDOWS,
    LayerRange,
    Published,
    PublishedLayer,
    first_ranges,
)
from imgfs.oci.reference import parse_reference
from imgfs.oci.soci import ztoc_descriptor
from imgfs.parallel import run_parallel
from imgfs.store.store import Store
from imgfs.transport.source import Source
from imgfs.tree.import_tree import export_tree

WORKERS = 2  # layers at once: decoding windows keeps a core busy
SOCI_LEAST = 10 << 20  # bytes of a layer that gets a zTOC: soci-snapshotter fetches smaller ones whole
SOCI_SPAN = 4 << 20  # flat bytes of a span there, its default
_INLINE = (
    24 << 10
)  # bytes of a lean index that travels within the artifact's manifest (descriptor.md, `data`)
_COARSE = 8 << 20  # flat bytes of a span that is too large to be called random access


class Made(NamedTuple):
    """A file that is to be pushed."""

    descriptor: Descriptor
    path: Path


@dataclass
class Publication:
    """What has been made of an image: `files` by digest, and the zTOCs of those layers that can have one."""

    published: Published = field(default_factory=lambda: Published(None, {}))
    files: dict[Digest, Path] = field(default_factory=dict)
    ztocs: dict[Digest, Descriptor] = field(default_factory=dict)
    unsaid: dict[Digest, str] = field(default_factory=dict)  # why a layer has no zTOC

    def size(self) -> int:
        """Return bytes of all that is to be pushed."""
        return sum(path.stat().st_size for path in self.files.values())


def publication_of(
    image: Image,
    store: Store,
    directory: Path,
    *,
    repack: bool = False,
    soci: bool = True,
    on_layer: Callable[[Descriptor], None],
) -> Publication:
    """Make all there is to publish of an image that is in `store`, in files of `directory`.

    With `repack`, layers that can be read from their beginning only get a seekable copy. `on_layer` is called
    from several threads, when a layer is done with. Raises ImgfsError.
    """
    made = Publication()
    layers: dict[Digest, PublishedLayer] = {}
    lock, cancelled = threading.Lock(), threading.Event()

    def one(content: LayerContent) -> None:
        if cancelled.is_set():
            return
        with open_index(store.layer(content.layer.digest)) as index:
            _, diff_id = image.resolved.layers[content.layer.digest]
            layer = _Layer(content, diff_id, index, image.source, directory)
            result = layer.make(soci=soci, repack=repack)
        with lock:
            layers[content.layer.digest] = result.published
            made.files |= {file.descriptor.digest: file.path for file in result.files}
            if result.ztoc:
                made.ztocs[content.layer.digest] = result.ztoc
            if result.unsaid:
                made.unsaid[content.layer.digest] = result.unsaid
        on_layer(content.layer)

    distinct = {content.layer.digest: content for content in image.content.layers}
    works = [partial(one, content) for content in sorted(distinct.values(), key=lambda one: -one.layer.size)]
    run_parallel(works, WORKERS, "imgfs-publish", cancelled)
    tree = store.tree(image.resolved.tree)
    if tree is None:
        raise StoreError(f"{image.resolved.reference}: the tree has been removed meanwhile; try again")
    traveller = directory / "tree.sqlite"
    export_tree(tree, traveller)
    packed = _packed(traveller, directory / "tree", TREE, {})
    made.files[packed.descriptor.digest] = packed.path
    recorded = store.profiles(image.resolved.digest).items()
    ours = ("", Trust.of(parse_reference(image.resolved.reference), Policy.ANY).origin)
    kept = dict(_profiles((name, body) for name, body in recorded if origin_of(body) in ours))
    in_order = {digest: layers[digest] for digest in distinct}
    made.published = Published(packed.descriptor, in_order, kept, tuple(_first(kept, image, in_order)))
    return made


def _first(
    profiles: Mapping[str, Descriptor], image: Image, layers: Mapping[Digest, PublishedLayer]
) -> Iterator[LayerRange]:
    """Yield what a replay of the profile that is usual will fetch first, but of layers that have a copy."""
    usual = next((profiles[name] for name in (DEFAULT, AUTOMATIC) if name in profiles), None)
    if usual is None or usual.data is None:
        return
    content = image.content
    touches = [
        (number, span)
        for number, span in touches_without_tree(AccessProfile.from_json(usual.data), content)
        if not layers[content.layers[number].layer.digest].copy
    ]
    requests = (LayerRange(number, each.start, each.end) for number, each in content.requests_of(touches))
    yield from first_ranges(requests)


class _Result(NamedTuple):
    published: PublishedLayer
    files: list[Made]
    ztoc: Descriptor | None
    unsaid: str


class _Layer:
    """What is to be published of one layer."""

    def __init__(
        self, content: LayerContent, diff_id: Digest, index: LayerIndex, source: Source, directory: Path
    ) -> None:
        self._content = content
        self._index = index
        self._layer = content.layer
        self._source = source
        self._stem = directory / content.layer.digest.hex
        self._annotations = {LAYER_OF: str(content.layer.digest)}
        is_proved = not (index.summary.is_lean or index.summary.origin)
        if not is_proved or index.summary.diff_id != str(diff_id):
            raise StoreError(
                f"layer {content.layer.digest.short}: its index is another's; it is not published"
            )

    def make(self, *, soci: bool, repack: bool) -> _Result:
        """Write the files."""
        files: list[Made] = []
        copy = self._copy(files) if repack and self._is_coarse() else None
        windows, spans = (None, []) if copy else self._windows(files)
        lean, full = (self._shared(lean, windows, copy, files) for lean in (True, False))
        self._digests(copy[1] if copy else list(self._index.spans()), files)
        ztoc, unsaid = self._ztoc(spans, files) if soci else (None, "")
        by_type = {file.descriptor.media_type: file.descriptor for file in files}
        published = PublishedLayer(lean, full, *map(by_type.get, (WINDOWS, COPY, DIGESTS)))
        return _Result(published, files, ztoc, unsaid)

    def _windows(self, files: list[Made]) -> tuple[Windows | None, list[Span]]:
        """Return the windows, sparse, in a file.

        And the spans as SOCI would have them, made in the same pass.
        """
        checkpoints: list[tuple[int, Checkpoint]] = []
        wants_ztoc = self._layer.size >= SOCI_LEAST
        if not self._index.checkpoints():
            if not self._index.is_scanned():
                for _ in self._sparsed(checkpoints):
                    pass
            return None, list(self._index.spans()) if wants_ztoc else []
        merged = list(merge_spans(self._sparsed(checkpoints), SOCI_SPAN))
        path = self._stem.with_suffix(".windows")
        windows = write_windows(checkpoints, path)
        assert windows is not None  # there are checkpoints
        digest = Digest.parse(windows.blob.digest)
        files.append(Made(Descriptor(WINDOWS, digest, windows.blob.size, self._annotations), path))
        return windows, merged if wants_ztoc else []

    def _sparsed(self, checkpoints: list[tuple[int, Checkpoint]]) -> Iterator[tuple[Span, bytes]]:
        """Yield every span with its bytes, verified; decoded, too, if where it is was others' word.

        Its checkpoint, if it has one, is added to `checkpoints`.
        """
        ranges = [(start, end) for _, _, start, end in self._index.bounds()]
        chunks = self._source.blob(self._layer, ranges[0][0], ranges[-1][1])
        for number, pieces in enumerate(split(chunks, ranges, range(len(ranges)))):
            span, body = self._index.span(number), b"".join(pieces)
            actual = hashlib.sha256(body)
            if actual.digest() != span.digest:
                what = f"layer {self._layer.digest.short}, span {number}"
                raise IntegrityError(what, expected=span.digest.hex(), actual=actual.hexdigest())
            if span.parts:
                for _ in decode_span(span, (body,)):
                    pass
            if span.checkpoint:
                checkpoint = Checkpoint(span.checkpoint.bits, sparse_window(span, body))
                checkpoints.append((number, checkpoint))
                span = span._replace(checkpoint=checkpoint)
            yield span, body

    def _shared(
        self,
        lean: bool,
        windows: Windows | None,
        copy: tuple[ExternalBlob, list[Span]] | None,
        files: list[Made],
    ) -> Descriptor:
        """Return the index in the form in which it travels."""
        path = self._stem.with_suffix(".lean" if lean else ".full")
        write_shared(self._index, path, lean=lean, windows=windows, copy=copy)
        made = _packed(
            path, path.with_suffix(f"{path.suffix}.zst"), LEAN if lean else FULL, self._annotations
        )
        files.append(made)
        return made.descriptor

    def _digests(self, spans: Sequence[Span], files: list[Made]) -> None:
        """Write the digests of the spans' flat bytes, unless the index has them itself."""
        if spans and not any(span.parts for span in spans):
            body = flat_digests(((span.flat_start, span.flat_end) for span in spans), self._flat)
            path = self._stem.with_suffix(".digests")
            path.write_bytes(body)
            files.append(Made(Descriptor(DIGESTS, Digest.of(body), len(body), self._annotations), path))

    def _is_coarse(self) -> bool:
        """Return whether a file in the middle of the layer costs far more than itself."""
        spans = self._index.spans()
        return any(
            span.codec in FRAMED.values() and span.flat_end - span.flat_start > _COARSE for span in spans
        )

    def _copy(self, files: list[Made]) -> tuple[ExternalBlob, list[Span]]:
        """Return a copy of the layer in small zstd frames."""
        path = self._stem.with_suffix(".copy")
        flat_size = self._index.summary.flat_size
        with path.open("wb") as file:
            spans, digest, size = seekable(self._flat(0, flat_size), file)
        files.append(Made(Descriptor(COPY, digest, size, self._annotations), path))
        return ExternalBlob(str(digest), size), spans

    def _ztoc(self, spans: list[Span], files: list[Made]) -> tuple[Descriptor | None, str]:
        """Return the layer's zTOC, or why it has none."""
        summary = self._index.summary
        if summary.space != TAR or not spans:
            return None, "" if self._layer.size < SOCI_LEAST else "not cut as a tar stream is"
        try:
            cut = soci_spans(spans, size=self._layer.size, read=self._blob)
            sizes = {"size": self._layer.size, "flat_size": summary.flat_size}
            body = build_ztoc(members(self._flat_read), cut, **sizes, tool="imgfs")
        except Inexpressible as error:
            return None, str(error)
        descriptor = ztoc_descriptor(self._layer, body, span_size=SOCI_SPAN)
        path = self._stem.with_suffix(".ztoc")
        path.write_bytes(body)
        files.append(Made(descriptor, path))
        return descriptor, ""

    def _blob(self, start: int, end: int) -> bytes:
        return b"".join(self._source.blob(self._layer, start, end))

    def _flat(self, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, _COARSE):
            yield self._content.read(at, min(_COARSE, end - at))

    def _flat_read(self, start: int, end: int) -> bytes:
        end = min(end, self._index.summary.flat_size)
        return self._content.read(start, end - start) if start < end else b""


def _packed(path: Path, into: Path, media_type: str, annotations: Mapping[str, str]) -> Made:
    """Return a file as it travels: compressed, and a small index within its descriptor."""
    pack(path, into)
    body = into.read_bytes()
    noted = {**annotations, SIZE_OF: str(path.stat().st_size)}
    data = body if media_type == LEAN and len(body) <= _INLINE else None
    return Made(Descriptor(media_type, Digest.of(body), len(body), noted, data=data), into)


def _profiles(recorded: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Descriptor]]:
    """Yield profiles by name, as they are published; one that is none is left out."""
    for name, found in recorded:
        with suppress(InvalidImage):
            body = published_profile(found)
            yield name, Descriptor(PROFILE, Digest.of(body), len(body), {NAME_OF: name}, data=body)

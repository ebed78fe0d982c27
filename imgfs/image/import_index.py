"""Import of indexes made elsewhere: each kind is converted to the store's own, or refused.

An invalid one raises InvalidImage or IntegrityError: the caller then does without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from imgfs.content.profile import MAX_JSON, origin_of, vouched_profile
from imgfs.errors import InvalidImage, UsageError
from imgfs.layer.artifact import unpack
from imgfs.layer.entry import Entry, Span
from imgfs.layer.flat_digests import SIZE, add_flat_digests
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter, import_index
from imgfs.layer.limits import TOC_LIMIT, ZTOC_LIMIT, largest_unpacked
from imgfs.layer.origin import named_toc, toc_origin
from imgfs.layer.schema import TAR
from imgfs.layer.soci.ztoc import parse_ztoc
from imgfs.layer.toc.detect import find_toc
from imgfs.layer.toc.estargz import EXTERNAL_TAG_SUFFIX, External, external_toc, read_external_toc
from imgfs.layer.toc.toc import Toc
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest, parse_document
from imgfs.oci.published import PublishedLayer, unpacked_size
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.transport.source import Source
from imgfs.tree.import_tree import import_tree
from imgfs.tree.reader import Tree


def import_published_tree(
    descriptor: Descriptor, name: Digest, layers: int, source: Source, store: Store, origin: str
) -> None:
    """Import a published tree, as that of the image `name`, which has so many layers."""
    with store.new_tree(name) as path:
        store.limit.note_written(_fetch(descriptor, source, path, store.limit.admits))
        import_tree(path, origin)
        with Tree(path) as tree:
            if tree.layer_count != layers:
                raise InvalidImage(f"the published tree is of {tree.layer_count} layers, not {layers}")


def import_profiles(
    profiles: Mapping[str, Descriptor], name: Digest, source: Source, store: Store, origin: str
) -> None:
    """Import access profiles of the image `name` from `origin`, but for those that were recorded here."""
    for profile, descriptor in profiles.items():
        known = store.profile(name, profile)
        if (known is None or origin_of(known) not in ("", origin)) and descriptor.size <= MAX_JSON:
            body = b"".join(source.blob(descriptor))
            descriptor.digest.verify(body, "digest of a profile")
            vouched = vouched_profile(body, origin)
            try:
                store.put_profile(name, profile, vouched)
            except UsageError as error:
                raise InvalidImage(str(error), where="profile") from error


def import_published(
    published: PublishedLayer,
    layer: Descriptor,
    diff_id: Digest,
    stored: StoredLayer,
    source: Source,
    origin: str,
    *,
    lean: bool,
) -> None:
    """Import a published index of `layer`; the `lean` one has spans only: enough beside a published tree.

    If there are peers to read from, the digests of flat bytes come with it.
    """
    with stored.new_index() as path:
        stored.note_written(_fetch(published.lean if lean else published.full, source, path, stored.admits))
        import_index(path, origin)
        with LayerIndex(path) as index:
            _check(index, published, layer, diff_id)
            spans = index.span_count()
        if published.digests and source.peers():
            add_flat_digests(path, _fetch_digests(published.digests, source, spans))


def _fetch_digests(descriptor: Descriptor, source: Source, spans: int) -> bytes:
    """Fetch the digests of so many spans' flat bytes, verified."""
    if descriptor.size != SIZE * spans:
        raise InvalidImage(
            f"{descriptor.size} bytes of digests for {spans} spans", where=str(descriptor.digest)
        )
    body = b"".join(source.blob(descriptor))
    descriptor.digest.verify(body, "digest of published digests")
    return body


def import_toc(
    layer: Descriptor, diff_id: Digest, stored: StoredLayer, source: Source, tag: str | None, repository: str
) -> bool:
    """Import the table of contents of a layer of an image in `repository`; False if it has none.

    `tag` is the image's: an external table is found by it.
    """
    reader, named = find_toc(layer), named_toc(layer)
    if reader is None or named is None:
        return False
    body = b""
    try:
        start, end = next(reader)
        while True:
            _check_size(end - start, TOC_LIMIT, "a table of contents")
            body = b"".join(source.blob(layer, start, end))
            start, end = reader.send(body)
    except StopIteration as stop:
        found: Toc | External = stop.value
    toc = _external(layer, found, source, tag) if isinstance(found, External) else found
    name = "zstd:chunked" if layer.media_type.endswith("zstd") else "estargz"
    parts = (toc.entries, toc.spans, toc.flat_size)
    origin = toc_origin(named, repository)
    _write(stored, layer, diff_id, parts, format_name=name, space=_space(toc), origin=origin)
    return True


def import_ztoc(
    ztoc: Descriptor, layer: Descriptor, diff_id: Digest, stored: StoredLayer, source: Source, origin: str
) -> None:
    """Import a SOCI zTOC."""
    _check_size(ztoc.size, ZTOC_LIMIT, "a zTOC")
    body = b"".join(source.blob(ztoc))
    ztoc.digest.verify(body, "digest of a zTOC")
    found = parse_ztoc(body, size=layer.size)
    parts = (found.entries, found.spans, found.flat_size)
    _write(stored, layer, diff_id, parts, format_name=found.format, origin=origin)


def _external(layer: Descriptor, external: External, source: Source, tag: str | None) -> Toc:
    """Fetch a layer's table from the image that holds the external tables of all layers."""
    if tag is None:
        raise InvalidImage(
            "its table of contents is in another image, whose tag follows from the image's own"
        )
    named = source.tagged(f"{tag}{EXTERNAL_TAG_SUFFIX}")
    tables = parse_document(source.document(named), named.media_type)
    table = external_toc(tables, layer) if isinstance(tables, Manifest) else None
    if table is None:
        raise InvalidImage(f"its table of contents is not in the image tagged {tag}{EXTERNAL_TAG_SUFFIX}")
    _check_size(table.size, TOC_LIMIT, "a table of contents")
    return read_external_toc(b"".join(source.blob(table)), layer, external)


def _check_size(size: int, limit: int, what: str) -> None:
    """Raise InvalidImage, before it is fetched, for a document that would take too much memory."""
    if size > limit:
        raise InvalidImage(f"{what} of {size} bytes is more than {limit}")


def _space(toc: Toc) -> str:
    """Return a name for the flat space of a TOC: its payloads end to end, in the order of its spans."""
    bounds = repr([span[1:5] for span in toc.spans]).encode()
    return f"toc:{hashlib.sha256(bounds).hexdigest()}"


def _write(
    stored: StoredLayer,
    layer: Descriptor,
    diff_id: Digest,
    parts: tuple[Iterable[Entry], Iterable[Span], int],
    *,
    format_name: str,
    origin: str,
    space: str = TAR,
) -> None:
    """Write what was parsed as the layer's index."""
    entries, spans, flat_size = parts
    with stored.new_index() as path:
        index = IndexWriter(path)
        try:
            for entry in entries:
                index.add_entry(entry)
            index.add_spans(spans)
            index.finish(
                digest=str(layer.digest),
                diff_id=str(diff_id),
                format=format_name,
                size=layer.size,
                flat_size=flat_size,
                space=space,
                origin=origin,
            )
        finally:
            index.close()


def _fetch(descriptor: Descriptor, source: Source, path: Path, admits: Callable[[int], bool]) -> int:
    """Fetch a published file, verified, and unpack it to `path`; return its size, which `admits` accepts."""
    size = unpacked_size(descriptor, largest_unpacked(descriptor.size))
    if not admits(size):
        raise InvalidImage(f"{size} bytes are too much for the store's limit", where=str(descriptor.digest))
    hasher = descriptor.digest.hasher()

    def hashed() -> Iterator[bytes]:
        for chunk in source.blob(descriptor):
            hasher.update(chunk)
            yield chunk

    unpack(hashed(), path, size)
    descriptor.digest.check(hasher, "digest of a published index")
    return size


def _check(index: LayerIndex, published: PublishedLayer, layer: Descriptor, diff_id: Digest) -> None:
    """Raise InvalidImage if an index is not the layer's, or its spans overlap or exceed the blob."""
    summary = index.summary
    if (summary.digest, summary.size, summary.diff_id) != (str(layer.digest), layer.size, str(diff_id)):
        raise InvalidImage("the published index is another layer's")
    others = ((index.blob, published.copy), (index.windows, published.windows))
    for named, published_blob in others:
        if named and (
            published_blob is None
            or (named.digest, named.size) != (str(published_blob.digest), published_blob.size)
        ):
            raise InvalidImage("the published index needs a blob that was not published with it")
    if not _fit_together(index, index.blob.size if index.blob else layer.size):
        raise InvalidImage("the published index has spans that do not fit together")


def _fit_together(index: LayerIndex, size: int) -> bool:
    """Return True if the spans ascend within the flat layer and within a blob of `size` bytes."""
    flat_at = 0
    try:
        for flat_start, flat_end, start, end in index.bounds():
            if not (flat_at <= flat_start < flat_end and 0 <= start < end <= size):
                return False
            flat_at = flat_end
    except TypeError:  # SQLite columns hold values of any type
        return False
    return flat_at <= index.summary.flat_size

"""A check of an image against its digests: documents fetched anew, layers streamed and kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from imgfs.errors import IntegrityError, InvalidImage, NotFound
from imgfs.image.indexing import PrepareReporter
from imgfs.image.prepare import SCANNERS
from imgfs.image.resolve import Resolved, naming, refuse_others
from imgfs.layer.entry import Entry, Span
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import ImageConfig, Index, Manifest, check_layers, parse_config, parse_document
from imgfs.oci.select import select_manifest
from imgfs.parallel import ThreadPool
from imgfs.transport.source import Source


class LayerCheck(NamedTuple):
    """What came of a layer: its size unpacked, its entries; or an `error`, and of which kind.

    `kind` is "digest", "diff_id" or "length" of what does not match, "format" of what is no layer, "missing".
    """

    number: int
    layer: Descriptor
    diff_id: Digest
    flat_size: int = 0
    entries: int = 0
    kind: str = ""
    error: str = ""


def fetch_documents(
    reference: str, source: Source, wanted: Platform, named: Descriptor | None = None
) -> Resolved:
    """Fetch index, manifest and config from their source, not from the store; `named` is what was resolved.

    Raises ImgfsError: IntegrityError if one does not have its digest.
    """

    def read(descriptor: Descriptor) -> Manifest | Index:
        body = source.document(descriptor)
        descriptor.digest.verify(body, f"digest of {descriptor.media_type or 'a manifest'}")
        return parse_document(body, descriptor.media_type)

    named = named or source.resolve(whole=True)
    with naming(reference):
        descriptor, manifest, _ = select_manifest(named, wanted, read, source.document)
        refuse_others(manifest)
        config = _config(source, manifest)
        check_layers(manifest, config)
    return Resolved(reference, named.digest, descriptor.digest, manifest.media_type, manifest, config)


def _config(source: Source, manifest: Manifest) -> ImageConfig:
    body = source.document(manifest.config)
    manifest.config.digest.verify(body, "digest of the config")
    return parse_config(body, manifest.config.media_type)


def check_layers_of(resolved: Resolved, source: Source, reporter: PrepareReporter) -> Iterator[LayerCheck]:
    """Stream every layer, several at once, and yield what came of each, the lowest first.

    Raises RegistryError if the registry cannot be asked, but for a layer that it does not have.
    """
    pairs = zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True)
    works = [LayerCheck(number, *pair) for number, pair in enumerate(pairs, 1)]
    reporter.expects(resolved.manifest.layers)
    distinct = {(check.layer.digest, check.diff_id): check for check in works}
    pool = ThreadPool(SCANNERS, thread_name_prefix="imgfs-check")
    try:
        futures = {pair: pool.submit(_check, check, source, reporter) for pair, check in distinct.items()}
        for check in works:
            yield futures[check.layer.digest, check.diff_id].result()._replace(number=check.number)
    finally:  # streams under way end when their source is closed
        pool.shutdown(wait=False, cancel_futures=True)


def _check(check: LayerCheck, source: Source, reporter: PrepareReporter) -> LayerCheck:
    counter = _Counter()
    reporter.layer_begins(check.layer)
    try:
        size = scan(_arriving(check.layer, source, reporter), check.layer, check.diff_id, _Nowhere(), counter)
    except IntegrityError as error:
        return check._replace(kind=_kind_of(error), error=str(error))
    except InvalidImage as error:
        return check._replace(kind="format", error=str(error))
    except NotFound as error:
        return check._replace(kind="missing", error=str(error))
    finally:
        reporter.layer_ends(check.layer)
    return check._replace(flat_size=size, entries=counter.entries)


def _arriving(layer: Descriptor, source: Source, reporter: PrepareReporter) -> Iterator[bytes]:
    for chunk in source.blob(layer):
        reporter.layer_advances(layer, len(chunk))
        yield chunk


def _kind_of(error: IntegrityError) -> str:
    if isinstance(error.expected, int):
        return "length"
    return "diff_id" if "DiffID" in error.what else "digest"


class _Nowhere:
    """A flat layer that is not kept."""

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        """Let the bytes go."""


class _Counter:
    """An index that is not kept: counts the entries."""

    def __init__(self) -> None:
        self.entries = 0

    def add_entry(self, _entry: Entry) -> None:
        """Count an entry."""
        self.entries += 1

    def add_span(self, span: Span) -> None:
        """Let a span go."""

    def finish(self, **summary: object) -> None:
        """Let the summary go."""

"""Where images come from: a registry or an OCI layout directory, behind one small protocol.

A source serves one reference. It resolves it, hands out documents that match their digest, and streams pieces
of blobs that match in length; whoever reads a piece knows its digest and checks it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from imgfs.errors import IntegrityError, InvalidImage, NotFound, Unavailable, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import INDEX_TYPES, MANIFEST_TYPES, OCI_INDEX, Index, parse_document
from imgfs.oci.reference import DEFAULT_TAG, LayoutReference, Reference, RegistryReference
from imgfs.registry.client import MAX_DOCUMENT, MAX_MANIFEST, Client, describe_tags
from imgfs.registry.credentials import find_credentials
from imgfs.registry.retry import Timeouts
from imgfs.registry.transport import Traffic

__all__ = ["UNKNOWN_SIZE", "LayoutSource", "RegistrySource", "Source", "Timeouts", "Traffic", "open_source"]

UNKNOWN_SIZE = -1  # of a manifest known by its digest only
_CHUNK = 1 << 20  # bytes read of a file at once
_REF_NAME = "org.opencontainers.image.ref.name"  # annotations.md: a tag, in an image layout
_IMAGE_NAME = "io.containerd.image.name"  # containerd's and BuildKit's: the full name
_MAX_NESTING = 4  # indexes within indexes


class Source(Protocol):
    """One image, wherever it is. Safe in threads."""

    def resolve(self) -> Descriptor:
        """What the reference names now. A digest needs no asking: media type "" and UNKNOWN_SIZE then."""

    def document(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest, index or config, at most 8 MiB; size and digest are checked."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)` of a blob, in chunks of 256 KiB to 1 MiB; resumed if cut.

        Raises NotFound, Unauthorized, Unavailable; IntegrityError if the blob has another length.
        """

    def traffic(self) -> Traffic:
        """Requests sent and bytes received so far."""

    def close(self) -> None:
        """Let go of connections and files."""


def open_source(
    reference: Reference,
    *,
    plain_http: bool | None = None,
    auth_files: Sequence[Path] = (),
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> Source:
    """The source of `reference`; asks for nothing yet.

    `plain_http=None` does without TLS on this machine only. `auth_files` are looked through in order whenever
    a registry wants credentials. `ca_bundle` is a PEM file to trust instead of the usual certificates.
    """
    if isinstance(reference, LayoutReference):
        return LayoutSource(reference)
    client = Client(
        reference.registry,
        reference.repository,
        plain_http=plain_http,
        credentials=partial(find_credentials, auth_files, reference.registry, reference.repository),
        timeouts=timeouts,
        ca_bundle=ca_bundle,
    )
    return RegistrySource(reference, client)


class RegistrySource:
    """An image in a registry."""

    def __init__(self, reference: RegistryReference, client: Client) -> None:
        self._reference = reference
        self._client = client

    def resolve(self) -> Descriptor:
        """Ask by HEAD what the tag names now; a digest is not asked about."""
        digest = self._reference.digest
        if digest:
            return Descriptor("", digest, UNKNOWN_SIZE)
        return self._client.head_manifest(self._reference.tag or DEFAULT_TAG)

    def document(self, descriptor: Descriptor) -> bytes:
        """Fetch a document: a manifest or index by its media type, anything else as a blob."""
        body = _inline(descriptor)
        if body is None:
            _check_document_size(descriptor)
            body = self._fetch_document(descriptor)
            _check_size(descriptor, len(body))
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Fetch a piece of a blob; of a foreign layer from its `urls` if the registry does not have it."""
        end = descriptor.size if end is None else end
        body = _inline(descriptor)
        if body is not None:
            yield body[start:end]
            return
        for url in (None, *descriptor.urls):
            try:
                for chunk in self._client.blob(descriptor, start, end, url=url):
                    start += len(chunk)
                    yield chunk
            except NotFound as error:
                missing = error
            else:
                return
        raise missing

    def traffic(self) -> Traffic:
        """Requests sent and bytes received so far."""
        return self._client.traffic

    def close(self) -> None:
        """Close the connections; what is being read fails with Unavailable."""
        self._client.close()

    def _fetch_document(self, descriptor: Descriptor) -> bytes:
        if descriptor.media_type in ("", *MANIFEST_TYPES, *INDEX_TYPES):
            return self._client.manifest(descriptor.digest)[1]
        try:
            return self._client.blob_document(descriptor.digest)
        except NotFound:  # an index may call its manifests what it likes
            return self._client.manifest(descriptor.digest)[1]


class LayoutSource:
    """An image in an OCI image layout directory (image-layout.md)."""

    def __init__(self, reference: LayoutReference) -> None:
        self._reference = reference
        self._path = reference.path
        self._bytes = 0

    def resolve(self) -> Descriptor:
        """Look the reference up in `index.json`; raises NotFound naming the tags there are.

        Without a tag: the only image, else `latest`, else, if its entries are one image's platforms, the
        index as a whole.
        """
        if self._reference.digest:
            return Descriptor("", self._reference.digest, UNKNOWN_SIZE)
        body, index = self._read_index()
        wanted = self._reference.tag
        if wanted is None and len(index.manifests) == 1:
            return index.manifests[0]
        named = list(self._entries(index))
        found = {entry.digest: entry for entry in named if (wanted or DEFAULT_TAG) in _names(entry)}
        if len(found) == 1:
            return found.popitem()[1]
        if found:
            raise InvalidImage(
                f"{len(found)} images are called {wanted or DEFAULT_TAG!r}", where=str(self._path)
            )
        if wanted is None and _is_one_image(index):
            return Descriptor(OCI_INDEX, Digest.of(body), len(body), data=body)
        tags = sorted({name for entry in named for name in _names(entry)})
        raise NotFound(f"oci:{self._path} has no tag {wanted or DEFAULT_TAG!r}; {describe_tags(tags)}")

    def document(self, descriptor: Descriptor) -> bytes:
        """Read a document out of `blobs/`."""
        body = _inline(descriptor)
        if body is None:
            _check_document_size(descriptor)
            body = self._read(self._blob_path(descriptor.digest), MAX_DOCUMENT)
            _check_size(descriptor, len(body))
            descriptor.digest.verify(body, f"digest of a document in {self._path}")
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Read a piece of a blob out of `blobs/`."""
        end = descriptor.size if end is None else end
        if not 0 <= start <= end <= descriptor.size:
            raise InvalidImage(f"bytes {start}-{end} of {descriptor.size}", where=str(descriptor.digest))
        body = _inline(descriptor)
        if body is not None:
            yield body[start:end]
            return
        path = self._blob_path(descriptor.digest)
        with _open_regular(path) as file:
            _check_size(descriptor, os.fstat(file.fileno()).st_size)
            file.seek(start)
            while start < end:
                chunk = _read_some(file, min(_CHUNK, end - start), path)
                start += len(chunk)
                self._bytes += len(chunk)
                yield chunk

    def traffic(self) -> Traffic:
        """Bytes read from the directory; there are no requests."""
        return Traffic(0, self._bytes)

    def close(self) -> None:
        """Nothing is kept open."""

    def _read_index(self) -> tuple[bytes, Index]:
        path = self._path / "index.json"
        try:
            body = self._read(path, MAX_MANIFEST)
        except NotFound as error:
            raise UsageError(f"{self._path}: not an OCI image layout: it has no index.json") from error
        index = parse_document(body, OCI_INDEX)
        if not isinstance(index, Index):
            raise InvalidImage("not an index", where=str(path))
        return body, index

    def _entries(self, index: Index, depth: int = 0) -> Iterator[Descriptor]:
        """The entries of an index and of those within it."""
        for entry in index.manifests:
            yield entry
            if entry.media_type in INDEX_TYPES and depth < _MAX_NESTING:
                inner = parse_document(self.document(entry), entry.media_type)
                if isinstance(inner, Index):
                    yield from self._entries(inner, depth + 1)

    def _blob_path(self, digest: Digest) -> Path:
        return self._path / "blobs" / digest.algorithm / digest.hex

    def _read(self, path: Path, limit: int) -> bytes:
        with _open_regular(path) as file:
            body = _read_some(file, limit + 1, path, may_be_empty=True)
        if len(body) > limit:
            raise InvalidImage(f"more than {limit} bytes long", where=str(path))
        self._bytes += len(body)
        return body


def _open_regular(path: Path) -> BinaryIO:
    """Open a file that is one: a FIFO would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidImage("not a regular file", where=str(path))
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: no such file") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _read_some(file: BinaryIO, length: int, path: Path, *, may_be_empty: bool = False) -> bytes:
    try:
        chunk = file.read(length)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if not chunk and not may_be_empty:
        raise Unavailable(f"{path}: became shorter while it was read")
    return chunk


def _inline(descriptor: Descriptor) -> bytes | None:
    """What the descriptor itself carries (descriptor.md, `data`), checked."""
    if descriptor.data is not None:
        _check_size(descriptor, len(descriptor.data))
        descriptor.digest.verify(descriptor.data, "digest of a descriptor's own data")
    return descriptor.data


def _check_document_size(descriptor: Descriptor) -> None:
    if descriptor.size > MAX_DOCUMENT:
        raise InvalidImage(
            f"a {descriptor.media_type} of {descriptor.size} bytes; at most {MAX_DOCUMENT} are allowed",
            where=str(descriptor.digest),
        )


def _check_size(descriptor: Descriptor, actual: int) -> None:
    if descriptor.size not in (actual, UNKNOWN_SIZE):
        raise IntegrityError(f"size of {descriptor.digest}", expected=descriptor.size, actual=actual)


def _names(entry: Descriptor) -> set[str]:
    return {entry.annotations[key] for key in (_REF_NAME, _IMAGE_NAME) if key in entry.annotations}


def _is_one_image(index: Index) -> bool:
    """Whether the entries are nameless manifests for different platforms."""
    entries = index.manifests
    return bool(entries) and all(entry.platform and not _names(entry) for entry in entries)

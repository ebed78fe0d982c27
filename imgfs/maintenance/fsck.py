"""Check of the store against damage of the disk.

Documents are verified by their digests, indexes and trees by their checksums (`store.checksum`), spans by the
digests in their index. Most of those are of compressed bytes, which are not kept: then the layer's DiffID
decides, if all of it is present. Spans that nothing in the store can verify are reported as doubtful.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.content.profile import AccessProfile
from imgfs.errors import ImgfsError, StoreError, describe
from imgfs.layer.entry import Codec, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.schema import RULES, SCHEMA, SHORTCUTS, TAR
from imgfs.layer.sqlite import first_invalid_table, has_schema
from imgfs.oci.descriptor import Digest
from imgfs.store.checksum import matches_checksum
from imgfs.store.flat import FlatLayer
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.database import MILESTONES
from imgfs.tree.database import RULES as TREE_RULES
from imgfs.tree.database import SCHEMA as TREE_SCHEMA
from imgfs.tree.reader import Tree

_READ_SIZE = 1 << 20  # bytes read at once


class Verdict(NamedTuple):
    """The spans of a flat layer, by number: those that are wrong, and those that cannot be verified."""

    wrong: tuple[int, ...]
    unknown: tuple[int, ...]


class _Gone(Exception):
    """A span was evicted while it was verified."""


def verify_spans(index: LayerIndex, flat: FlatLayer) -> Verdict:
    """Verify all present spans of a flat layer. Raises StoreError."""
    verification = _SpanVerification(index, flat)
    for span in index.spans():
        verification.verify(span)
    return verification.verdict()


class _SpanVerification:
    """One pass over a flat layer, for the digests of spans and, if it is complete, the layer's."""

    def __init__(self, index: LayerIndex, flat: FlatLayer) -> None:
        self._flat = flat
        self._diff_id = Digest.parse(index.summary.diff_id)
        self._hasher = self._diff_id.hasher()
        self._is_complete = index.summary.space == TAR
        self._at = 0
        self._wrong: list[int] = []
        self._unknown: list[int] = []

    def verify(self, span: Span) -> None:
        """Verify the next span."""
        self._is_complete &= span.flat_start == self._at
        self._at = span.flat_end
        marks = self._flat.marks(span.number, span.number)
        try:
            is_right = self._is_right(span, marks)
        except _Gone:
            self._is_complete = False
            return
        if is_right is None:
            self._unknown.append(span.number)
        elif not is_right:
            self._wrong.append(span.number)

    def _is_right(self, span: Span, marks: bytes) -> bool | None:
        if span.parts:
            self._is_complete = False  # the bytes between the parts are not verified
            return all(
                _sha256(self._pieces(span, marks, part.skip, part.length)) == part.digest
                for part in span.parts
            )
        own = hashlib.sha256()
        for piece in self._pieces(span, marks, 0, span.flat_end - span.flat_start):
            own.update(piece)
            if self._is_complete:
                self._hasher.update(piece)
        return own.digest() == span.digest if span.codec == Codec.IDENTITY else None

    def _pieces(self, span: Span, marks: bytes, skip: int, length: int) -> Iterator[bytes]:
        """Yield a range of a span's bytes. Raises _Gone if they are not present any more."""
        start = span.flat_start + skip
        for offset in range(start, start + length, _READ_SIZE):
            piece = self._flat.read(offset, min(_READ_SIZE, start + length - offset), marks, span.number)
            if piece is None:
                raise _Gone
            yield piece

    def verdict(self) -> Verdict:
        """Return the result of all spans so far."""
        if self._is_complete and self._at == self._flat.size:
            if self._hasher.hexdigest() == self._diff_id.hex:
                return Verdict((), ())
            if not self._wrong:
                return Verdict(tuple(self._unknown), ())
        return Verdict(tuple(self._wrong), tuple(self._unknown))


def _sha256(pieces: Iterator[bytes]) -> bytes:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()


class Fault(NamedTuple):
    """A damaged file of the store; `mend` removes the damage, so that it is fetched or made anew.

    `is_doubt` if it can be proved neither wrong nor right.
    """

    where: Path
    what: str
    mend: Callable[[], object]
    is_doubt: bool = False


def check(store: Store) -> Iterator[Fault]:
    """Check the whole store; yield faults as they are found. Raises StoreError."""
    yield from _documents(store)
    yield from _references(store)
    yield from _profiles(store)
    for layer in store.layers():
        yield from _layer(layer)
    for manifest in store.trees():
        path = store.tree_file(manifest)
        if why := _fault_in(path, f"{TREE_SCHEMA}{MILESTONES};", TREE_RULES, _open_tree):
            yield Fault(path, f"tree: {why}", partial(store.remove_tree, manifest))


def _documents(store: Store) -> Iterator[Fault]:
    for digest in store.documents():
        if store.document(digest) is None:
            path = store.document_file(digest)
            yield Fault(path, "document: not what its digest says", partial(store.remove_document, digest))


def _references(store: Store) -> Iterator[Fault]:
    for path in store.broken_resolutions():
        yield Fault(path, "reference: no record of one", path.unlink)


def _profiles(store: Store) -> Iterator[Fault]:
    for manifest in store.profiled():
        for path in store.profile_files(manifest):
            try:
                AccessProfile.from_json(path.read_bytes())
            except (ImgfsError, OSError) as error:
                yield Fault(path, f"profile: {describe(error)}", path.unlink)


def _layer(layer: StoredLayer) -> Iterator[Fault]:
    path = layer.index_file
    if not path.exists():
        return
    if why := _fault_in(path, SCHEMA + SHORTCUTS, RULES, partial(_open_index, digest=layer.digest)):
        yield Fault(path, f"index: {why}", layer.remove)
    elif layer.has_flat() and not layer.is_locked():
        with LayerIndex(path) as index:
            size, spans = index.summary.flat_size, index.span_count()
            with closing(layer.flat(size=size, spans=spans)) as flat:
                if flat.is_bound_to(index.binding()):  # else its marks do not count
                    yield from _flat(layer, verify_spans(index, flat), spans)


def _flat(layer: StoredLayer, verdict: Verdict, count: int) -> Iterator[Fault]:
    kinds = (
        (verdict.wrong, "not what their digests say"),
        (verdict.unknown, "of which nothing here can tell"),
    )
    for numbers, what in kinds:
        if numbers:
            text = f"cached bytes: {len(numbers)} of {count} spans {what}"
            yield Fault(layer.flat_file, text, partial(layer.forget, numbers), numbers is verdict.unknown)


def _fault_in(
    path: Path, schema: str, rules: Mapping[str, str], look: Callable[[Path], str | None]
) -> str | None:
    """Return what is wrong with a SQLite file; one without a checksum is checked row by row."""
    try:
        sealed = matches_checksum(path)
        if sealed is False:
            return "its checksum is another"
        if sealed is None and (wrong := _misfit(path, schema, rules)):
            return wrong
        return look(path)
    except StoreError as error:
        return str(error)


def _misfit(path: Path, schema: str, rules: Mapping[str, str]) -> str | None:
    if not has_schema(path, schema):
        return "not of this format"
    table = first_invalid_table(path, rules)
    return f"rows that make no sense: {table}" if table else None


def _open_index(path: Path, digest: Digest) -> str | None:
    with LayerIndex(path) as index:
        found = index.summary.digest
    return None if found == str(digest) else f"of another layer, {found}"


def _open_tree(path: Path) -> str | None:
    Tree(path).close()
    return None

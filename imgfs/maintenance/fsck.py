"""Whether what is in the store is what it was, for whoever does not trust the disk any more.

Documents have their digests, indexes and trees a checksum (`store.checksum`), spans the digests that their
index has of them. Most of those are of compressed bytes, which are not kept: then the layer's DiffID decides,
if all of it is present. What nothing in the store vouches for is in doubt.

Whether the bytes of a flat layer are right, by what its index knows of them.
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
from imgfs.layer.rows import first_invalid_table, has_schema
from imgfs.layer.schema import RULES, SCHEMA, SHORTCUTS, TAR
from imgfs.oci.descriptor import Digest
from imgfs.store.checksum import matches_checksum
from imgfs.store.flat import FlatLayer
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree
from imgfs.tree.schema import MILESTONES
from imgfs.tree.schema import RULES as TREE_RULES
from imgfs.tree.schema import SCHEMA as TREE_SCHEMA

_PIECE = 1 << 20  # bytes that are read at once


class Verdict(NamedTuple):
    """The spans of a flat layer, by number: which are wrong, and of which nothing here can tell."""

    wrong: tuple[int, ...]
    unknown: tuple[int, ...]


class _Gone(Exception):
    """A span has been evicted while it was looked at."""


def verify_spans(index: LayerIndex, flat: FlatLayer) -> Verdict:
    """Look at all that is here of a flat layer. Raises StoreError."""
    judging = _SpanVerification(index, flat)
    for span in index.spans():
        judging.look_at(span)
    return judging.verdict()


class _SpanVerification:
    """One pass over a flat layer, for the digests of spans and, if it is all here, the layer's."""

    def __init__(self, index: LayerIndex, flat: FlatLayer) -> None:
        self._flat = flat
        self._diff_id = Digest.parse(index.summary.diff_id)
        self._hasher = self._diff_id.hasher()
        self._is_whole = index.summary.space == TAR
        self._at = 0
        self._wrong: list[int] = []
        self._unknown: list[int] = []

    def look_at(self, span: Span) -> None:
        """Take the next span."""
        self._is_whole &= span.flat_start == self._at
        self._at = span.flat_end
        marks = self._flat.marks(span.number, span.number)
        try:
            is_right = self._is_right(span, marks)
        except _Gone:
            self._is_whole = False
            return
        if is_right is None:
            self._unknown.append(span.number)
        elif not is_right:
            self._wrong.append(span.number)

    def _is_right(self, span: Span, marks: bytes) -> bool | None:
        if span.parts:
            self._is_whole = False  # between the parts may be anything
            return all(
                _sha256(self._pieces(span, marks, part.skip, part.length)) == part.digest
                for part in span.parts
            )
        own = hashlib.sha256()
        for piece in self._pieces(span, marks, 0, span.flat_end - span.flat_start):
            own.update(piece)
            if self._is_whole:
                self._hasher.update(piece)
        return own.digest() == span.digest if span.codec == Codec.IDENTITY else None

    def _pieces(self, span: Span, marks: bytes, skip: int, length: int) -> Iterator[bytes]:
        """A run of a span's bytes; raises _Gone if they are not here any more."""
        start = span.flat_start + skip
        for offset in range(start, start + length, _PIECE):
            piece = self._flat.read(offset, min(_PIECE, start + length - offset), marks, span.number)
            if piece is None:
                raise _Gone
            yield piece

    def verdict(self) -> Verdict:
        """What has come of it."""
        if self._is_whole and self._at == self._flat.size:
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
    """Something in the store that is not what it was; `mend` removes it, so that it is fetched or made anew.

    Where nothing says that it is wrong, and nothing that it is right, `is_doubt`.
    """

    where: Path
    what: str
    mend: Callable[[], object]
    is_doubt: bool = False


def check(store: Store) -> Iterator[Fault]:
    """Look through all of the store, and say what is wrong as it is found. Raises StoreError."""
    yield from _documents(store)
    yield from _references(store)
    yield from _profiles(store)
    for layer in store.layers():
        yield from _layer(layer)
    for manifest in store.trees():
        path = store.tree_file(manifest)
        if why := _wrong_with(path, f"{TREE_SCHEMA}{MILESTONES};", TREE_RULES, _open_tree):
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
    if why := _wrong_with(path, SCHEMA + SHORTCUTS, RULES, partial(_open_index, digest=layer.digest)):
        yield Fault(path, f"index: {why}", layer.remove)
    elif layer.has_flat() and not layer.is_locked():
        with LayerIndex(path) as index:
            size, spans = index.summary.flat_size, index.span_count()
            with closing(layer.flat(size=size, spans=spans)) as flat:
                if flat.is_bound_to(index.binding()):  # else nothing of it counts
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


def _wrong_with(
    path: Path, schema: str, rules: Mapping[str, str], look: Callable[[Path], str | None]
) -> str | None:
    """What is wrong with a SQLite file; one without a checksum is looked through, row by row."""
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

"""Whether what is in the store is what it was, for whoever does not trust the disk any more.

Documents have their digests, indexes and trees a checksum (`store.checksum`), spans the digests that their index
has of them. Most of those are of compressed bytes, which are not kept: then the layer's DiffID decides, if
all of it is here. What nothing in the store vouches for is in doubt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.content.profile import Profile
from imgfs.errors import ImgfsError, StoreError
from imgfs.inventory.flatcheck import Verdict, judge
from imgfs.layer.index import RULES, SCHEMA, SHORTCUTS, LayerIndex
from imgfs.layer.rows import has_schema, misfit
from imgfs.oci.descriptor import Digest
from imgfs.store.checksum import is_whole
from imgfs.store.layer import Layer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree
from imgfs.tree.schema import MILESTONES
from imgfs.tree.schema import RULES as TREE_RULES
from imgfs.tree.schema import SCHEMA as TREE_SCHEMA


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
                Profile.from_json(path.read_bytes())
            except (ImgfsError, OSError) as error:
                yield Fault(path, f"profile: {error}", path.unlink)


def _layer(layer: Layer) -> Iterator[Fault]:
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
                    yield from _flat(layer, judge(index, flat), spans)


def _flat(layer: Layer, verdict: Verdict, count: int) -> Iterator[Fault]:
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
        sealed = is_whole(path)
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
    table = misfit(path, rules)
    return f"rows that make no sense: {table}" if table else None


def _open_index(path: Path, digest: Digest) -> str | None:
    with LayerIndex(path) as index:
        found = index.summary.digest
    return None if found == str(digest) else f"of another layer, {found}"


def _open_tree(path: Path) -> str | None:
    Tree(path).close()
    return None

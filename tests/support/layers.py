"""Layer indexes and trees out of tar bytes, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imgfs.layer.entry import Entry
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.tar.reader import tar_entries
from imgfs.oci.descriptor import Digest
from imgfs.tree.merge import merge
from imgfs.tree.reader import Tree
from imgfs.tree.versions import VersionsTree, merge_versions

_numbers = itertools.count()


def write_index(path: Path, entries: Iterable[Entry], *, flat: bytes = b"") -> None:
    """Write a layer index of `entries`; digest and diff_id are those of `flat`."""
    writer = IndexWriter(path)
    for entry in entries:
        writer.add_entry(entry)
    digest = str(Digest.of(flat))
    writer.finish(digest=digest, diff_id=digest, format="tar", size=len(flat), flat_size=len(flat))


def write_tree(path: Path, layers: Iterable[bytes | list[Entry]], scratch: Path) -> None:
    """Merge layers, tar streams or entries, the lowest first; their indexes are written to `scratch`."""
    with _indexes(layers, scratch) as indexes:
        merge(indexes, path)


@contextmanager
def _indexes(layers: Iterable[bytes | list[Entry]], scratch: Path) -> Iterator[list[LayerIndex]]:
    with ExitStack() as stack:
        indexes = []
        for layer in layers:
            flat = layer if isinstance(layer, bytes) else b""
            index = scratch / f"{next(_numbers)}.index"
            write_index(index, tar_entries(layer) if isinstance(layer, bytes) else layer, flat=flat)
            indexes.append(stack.enter_context(LayerIndex(index)))
        yield indexes


@contextmanager
def all_versions(
    scratch: Path, *layers: bytes | list[Entry]
) -> Iterator[tuple[VersionsTree, list[LayerIndex]]]:
    """The tree of all versions of some layers, and their indexes."""
    path = scratch / f"{next(_numbers)}.versions"
    with _indexes(layers, scratch) as indexes:
        merge_versions(indexes, path)
        with VersionsTree(path) as tree:
            yield tree, indexes


@contextmanager
def merged(scratch: Path, *layers: bytes | list[Entry]) -> Iterator[Tree]:
    """The tree of some layers, tar streams or entries, the lowest first."""
    path = scratch / f"{next(_numbers)}.tree"
    write_tree(path, layers, scratch)
    with Tree(path) as tree:
        yield tree

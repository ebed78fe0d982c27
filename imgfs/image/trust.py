"""Which indexes and trees of others count, and for which images; what of an image the store holds of such.

1. What was made here, out of bytes that have the DiffID, counts for every image whose config has it, too.
2. What the image's own manifest names by a digest (a table of contents, a SOCI index of version 2) counts for
   images whose manifests name the same; to every other image it is nothing.
3. What merely refers to an image (SOCI version 1, what imgfs publishes) is the word of the repository it was
   found in, good for references that name that repository, by a tag: as good as that, less than a digest.
4. Another repository of the same registry is another voucher: others may push there. So is a mirror, which
   speaks for its registry only as far as digests prove what it says.
5. Bytes in the store are bound to what verified them (`layer.index.LayerIndex.binding`): another index finds
   them only if it would make the same ones.
6. A wrong index harms no other image: an index that does not count is made anew, and is no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from imgfs.errors import IntegrityError, InvalidImage, StoreError
from imgfs.image.resolve import Resolved
from imgfs.layer.index import LayerIndex
from imgfs.layer.origin import named_toc, origins_in, soci_origin, toc_origin
from imgfs.layer.schema import Summary
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Manifest
from imgfs.oci.policy import Policy
from imgfs.oci.published import soci_v2_digest
from imgfs.oci.reference import Reference, RegistryReference
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.reader import Tree


@dataclass(frozen=True, slots=True)
class Trust:
    """What counts for one image. `origin` names its repository: where the registry's word would come from."""

    origin: str
    in_digests: bool  # indexes that the manifest names
    in_registry: bool  # what refers to the manifest

    @classmethod
    def of(cls, reference: Reference, policy: Policy) -> Trust:
        """Return what `policy` allows for `reference`."""
        pinned = reference.digest is not None and policy is Policy.AUTO
        return cls(
            origin=_repository(reference),
            in_digests=policy is not Policy.NONE,
            in_registry=policy in (Policy.AUTO, Policy.ANY) and not pinned,
        )

    def vouchers(self, manifest: Manifest, layers: Iterable[Descriptor]) -> frozenset[str]:
        """Return all vouchers of indexes of `layers`, which `manifest` has."""
        vouchers = {self.origin} if self.in_registry else set()
        if self.in_digests:
            with suppress(InvalidImage):  # what is no digest names nothing
                named = soci_v2_digest(manifest)
                vouchers |= {soci_origin(named)} if named else set()
            tables = (named_toc(layer) for layer in layers)
            vouchers |= {toc_origin(table, self.origin) for table in tables if table}
        return frozenset(vouchers)

    def allows(self, origin: str, manifest: Manifest, layers: Iterable[Descriptor]) -> bool:
        """Return whether what `origin` (`layer.origin`) vouches for may be used for `manifest`'s image."""
        return not origin or self.vouchers(manifest, layers).issuperset(origins_in(origin))

    def reaches(self, index: Summary, manifest: Manifest, layer: Descriptor, *, needs_others: bool) -> bool:
        """Return True if an index may be used, and blobs it needs beside the layer are in this repository."""
        is_here = not needs_others or index.origin == self.origin
        return is_here and self.allows(index.origin, manifest, [layer])


def _repository(reference: Reference) -> str:
    if isinstance(reference, RegistryReference):
        return f"{reference.registry}/{reference.repository}"
    return str(replace(reference, tag=None, digest=None)).replace("\n", " ")  # a line is one voucher


def is_ready(resolved: Resolved, store: Store, trust: Trust, *, lean: bool = True) -> bool:
    """Return True if nothing has to be prepared, or warned of (see `prepare`). Raises IntegrityError."""
    readiness = Readiness(resolved, store, trust)
    if readiness.refuted() or (spaces := readiness.tree_spaces()) is None:
        return False
    layers = resolved.layers
    return all(
        readiness.is_indexed(*layers[layer.digest], lean=lean, space=space)
        for layer, space in zip(resolved.manifest.layers, spaces, strict=True)
    )


class Readiness(NamedTuple):
    """Checks what the store holds of an image; indexes and trees count as far as `trust` allows."""

    resolved: Resolved
    store: Store
    trust: Trust

    def refuted(self) -> list[Digest]:
        """Return the layers of which the repository's index has been found to be wrong."""
        pairs = self.resolved.layers.values()
        notes = ((layer.digest, refutation(self.trust.origin, diff_id)) for layer, diff_id in pairs)
        return [digest for digest, note in notes if self.store.layer(digest).is_refuted(note)]

    def missing(self, *, lean: bool) -> list[tuple[Descriptor, Digest]]:
        """Return the layers without a usable index; for a merge, `lean` ones are not usable."""
        pairs = self.resolved.layers.values()
        return [pair for pair in pairs if not self.is_indexed(*pair, lean=lean)]

    def is_indexed(self, layer: Descriptor, diff_id: Digest, *, lean: bool, space: str | None = None) -> bool:
        """Return True if the store has a usable index of a layer, of this flat `space` if one is given.

        Raises IntegrityError if a scan has found another DiffID of the layer's blob. If only an imported
        index says so, that may be wrong: the layer is indexed anew.
        """
        path = self.store.layer(layer.digest).index
        if path is None:
            return False
        try:
            with LayerIndex(path) as index:
                is_usable = self.accepts_index(index, layer, diff_id) and (lean or not index.summary.is_lean)
                return is_usable and space in (None, index.summary.space)
        except StoreError:  # of another format, or damaged: made anew
            return False

    def accepts_index(self, index: LayerIndex, layer: Descriptor, diff_id: Digest) -> bool:
        """Return True if an index may be used for a layer of this image. Raises as `is_indexed`."""
        summary = index.summary
        if summary.diff_id != str(diff_id):
            if index.is_scanned():
                what = f"DiffID of layer {layer.digest.short}"
                raise IntegrityError(what, expected=diff_id, actual=summary.diff_id)
            return False
        needs_others = bool(index.blob or index.windows)
        is_layers = (summary.digest, summary.size) == (str(layer.digest), layer.size)
        manifest = self.resolved.manifest
        return is_layers and self.trust.reaches(summary, manifest, layer, needs_others=needs_others)

    def accepts_tree(self, tree: Tree) -> bool:
        """Return True if a tree that is stored under this image's name may be used for it."""
        manifest = self.resolved.manifest
        is_same = tree.layer_count == len(manifest.layers)
        return is_same and self.trust.allows(tree.origin, manifest, manifest.layers)

    def has_tree(self) -> bool:
        """Return True if the tree is stored, and its extents fit the flat layers of the stored indexes."""
        spaces = self.tree_spaces()
        return spaces is not None and all(
            known in (None, space) for known, space in zip(self._spaces(), spaces, strict=True)
        )

    def tree_spaces(self) -> list[str] | None:
        """Return the flat spaces of the layers that the stored tree is of; None if there is no usable one."""
        path = self.store.tree(self.resolved.tree)
        if path is None:
            return None
        try:
            with Tree(path) as tree:
                return tree.spaces() if self.accepts_tree(tree) else None
        except StoreError:
            return None

    def _spaces(self) -> Iterator[str | None]:
        """Yield the flat spaces of the layers' indexes, None for a layer without an index."""
        for layer in self.resolved.manifest.layers:
            path = self.store.layer(layer.digest).index
            try:
                if path is None:
                    yield None
                    continue
                with LayerIndex(path) as index:
                    space = index.summary.space
            except StoreError:
                yield None
            else:
                yield space


PEERS = "peers"  # in the place of an origin: of how a blob is cut, which no index has an origin for


def refutation(origin: str, diff_id: Digest) -> str:
    """Return what is recorded of a layer if the index that `origin` vouches for has another DiffID."""
    return f"{origin} {diff_id}"


def open_index(stored: StoredLayer) -> LayerIndex:
    """Open the index of a layer that has been prepared. Raises StoreError if it has been removed."""
    path = stored.index
    if path is None:
        raise StoreError(f"{stored.directory}: the index has been removed meanwhile; mount the image again")
    return LayerIndex(path)

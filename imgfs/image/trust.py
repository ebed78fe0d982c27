"""Which indexes and trees of others count, and for which images.

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

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from imgfs.errors import InvalidImage
from imgfs.layer.origin import named_toc, origins_in, soci_origin, toc_origin
from imgfs.layer.schema import Summary
from imgfs.oci.descriptor import Descriptor
from imgfs.oci.image import Manifest
from imgfs.oci.named import soci_v2_digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import LayoutReference, Reference


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
        """Whether what `origin` (`layer.origin`) vouches for may be used for the image of `manifest`."""
        return not origin or self.vouchers(manifest, layers).issuperset(origins_in(origin))

    def reaches(self, index: Summary, manifest: Manifest, layer: Descriptor, *, needs_others: bool) -> bool:
        """Return True if an index may be used, and blobs it needs beside the layer are in this repository."""
        is_here = not needs_others or index.origin == self.origin
        return is_here and self.allows(index.origin, manifest, [layer])


def _repository(reference: Reference) -> str:
    if isinstance(reference, LayoutReference):
        return f"oci:{reference.path}".replace("\n", " ")  # a line is one voucher
    return f"{reference.registry}/{reference.repository}"

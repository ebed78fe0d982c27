"""Which indexes of others count: what a digest of the image's own vouches for, or the registry's word, too.

A table of contents (eStargz, zstd:chunked) and a SOCI index of version 2 are named by the image's manifest.
What merely refers to the image (SOCI version 1, what imgfs publishes) is bound to it by nobody but the
registry: that is as good as a tag, and less than a digest.
"""

from __future__ import annotations

from dataclasses import dataclass

from imgfs.layer.index import Summary
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
        """What `policy` means for `reference`."""
        pinned = reference.digest is not None and policy is Policy.AUTO
        return cls(
            origin=_repository(reference),
            in_digests=policy is not Policy.NONE,
            in_registry=policy in (Policy.AUTO, Policy.ANY) and not pinned,
        )

    def allows(self, origin: str) -> bool:
        """Whether what only the repository `origin` vouches for may be used; "" is nobody's word but ours."""
        return not origin or self.in_registry

    def reaches(self, index: Summary, *, needs_others: bool) -> bool:
        """Whether an index may be used, and, if it needs blobs beside the layer, they are to be had here."""
        return self.allows(index.origin) and (not needs_others or index.origin == self.origin)


def _repository(reference: Reference) -> str:
    if isinstance(reference, LayoutReference):
        return f"oci:{reference.path}"
    return f"{reference.registry}/{reference.repository}"

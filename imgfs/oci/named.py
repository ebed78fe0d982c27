"""The digest of a SOCI index that an image's manifest names; for modules that need no more of SOCI."""

from __future__ import annotations

from imgfs.oci.descriptor import Digest
from imgfs.oci.image import Manifest

INDEX_DIGEST = "com.amazon.soci.index-digest"  # on an image's manifest: its SOCI index, version 2


def soci_v2_digest(manifest: Manifest) -> Digest | None:
    """Return the digest of the SOCI index, version 2, that a manifest names, if any; raises InvalidImage."""
    text = manifest.annotations.get(INDEX_DIGEST)
    return None if text is None else Digest.parse(text, where=f"manifest.annotations[{INDEX_DIGEST!r}]")

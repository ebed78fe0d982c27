"""What an image's manifest names beside its layers, for those who need to know no more of it."""

from __future__ import annotations

from imgfs.oci.descriptor import Digest
from imgfs.oci.image import Manifest

INDEX_DIGEST = "com.amazon.soci.index-digest"  # on an image's manifest: its SOCI index, version 2


def soci_v2_digest(manifest: Manifest) -> Digest | None:
    """The SOCI index, version 2, that an image's manifest names, if it does; raises InvalidImage."""
    text = manifest.annotations.get(INDEX_DIGEST)
    return None if text is None else Digest.parse(text, where=f"manifest.annotations[{INDEX_DIGEST!r}]")

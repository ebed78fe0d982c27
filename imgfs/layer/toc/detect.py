"""Detect by a layer's descriptor in the manifest whether it has a table of contents."""

from __future__ import annotations

from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.toc import estargz, zstd_chunked
from imgfs.layer.toc.estargz import External
from imgfs.layer.toc.toc import Fetch, Toc
from imgfs.oci.descriptor import Descriptor


def find_toc(layer: Descriptor) -> Fetch[Toc | External] | None:
    """Return a reader of the table of contents of `layer`, None if its manifest has no digest of one.

    The reader yields ranges (start, end) of the blob, is sent exactly their bytes, and returns the table. A
    table whose digest is not in the manifest is not trusted, and not read. The reader raises InvalidImage for
    one that is broken, IntegrityError for one that is another than the manifest says.
    """
    if zstd_chunked.is_chunked(layer):
        return zstd_chunked.fetch_toc(layer)
    if TOC_DIGEST in layer.annotations:
        return estargz.fetch_toc(layer)
    return None

"""Which layers bring a table of contents along, by what their manifest says of them."""

from __future__ import annotations

from imgfs.layer.origin import TOC_DIGEST
from imgfs.layer.toc import estargz, zstd_chunked
from imgfs.layer.toc.estargz import External
from imgfs.layer.toc.ranges import Fetch
from imgfs.layer.toc.toc import Toc
from imgfs.oci.descriptor import Descriptor


def find_toc(layer: Descriptor) -> Fetch[Toc | External] | None:
    """What reads the table of contents of `layer`, None if its manifest vouches for none.

    The reader yields ranges (start, end) of the blob, wants to be sent exactly their bytes, and returns the
    table. A table that no digest in the manifest is of would bind nobody: such a layer has none. The reader
    raises InvalidImage for one that is broken, IntegrityError for one that is another than the manifest says.
    """
    if zstd_chunked.is_chunked(layer):
        return zstd_chunked.fetch_toc(layer)
    if TOC_DIGEST in layer.annotations:
        return estargz.fetch_toc(layer)
    return None

"""What an index or a tree is trusted by: its `origin`, kept in the file itself.

    ""                          imgfs made it from bytes that have the layer's DiffID
    HOST/REPOSITORY, oci:PATH   this repository published it: trusted for references to this repository
    soci:DIGEST                 this SOCI index: trusted for manifests that name it; the digest covers all
                                that is used of the index
    toc:DIGEST HOST/REPOSITORY  this table of contents, of a blob of this repository: trusted for references
                                to it whose manifest names the table; the table's digest does not cover the
                                footer, which says where the last file ends

A tree has the origins of all its layers' indexes, a line each. Where an image has no such ground to trust an
index, imgfs indexes the layer itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Descriptor, Digest

# What names a layer's table of contents, on its descriptor: the packed table (containers/storage,
# `pkg/chunked/internal/minimal`, under either of two prefixes), or the JSON (stargz-snapshotter).
CHUNKED_PREFIXES = ("io.github.containers.zstd-chunked.", "io.containers.zstd-chunked.")
CHUNKED_CHECKSUM = "manifest-checksum"
TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"

UNKNOWN_ORIGIN = "?"  # of a file that has no origin: trusted for no image

_NAMES_OF_TOCS = (*(prefix + CHUNKED_CHECKSUM for prefix in CHUNKED_PREFIXES), TOC_DIGEST)
_TOC, _SOCI = "toc:", "soci:"


def named_toc(layer: Descriptor) -> Digest | None:
    """Return the digest of a layer's table of contents by its first annotation that names one, or None."""
    texts = (layer.annotations[name] for name in _NAMES_OF_TOCS if name in layer.annotations)
    with suppress(InvalidImage):
        text = next(texts, None)
        return None if text is None else Digest.parse(text, where="annotations")
    return None


def toc_origin(digest: Digest, repository: str) -> str:
    """Return the origin of an index made of a table of contents, of a blob in `repository`."""
    return f"{_TOC}{digest} {repository}"


def soci_origin(digest: Digest) -> str:
    """Return the origin of an index made of a zTOC in the SOCI index, of version 2, with this digest."""
    return f"{_SOCI}{digest}"


def combined_origin(origins: Iterable[str]) -> str:
    """Return the origin of a tree that is merged from indexes of these."""
    lines = {line for origin in origins for line in origins_in(origin)}
    return "\n".join(sorted(lines))


def origins_in(origin: str) -> list[str]:
    """Return the lines of an origin; none if it was verified here."""
    return [line for line in origin.split("\n") if line]


def repositories_in(origin: str) -> str:
    """Return the repositories among them, for display; "" if the image has digests for all."""
    return ", ".join(line for line in origins_in(origin) if not line.startswith((_TOC, _SOCI)))

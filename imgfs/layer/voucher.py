"""Who vouches for an index or a tree: kept in the file itself, as its `origin`.

    ""                          nobody needs to: it was made here, and its bytes have the layer's DiffID
    HOST/REPOSITORY, oci:PATH   a repository's word: good for references that name that repository
    soci:DIGEST                 a manifest that names this SOCI index; the digest binds all that is used of it
    toc:DIGEST HOST/REPOSITORY  a manifest that names this table of contents, and where its blob was found:
                                the digest says nothing of the footer, by which the last file's end is known

A tree has all that its layers' indexes have, a line each. What only another image's manifest names, or
another repository says, is no reason to believe anything: who needs an index makes it anew.
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

UNSAID = "?"  # nobody who could be asked: the `origin` of a file that does not say one

_NAMES_OF_TOCS = (*(prefix + CHUNKED_CHECKSUM for prefix in CHUNKED_PREFIXES), TOC_DIGEST)
_TOC, _SOCI = "toc:", "soci:"


def named_toc(layer: Descriptor) -> Digest | None:
    """The digest of a layer's table of contents, by the annotation that counts, if that is one."""
    texts = (layer.annotations[name] for name in _NAMES_OF_TOCS if name in layer.annotations)
    with suppress(InvalidImage):
        text = next(texts, None)
        return None if text is None else Digest.parse(text, where="annotations")
    return None


def by_toc(digest: Digest, repository: str) -> str:
    """The voucher for the table of contents that a manifest names, of a blob found in `repository`."""
    return f"{_TOC}{digest} {repository}"


def by_soci(digest: Digest) -> str:
    """The voucher for what is in the SOCI index, of version 2, that a manifest names."""
    return f"{_SOCI}{digest}"


def together(origins: Iterable[str]) -> str:
    """The `origin` of what is made of things of these."""
    lines = {line for origin in origins for line in vouchers_in(origin)}
    return "\n".join(sorted(lines))


def vouchers_in(origin: str) -> list[str]:
    """All vouchers that an `origin` has; none if it is verified here."""
    return [line for line in origin.split("\n") if line]


def words_in(origin: str) -> str:
    """The repositories whose word alone is behind it, for people; "" if digests of the image's are."""
    return ", ".join(one for one in vouchers_in(origin) if not one.startswith((_TOC, _SOCI)))

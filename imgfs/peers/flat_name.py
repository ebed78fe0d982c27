"""The name of a flat layer between peers, and the paths of what is served of it, and of its blob.

A layer whose flat space is its tar stream is named by the DiffID, whatever it is packed as. One cut by a
table of contents has another flat space: it is named by blob and space.

    /imgfs/v1/flat/DIFFID                      bytes, by Range        /imgfs/v1/presence/DIFFID
    /imgfs/v1/flat/DIGEST/SPACE                                       /imgfs/v1/presence/DIGEST/SPACE

What has the blob's digest for its name: how it is cut into the spans of a tar (`layer_spans`), and, while it
is downloaded, how far it is (`arriving`), and its bytes:

    /imgfs/v1/spans/DIGEST
    /imgfs/v1/arriving/DIGEST
    /imgfs/v1/blob/DIGEST                      bytes, by Range
"""

from __future__ import annotations

import re
from typing import NamedTuple

from imgfs.layer.schema import TAR, Summary
from imgfs.oci.descriptor import Digest

FLAT, PRESENCE = "flat", "presence"
SPANS, ARRIVING, BLOB = "spans", "arriving", "blob"
_ROOT = "/imgfs/v1"
_DIGEST = r"(?:sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})"
_OF_BLOB = re.compile(rf"{_ROOT}/({SPANS}|{ARRIVING}|{BLOB})/({_DIGEST})")
_PATH = re.compile(rf"{_ROOT}/({FLAT}|{PRESENCE})/({_DIGEST})(?:/toc:([0-9a-f]{{64}}))?")


class FlatName(NamedTuple):
    """A flat layer: `digest` is a DiffID, or, with the name of a `space`, that of a blob."""

    digest: str
    space: str = TAR

    @classmethod
    def of(cls, summary: Summary) -> FlatName:
        """Return the name of an indexed layer's flat layer."""
        return cls(summary.diff_id if summary.space == TAR else summary.digest, summary.space)

    def path(self, what: str) -> str:
        """Return the path of FLAT or PRESENCE."""
        return f"{_ROOT}/{what}/{self.digest}{'' if self.space == TAR else f'/{self.space}'}"


def parse_path(path: str) -> tuple[str, FlatName] | None:
    """Return the inverse of `FlatName.path`; None for any other path."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    what, digest, table = found.groups()
    return what, FlatName(digest, f"toc:{table}" if table else TAR)


def blob_path(what: str, digest: Digest) -> str:
    """Return the path of SPANS, ARRIVING or BLOB of the blob with this digest."""
    return f"{_ROOT}/{what}/{digest}"


def parse_blob_path(path: str) -> tuple[str, Digest] | None:
    """Return the inverse of `blob_path`; None for any other path."""
    found = _OF_BLOB.fullmatch(path)
    return (found[1], Digest.parse(found[2], where="peer")) if found else None


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Read a Range header with one closed range (RFC 9110, 14.1.2) of `size` bytes; None for any other."""
    found = re.fullmatch(r"bytes=([0-9]{1,18})-([0-9]{1,18})", text or "")
    if found is None:
        return None
    start, end = int(found[1]), int(found[2]) + 1
    return (start, end) if start < end <= size else None

"""What refers to a manifest: the lists that registries give, and those that clients keep for them.

A list is an image index (OCI distribution-spec 1.1, "Listing Referrers"). A registry that makes none has one
under a tag that is the subject's digest, kept up by those who push ("Referrers Tag Schema"). Bytes in, bytes
out; what others have written into a list stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imgfs.errors import InvalidImage
from imgfs.oci.artifact import encode
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.oci.image import OCI_INDEX, Manifest, parse_document

_NEW = {"schemaVersion": 2, "mediaType": OCI_INDEX}
_TAG = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")


def referrers_tag(subject: Digest) -> str:
    """The tag of the list kept for `subject`: the hex digits are cut at 64 ("Referrers Tag Schema")."""
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def is_referrers_tag(tag: str) -> bool:
    """Whether `tag` can be that of a list."""
    return _TAG.fullmatch(tag) is not None


def parse_referrers(body: bytes) -> list[Descriptor]:
    """The referrers in a list, each once; entries that are no descriptors are passed over.

    Raises InvalidImage unless `body` is an OCI image index.
    """
    found: dict[Digest, Descriptor] = {}
    for number, value in enumerate(_entries(body)[1]):
        try:
            entry = Descriptor.parse(value, where=f"referrers[{number}]")
        except InvalidImage:  # a malformed entry must not hide the others
            continue
        found.setdefault(entry.digest, entry)
    return list(found.values())


def of_type(referrers: Iterable[Descriptor], artifact_type: str | None) -> list[Descriptor]:
    """Those of one artifact type; all of them if that is None."""
    return [entry for entry in referrers if artifact_type in (None, entry.artifact_type)]


def referrer_in(body: bytes, descriptor: Descriptor) -> tuple[Digest | None, Descriptor]:
    """The subject of a manifest or index, and the entry for it that a list has ("Listing Referrers").

    `body` is what `descriptor` names. Raises InvalidImage.
    """
    document = parse_document(body, descriptor.media_type)
    config_type = document.config.media_type if isinstance(document, Manifest) else None
    entry = Descriptor(
        document.media_type,
        descriptor.digest,
        len(body),
        annotations=document.annotations,
        artifact_type=document.artifact_type or config_type,
    )
    return document.subject.digest if document.subject else None, entry


def with_referrer(body: bytes | None, entry: Descriptor) -> bytes:
    """A list that has `entry`, once; None is the list that is not there yet. Raises InvalidImage."""
    fields, entries = _entries(body) if body is not None else (dict(_NEW), [])
    return _changed(body, fields, entries, entered(entries, entry))


def without_referrer(body: bytes, digest: Digest) -> bytes:
    """A list that does not have `digest`. Raises InvalidImage."""
    fields, entries = _entries(body)
    return _changed(body, fields, entries, removed(entries, digest))


def entered(entries: Sequence[Any], entry: Descriptor) -> list[Any]:
    """The entries of an index, and `entry` if its digest is not among them."""
    known = any(_names(value, entry.digest) for value in entries)
    return [*entries] if known else [*entries, descriptor_fields(entry)]


def removed(entries: Sequence[Any], digest: Digest) -> list[Any]:
    """The entries of an index but those for `digest`."""
    return [value for value in entries if not _names(value, digest)]


def is_empty(body: bytes) -> bool:
    """Whether a list has no entries, not even malformed ones. Raises InvalidImage."""
    return not _entries(body)[1]


def _entries(body: bytes) -> tuple[dict[str, Any], list[Any]]:
    """The fields of an OCI image index, and its entries as they are."""
    fields = object_at(parse_json(body, "referrers"), "referrers")
    if text_in(fields, "mediaType", "referrers", default=OCI_INDEX) != OCI_INDEX or "manifests" not in fields:
        raise InvalidImage("not an OCI image index", where="referrers")
    return fields, list_in(fields, "manifests", "referrers")


def _changed(
    body: bytes | None, fields: Mapping[str, Any], before: Sequence[Any], after: Sequence[Any]
) -> bytes:
    """A list with other entries: byte for byte what it was if they are the same."""
    return body if body is not None and len(before) == len(after) else encode({**fields, "manifests": after})


def _names(value: object, digest: Digest) -> bool:
    return isinstance(value, dict) and value.get("digest") == str(digest)

"""What a descriptor says of its content before that is fetched: all of it, or at least its size."""

from __future__ import annotations

from imgfs.errors import IntegrityError, InvalidImage
from imgfs.oci.descriptor import Descriptor
from imgfs.registry.endpoint import MAX_DOCUMENT

UNKNOWN_SIZE = -1  # of a manifest known by its digest only


def inline(descriptor: Descriptor) -> bytes | None:
    """What the descriptor itself carries (descriptor.md, `data`), checked."""
    if descriptor.data is not None:
        check_size(descriptor, len(descriptor.data))
        descriptor.digest.verify(descriptor.data, "digest of a descriptor's own data")
    return descriptor.data


def check_document_size(descriptor: Descriptor) -> None:
    """Raise InvalidImage for a document that is too large to be fetched."""
    if descriptor.size > MAX_DOCUMENT and not descriptor.size_is_hint:
        raise InvalidImage(
            f"a {descriptor.media_type} of {descriptor.size} bytes; at most {MAX_DOCUMENT} are allowed",
            where=str(descriptor.digest),
        )


def check_size(descriptor: Descriptor, actual: int) -> None:
    """Raise IntegrityError unless the descriptor promises `actual` bytes, or does not say."""
    if descriptor.size not in (actual, UNKNOWN_SIZE) and not descriptor.size_is_hint:
        raise IntegrityError(f"size of {descriptor.digest}", expected=descriptor.size, actual=actual)

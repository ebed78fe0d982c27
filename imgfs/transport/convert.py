"""Convert an image to OCI media types on its way into an OCI layout.

A layout may hold documents of any media type (image-spec, image-layout.md), but skopeo, podman and umoci
read OCI's alone there. Blobs, the config among them, keep their bytes and digests: Docker's configs have the
fields of OCI's (media-types.md, "Compatibility Matrix"). Manifests, and indexes of them, get new digests.
"""

from __future__ import annotations

from dataclasses import replace

from imgfs.oci.change import as_oci, index_as_oci
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import Index, parse_document
from imgfs.transport.copy import Document, Parcel


def convert_to_oci(parcel: Parcel) -> Parcel:
    """Return the image with OCI media types; one that has them already is returned byte for byte.

    Raises InvalidImage.
    """
    converted: dict[Digest, Descriptor] = {}
    documents = []
    for document in parcel.documents:
        new = _convert(document, converted)
        if new.body != document.body:
            converted[document.descriptor.digest] = new.descriptor
        documents.append(new)
    return replace(parcel, documents=tuple(documents))


def _convert(document: Document, converted: dict[Digest, Descriptor]) -> Document:
    """Convert one manifest or index, whose manifests have been converted before it."""
    old, body = document
    is_index = isinstance(parse_document(body, old.media_type), Index)
    new = index_as_oci(body, old.media_type, converted) if is_index else as_oci(body, old.media_type)
    if new == body:
        return document
    media_type = parse_document(new, None).media_type
    return Document(Descriptor(media_type, Digest.of(new, old.digest.algorithm), len(new)), new)

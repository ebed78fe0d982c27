"""Signatures of images as containers/image stores them: found beside an image, and read.

    a registry   its API's extension, if it has that, else the lookaside store of registries.d
    dir:         files signature-1, …, of a manifest of an index HEX.signature-1, … in the image's directory

A signature is an OpenPGP message, or, behind a zero byte and the name of its format, anything else, such as
one of cosign's (internal/signature/signature.go).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from imgfs.config import SignaturePlaces
from imgfs.errors import InvalidImage, Unavailable, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import annotations_in, decode_base64, object_at, parse_json, text_in
from imgfs.oci.reference import DIRECTORY, FileReference, Reference, RegistryReference
from imgfs.registry.config.resolver import Resolver
from imgfs.registry.endpoint import MAX_DOCUMENT, RegistryEndpoint
from imgfs.registry.signatures import LARGEST_SIGNATURE, SignatureClient, StoredSignature, numbered
from imgfs.registry.urls import shown
from imgfs.signatures.cosign import Signature, is_signature
from imgfs.signatures.identity import ImageName
from imgfs.signatures.registries_d import SignatureConfig, load_signature_config
from imgfs.transport.files import Directory, read_whole

# the first bytes of OpenPGP messages that have no name before them: compressed data, a one-pass signature, a
# signature, in both formats of packets (RFC 4880, 4.2)
_OPENPGP = frozenset((*range(0xA0, 0xA4), 0xC8, *range(0x90, 0x93), 0x3D, 0xC4, *range(0x88, 0x8C), 0xC2))
_SIMPLE, _SIGSTORE = b"simple-signing", b"sigstore-json"


class StoredSignatures(NamedTuple):
    """The signatures of a manifest: messages of OpenPGP, and cosign's."""

    openpgp: Sequence[bytes] = ()
    cosign: Sequence[Signature] = ()


@dataclass(frozen=True)
class SignatureFinder:
    """Finds signatures that are stored beside images."""

    places: SignaturePlaces
    resolver: Resolver
    client: SignatureClient

    def find(self, reference: Reference, digest: Digest) -> StoredSignatures:
        """Return the signatures of the manifest `digest` of an image; of most transports there are none.

        Raises UsageError, RegistryError, and InvalidImage: one that cannot be read spoils all.
        """
        openpgp, cosign = [], []
        for stored in self._find(reference, digest):
            signature = read_signature(stored)
            if isinstance(signature, bytes):
                openpgp.append(signature)
            elif signature is not None:
                cosign.append(signature)
        return StoredSignatures(openpgp, cosign)

    def uses_attachments(self, reference: RegistryReference) -> bool | None:
        """Return what registries.d says about cosign's signatures of an image (`SignatureConfig`)."""
        endpoint = self._endpoints(reference)[-1]
        return self._config.uses_attachments(_name_at(endpoint, reference))

    @cached_property
    def _config(self) -> SignatureConfig:
        return load_signature_config(self.places.directories)

    def _find(self, reference: Reference, digest: Digest) -> Iterator[StoredSignature]:
        if isinstance(reference, RegistryReference):
            return self._of_registry(reference, digest)
        if isinstance(reference, FileReference) and reference.transport == DIRECTORY:
            return _of_directory(reference.path, digest)
        return iter(())

    def _endpoints(self, reference: RegistryReference) -> list[RegistryEndpoint]:
        """Return where the registry itself is asked: a mirror does not say what is signed."""
        named = reference.registry, reference.repository, reference.tag, reference.digest
        return [endpoint for endpoint in self.resolver.of(*named) if not endpoint.is_mirror]

    def _of_registry(self, reference: RegistryReference, digest: Digest) -> Iterator[StoredSignature]:
        endpoint, found = self._ask(self._endpoints(reference), digest)
        if found is not None:
            yield from (StoredSignature(b"\0%b\n%b" % (_SIMPLE, body), where) for body, where in found)
            return
        base = self._config.lookaside(_name_at(endpoint, reference)) or self.places.lookaside.as_uri()
        scheme = base.partition(":")[0].lower()
        place = f"{base}/{endpoint.repository}@{digest.algorithm}={digest.hex}"
        if "?" in base or "#" in base:
            raise UsageError(f"the lookaside store {shown(base)}: a URL with a query or fragment")
        if scheme == "file":
            directory = Directory(Path(_path_of(place)))
            yield from numbered(lambda number: _read(directory, number), str(directory.path("")))
        elif scheme in ("http", "https"):
            yield from self.client.at(place, endpoint)
        else:
            raise UsageError(f"the lookaside store {shown(base)}: a URL of neither file, http nor https")

    def _ask(
        self, endpoints: Sequence[RegistryEndpoint], digest: Digest
    ) -> tuple[RegistryEndpoint, list[StoredSignature] | None]:
        """Ask by each scheme in turn, and return which answered."""
        for endpoint in endpoints[:-1]:
            try:
                return endpoint, self.client.by_extension(endpoint, digest, is_last=False)
            except Unavailable:
                continue
        return endpoints[-1], self.client.by_extension(endpoints[-1], digest)


def read_signature(stored: StoredSignature) -> bytes | Signature | None:
    """Return a message of OpenPGP or a signature of cosign's, None for other attachments; or InvalidImage."""
    body, where = stored
    if body[:1] and body[0] in _OPENPGP:
        return body
    if body[:1] != b"\0":
        raise InvalidImage("not a signature", where=where)
    form, newline, content = body[1:].partition(b"\n")
    if newline and form == _SIMPLE:
        return content
    if newline and form == _SIGSTORE:
        return _cosign(content, where)
    raise InvalidImage(f"a signature of the format {form[:40]!r}, which is not known", where=where)


def _cosign(body: bytes, where: str) -> Signature | None:
    fields = object_at(parse_json(body, where), where)
    payload = decode_base64(text_in(fields, "payload", where, default=""), f"{where}: payload")
    media_type, annotations = text_in(fields, "mimeType", where, default=""), annotations_in(fields, where)
    try:
        return Signature.read(payload, annotations) if is_signature(media_type, annotations) else None
    except InvalidImage:  # as if it were not there: the others count
        return None


def _of_directory(path: Path, digest: Digest) -> Iterator[StoredSignature]:
    directory = Directory(path)
    own = Digest.of(read_whole(directory, "manifest.json", MAX_DOCUMENT), digest.algorithm)
    prefix = "" if own == digest else f"{digest.hex}."
    yield from numbered(lambda name: _read(directory, f"{prefix}{name}"), str(path))


def _read(directory: Directory, name: str) -> StoredSignature:
    return StoredSignature(read_whole(directory, name, LARGEST_SIGNATURE), directory.path(name))


def _name_at(endpoint: RegistryEndpoint, reference: RegistryReference) -> ImageName:
    """Return the name of an image where registries.conf says that it is."""
    wanted = ImageName.of(reference)
    return ImageName(
        f"{endpoint.namespace or endpoint.host}/{endpoint.repository}", wanted.tag, wanted.digest
    )


def _path_of(url: str) -> str:
    """Return the path of a file URL; a host in it does not count, as in Go's net/url."""
    path = url.partition(":")[2]
    if path.startswith("//"):
        path = f"/{path[2:].partition('/')[2]}"
    if not path.startswith("/"):
        raise UsageError(f"the lookaside store {shown(url)}: not an absolute path")
    return unquote(path)

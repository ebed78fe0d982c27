"""The keys and certificates that a requirement of a policy names (containers-policy.json(5), `signedBy`,
`sigstoreSigned`): where they are, or, in base64, themselves. Nothing of them is read before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, UsageError, describe
from imgfs.oci.fields import decode_base64, object_at, text_in, texts_in

_LARGEST = 1 << 20  # bytes of a file with a key, or of a policy
_ENDS = ("Path", "Paths", "Data", "Datas")
GPG_KEY_FIELDS = {"keyPath", "keyPaths", "keyData"}
SIGSTORE_KEY_FIELDS = {
    "fulcio",
    "pki",
    *(f"{stem}{end}" for stem in ("key", "rekorPublicKey") for end in _ENDS),
}
_FULCIO = {"caPath", "caData", "oidcIssuer", "subjectEmail"}
_PKI = {
    *("caRootsPath", "caRootsData", "caIntermediatesPath", "caIntermediatesData"),
    *("subjectEmail", "subjectHostname"),
}


class Material(NamedTuple):
    """Keys or certificates: the `paths` of files with them, or their bytes."""

    paths: tuple[str, ...] = ()
    bodies: tuple[bytes, ...] = ()

    def load(self, field: str) -> list[tuple[str, bytes]]:
        """Return the bytes of each, and what it is called: its file, or the policy's `field`. UsageError."""
        files = [(path, read_small(Path(path))) for path in self.paths]
        return files + [(field, body) for body in self.bodies]

    def __bool__(self) -> bool:
        return bool(self.paths or self.bodies)


class FulcioTrust(NamedTuple):
    """Certificates by an authority that asks an OpenID `issuer` who it is that signs."""

    authorities: Material
    issuer: str
    email: str


class PkiTrust(NamedTuple):
    """Certificates by other authorities; `email` or `hostname` may be "": it does not matter then."""

    roots: Material
    intermediates: Material
    email: str
    hostname: str


class KeySources(NamedTuple):
    """By what signatures are verified: `keys`, or certificates; and the keys of a log they have to be in."""

    keys: Material = Material()
    rekor: Material = Material()
    fulcio: FulcioTrust | None = None
    pki: PkiTrust | None = None


def parse_key_sources(fields: Mapping[str, object], where: str) -> KeySources:
    """Read the keys of a requirement, of which there has to be one source; raises InvalidImage."""
    keys, rekor = _material(fields, "key", where), _material(fields, "rekorPublicKey", where)
    fulcio = _fulcio(fields["fulcio"], where) if "fulcio" in fields else None
    pki = _pki(fields["pki"], where) if "pki" in fields else None
    if [bool(keys), fulcio is not None, pki is not None].count(True) != 1:
        raise InvalidImage("expected exactly one of keyPath, keyPaths, keyData, fulcio and pki", where=where)
    if fulcio and not rekor:
        raise InvalidImage("fulcio without a rekorPublicKeyPath or rekorPublicKeyData", where=where)
    if pki and rekor:
        raise InvalidImage("pki goes without rekorPublicKeyPath and rekorPublicKeyData", where=where)
    return KeySources(keys, rekor, fulcio, pki)


def check_known(fields: Mapping[str, object], known: set[str], where: str) -> None:
    """Raise InvalidImage for a field that is not known."""
    for name in fields.keys() - known:
        raise InvalidImage(f"the field {name[:60]!r} is not known", where=where)


def read_small(path: Path) -> bytes:
    """Return the bytes of a file of keys or of a policy; raises UsageError."""
    try:
        with path.open("rb") as file:
            body = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {describe(error)}") from error
    if len(body) > _LARGEST:
        raise UsageError(f"{path}: larger than {_LARGEST} bytes")
    return body


def _fulcio(value: object, where: str) -> FulcioTrust:
    where = f"{where}: fulcio"
    fields = object_at(value, where)
    check_known(fields, _FULCIO, where)
    texts = [text_in(fields, name, where) for name in ("oidcIssuer", "subjectEmail")]
    if not all(texts):
        raise InvalidImage("oidcIssuer and subjectEmail must not be empty", where=where)
    return FulcioTrust(_needed(fields, "ca", where), *texts)


def _pki(value: object, where: str) -> PkiTrust:
    where = f"{where}: pki"
    fields = object_at(value, where)
    check_known(fields, _PKI, where)
    email = text_in(fields, "subjectEmail", where, default="")
    hostname = text_in(fields, "subjectHostname", where, default="")
    if not email and not hostname:
        raise InvalidImage("neither subjectEmail nor subjectHostname", where=where)
    roots, intermediates = _needed(fields, "caRoots", where), _material(fields, "caIntermediates", where)
    return PkiTrust(roots, intermediates, email, hostname)


def _needed(fields: Mapping[str, object], stem: str, where: str) -> Material:
    found = _material(fields, stem, where)
    if not found:
        raise InvalidImage(f"neither {stem}Path nor {stem}Data", where=where)
    return found


def _material(fields: Mapping[str, object], stem: str, where: str) -> Material:
    """Return what the fields that begin with `stem` say, of which there may be one."""
    given = [end for end in _ENDS if f"{stem}{end}" in fields]
    if not given:
        return Material()
    if len(given) > 1:
        raise InvalidImage(f"only one of {stem}{given[0]} and {stem}{given[1]} may be there", where=where)
    name = f"{stem}{given[0]}"
    texts = texts_in(fields, name, where) if name.endswith("s") else [text_in(fields, name, where)]
    if not texts or not all(texts):
        raise InvalidImage(f"{name} is empty", where=where)
    if "Path" in given[0]:
        return Material(tuple(texts))
    return Material((), tuple(decode_base64(text, f"{where}: {name}") for text in texts))

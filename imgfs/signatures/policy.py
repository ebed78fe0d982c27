"""containers-policy.json(5): which requirements an image has to fulfil.

Its reading is strict, as the page has it: a field that is not known, or is there twice, makes the whole file
invalid.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.oci.reference import (
    DIRECTORY,
    DOCKER_ARCHIVE,
    DOCKER_DAEMON,
    OCI_ARCHIVE,
    STORAGE,
    EngineReference,
    LayoutReference,
    Reference,
    RegistryReference,
    docker_name,
    is_prefix,
)
from imgfs.signatures.identity import USUAL, ImageName, SignedIdentity
from imgfs.signatures.policy_keys import (
    GPG_KEY_FIELDS,
    SIGSTORE_KEY_FIELDS,
    KeySources,
    check_known,
    parse_key_sources,
)

ANYTHING, REJECT, GPG, SIGSTORE = "insecureAcceptAnything", "reject", "signedBy", "sigstoreSigned"
_FIELDS = {
    ANYTHING: {"type"},
    REJECT: {"type"},
    GPG: {"type", "keyType", "signedIdentity", *GPG_KEY_FIELDS},
    SIGSTORE: {"type", "signedIdentity", *SIGSTORE_KEY_FIELDS},
}
_IDENTITIES = {  # the fields beside `type`
    "matchExact": (),
    "matchRepoDigestOrExact": (),
    "matchRepository": (),
    "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",),
    "remapIdentity": ("prefix", "signedPrefix"),
}
# the transports of imgfs by their names there, but for registries' and layouts'
_TRANSPORTS = {
    DIRECTORY: "dir",
    OCI_ARCHIVE: "oci-archive",
    DOCKER_ARCHIVE: "docker-archive",
    STORAGE: STORAGE,
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A requirement of a `kind`: by what, and for which name, an image has to be signed."""

    kind: str
    identity: SignedIdentity = USUAL
    sources: KeySources = field(default_factory=KeySources)


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """A policy: `default`, and requirements by transport and scope."""

    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]]

    def requirements_for(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """Return the requirements of the most specific scope, and that scope as a person reads it."""
        transport, scopes = _scopes(reference)
        known = self.transports.get(transport, {})
        for scope in (*scopes, ""):
            if scope in known:
                return f"{transport}:{scope}", known[scope]
        return "default", self.default


def parse_policy(body: bytes, where: str) -> TrustPolicy:
    """Read a policy; raises UsageError, since it is a file of the user's."""
    try:
        fields = object_at(parse_json(body, where), where)
        check_known(fields, {"default", "transports"}, where)
        transports = object_at(fields.get("transports", {}), f"{where}: transports")
        return TrustPolicy(
            _requirements(fields, "default", where),
            {name: _transport(value, f"{where}: {name}") for name, value in transports.items()},
        )
    except InvalidImage as error:
        raise UsageError(f"not a policy: {error}") from error


def _transport(value: object, where: str) -> dict[str, tuple[Requirement, ...]]:
    fields = object_at(value, where)
    return {scope: _requirements(fields, scope, where) for scope in fields}


def _requirements(fields: Mapping[str, object], name: str, where: str) -> tuple[Requirement, ...]:
    where = f"{where}: {name}"
    found = tuple(_requirement(object_at(value, where), where) for value in list_in(fields, name, where))
    if not found:
        raise InvalidImage("a list of requirements must not be empty", where=where)
    return found


def _requirement(fields: dict[str, object], where: str) -> Requirement:
    kind = text_in(fields, "type", where)
    if kind not in _FIELDS:
        raise InvalidImage(f"a requirement of type {kind!r:.60} is not known", where=where)
    check_known(fields, _FIELDS[kind], where)
    if kind in (ANYTHING, REJECT):
        return Requirement(kind)
    if kind == GPG and text_in(fields, "keyType", where) != "GPGKeys":
        raise InvalidImage("the only keyType is GPGKeys", where=where)
    identity = _identity(fields["signedIdentity"], where) if "signedIdentity" in fields else USUAL
    return Requirement(kind, identity, parse_key_sources(fields, where))


def _identity(value: object, where: str) -> SignedIdentity:
    where = f"{where}: signedIdentity"
    fields = object_at(value, where)
    kind = text_in(fields, "type", where)
    if kind not in _IDENTITIES:
        raise InvalidImage(f"{kind!r:.60} is not known", where=where)
    names = _IDENTITIES[kind]
    check_known(fields, {"type", *names}, where)
    values = [text_in(fields, name, where) for name in names]
    try:
        if kind == "exactReference" and ImageName.parse(values[0]).is_name_only:
            raise InvalidImage("a dockerReference has a tag or a digest", where=where)
        if kind == "exactRepository":
            ImageName.parse(values[0])
    except UsageError as error:
        raise InvalidImage(str(error), where=where) from error
    if kind == "remapIdentity" and not all(map(is_prefix, values)):
        raise InvalidImage("a prefix is a host, a namespace or a repository", where=where)
    return SignedIdentity(kind, *values)


def _scopes(reference: Reference) -> tuple[str, list[str]]:
    """Return a transport's name in policies, and the scopes of an image, the most specific first."""
    if isinstance(reference, RegistryReference):
        return "docker", list(ImageName.of(reference).scopes())
    if isinstance(reference, EngineReference):
        named = docker_name(reference.name) if reference.engine == DOCKER_DAEMON else None
        return reference.engine, list(ImageName.of(named).scopes()) if named else []
    place = os.path.realpath(reference.path)
    tagged = [f"{place}:{reference.tag}"] if reference.tag else []
    if isinstance(reference, LayoutReference):
        return "oci", [*tagged, *_directories(place)]
    transport = _TRANSPORTS.get(reference.transport, "tarball")
    if transport in ("tarball", STORAGE):  # scopes of the one are ignored; of the other imgfs knows none
        return transport, []
    return transport, [*tagged, *(_directories(place) if transport != "docker-archive" else [place])]


def _directories(place: str) -> Iterator[str]:
    """Yield a path and the directories above it, but for the root."""
    path = Path(place)
    while str(path) != path.root:
        yield str(path)
        path = path.parent

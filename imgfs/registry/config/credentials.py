"""Credentials as docker and podman keep them (docker `config.json`; containers-auth.json(5)).

A file may hold secrets itself (`auths`), or name programs that do: `credHelpers` for one registry,
`credsStore` for all (docker-credential-helpers).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from imgfs.config import AuthSource, AuthText, CredentialProviders
from imgfs.errors import Unauthorized, UsageError
from imgfs.oci.reference import DOCKER_HUB
from imgfs.registry.config.credential_stores import (
    TIMEOUT,
    HelperSecret,
    ask_helper,
    change_auth_file,
    erase_from_helper,
    program_of,
    read_auth_file,
    store_with_helper,
)

log = logging.getLogger(__name__)

_HUB_KEY = "https://index.docker.io/v1/"  # what `docker login` writes for Docker Hub
_HUB_NAMES = (_HUB_KEY, "index.docker.io", "registry-1.docker.io")
_ROOTS = ("", "v1", "v2")  # paths of a registry's API
IDENTITY_USER = "<token>"  # a helper's user name that says: the secret is an identity token
BYTES = "surrogateescape"  # a password is bytes, whichever charset they are in
_DOCKERS = "config.json"  # the name of docker's file


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password, or (`identity_token`) a secret to be traded for access tokens, or
    (`registry_token`) such an access token itself."""

    username: str
    secret: str = field(repr=False)
    identity_token: bool = False
    registry_token: bool = False

    @property
    def is_password(self) -> bool:
        """Whether they are for Basic authentication."""
        return not self.identity_token and not self.registry_token


class _Helper(NamedTuple):
    """A program that keeps credentials, and what it calls a registry; `alone`: the file itself has none."""

    name: object
    server: str
    alone: bool


def find_credentials(
    sources: Iterable[AuthSource], registry: str, repository: str, *, seconds: float = TIMEOUT
) -> Credentials | None:
    """Return the credentials of the first of `sources` that has some for the registry; None for anonymous.

    The most specific key wins (`host/ns/repo`, `host/ns`, `host`). Raises UsageError for a file that cannot
    be understood and Unauthorized, naming it, for a helper that fails, or says nothing for so many `seconds`;
    for a credential provider that does only if no other source has any.
    """
    failure: Unauthorized | None = None
    for source in sources:
        found = None
        if isinstance(source, AuthText):
            found = _found_in_text(source, registry, repository)
        elif isinstance(source, CredentialProviders):
            try:
                found = _provided(source, registry, repository, seconds)
            except Unauthorized as error:
                failure = error
        elif fields := read_auth_file(source):
            found = _credentials_in(fields, source, registry, repository, seconds)
        if found:
            return found
    if failure:
        raise failure
    return None


def _provided(
    source: CredentialProviders, registry: str, repository: str, seconds: float
) -> Credentials | None:
    from imgfs.registry.config.credential_providers import ask_providers

    found = ask_providers(source, registry, repository, seconds)
    return Credentials(found.username, found.password) if found else None


def _found_in_text(given: AuthText, registry: str, repository: str) -> Credentials | None:
    """Return the credentials in a variable of the environment; warn of a malformed one, as docker does."""
    try:
        fields = json.loads(given.text)
        if isinstance(fields, dict):
            return _in_auths(fields, given.name, registry, repository)
        log.warning("%s is no JSON object, and does not count", given.name)
    except (ValueError, RecursionError):
        log.warning("%s is not JSON, and does not count", given.name)
    except UsageError as error:
        log.warning("%s; it does not count", error)
    return None


def keep_credentials(path: Path, registry: str, namespace: str, credentials: Credentials) -> str:
    """Keep credentials for `registry`, or one `namespace` of it; return the file or program that has them.

    A file that names a helper has that keep the secret, and itself only that there is one, as docker does.
    Raises UsageError for a file that cannot be understood or written, and for a namespace that is a helper's;
    Unauthorized for a helper that fails.
    """
    helper = _helper_for(_there(path), path, registry)
    if helper:
        _check_whole(namespace, helper, path)
        store_with_helper(helper.name, helper.server, HelperSecret(credentials.username, credentials.secret))
    entry = {} if helper else _entry(credentials)

    def change(fields: dict[str, object]) -> bool:
        auths = fields["auths"] = _object(fields, "auths", path)
        for key in _same_keys(auths, registry, namespace):
            del auths[key]
        auths[_written_key(path, registry, namespace)] = entry
        return True

    change_auth_file(path, change)
    return program_of(helper.name) if helper else str(path)


def kept_credentials(path: Path, registry: str, namespace: str) -> Credentials | None:
    """Return what a file itself has under just that name. Raises UsageError as `keep_credentials`."""
    auths = _object(_there(path), "auths", path)
    found = (_decode_auth(auths[key], f"{path}: {key!r}") for key in _same_keys(auths, registry, namespace))
    return next(filter(None, found), None)


def forget_credentials(path: Path, registry: str, namespace: str = "") -> bool:
    """Remove credentials that imgfs, docker or podman kept under that name; return True if there were any.

    Raises what `keep_credentials` does. A file that is not there is not made.
    """
    fields = _there(path)
    helper = None if namespace else _helper_for(fields, path, registry)
    cleared = helper is not None and erase_from_helper(helper.name, helper.server)

    def change(fields: dict[str, object]) -> bool:
        auths = _object(fields, "auths", path)
        found = _same_keys(auths, registry, namespace)
        for key in found:
            del auths[key]
        return bool(found)

    listed = _same_keys(_object(fields, "auths", path), registry, namespace)
    return (bool(listed) and change_auth_file(path, change)) or cleared


def _there(path: Path) -> dict[str, object]:
    """Return the fields of a file; {} if there is none yet, or an empty one, as mktemp makes it."""
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            return {}
    return read_auth_file(path) or {}


def _credentials_in(
    fields: Mapping[str, object], path: Path, registry: str, repository: str, seconds: float
) -> Credentials | None:
    helper = _helper_for(fields, path, registry)
    if helper:
        found = _from_helper(helper, seconds)
        if found or helper.alone:
            return found
    return _in_auths(fields, str(path), registry, repository)


def _in_auths(fields: Mapping[str, object], where: str, registry: str, repository: str) -> Credentials | None:
    """Return the credentials that a file has in `auths`; raises UsageError."""
    auths = _object(fields, "auths", where)
    for key in _keys(registry, repository):
        for spelled in [key, *(other for other in auths if other != key and _host_of(other) == key)]:
            found = _decode_auth(auths.get(spelled), f"{where}: auths[{spelled!r}]")
            if found:
                return found
    return None


def _helper_for(fields: Mapping[str, object], path: Path, registry: str) -> _Helper | None:
    """Return the helper that a file has for a registry: its own, or the one for all."""
    helpers = _object(fields, "credHelpers", path)
    for key in _host_keys(registry):
        if key in helpers:  # one without a name says: the file itself, whatever is there for all
            return _Helper(helpers[key], key, alone=True) if helpers[key] else None
    store = fields.get("credsStore")
    return _Helper(store, _HUB_KEY if registry == DOCKER_HUB else registry, alone=False) if store else None


def _check_whole(namespace: str, helper: _Helper, path: Path) -> None:
    if namespace:
        raise UsageError(
            f"{path}: {program_of(helper.name)} keeps credentials of registries, not of {namespace!r} in one"
        )


def _from_helper(helper: _Helper, seconds: float) -> Credentials | None:
    kept = ask_helper(helper.name, helper.server, seconds)
    return Credentials(kept.username, kept.secret, kept.username == IDENTITY_USER) if kept else None


def _object(fields: Mapping[str, object], name: str, path: Path | str) -> dict[str, object]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {name}: expected an object")
    return value


def _host_keys(registry: str) -> tuple[str, ...]:
    return (registry, *_HUB_NAMES) if registry == DOCKER_HUB else (registry,)


def _keys(registry: str, repository: str) -> Iterator[str]:
    """Yield the keys that apply, the most specific first."""
    parts = [registry, *repository.split("/")]
    for length in range(len(parts), 1, -1):
        yield "/".join(parts[:length])
    yield from _host_keys(registry)


def _written_key(path: Path, registry: str, namespace: str) -> str:
    """Return the key under which docker and podman look in a file of theirs."""
    if namespace:
        return f"{registry}/{namespace}"
    return _HUB_KEY if registry == DOCKER_HUB and path.name == _DOCKERS else registry


def _same_keys(auths: Mapping[str, object], registry: str, namespace: str) -> list[str]:
    """Return the keys of a file that mean a registry, in every spelling, or one namespace of it."""
    if namespace:
        return [key for key in auths if key == f"{registry}/{namespace}"]
    names = _host_keys(registry)
    return [key for key in auths if key in names or _host_of(key) in names]


def _host_of(key: str) -> str | None:
    """Return the host that a key means as a whole, such as `https://host/v1/` (docker, `ConvertToHostname`).

    With a scheme that is so whatever follows; without, `host/ns` is a namespace of podman's, unless it is the
    API's root.
    """
    before, mark, after = key.partition("://")
    host, _, path = (after if mark else before).partition("/")
    return host or None if mark or path.strip("/") in _ROOTS else None


def _entry(credentials: Credentials) -> dict[str, str]:
    """Return what is written of credentials into `auths`."""
    password = credentials.secret if credentials.is_password else ""
    pair = base64.b64encode(f"{credentials.username}:{password}".encode("utf-8", BYTES)).decode()
    kind = "registrytoken" if credentials.registry_token else "identitytoken"
    return {"auth": pair, **({} if credentials.is_password else {kind: credentials.secret})}


def _decode_auth(entry: object, where: str) -> Credentials | None:
    """Return an entry of `auths`; None if it is empty, as docker leaves it for what a helper keeps."""
    if not isinstance(entry, dict):
        return None
    username, secret = _text(entry, "username"), _text(entry, "password")
    if _text(entry, "auth"):
        username, secret = _decode_pair(_text(entry, "auth"), where)
    if _text(entry, "registrytoken"):  # before all else, as in docker's engine
        return Credentials(username, _text(entry, "registrytoken"), registry_token=True)
    if _text(entry, "identitytoken"):
        return Credentials(username, _text(entry, "identitytoken"), identity_token=True)
    return Credentials(username, secret) if username and secret else None


def _decode_pair(encoded: str, where: str) -> tuple[str, str]:
    try:
        # line breaks are ignored, as Go does it: `base64` breaks its lines
        text = base64.b64decode(re.sub(r"[\r\n]", "", encoded.strip()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{where}: `auth` is not base64 of user:password") from error
    username, _, secret = text.decode("utf-8", BYTES).partition(":")
    return username, secret.strip("\0")  # older dockers padded with NUL


def _text(entry: Mapping[str, object], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""

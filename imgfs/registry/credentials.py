"""Credentials as docker and podman keep them (docker `config.json`; containers-auth.json(5)).

A file may hold secrets itself (`auths`), or name programs that do: `credHelpers` for one registry,
`credsStore` for all (docker-credential-helpers).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imgfs.errors import Unauthorized, UsageError
from imgfs.oci.reference import DOCKER_HUB

_HUB_KEY = "https://index.docker.io/v1/"  # what `docker login` writes for Docker Hub
_HUB_NAMES = (_HUB_KEY, "index.docker.io", "registry-1.docker.io")
_IDENTITY_USER = "<token>"  # a helper's user name that says: the secret is an identity token
_HELPER_NAME = re.compile(r"[A-Za-z0-9._-]+")
_HELPER_TIMEOUT = 30.0  # seconds; some ask a cloud's token service
_NOT_FOUND = "credentials not found"  # every helper's words (credentials/error.go)
_MAX_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password, or (`identity_token`) a secret to be traded for access tokens."""

    username: str
    secret: str = field(repr=False)
    identity_token: bool = False


def find_credentials(files: Iterable[Path], registry: str, repository: str) -> Credentials | None:
    """What the first of `files` that knows the registry says; None: be anonymous.

    The most specific key wins (`host/ns/repo`, `host/ns`, `host`). Raises UsageError for a file that cannot
    be understood and Unauthorized, naming it, for a helper that fails.
    """
    for path in files:
        fields = _read_auth_file(path)
        found = fields and _credentials_in(fields, path, registry, repository)
        if found:
            return found
    return None


def _read_auth_file(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(_MAX_FILE).decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(f"{path}: cannot read credentials: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a credentials file: {error}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: not a credentials file: expected a JSON object")
    return fields


def _credentials_in(
    fields: Mapping[str, Any], path: Path, registry: str, repository: str
) -> Credentials | None:
    helpers = _object(fields, "credHelpers", path)
    for key in _host_keys(registry):
        if key in helpers:
            return _ask_helper(helpers[key], key)
    if fields.get("credsStore"):
        server = _HUB_KEY if registry == DOCKER_HUB else registry
        found = _ask_helper(fields["credsStore"], server)
        if found:
            return found
    auths = _by_key(_object(fields, "auths", path))
    for key in _keys(registry, repository):
        found = _decode_auth(auths.get(key), f"{path}: auths[{key!r}]")
        if found:
            return found
    return None


def _object(fields: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {name}: expected an object")
    return value


def _host_keys(registry: str) -> tuple[str, ...]:
    return (registry, *_HUB_NAMES) if registry == DOCKER_HUB else (registry,)


def _keys(registry: str, repository: str) -> Iterator[str]:
    """The keys that apply, the most specific first."""
    parts = [registry, *repository.split("/")]
    for length in range(len(parts), 1, -1):
        yield "/".join(parts[:length])
    yield from _host_keys(registry)


def _by_key(auths: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, those under an old key such as `https://host/v1/` also under their host."""
    hosts = {key.split("://", 1)[1].split("/")[0]: value for key, value in auths.items() if "://" in key}
    return {**hosts, **auths}


def _decode_auth(entry: object, where: str) -> Credentials | None:
    """An entry of `auths`; None if it is empty, as docker leaves it for what a helper keeps."""
    if not isinstance(entry, dict):
        return None
    username, secret = _text(entry, "username"), _text(entry, "password")
    if _text(entry, "auth"):
        username, secret = _decode_pair(_text(entry, "auth"), where)
    if _text(entry, "identitytoken"):
        return Credentials(username, _text(entry, "identitytoken"), identity_token=True)
    return Credentials(username, secret) if username and secret else None


def _decode_pair(encoded: str, where: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{where}: `auth` is not base64 of user:password") from error
    username, _, secret = text.partition(":")
    return username, secret.rstrip("\0")  # older dockers padded with NUL


def _text(entry: Mapping[str, Any], name: str) -> str:
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _ask_helper(name: object, server: str) -> Credentials | None:
    """Run `docker-credential-NAME get`; None if it has nothing for `server`."""
    if not isinstance(name, str) or not _HELPER_NAME.fullmatch(name):
        raise UsageError(f"{name!r:.60} is not the name of a credential helper")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_HELPER_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unauthorized(f"{program}: no answer within {_HELPER_TIMEOUT:.0f} s for {server}") from error
    except OSError as error:
        raise Unauthorized(f"{program}: cannot be run: {error.strerror}") from error
    if done.returncode == 0:
        return _helper_answer(done.stdout, program)
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if _NOT_FOUND in said:
        return None
    raise Unauthorized(f"{program} failed for {server}: {said[:200]!r} (exit code {done.returncode})")


def _helper_answer(output: bytes, program: str) -> Credentials | None:
    try:
        answer = json.loads(output.decode())
    except (ValueError, RecursionError) as error:
        raise Unauthorized(f"{program}: its answer is not JSON") from error
    if not isinstance(answer, dict):
        raise Unauthorized(f"{program}: its answer is not a JSON object")
    username, secret = _text(answer, "Username"), _text(answer, "Secret")
    return Credentials(username, secret, username == _IDENTITY_USER) if secret else None

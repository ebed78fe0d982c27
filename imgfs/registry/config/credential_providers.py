"""Programs of a cluster's node that hand out credentials: kubelet's credential provider plugins.

Clouds hand out passwords for some hours by them. CredentialProviderConfig (kubelet-config.v1) says which
program is asked for which images; a program gets a CredentialProviderRequest on standard input and answers
with a CredentialProviderResponse (kubelet-credentialprovider.v1). kubelet keeps answers for as long as they
say; here a program is asked whenever a registry wants credentials, which is once for each token, so that what
has been changed or has run out is not sent again.

A program that fails has no credentials: other sources are asked, and its failure is said if they have none.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from imgfs.config import CredentialProviders
from imgfs.errors import Unauthorized, UsageError
from imgfs.oci.fields import words_of_json
from imgfs.oci.reference import DOCKER_HUB
from imgfs.oci.yaml import parse_yaml
from imgfs.owned.opening import open_regular
from imgfs.registry.config.credential_stores import ask_for_credentials
from imgfs.variables import variables

_MAX_FILE = 4 << 20
_MAX_ANSWER = 1 << 20
_CONFIG_GROUP = "kubelet.config.k8s.io/"
_API = "credentialprovider.kubelet.k8s.io/v1"
_OLDER = (f"{_API}beta1", f"{_API}alpha1")  # of the same form
_CACHE_KEYS = ("Image", "Registry", "Global")  # another one makes kubelet leave an answer out
_HUB_HOSTS = (DOCKER_HUB, "index.docker.io")
_SUFFIXES = (".json", ".yaml", ".yml")


class ProvidedSecret(NamedTuple):
    """A user name and a password that a program has handed out."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"ProvidedSecret({self.username!r})"


class _Provider(NamedTuple):
    """A program, and the images that it is asked for."""

    name: str
    images: tuple[str, ...]
    api: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]


def ask_providers(
    source: CredentialProviders, registry: str, repository: str, seconds: float
) -> ProvidedSecret | None:
    """Return what the first program that has some hands out for a repository; None if no program has any.

    Raises UsageError for a configuration that cannot be understood, Unauthorized if none has any and one has
    failed, or said nothing for so many `seconds`.
    """
    failure: Unauthorized | None = None
    for provider in _providers(source):
        if not any(is_match(pattern, registry, repository) for pattern in provider.images):
            continue
        try:
            auth = _ask(provider, source.directory, f"{registry}/{repository}", seconds)
            if found := _chosen(auth, registry, repository, provider.name):
                return found
        except Unauthorized as error:
            failure = failure or error
    if failure:
        raise failure
    return None


def is_match(pattern: str, registry: str, repository: str) -> bool:
    """Return True if an image matches a pattern of `matchImages`, or a key of an answer's `auth`.

    Parts of the host may be globs, each for one part; a port is that of the image, or there is none in both;
    the path is a beginning of the image's.
    """
    glob, slash, path = pattern.removeprefix("https://").removeprefix("http://").partition("/")
    hosts = _HUB_HOSTS if registry == DOCKER_HUB else (registry,)
    is_hub = registry == DOCKER_HUB and slash + path in ("/v1/", "/v1", "/v2/", "/v2")  # as docker writes it
    if not is_hub and not f"/{repository}".startswith(slash + path):
        return False
    return any(_is_host(glob, host) for host in hosts)


def _is_host(glob: str, host: str) -> bool:
    glob, _, port = glob.partition(":")
    host, _, actual = host.partition(":")
    parts, names = glob.split("."), host.split(".")
    same = port == actual and len(parts) == len(names)
    return same and all(map(fnmatch.fnmatchcase, names, parts))


# -- the configuration ---------------------------------------------------------------------------------------


def _providers(source: CredentialProviders) -> list[_Provider]:
    """Read the configuration: a file, or all of a directory in the order of their names."""
    path = source.config
    try:
        is_directory = path.is_dir()
        files = sorted(one for one in path.iterdir() if one.suffix in _SUFFIXES) if is_directory else [path]
        found = [provider for file in files for provider in _read(file)]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    names = [provider.name for provider in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: two providers are called {name!r:.60}")
    return found


def _read(path: Path) -> Iterator[_Provider]:
    with open_regular(path) as file:
        body = file.read(_MAX_FILE)
    try:
        document = parse_yaml(body)  # of which JSON is a part
    except (ValueError, RecursionError) as error:
        text = str(error) if isinstance(error, ValueError) else words_of_json(error)
        raise UsageError(f"{path}: {text}") from error
    fields = _mapping(document, f"{path}")
    api = fields.get("apiVersion")
    if fields.get("kind") != "CredentialProviderConfig" or not str(api).startswith(_CONFIG_GROUP):
        raise UsageError(f"{path}: not a CredentialProviderConfig of {_CONFIG_GROUP}v1")
    listed = fields.get("providers")
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{path}: providers: expected a list")
    for number, one in enumerate(listed):
        yield _provider(_mapping(one, f"{path}: providers[{number}]"), f"{path}: providers[{number}]")


def _provider(fields: Mapping[str, object], where: str) -> _Provider:
    name, api = fields.get("name"), fields.get("apiVersion")
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or " " in name or "\0" in name:
        raise UsageError(f"{where}.name: {name!r:.60} is not the name of a program")
    if not isinstance(api, str) or api not in (_API, *_OLDER):
        raise UsageError(f"{where}.apiVersion: {api!r:.60} is not {_API}")
    if fields.get("tokenAttributes"):
        raise UsageError(f"{where}.tokenAttributes: only kubelet has tokens of service accounts")
    images = _texts(fields.get("matchImages"), f"{where}.matchImages")
    if not images:
        raise UsageError(f"{where}.matchImages: expected a list")
    given: dict[str, str] = {}
    for pair in _list(fields.get("env"), f"{where}.env"):
        known = _mapping(pair, f"{where}.env")
        name_and_value = _texts([known.get("name"), known.get("value", "")], f"{where}.env")
        given[name_and_value[0]] = name_and_value[1]
    return _Provider(name, images, api, _texts(fields.get("args"), f"{where}.args"), given)


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected an object")
    return value


def _list(value: object, where: str) -> list[object]:
    if value is not None and not isinstance(value, list):
        raise UsageError(f"{where}: expected a list")
    return value or []


def _texts(value: object, where: str) -> tuple[str, ...]:
    texts = _list(value, where)
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise UsageError(f"{where}: expected texts")
    return tuple(map(str, texts))


# -- an answer -----------------------------------------------------------------------------------------------


def _ask(provider: _Provider, directory: Path, image: str, seconds: float) -> Mapping[str, object]:
    """Ask a program; return the `auth` of its answer. Raises Unauthorized."""
    program = directory / provider.name
    request = {"kind": "CredentialProviderRequest", "apiVersion": provider.api, "image": image}
    output = ask_for_credentials(
        [str(program), *provider.arguments],
        json.dumps(request),
        seconds=seconds,
        limit=_MAX_ANSWER,
        environment={**variables(), **provider.variables},
    )
    if output.code:  # what it says may have a secret in it
        raise Unauthorized(f"{program} failed for {image} (exit code {output.code})")
    return _auth_of(output.out, program, provider.api)


def _auth_of(body: bytes, program: Path, api: str) -> Mapping[str, object]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unauthorized(f"{program}: its answer is not JSON") from error
    if not isinstance(fields, dict) or fields.get("kind") != "CredentialProviderResponse":
        raise Unauthorized(f"{program}: its answer is no CredentialProviderResponse")
    if fields.get("apiVersion") != api:
        raise Unauthorized(f"{program}: its answer is not of {api}")
    if fields.get("cacheKeyType") not in _CACHE_KEYS:
        raise Unauthorized(f"{program}: the cacheKeyType of its answer is none of {', '.join(_CACHE_KEYS)}")
    auth = {} if fields.get("auth") is None else fields["auth"]
    if not isinstance(auth, dict):
        raise Unauthorized(f"{program}: the auth of its answer is not an object")
    return auth


def _chosen(auth: Mapping[str, object], registry: str, repository: str, name: str) -> ProvidedSecret | None:
    """Return the credentials with the key that says most: the last of those that match, as kubelet sorts."""
    for key in sorted(auth, reverse=True):
        if not is_match(key, registry, repository):
            continue
        entry = auth[key]
        username, password = (
            (entry.get("username"), entry.get("password")) if isinstance(entry, dict) else (0, 0)
        )
        if not isinstance(username, str) or not isinstance(password, str):
            raise Unauthorized(f"{name}: the auth of its answer has no username and password for {key!r:.60}")
        return ProvidedSecret(username, password)
    return None

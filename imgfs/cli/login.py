"""imgfs login, logout."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import sys
from pathlib import Path
from typing import NamedTuple

from imgfs.cli.images import places_of, timeouts_of
from imgfs.cli.output import ask, complain, say
from imgfs.config import Environment
from imgfs.errors import ImgfsError, UsageError
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.registry.config.credentials import (
    IDENTITY_USER,
    Credentials,
    find_credentials,
    forget_credentials,
    keep_credentials,
)
from imgfs.registry.login import check_login

_MAX_PASSWORD = 8 << 10  # bytes; tokens of clouds have some kilobytes


class _Place(NamedTuple):
    """What somebody logs in to: a registry, or a namespace of it."""

    registry: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.namespace}" if self.namespace else self.registry


def login(options: argparse.Namespace) -> int:
    """Check credentials and keep them."""
    environment = Environment.read()
    place = _parse_place(options.registry)
    path = _file(options, environment)
    credentials = _ask(options, place)
    endpoint = places_of(options, environment).for_push(place.registry, place.namespace or "x")
    wanted = check_login(
        endpoint,
        credentials,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
    )
    keeper = keep_credentials(path, place.registry, place.namespace, credentials)
    if not wanted:
        _note(f"{place.registry} lets everybody look at it: the password has not been checked")
    say(f"logged in to {place} as {credentials.username}, kept by {keeper}")
    return 0


def logout(options: argparse.Namespace) -> int:
    """Forget credentials."""
    environment = Environment.read()
    place = _parse_place(options.registry)
    files = environment.auth_files if options.all else (_file(options, environment),)
    removed = [path for path in files if forget_credentials(path, place.registry, place.namespace)]
    others = [path for path in environment.auth_files if path not in files and _knows(path, place)]
    hint = f"{', '.join(map(str, others))} still has credentials for it (--all)" if others else ""
    if not removed:
        where = ", ".join(map(str, files))
        raise ImgfsError(f"not logged in to {place}: nothing in {where}" + (f"; {hint}" if hint else ""))
    if hint:
        _note(hint)
    say(f"logged out of {place}: removed from {', '.join(map(str, removed))}")
    return 0


def _file(options: argparse.Namespace, environment: Environment) -> Path:
    """The file to change: podman's first one, unless the options say otherwise."""
    if options.authfile:
        return Path(options.authfile).absolute()
    return environment.auth_files[-1 if options.docker else 0]


def _parse_place(text: str) -> _Place:
    """Read HOST[:PORT][/NAMESPACE], perhaps after a scheme or with the API's root, and Docker Hub by all its
    names; what is said of TLS is the command's options'."""
    named = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, namespace = named.partition("/")
    if namespace in ("v1", "v2"):
        namespace = ""
    if host == "index.docker.io":
        host, namespace = "docker.io", namespace.removeprefix("v1").removeprefix("/")
    if not (host == "localhost" or set(".:") & set(host)):
        raise UsageError(f"{text!r} is no registry's name: it has no dot, no port and is not localhost")
    whole = f"{host}/{namespace}/x" if namespace else f"{host}/x"
    reference = parse_reference(whole)
    if not isinstance(reference, RegistryReference):
        raise UsageError(f"{text!r} is no registry's name, such as quay.io or quay.io/team")
    return _Place(reference.registry, namespace)


def _ask(options: argparse.Namespace, place: _Place) -> Credentials:
    """User name and password, from where the options say or the terminal."""
    if options.password_stdin and not options.username:
        raise UsageError("--password-stdin needs --username")
    if not options.password_stdin and not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask at: use --username and --password-stdin")
    username = options.username or _username(place)
    if ":" in username:
        raise UsageError("a user name has no colon (RFC 7617, 2)")
    password = _password_given() if options.password_stdin else getpass.getpass("Password: ")
    if not username or not password:
        raise UsageError("user name and password must not be empty")
    return Credentials(username, password, identity_token=username == IDENTITY_USER)


def _username(place: _Place) -> str:
    ask(f"User name for {place}: ")
    return sys.stdin.readline().strip()


def _password_given() -> str:
    """What standard input says, without the end of its line."""
    given = sys.stdin.buffer.read(_MAX_PASSWORD + 1)
    if len(given) > _MAX_PASSWORD:
        raise UsageError(f"the password has more than {_MAX_PASSWORD} bytes")
    try:
        text = given.decode()
    except ValueError as error:
        raise UsageError("the password is not UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r")


def _knows(path: Path, place: _Place) -> bool:
    """Whether a file would still let somebody in."""
    with contextlib.suppress(ImgfsError):
        return find_credentials([path], place.registry, place.namespace or "x") is not None
    return False


def _note(text: str) -> None:
    complain(text)

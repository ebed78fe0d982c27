"""imgfs login, logout: keep and forget a registry's user name and password."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.options import Commands, add_command, connection_options
from imgfs.cli.output import ask, complain, say
from imgfs.errors import ImgfsError, UsageError

if TYPE_CHECKING:
    from imgfs.config import Environment
    from imgfs.registry.config.credentials import Credentials

_MAX_PASSWORD = 8 << 10  # bytes; tokens of clouds have some kilobytes


def add_login(commands: Commands) -> None:
    """`imgfs login`."""
    command = add_command(
        commands,
        "login",
        login,
        "keep a user name and password for a registry",
        """\
Checks a user name and password against a registry and keeps them where podman, skopeo and imgfs look: in
$REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json (for root without a session: in /run/containers/0),
which goes when the machine is restarted, or ~/.config/containers/auth.json. A file that names a credential
helper (credsStore, credHelpers) has that keep the password. It is read from the terminal or from standard
input, never from an argument, which ps would show to every user. Credentials
kept by docker login and podman login are used as well.

Examples:
  imgfs login registry.example.com
  imgfs login -u ann --password-stdin registry.example.com < token
  imgfs login -u ann registry.example.com/team     for that namespace only
  imgfs login --docker docker.io                   where docker looks: ~/.docker/config.json
  imgfs login -u '<token>' --password-stdin reg.io  an identity token, traded for access tokens
""",
    )
    command.add_argument("--username", "-u", metavar="USER", help="asked for on the terminal otherwise")
    command.add_argument(
        "--password-stdin", action="store_true", help="read the password from standard input, one line"
    )
    command.add_argument("--password", "-p", type=_refused, help=argparse.SUPPRESS)
    _scope_options(command)
    connection_options(command, peers=False)


def _refused(_: str) -> str:
    """Refuse a password, and do not repeat it."""
    raise argparse.ArgumentTypeError("every user can read it there, by ps: use --password-stdin")


def add_logout(commands: Commands) -> None:
    """`imgfs logout`."""
    command = add_command(
        commands,
        "logout",
        logout,
        "forget what is kept for a registry",
        """\
Removes what imgfs login keeps for a registry, from the same file or helper.

Examples:
  imgfs logout registry.example.com
  imgfs logout registry.example.com/team
  imgfs logout --all registry.example.com          from every file that is looked in, docker's too
""",
    )
    command.add_argument("--all", action="store_true", help="from all files that imgfs looks in")
    _scope_options(command)


def _scope_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("registry", metavar="REGISTRY[/NAMESPACE]")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--authfile", metavar="FILE", help="the file to keep it in")
    where.add_argument(
        "--docker", action="store_true", help="in docker's file: $DOCKER_CONFIG/config.json or ~/.docker"
    )


class _Scope(NamedTuple):
    """A registry, or a namespace of it, that credentials are for."""

    registry: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.registry}/{self.namespace}" if self.namespace else self.registry


def login(options: argparse.Namespace) -> int:
    """Check credentials and keep them."""
    from imgfs.cli.connection import options_for, resolver_of, timeouts_of
    from imgfs.config import Environment
    from imgfs.registry.client import check_login
    from imgfs.registry.config.credentials import keep_credentials

    environment = Environment.read()
    scope = parse_scope(options.registry)
    path = _file(options, environment)
    credentials = _ask(options, scope)
    options = options_for(options, scope.registry)
    endpoint = resolver_of(options, environment).for_push(scope.registry, scope.namespace or "x")
    wanted = check_login(
        endpoint,
        credentials,
        timeouts=timeouts_of(options.read_timeout),
        ca_bundle=environment.ca_bundle,
    )
    keeper = keep_credentials(path, scope.registry, scope.namespace, credentials)
    if not wanted:
        _note(f"{scope.registry} needs no credentials for reading: the password has not been checked")
    say(f"logged in to {scope} as {credentials.username}, kept by {keeper}")
    return 0


def logout(options: argparse.Namespace) -> int:
    """Forget credentials."""
    from imgfs.config import Environment
    from imgfs.registry.config.credentials import forget_credentials

    environment = Environment.read()
    scope = parse_scope(options.registry)
    files = environment.auth_files if options.all else (_file(options, environment),)
    removed = [path for path in files if forget_credentials(path, scope.registry, scope.namespace)]
    others = [path for path in environment.auth_files if path not in files and _knows(path, scope)]
    hint = f"{', '.join(map(str, others))} still has credentials for it (--all)" if others else ""
    if not removed:
        where = ", ".join(map(str, files))
        raise ImgfsError(f"not logged in to {scope}: nothing in {where}" + (f"; {hint}" if hint else ""))
    if hint:
        _note(hint)
    say(f"logged out of {scope}: removed from {', '.join(map(str, removed))}")
    return 0


def _file(options: argparse.Namespace, environment: Environment) -> Path:
    """Return the file to change: podman's first one, unless the options say otherwise."""
    if options.authfile:
        return Path(options.authfile).absolute()
    return environment.auth_files[-1 if options.docker else 0]


def parse_scope(text: str) -> _Scope:
    """Read HOST[:PORT][/NAMESPACE], perhaps after a scheme or with the API's root, and Docker Hub by all its
    names; what is said of TLS is the command's options'."""
    from imgfs.oci.reference import RegistryReference, parse_reference

    named = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    host, _, namespace = named.partition("/")
    if namespace in ("v1", "v2"):
        namespace = ""
    if host == "index.docker.io":
        host, namespace = "docker.io", namespace.removeprefix("v1").removeprefix("/")
    if not (host == "localhost" or set(".:") & set(host)):
        raise UsageError(
            f"{text!r} is not the name of a registry: it has no dot, no port and is not localhost"
        )
    refusal = UsageError(f"{text!r} is not the name of a registry, such as quay.io or quay.io/team")
    try:
        reference = parse_reference(f"{host}/{namespace}/x" if namespace else f"{host}/x")
    except UsageError as error:
        raise refusal from error
    if not isinstance(reference, RegistryReference):
        raise refusal
    return _Scope(reference.registry, namespace)


def _ask(options: argparse.Namespace, scope: _Scope) -> Credentials:
    """User name and password, from where the options say or the terminal."""
    import getpass

    from imgfs.registry.config.credentials import IDENTITY_USER, Credentials

    if options.password_stdin and not options.username:
        raise UsageError("--password-stdin needs --username")
    if not options.password_stdin and not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask at: use --username and --password-stdin")
    username = options.username or _username(scope)
    if ":" in username:
        raise UsageError("a user name has no colon (RFC 7617, 2)")
    password = _read_password() if options.password_stdin else getpass.getpass("Password: ")
    if not username or not password:
        raise UsageError("user name and password must not be empty")
    return Credentials(username, password, identity_token=username == IDENTITY_USER)


def _username(scope: _Scope) -> str:
    ask(f"User name for {scope}: ")
    return sys.stdin.readline().strip()


def _read_password() -> str:
    """Return what standard input says, without the end of its line."""
    given = sys.stdin.buffer.read(_MAX_PASSWORD + 1)
    if len(given) > _MAX_PASSWORD:
        raise UsageError(f"the password has more than {_MAX_PASSWORD} bytes")
    try:
        text = given.decode()
    except ValueError as error:
        raise UsageError("the password is not UTF-8") from error
    return text.removesuffix("\n").removesuffix("\r")


def _knows(path: Path, scope: _Scope) -> bool:
    """Return True if a file has credentials for the scope."""
    from imgfs.registry.config.credentials import find_credentials

    with contextlib.suppress(ImgfsError):
        return find_credentials([path], scope.registry, scope.namespace or "x") is not None
    return False


def _note(text: str) -> None:
    complain(text)

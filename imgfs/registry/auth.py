"""Token authentication without I/O (distribution's `spec/auth/token.md`, `oauth.md` and `scope.md`).

`Authorizer.authorize` and `.challenged` are generators: they yield the requests to a token server and are
sent the replies, or thrown the ImgfsError if there is none; their value is the Authorization header, or
None. The caller does the I/O (`authenticator`), and a test drives them with three values. What a registry
challenges with is read by `parse_challenges` (RFC 9110, 11.6.1).
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

from imgfs.errors import ImgfsError, RegistryError, Unauthorized, Unavailable
from imgfs.quoting import printable
from imgfs.registry.config.credentials import BYTES, Credentials
from imgfs.registry.ssrf import check_realm
from imgfs.registry.urls import parse_url

_CLIENT_ID = "imgfs"
_DEFAULT_LIFETIME = 60.0  # seconds, if a token does not say (token.md, `expires_in`)
_LONGEST_LIFETIME = 1e9
_MARGIN = 0.8  # of its lifetime after which a token is renewed: clocks and requests take time
_FRESH = 1.0  # seconds for which a token that another request fetched is as good as a new one
_SLOW = 1.0  # seconds: a helper or token server that takes so long to fail
_PAUSE = 2.0  # is not asked again for so long, lest each of many that wait in line waits for it anew
_NO_POST = (401, 404, 405)  # token servers without OAuth2 say one of these (GCR, Artifactory)
_BEARER = re.compile(r"[!-~]+")  # what may stand in a header
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')  # RFC 9110, 11.2
_SCHEME = re.compile(_TOKEN)


class TokenRequest(NamedTuple):
    """A request to a token server. `form` is the body of a POST."""

    method: str
    url: str
    headers: Mapping[str, str]
    form: str | None = None

    def __repr__(self) -> str:
        return f"TokenRequest({self.method} {parse_url(self.url).host})"  # the rest is secret


class TokenReply(NamedTuple):
    """A token server's answer."""

    status: int
    body: bytes

    def __repr__(self) -> str:
        return f"TokenReply({self.status})"  # the rest is secret


class _Token(NamedTuple):
    header: str
    asked: float
    expires: float


Flow = Generator[TokenRequest, TokenReply, str | None]


class _Grant(NamedTuple):
    """What a Bearer challenge asks for: the key of a token."""

    realm: str
    service: str
    scope: str

    def widened(self, scope: str) -> _Grant:
        """Return the same grant for `scope` as well; as it is if there is nothing to add."""
        return self._replace(scope=join_scopes(self.scope, scope)) if scope else self


class KnownAuth(NamedTuple):
    """What a registry is known to want, for another process on this machine: secret, and kept nowhere.

    `number` is the address that the registry has been reached at, `elsewhere` the origin, as a URL, that its
    redirects led to.
    """

    grant: _Grant | None
    basic: str | None
    tokens: Mapping[_Grant, _Token]
    number: str | None
    elsewhere: str | None = None

    def __repr__(self) -> str:
        return "KnownAuth()"  # all of it is secret


class Authorizer:
    """The tokens of one registry. Not safe in threads: the caller holds a lock.

    `credentials` is asked whenever a token is needed, so that a helper's short-lived secrets stay fresh.
    `secure` says that the registry is reached over TLS, `registry` at which host, and `number` at which
    address that is: they decide which token servers get secrets (`ssrf`). Without a `registry`
    the token server may be anywhere.
    A `scope` given with a request is asked for on top of what the registry's challenge names.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials | None],
        *,
        default_scope: str,
        secure: bool,
        registry: str = "",
        number: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._default_scope = default_scope
        self._secure = secure
        self._registry = registry
        self._number = number
        self._clock = clock
        self._tokens: dict[_Grant, _Token] = {}
        self._grant: _Grant | None = None  # what the registry asked for last
        self._basic: str | None = None
        self._failure: tuple[ImgfsError, float] | None = None  # and until when it stands

    @property
    def known(self) -> KnownAuth:
        """What has been learned so far."""
        return KnownAuth(self._grant, self._basic, dict(self._tokens), self._number())

    def learn(self, known: KnownAuth) -> None:
        """Begin with what another process has learned of the same registry; clocks must be the same, too."""
        self._grant, self._basic, self._tokens = known.grant, known.basic, dict(known.tokens)

    def authorize(self, scope: str = "") -> Flow:
        """Before a request: the header that the registry is known to want, renewed if it has expired."""
        if self._grant is None:
            return self._basic
        return (yield from self._bearer(self._grant.widened(scope)))

    def challenged(self, challenges: Iterable[Challenge], refused: str | None, scope: str = "") -> Flow:
        """After a 401 or 403 to a request with the header `refused`: another header, None if there is none.

        A 403 without challenges means: the token may have expired (Amazon ECR); what worked is renewed.
        """
        offered = {challenge.scheme: challenge.parameters for challenge in reversed(list(challenges))}
        grant = self._grant
        if "bearer" in offered:
            grant = self._read_grant(offered["bearer"])
        elif "basic" in offered:
            grant = None
        elif refused is None:
            return None
        if grant is None:
            self._grant = None
            self._basic = self._basic_header()
            return self._basic if self._basic != refused else None
        token = self._tokens.get(grant.widened(scope))
        if token and refused and (token.header == refused or self._clock() - token.asked > _FRESH):
            del self._tokens[grant.widened(scope)]
        header = yield from self._bearer(grant.widened(scope))
        self._grant = grant  # now only: a mount's scope that the token server refuses must not stay
        return header if header != refused else None

    def _read_grant(self, parameters: Mapping[str, str]) -> _Grant:
        text = parameters.get("realm", "")
        realm = check_realm(text, registry=self._registry, secure=self._secure, number=self._number())
        return _Grant(
            realm, parameters.get("service", ""), parameters.get("scope", "").strip() or self._default_scope
        )

    def _basic_header(self) -> str | None:
        with self._in_line():
            credentials = self._credentials()
        return _basic(credentials) if credentials and credentials.is_password else None

    def _bearer(self, grant: _Grant) -> Flow:
        token = self._tokens.get(grant)
        if token is None or self._clock() >= token.expires:
            with self._in_line() as now:
                text, lifetime = yield from _fetch_token(grant, self._credentials())
            token = _Token(f"Bearer {text}", now, now + lifetime * _MARGIN)
            self._tokens = {key: old for key, old in self._tokens.items() if old.expires > now}
            self._tokens[grant] = token
        return token.header

    @contextmanager
    def _in_line(self) -> Iterator[float]:
        """Raise a slow failure again at once for the requests that waited for it, instead of repeating it."""
        now = self._clock()
        if self._failure and now < self._failure[1]:
            raise self._failure[0].with_traceback(None)
        try:
            yield now
        except ImgfsError as error:
            if self._clock() - now > _SLOW:
                self._failure = error, self._clock() + _PAUSE
            raise


def _fetch_token(
    grant: _Grant, credentials: Credentials | None
) -> Generator[TokenRequest, TokenReply, tuple[str, float]]:
    """Ask for a token: the token and its lifetime in seconds. Some already have it."""
    if credentials and credentials.registry_token:
        return _read_kept(credentials.secret), _DEFAULT_LIFETIME
    if credentials and credentials.identity_token:
        reply = yield _post_request(grant, credentials)
        if reply.status in _NO_POST:
            reply = yield _get_request(grant, credentials)
    else:
        reply = yield _get_request(grant, credentials)
    return _read_token(reply, grant, credentials)


def _read_kept(token: str) -> str:
    if not _BEARER.fullmatch(token):
        raise Unauthorized("the registry token that is kept for it is none: it has signs that no header has")
    return token


def _get_request(grant: _Grant, credentials: Credentials | None) -> TokenRequest:
    scopes = [("scope", scope) for scope in grant.scope.split()]
    service = [("service", grant.service)] if grant.service else []
    query = urlencode([*service, *scopes])
    separator = "&" if "?" in grant.realm else "?"
    headers = {"Authorization": _basic(credentials)} if credentials else {}
    return TokenRequest("GET", f"{grant.realm}{separator}{query}" if query else grant.realm, headers)


def _post_request(grant: _Grant, credentials: Credentials) -> TokenRequest:
    form = {
        "grant_type": "refresh_token",
        "service": grant.service,
        "client_id": _CLIENT_ID,
        "scope": grant.scope,
        "refresh_token": credentials.secret,
    }
    return TokenRequest(
        "POST", grant.realm, {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(form)
    )


def _read_token(reply: TokenReply, grant: _Grant, credentials: Credentials | None) -> tuple[str, float]:
    server = parse_url(grant.realm).host
    if reply.status in (401, 403):
        raise Unauthorized(f"the token server {server} refused {who_asked(credentials)}", status=reply.status)
    if 300 <= reply.status < 400:
        raise RegistryError(
            f"the token server {server} redirects elsewhere, which is not followed", status=reply.status
        )
    if not 200 <= reply.status < 300:  # as docker and containerd take it
        kind = Unavailable if reply.status >= 500 or reply.status in (408, 429) else RegistryError
        raise kind(f"the token server {server} answered {reply.status}", status=reply.status)
    try:
        fields = json.loads(reply.body.decode())
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"the token server {server} did not answer in JSON") from error
    fields = fields if isinstance(fields, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    if not isinstance(token, str) or not _BEARER.fullmatch(token):
        raise Unavailable(f"the token server {server} gave no token")
    return token, _lifetime(fields.get("expires_in"))


def _lifetime(given: object) -> float:
    if isinstance(given, int | float) and 0 < given < _LONGEST_LIFETIME:
        return given
    return _DEFAULT_LIFETIME


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.secret}".encode("utf-8", BYTES)
    return f"Basic {base64.b64encode(pair).decode()}"


def who_asked(credentials: Credentials | None) -> str:
    """Return who asks with these credentials, for an error: the user's name, never a secret."""
    if credentials is None:
        return "anonymous access"
    if credentials.is_password:
        return f"user {printable(credentials.username)}"
    return "the identity token" if credentials.identity_token else "the registry token"


class Challenge(NamedTuple):
    """One way in that a 401 offers: the scheme in lower case and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Read a `WWW-Authenticate` header, or several joined by commas (RFC 9110, 11.6.1)."""
    challenges: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(header):
        parameter = _PARAMETER.match(header, at)
        scheme = None if parameter else _SCHEME.match(header, at)
        if parameter and challenges:
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges[-1][1].setdefault(parameter[1].lower(), value)
        elif scheme:
            challenges.append((scheme[0].lower(), {}))
        found = parameter or scheme
        at = found.end() if found else at + 1
    return [Challenge(*challenge) for challenge in challenges]


def join_scopes(*scopes: str) -> str:
    """Return what `scopes` allow together, each resource once: `type:name:actions` (`scope.md`)."""
    actions: dict[str, dict[str, None]] = {}
    for scope in " ".join(scopes).split():
        resource, colon, allowed = scope.rpartition(":")
        actions.setdefault(f"{resource}{colon}", {}).update(dict.fromkeys(allowed.split(",")))
    return " ".join(f"{resource}{','.join(allowed)}" for resource, allowed in actions.items())

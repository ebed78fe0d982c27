"""Requests to one registry: along their redirects, with Authorization, which goes nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from imgfs.errors import ImgfsError, RegistryError, Unauthorized, Unavailable
from imgfs.registry.auth import Authorizer, Flow, TokenReply, TokenRequest, parse_challenges
from imgfs.registry.body import Body
from imgfs.registry.credentials import Credentials
from imgfs.registry.refusal import redact
from imgfs.registry.retry import Patience, Timeouts
from imgfs.registry.transport import Response, Traffic, Transport

_MAX_TOKEN_REPLY = 1 << 20
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_KEEPING = (307, 308)  # those that keep method and body (RFC 9110, 15.4)


class Answer(NamedTuple):
    """A success: where it came from at last, its headers, and its body if that was asked for."""

    url: str
    headers: Mapping[str, str]
    body: bytes = b""


class Session:
    """Speaks to the registry at `base`, a URL. Safe in threads.

    `scope` is what to ask a token server for if the registry does not say; `ca_bundle` is a PEM file.
    """

    def __init__(
        self,
        base: str,
        *,
        scope: str,
        credentials: Callable[[], Credentials | None],
        timeouts: Timeouts,
        ca_bundle: Path | None,
    ) -> None:
        self._origin = origin(base)
        self._credentials = credentials
        self._timeouts = timeouts
        self._transport = Transport(timeouts, ca_bundle=ca_bundle)
        self._auth = Authorizer(credentials, default_scope=scope, secure=base.startswith("https:"))
        self._auth_lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far."""
        return self._transport.traffic

    def patience(self) -> Patience:
        """The tries for one thing, ended by `close`."""
        return Patience(self._timeouts, self._closed)

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        self._closed.set()
        self._transport.close()

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        limit: int = 0,
        body: bytes | None = None,
        scope: str = "",
    ) -> Answer:
        """Send a request, again if need be, and read up to `limit` bytes of its answer.

        Raises RegistryError, and InvalidImage for a longer body; that of a `limit` of 0 is not read.
        """
        patience = self.patience()
        while True:
            try:
                with closing(self.follow(method, url, headers, patience, body=body, scope=scope)) as response:
                    content = response.read(limit, patience) if limit else b""
                    return Answer(response.url, response.headers, content)
            except Unavailable as error:
                patience.pause(error)

    def follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        patience: Patience,
        *,
        body: bytes | Body | None = None,
        scope: str = "",
    ) -> Response:
        """Send a request along its redirects: the response is a success, or raised as what it is.

        One try only: Unavailable is the caller's to be patient with. `scope` is what a token must allow
        beyond what the registry asks for by itself.
        """
        redirects = _REDIRECTS if method in ("GET", "HEAD") else _KEEPING
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._send(method, url, headers, body, scope)
            location = response.headers.get("Location")
            if response.status in redirects and location:
                response.close()
                url = redirected(url, location)
            elif 200 <= response.status < 300:
                return response
            else:
                with closing(response):
                    raise self._hinted(response.refusal(patience), url)
        raise RegistryError(f"{redact(url)}: redirected more than {_MAX_REDIRECTS} times", url=redact(url))

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | Body | None, scope: str
    ) -> Response:
        """Send one request, with Authorization if it goes to the registry itself, and only then."""
        if origin(url) != self._origin:
            return self._transport.send(method, url, headers, form=body)
        known = self._drive(self._auth.authorize(scope))
        response = self._transport.send(method, url, _authorized(headers, known), form=body)
        if response.status in (401, 403):
            with_other = self._answer_challenge(response, known, scope)
            if with_other:
                response.close()
                return self._transport.send(method, url, _authorized(headers, with_other), form=body)
        return response

    def _answer_challenge(self, response: Response, refused: str | None, scope: str) -> str | None:
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        try:
            return self._drive(self._auth.challenged(challenges, refused, scope))
        except ImgfsError:
            response.close()
            raise

    def _drive(self, flow: Flow) -> str | None:
        """Run the dance, asking the token server what it yields; one thread at a time, the others profit."""
        with self._auth_lock:
            try:
                request = next(flow)
                while True:
                    request = flow.send(self._ask_for_token(request))
            except StopIteration as stop:
                header: str | None = stop.value
                return header

    def _ask_for_token(self, request: TokenRequest) -> TokenReply:
        with closing(
            self._transport.send(request.method, request.url, request.headers, form=request.form)
        ) as response:
            return TokenReply(response.status, response.read(_MAX_TOKEN_REPLY, self.patience()))

    def _hinted(self, error: RegistryError, url: str) -> RegistryError:
        ours = isinstance(error, Unauthorized) and origin(url) == self._origin
        if not ours or self._credentials() is not None:
            return error
        hint = f"no credentials for {urlsplit(url).netloc} (docker login and podman login keep them)"
        return Unauthorized(f"{error}; {hint}", status=error.status, code=error.code, url=error.url)


def _authorized(headers: Mapping[str, str], value: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": value} if value else headers


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what Authorization is bound to. Raises ValueError for what is no URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def redirected(url: str, location: str) -> str:
    """Where `location`, said by `url`, is; raises RegistryError if that is no place on the web."""
    try:
        target = urljoin(url, location)
        scheme, host, _ = origin(target)
    except ValueError:
        scheme, host = "", None
    if scheme not in ("http", "https") or not host:
        raise RegistryError(f"{redact(url)}: redirected to {location[:100]!r}", url=redact(url))
    return target

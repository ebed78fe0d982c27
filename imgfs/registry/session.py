"""Requests to one registry: along their redirects, with Authorization, which goes nowhere else."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urljoin, urlsplit

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unauthorized, Unavailable
from imgfs.registry.amounts import Traffic
from imgfs.registry.auth import Authorizer, Flow, TokenReply, TokenRequest, parse_challenges
from imgfs.registry.body import Body
from imgfs.registry.credentials import Credentials
from imgfs.registry.endpoint import Endpoint
from imgfs.registry.refusal import redact
from imgfs.registry.response import Response
from imgfs.registry.retry import Patience, Timeouts
from imgfs.registry.transport import Transport, is_loopback

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
    """Speaks to one endpoint. Safe in threads.

    Its headers, its credentials and our own certificate are for its host alone; who is believed is the same
    wherever it sends us. `noted` is told of every try that failed; `ca_bundle` is a PEM file.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        credentials: Callable[[], Credentials | None],
        timeouts: Timeouts,
        ca_bundle: Path | None = None,
        noted: Callable[[ImgfsError], None] = lambda error: None,  # noqa: ARG005
    ) -> None:
        self._endpoint = endpoint
        self._base = f"{endpoint.url}/{endpoint.repository}"
        self._origin = origin(self._base)
        self._credentials = credentials
        self._timeouts = timeouts
        self._noted = noted
        self._transport = Transport(timeouts, tls=endpoint.tls, ca_bundle=ca_bundle)
        self._auth = Authorizer(
            credentials,
            default_scope=f"repository:{endpoint.repository}:pull" if endpoint.repository else "",
            secure=self._origin[0] == "https",
            registry=self._origin[1] or "",
        )
        self._auth_lock = threading.Lock()
        self._closed = threading.Event()

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far."""
        return self._transport.traffic

    def patience(self) -> Patience:
        """The tries for one thing, ended by `close`."""
        return Patience(self._timeouts, self._closed, self._noted)

    def at(self, path: str, **query: str) -> str:
        """The URL of something below the repository, `manifests/…` or the like.

        A mirror is told which registry it stands in for: `?ns=` (containerd's hosts.md).
        """
        namespace = self._endpoint.namespace
        fields = {**query, **({"ns": namespace} if namespace else {})}
        tail = f"?{urlencode(fields, quote_via=quote, safe='/:')}" if fields else ""
        return f"{self._base}/{path}{tail}"

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
        check: Callable[[Answer], None] = lambda answer: None,  # noqa: ARG005
    ) -> Answer:
        """Send a request, again if need be, and read up to `limit` bytes of its answer.

        `check` raises IntegrityError for an answer that is not the right one: another may be. Raises
        RegistryError, and InvalidImage for a longer body; that of a `limit` of 0 is not read.
        """
        patience = self.patience()
        while True:
            try:
                with closing(self.follow(method, url, headers, patience, body=body, scope=scope)) as response:
                    content = response.read(limit, patience) if limit else b""
                    answer = Answer(response.url, response.headers, content)
                check(answer)
            except (Unavailable, IntegrityError) as error:
                patience.pause(error)
            else:
                return answer

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
                url = self._led_to(url, redirected(url, location))
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
        headers = {**self._endpoint.headers, **headers}
        known = self._drive(self._auth.authorize(scope))
        response = self._transport.send(method, url, _authorized(headers, known), form=body, ours=True)
        if response.status in (401, 403):
            with_other = self._answer_challenge(response, known, scope)
            if with_other:
                response.close()
                headers = _authorized(headers, with_other)
                return self._transport.send(method, url, headers, form=body, ours=True)
        return response

    def _led_to(self, url: str, target: str) -> str:
        """Where a redirect leads; raises RegistryError if no registry of the world would lead there.

        That is out of TLS, or from elsewhere to this machine or its link, where secrets may lie about.
        """
        here, there = urlsplit(url), urlsplit(target)
        if (here.scheme, there.scheme) == ("https", "http") and self._endpoint.tls.verify:
            why = "which is not TLS"
        elif is_of_this_machine(there.hostname or "") and not is_of_this_machine(here.hostname or ""):
            why = "which is this machine's own affair"
        else:
            return target
        raise RegistryError(f"{redact(url)}: redirected to {redact(target)}, {why}", url=redact(url))

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
                    try:
                        reply = self._ask_for_token(request)
                    except ImgfsError as error:  # then nobody behind us need wait for the same
                        request = flow.throw(error)
                    else:
                        request = flow.send(reply)
            except StopIteration as stop:
                header: str | None = stop.value
                return header

    def _ask_for_token(self, request: TokenRequest) -> TokenReply:
        # out of turn: those who have theirs wait for it
        ours = origin(request.url) == self._origin
        with closing(
            self._transport.send(
                request.method, request.url, request.headers, form=request.form, ours=ours, in_turn=False
            )
        ) as response:
            return TokenReply(response.status, response.read(_MAX_TOKEN_REPLY, self.patience()))

    def _hinted(self, error: RegistryError, url: str) -> RegistryError:
        ours = isinstance(error, Unauthorized) and origin(url) == self._origin
        if not ours or self._credentials() is not None:
            return error
        hint = f"no credentials for {urlsplit(url).netloc} (see: imgfs login)"
        return Unauthorized(f"{error}; {hint}", status=error.status, code=error.code, url=error.url)


def _authorized(headers: Mapping[str, str], value: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": value} if value else headers


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: what Authorization is bound to. Raises ValueError for what is no URL."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def is_of_this_machine(host: str) -> bool:
    """Whether a host is this machine, or an address that only its own link has a meaning for."""
    try:
        return is_loopback(f"[{host}]" if ":" in host else host) or ipaddress.ip_address(host).is_link_local
    except ValueError:
        return False


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

"""Requests to one registry: along their redirects, with Authorization, which goes nowhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unauthorized, Unavailable
from imgfs.registry.auth import KnownAuth, who_asked
from imgfs.registry.authenticator import Authenticator, RedirectAuth
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import RegistryEndpoint, Traffic
from imgfs.registry.errors import hung_up
from imgfs.registry.messages import Body, Response
from imgfs.registry.retry import Patience, Timeouts
from imgfs.registry.ssrf import check_target, led_to
from imgfs.registry.transport import Transport
from imgfs.registry.urls import Origin, UrlError, origin, parse_url, redact, shown

_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_KEEPING = (307, 308)  # those that keep method and body (RFC 9110, 15.4)


class Answer(NamedTuple):
    """A success: where it came from at last, its headers, and its body if that was asked for."""

    url: str
    headers: Mapping[str, str]
    body: bytes = b""


class HttpSession:
    """HTTP requests to one endpoint. Safe in threads.

    The endpoint's headers, credentials and client certificate are sent to its own host only; which
    certificates are trusted is the same wherever a redirect leads. `noted` is called with the error of every
    failed try; `ca_bundle` is a PEM file.
    """

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        *,
        credentials: Callable[[], Credentials | None],
        timeouts: Timeouts,
        ca_bundle: Path | None = None,
        noted: Callable[[ImgfsError], None] = lambda error: None,  # noqa: ARG005
    ) -> None:
        self._endpoint = endpoint
        self._base = f"{redact(endpoint.url)}/{endpoint.repository}"  # user and password in it are not sent
        self._origin = _origin_of(self._base)
        self._host = self._origin.host
        self._credentials = credentials
        if endpoint.dial_timeout:
            timeouts = timeouts._replace(connect=endpoint.dial_timeout)
        self.timeouts = timeouts
        self._noted = noted
        self._transport = Transport(timeouts, tls=endpoint.tls, ca_bundle=ca_bundle)
        self._authenticator = self._new_authenticator()
        self._guess = threading.Lock()
        self._is_guessed = endpoint.guessed  # plain HTTP is a guess until something has answered
        self._redirect_auth = RedirectAuth(self._transport)
        self._elsewhere: str | None = None  # the origin that a redirect led to last
        self._closed = threading.Event()

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far."""
        return self._transport.traffic

    @property
    def verifies(self) -> bool:
        """Return True if certificates are verified: then no redirect leads out of TLS."""
        return self._endpoint.tls.verify

    def patience(self, refusals: int | None = None) -> Patience:
        """Return the tries for one thing, ended by `close`, or by so many `refusals`."""
        return Patience(self.timeouts, self._closed, self._noted, refusals=refusals)

    def at(self, path: str, **query: str) -> str:
        """Return the URL of something below the repository, `manifests/…` or the like.

        A mirror is told which registry it stands in for: `?ns=` (containerd's hosts.md).
        """
        namespace = self._endpoint.namespace
        fields = {**query, **({"ns": namespace} if namespace else {})}
        tail = f"?{urlencode(fields, quote_via=quote, safe='/:')}" if fields else ""
        return f"{self._base.rstrip('/')}/{path}{tail}"  # without a repository it is the API's root

    @property
    def known_auth(self) -> KnownAuth | None:
        """What the registry is known to want."""
        known = self._authenticator.known
        return known._replace(elsewhere=self._elsewhere) if known else None

    def learn_auth(self, known: KnownAuth) -> None:
        """Begin with what another process knows of the registry."""
        self._authenticator.learn(known)
        self._elsewhere = known.elsewhere or self._elsewhere

    def connect_ahead(self, count: int) -> None:
        """Have so many connections made, to the registry and to where it redirects, for requests to come."""
        self._transport.connect_ahead(self._base, count, with_client_certificate=True)
        if self._elsewhere:
            self._transport.connect_ahead(self._elsewhere, count, check_address=self._check_address)

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        self._closed.set()
        self._authenticator.close()
        self._redirect_auth.close()
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
        refusals: int | None = None,
        check: Callable[[Answer], None] = lambda answer: None,  # noqa: ARG005
    ) -> Answer:
        """Send a request, again if need be, and read up to `limit` bytes of its answer.

        `check` raises IntegrityError for an answer that is not the right one: another may be. So many
        `refusals`, answers with an error, end the tries early. Raises RegistryError, and InvalidImage for a
        longer body; that of a `limit` of 0 is not read.
        """
        patience = self.patience(refusals)
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
            response = self._send(method, url, headers, body, scope, patience)
            location = response.headers.get("Location")
            if response.status in redirects and location:
                response.close()
                url = led_to(url, location, verify=self.verifies)
            elif 200 <= response.status < 300:
                if origin(url) != self._origin:
                    self._elsewhere = parse_url(url).root
                return response
            else:
                with closing(response):
                    raise self._hinted(response.refusal(patience), url)
        raise RegistryError(f"{redact(url)}: redirected more than {_MAX_REDIRECTS} times", url=redact(url))

    def _new_authenticator(self) -> Authenticator:
        repository = self._endpoint.repository
        scope = f"repository:{repository}:pull" if repository else ""
        return Authenticator(self._base, scope, self._credentials, self._transport)

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None,
        scope: str,
        patience: Patience,
    ) -> Response:
        """Send one request; where plain HTTP was a guess and nothing speaks it, by TLS from then on."""
        send = partial(self._send_once, method, headers=headers, body=body, scope=scope, patience=patience)
        if not self._is_guessed:
            return send(self._by_tls(url))
        try:
            response = send(url)
        except Unavailable as error:
            if not hung_up(error) or not self._turns_to_tls():
                raise
            why = "hung up"
        else:
            if not _wants_tls(response) or not self._turns_to_tls():
                self._is_guessed = False
                return response
            response.close()
            why = "400"
        try:
            return send(self._by_tls(url))
        except RegistryError as error:
            text = f"{error} (tried before: {redact(url)}: {why})"
            raise type(error)(text, status=error.status, code=error.code, url=error.url) from error

    def _by_tls(self, url: str) -> str:
        """Return a URL of before the registry was found to speak TLS, as it is asked for since."""
        is_old = self._endpoint.guessed and self._origin.scheme == "https"
        if is_old and origin(url) == self._origin._replace(scheme="http"):
            return f"https{url[4:]}"
        return url

    def _turns_to_tls(self) -> bool:
        """See whether the registry speaks TLS, and if so, ask it by that from now on."""
        with self._guess:
            if self._is_guessed and self._transport.speaks_tls(self._origin.host, self._origin.port):
                self._base = f"https{self._base[4:]}"
                self._origin = self._origin._replace(scheme="https")
                self._authenticator.close()
                self._authenticator = self._new_authenticator()
                self._is_guessed = False
            return self._origin.scheme == "https"

    def _send_once(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | None,
        scope: str,
        patience: Patience,
    ) -> Response:
        """Send one request, with Authorization if it goes to the registry itself, and only then."""
        send = partial(self._transport.send, method, url, form=body)
        if origin(url) != self._origin:
            return self._send_elsewhere(send, method, url, headers, patience)
        headers = {**self._endpoint.headers, **headers}
        try:
            with self._authenticator.first(patience):
                known = self._authenticator.authorize(scope, patience)
                response = send(
                    _authorized(headers, known), with_client_certificate=True, within=patience.left
                )
                other = None
                if response.status in (401, 403):
                    other = self._authenticator.answer(response, known, scope, patience)
        except Unauthorized as error:
            raise self._hinted(error, url) from error
        if other is None:
            return response
        response.close()
        return send(_authorized(headers, other), with_client_certificate=True, within=patience.left)

    def _send_elsewhere(
        self,
        send: Callable[..., Response],
        method: str,
        url: str,
        headers: Mapping[str, str],
        patience: Patience,
    ) -> Response:
        """Send a request to where a redirect leads; a registry there may offer an anonymous token."""
        known = self._redirect_auth.authorize(url, patience)
        response = send(_authorized(headers, known), check_address=self._check_address, within=patience.left)
        if response.status != 401 or method not in ("GET", "HEAD"):
            return response
        other = self._redirect_auth.answer(response, known, patience)
        if other is None:
            return response
        response.close()
        return send(_authorized(headers, other), check_address=self._check_address, within=patience.left)

    def _check_address(self, host: str, address: str) -> None:
        """Raise RegistryError if no redirect may lead to a host at this address."""
        check_target(host, address, registry=self._host, number=self._transport.peer_address(self._host))

    def _hinted(self, error: RegistryError, url: str) -> RegistryError:
        """A refusal that also says whose it is, if it is the registry's own, or its token server's."""
        if not isinstance(error, Unauthorized) or error.status is None or origin(url) != self._origin:
            return error
        found = self._credentials()
        if found is None:
            whose = f"no credentials for {parse_url(url).netloc} (see: imgfs login)"
        elif error.url is None:  # a token server's, which says so itself
            return error
        else:
            whose = f"{who_asked(found)} was refused"
        return Unauthorized(f"{error}; {whose}", status=error.status, code=error.code, url=error.url)


def _wants_tls(response: Response) -> bool:
    """Return True if an answer may be that of a TLS port to plain HTTP: a registry's own errors are JSON."""
    return response.status == 400 and "json" not in response.headers.get("Content-Type", "")


def _origin_of(base: str) -> Origin:
    try:
        return origin(base)
    except UrlError as error:
        raise RegistryError(f"{shown(base)}: cannot be asked: a URL {error}") from error


def _authorized(headers: Mapping[str, str], value: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": value} if value else headers

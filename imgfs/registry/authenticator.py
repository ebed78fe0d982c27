"""Token authentication (`auth`) over the wire: of the registry, and of those that its redirects lead to.

One thread at a time fetches a token; concurrent requests wait for it and reuse it.

A registry may stand before another one (registry.k8s.io before those of clouds), and that one may ask for a
token of its own. No credentials are sent there: the first registry must not decide where a user's passwords
go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from imgfs.errors import ImgfsError, RegistryError, Unavailable
from imgfs.registry.auth import Authorizer, Flow, KnownAuth, TokenReply, TokenRequest, parse_challenges
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.messages import Response
from imgfs.registry.retry import Patience
from imgfs.registry.ssrf import check_address, within_host
from imgfs.registry.transport import Transport
from imgfs.registry.urls import Origin, origin, redact

_MAX_REPLY = 1 << 20  # bytes of a token server's answer
_MAX_REDIRECTS = 5  # of one
_KEEPING = (307, 308)  # those that keep method and body (RFC 9110, 15.4)
_MOST = 16  # registries whose tokens are kept


def _followed(method: str) -> tuple[int, ...]:
    """Return the redirects that may be followed: those of a POST only if it stays one."""
    return _KEEPING if method == "POST" else (301, 302, 303, *_KEEPING)


class Authenticator:
    """The Authorization that the registry at `base` wants. Safe in threads."""

    def __init__(
        self,
        base: str,
        default_scope: str,
        credentials: Callable[[], Credentials | None],
        transport: Transport,
    ) -> None:
        self._origin = origin(base)
        self._host = self._origin.host
        self._secure = self._origin.scheme == "https"
        self._transport = transport
        self._lock = threading.Lock()
        self._door = threading.Lock()
        self._has_met = False
        self._ahead = threading.Event()  # set when the request that went ahead has come back
        self._ahead.set()
        self._auth = Authorizer(
            credentials,
            default_scope=default_scope,
            secure=self._secure,
            registry=self._host,
            number=self._number,
        )

    @contextmanager
    def first(self, patience: Patience) -> Iterator[None]:
        """Let the first request go alone until it has an answer: the others then know what is wanted.

        Requests that come meanwhile wait, and then go all at once. If the first had no answer, the next
        request is the first again.
        """
        with self._door:
            is_first = not self._has_met and self._ahead.is_set()
            ahead = self._ahead = threading.Event() if is_first else self._ahead
        if not is_first:
            ahead.wait(patience.left)
            yield
            return
        try:
            yield
            self._has_met = True
        finally:
            ahead.set()

    def authorize(self, scope: str, patience: Patience) -> str | None:
        """Return the Authorization for a request, None for none. Raises ImgfsError if no token can be had."""
        return self._drive(self._auth.authorize(scope), patience)

    def answer(self, response: Response, refused: str | None, scope: str, patience: Patience) -> str | None:
        """Return another Authorization after a 401 or 403 to the one `refused`; None if there is no other.

        Raises ImgfsError, and closes the response.
        """
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        try:
            return self._drive(self._auth.challenged(challenges, refused, scope), patience)
        except ImgfsError:
            response.close()
            raise

    @property
    def known(self) -> KnownAuth | None:
        """What the registry is known to want; None if it has not been asked yet."""
        if not self._has_met:
            return None
        with self._lock:
            return self._auth.known

    def learn(self, known: KnownAuth) -> None:
        """Begin with what another process knows of the registry: no request has to go first."""
        with self._lock:
            self._auth.learn(known)
        if known.number:  # decides where a token server may be, before this process has connected itself
            self._transport.note_peer(self._host, known.number)
        self._has_met = True

    def close(self) -> None:
        """Wake the requests that wait for the first one."""
        self._has_met = True
        self._ahead.set()

    def _drive(self, flow: Flow, patience: Patience) -> str | None:
        """Run the generator of `auth`, sending the requests it yields to the token server."""
        with self._in_turn(patience):
            try:
                request = next(flow)
                while True:
                    try:
                        reply = self._ask(request, patience)
                    except ImgfsError as error:  # noted, so that the requests that wait do not try the same
                        request = flow.throw(error)
                    else:
                        request = flow.send(reply)
            except StopIteration as stop:
                header: str | None = stop.value
                return header

    @contextmanager
    def _in_turn(self, patience: Patience) -> Iterator[None]:
        """Hold the lock of the token flow; raises Unavailable if it cannot be had within the time left."""
        if not self._lock.acquire(timeout=patience.left):
            raise Unavailable(f"{self._host}: not asked: another request waits too long for credentials")
        try:
            yield
        finally:
            self._lock.release()

    def _ask(self, request: TokenRequest, patience: Patience) -> TokenReply:
        """Ask a token server, along its redirects to itself; any other is its answer."""
        url = request.url
        for _ in range(_MAX_REDIRECTS):
            with closing(self._send(request, url, patience)) as response:
                following = within_host(url, response.headers.get("Location", ""))
                if response.status not in _followed(request.method) or not following:
                    return TokenReply(response.status, response.read(_MAX_REPLY, patience))
            url = following
        raise RegistryError(f"{redact(url)}: redirected more than {_MAX_REDIRECTS} times", url=redact(url))

    def _send(self, request: TokenRequest, url: str, patience: Patience) -> Response:
        is_own = origin(url) == self._origin
        return self._transport.send(
            request.method,
            url,
            request.headers,
            form=request.form,
            with_client_certificate=is_own,
            in_turn=False,  # the requests that hold the slots may wait for this one
            check_address=None if is_own else self._check_address,
            within=patience.left,
        )

    def _check_address(self, host: str, address: str) -> None:
        """Raise Unauthorized if a token server is not to be at this address."""
        check_address(host, address, registry=self._host, secure=self._secure, number=self._number())

    def _number(self) -> str | None:
        return self._transport.peer_address(self._host)


class RedirectAuth:
    """The authenticators of registries that redirects led to and that wanted a token. Safe in threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._authenticators: dict[Origin, Authenticator] = {}

    def authorize(self, url: str, patience: Patience) -> str | None:
        """Return the Authorization for a request, None for none. Raises ImgfsError if no token can be had."""
        with self._lock:
            authenticator = self._authenticators.get(origin(url))
        return authenticator.authorize("", patience) if authenticator else None

    def answer(self, response: Response, refused: str | None, patience: Patience) -> str | None:
        """Return the Authorization to send after a 401; None if no token is offered.

        Raises ImgfsError, and closes the response.
        """
        offered = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        if not any(challenge.scheme == "bearer" for challenge in offered):
            return None
        return self._authenticator(response.url).answer(response, refused, "", patience)

    def close(self) -> None:
        """Wake all requests that wait."""
        with self._lock:
            authenticators, self._authenticators = self._authenticators, {}
        for authenticator in authenticators.values():
            authenticator.close()

    def _authenticator(self, url: str) -> Authenticator:
        place = origin(url)
        with self._lock:
            if place not in self._authenticators:
                while len(self._authenticators) >= _MOST:
                    del self._authenticators[next(iter(self._authenticators))]
                self._authenticators[place] = Authenticator(url, "", lambda: None, self._transport)
            return self._authenticators[place]

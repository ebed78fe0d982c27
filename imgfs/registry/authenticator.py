"""The authentication dance (`auth`) over the wire: one thread at a time authenticators, the others profit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from imgfs.errors import ImgfsError, RegistryError, Unavailable
from imgfs.registry.auth import Authorizer, Flow, TokenReply, TokenRequest, parse_challenges
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.redirects import within_host
from imgfs.registry.response import Response
from imgfs.registry.retry import Patience
from imgfs.registry.ssrf import check_address
from imgfs.registry.transport import Transport
from imgfs.registry.urls import origin, redact

_MAX_REPLY = 1 << 20  # bytes of a token server
_MAX_REDIRECTS = 5  # of one
_KEEPING = (307, 308)  # those that keep method and body (RFC 9110, 15.4)


def _followed(method: str) -> tuple[int, ...]:
    """The redirects that may be followed: those of a POST only if it stays one."""
    return _KEEPING if method == "POST" else (301, 302, 303, *_KEEPING)


class Authenticator:
    """Knows what a registry, the one at `base`, wants to be sent as Authorization. Safe in threads."""

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
        """Have the first request go alone until it has come back: what it learns, the others need not ask.

        Those who come meanwhile go then, all at once. If it had no answer, the next to come is the first.
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
        """What to send with a request; None for nothing. Raises ImgfsError if that cannot be found out."""
        return self._drive(self._auth.authorize(scope), patience)

    def answer(self, response: Response, refused: str | None, scope: str, patience: Patience) -> str | None:
        """What else to send after a refusal; None if there is nothing else. `refused` was sent.

        Raises ImgfsError, and closes the response.
        """
        challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        try:
            return self._drive(self._auth.challenged(challenges, refused, scope), patience)
        except ImgfsError:
            response.close()
            raise

    def close(self) -> None:
        """Have nobody wait for the first request any longer."""
        self._has_met = True
        self._ahead.set()

    def _drive(self, flow: Flow, patience: Patience) -> str | None:
        """Run the dance, asking the token server what it yields."""
        with self._in_turn(patience):
            try:
                request = next(flow)
                while True:
                    try:
                        reply = self._ask(request, patience)
                    except ImgfsError as error:  # then nobody behind us need wait for the same
                        request = flow.throw(error)
                    else:
                        request = flow.send(reply)
            except StopIteration as stop:
                header: str | None = stop.value
                return header

    @contextmanager
    def _in_turn(self, patience: Patience) -> Iterator[None]:
        """Be the only one who authenticators; raises Unavailable if it takes too long until then."""
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
        ours = origin(url) == self._origin
        return self._transport.send(
            request.method,
            url,
            request.headers,
            form=request.form,
            with_client_certificate=ours,
            in_turn=False,  # those who have theirs wait for it
            check_address=None if ours else self._check_address,
            within=patience.left,
        )

    def _check_address(self, host: str, address: str) -> None:
        """Raise Unauthorized if a token server is not to be at this address."""
        check_address(host, address, registry=self._host, secure=self._secure, number=self._number())

    def _number(self) -> str | None:
        return self._transport.peer_address(self._host)

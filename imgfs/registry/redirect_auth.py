"""Anonymous tokens of registries that a redirect leads to.

A registry may stand before another one (registry.k8s.io before those of clouds), and that one may ask for a
token of its own (distribution's `spec/auth/token.md`). No credentials are sent there: the first registry must
not decide where a user's passwords go.
"""

from __future__ import annotations

import threading

from imgfs.registry.authenticator import Authenticator
from imgfs.registry.challenges import parse_challenges
from imgfs.registry.response import Response
from imgfs.registry.retry import Patience
from imgfs.registry.transport import Transport
from imgfs.registry.urls import Origin, origin

_MOST = 16  # registries whose tokens are kept


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

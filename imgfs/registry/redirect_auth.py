"""How we get in where a registry leads to: as anybody, with a token if that registry offers one.

A registry may stand before another one (registry.k8s.io before those of clouds), and that one may ask for a
token of its own (distribution's `spec/auth/token.md`). No credentials are ever shown: who leads there is the
first registry, and it is not asked which of a user's passwords are to go where.
"""

from __future__ import annotations

import threading

from imgfs.registry.auth import parse_challenges
from imgfs.registry.authenticator import Authenticator
from imgfs.registry.response import Response
from imgfs.registry.retry import Patience
from imgfs.registry.transport import Transport
from imgfs.registry.urls import Origin, origin

_MOST = 16  # registries that are remembered


class RedirectAuth:
    """The registries that have been led to and wanted a token. Safe in threads."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._authenticators: dict[Origin, Authenticator] = {}

    def authorize(self, url: str, patience: Patience) -> str | None:
        """What to send with a request, None for nothing. Raises ImgfsError if that cannot be found out."""
        with self._lock:
            authenticator = self._authenticators.get(origin(url))
        return authenticator.authorize("", patience) if authenticator else None

    def answer(self, response: Response, refused: str | None, patience: Patience) -> str | None:
        """What else to send after a 401; None if no token is offered.

        Raises ImgfsError, and closes the response.
        """
        offered = parse_challenges(response.headers.get("WWW-Authenticate", ""))
        if not any(challenge.scheme == "bearer" for challenge in offered):
            return None
        return self._authenticator(response.url).answer(response, refused, "", patience)

    def close(self) -> None:
        """Have nobody wait any longer."""
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

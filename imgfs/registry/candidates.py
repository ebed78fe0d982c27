"""The endpoints that a read may go to: their clients, what they lack, and what came of trying them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unavailable
from imgfs.oci.descriptor import Digest
from imgfs.registry.client import Client
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.endpoint_state import EndpointState
from imgfs.registry.retry import Timeouts
from imgfs.registry.urls import redact

_CONNECT, _READ, _DEADLINE = 2.0, 5.0, 10.0  # seconds for an endpoint that is not the last
_BRIEF = 160  # characters of an error beside another


class Candidate:
    """An endpoint with its clients, its state, and the blobs it lacks until when (negative cache)."""

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        connect: Callable[[RegistryEndpoint, EndpointState, bool], Client],
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.state = EndpointState(redact(endpoint.url), clock=clock)
        self.missing_until: dict[Digest, float] = {}
        self._connect = connect
        self._clients: dict[bool, Client] = {}
        self._lock = threading.Lock()

    def client(self, is_last: bool) -> Client:
        """Return the client of the endpoint, with the full time-outs only if it is the last."""
        with self._lock:
            if is_last not in self._clients:
                self._clients[is_last] = self._connect(self.endpoint, self.state, is_last)
            return self._clients[is_last]

    def clients(self) -> list[Client]:
        """Return the clients made so far."""
        with self._lock:
            return list(self._clients.values())


class Attempts:
    """The errors of the endpoints tried for one read."""

    def __init__(self) -> None:
        self._errors: list[tuple[RegistryEndpoint, ImgfsError]] = []

    @property
    def is_passing(self) -> bool:
        """Return True if the latest error may pass, or not occur elsewhere."""
        return isinstance(self._errors[-1][1], Unavailable | IntegrityError)

    def add(self, candidate: Candidate, error: ImgfsError) -> None:
        """Note an error."""
        self._errors.append((candidate.endpoint, error))

    def error(self) -> ImgfsError:
        """Return the error of the registry itself, one with a status first, and the others in brief."""
        own = max(self._errors, key=lambda tried: (not tried[0].is_mirror, _status(tried[1]) is not None))
        others = "; ".join(_brief(*tried) for tried in self._errors if tried is not own)
        error = own[1]
        if not others or not isinstance(error, RegistryError):
            return error
        kind = Unavailable if isinstance(error, Unavailable) else type(error)
        combined = kind(
            f"{error} (also tried: {others})", status=error.status, code=error.code, url=error.url
        )
        combined.__cause__ = error
        return combined


def short_timeouts(timeouts: Timeouts) -> Timeouts:
    """Return the time-outs for an endpoint that is not the last: one try, and a few seconds."""
    return timeouts._replace(
        connect=min(timeouts.connect, _CONNECT),
        read=min(timeouts.read, _READ),
        deadline=min(timeouts.deadline, _DEADLINE),
        tries=1,
    )


def _status(error: ImgfsError) -> int | None:
    return error.status if isinstance(error, RegistryError) else None


def _brief(endpoint: RegistryEndpoint, error: ImgfsError) -> str:
    """Return an error in a few words, beside another of the same read."""
    url = getattr(error, "url", None) or ""
    return f"{redact(endpoint.url)}: {str(error).removeprefix(f'{url}: ')[:_BRIEF]}"

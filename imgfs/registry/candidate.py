"""One endpoint among several that may be asked, and what became of those that were."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from imgfs.errors import ImgfsError, IntegrityError, RegistryError, Unavailable
from imgfs.oci.descriptor import Digest
from imgfs.registry.client import Client
from imgfs.registry.endpoint import Endpoint
from imgfs.registry.health import Health
from imgfs.registry.retry import Timeouts
from imgfs.registry.urls import redact

_CONNECT, _READ, _DEADLINE = 2.0, 5.0, 10.0  # seconds for one that has another behind it
_BRIEF = 160  # characters of an error beside another


class Candidate:
    """An endpoint, what speaks to it, how it goes there, and until when it is known to lack what."""

    def __init__(
        self,
        endpoint: Endpoint,
        connect: Callable[[Endpoint, Health, bool], Client],
        clock: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.health = Health(redact(endpoint.url), clock=clock)
        self.lacks: dict[Digest, float] = {}
        self._connect = connect
        self._clients: dict[bool, Client] = {}
        self._lock = threading.Lock()

    def client(self, is_last: bool) -> Client:
        """What speaks to it, with patience only if there is no other endpoint."""
        with self._lock:
            if is_last not in self._clients:
                self._clients[is_last] = self._connect(self.endpoint, self.health, is_last)
            return self._clients[is_last]

    def clients(self) -> list[Client]:
        """All that has spoken to it."""
        with self._lock:
            return list(self._clients.values())


class Tried:
    """The errors of the endpoints that were asked for one thing."""

    def __init__(self) -> None:
        self._errors: list[tuple[Endpoint, ImgfsError]] = []

    @property
    def is_passing(self) -> bool:
        """Whether the latest is one that others need not share."""
        return isinstance(self._errors[-1][1], Unavailable | IntegrityError)

    def add(self, place: Candidate, error: ImgfsError) -> None:
        """Note an error."""
        self._errors.append((place.endpoint, error))

    def told(self) -> ImgfsError:
        """The registry's own error, rather one that it answered with, and in brief those of the others."""
        own = max(self._errors, key=lambda tried: (not tried[0].is_mirror, _status(tried[1]) is not None))
        others = "; ".join(_brief(*tried) for tried in self._errors if tried is not own)
        error = own[1]
        if not others or not isinstance(error, RegistryError):
            return error
        kind = Unavailable if isinstance(error, Unavailable) else type(error)
        told = kind(f"{error} (also tried: {others})", status=error.status, code=error.code, url=error.url)
        told.__cause__ = error
        return told


def hurried(timeouts: Timeouts) -> Timeouts:
    """The timeouts for an endpoint that has another behind it: one try, and not for long."""
    return replace(
        timeouts,
        connect=min(timeouts.connect, _CONNECT),
        read=min(timeouts.read, _READ),
        deadline=min(timeouts.deadline, _DEADLINE),
        tries=1,
    )


def _status(error: ImgfsError) -> int | None:
    return error.status if isinstance(error, RegistryError) else None


def _brief(endpoint: Endpoint, error: ImgfsError) -> str:
    """An error in a few words, beside another of the same read."""
    url = getattr(error, "url", None) or ""
    return f"{redact(endpoint.url)}: {str(error).removeprefix(f'{url}: ')[:_BRIEF]}"

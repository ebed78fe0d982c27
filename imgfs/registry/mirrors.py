"""A repository that may be read at several endpoints: its mirrors in order, at last the registry itself.

A read goes on at the next endpoint where one has failed, a blob's from the byte it stopped at. An endpoint
that fails is left alone for a while; one that has another behind it is not waited for as long as the last.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from imgfs.errors import IntegrityError, InvalidImage, NotFound, RegistryError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.blobs import end_of
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import PULL, RESOLVE, Endpoint, Traffic
from imgfs.registry.endpoint_state import Candidate, Health, Tried, hurried
from imgfs.registry.retry import Timeouts
from imgfs.registry.urls import redact

T = TypeVar("T")

_LACKING = 60.0  # seconds for which a place is not asked again for what it does not have, or has wrong
_CONVINCING = 1 << 20  # bytes of a blob, when there are many, that prove an endpoint well
_ITS_OWN = (RegistryError, IntegrityError, InvalidImage)  # errors that another endpoint may not have

FindCredentials = Callable[[str, str], Credentials | None]  # for a host and a repository


class Mirrored:
    """Reads at the endpoints that `endpoints` gives, which may be others each time.

    The interface is that of `Client`, as far as it reads. Safe in threads. `find_credentials` is asked anew
    whenever a host wants to know; `ca_bundle` is a PEM file to trust instead of the usual certificates.
    Errors are those of the registry itself, and say what was tried before it.
    """

    def __init__(
        self,
        endpoints: Callable[[], tuple[Endpoint, ...]],
        *,
        find_credentials: FindCredentials = lambda host, repository: None,  # noqa: ARG005
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        ca_bundle: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = endpoints
        self._find_credentials = find_credentials
        self._timeouts = timeouts
        self._ca_bundle = ca_bundle
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[Endpoint, ...] = ()
        self._places: tuple[Candidate, ...] = ()
        self._ever: list[Candidate] = []  # files that are changed may be changed back
        self._served: dict[Digest, Candidate] = {}  # who gave the last bytes of a blob

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far, wherever."""
        counts = [client.traffic for client in self._clients()]
        return Traffic(sum(count.requests for count in counts), sum(count.bytes for count in counts))

    def head_manifest(self, name: str | Digest) -> Descriptor:
        """What a tag or digest names now; see `Client.head_manifest`."""

        def ask(client: Client, is_last: bool) -> Descriptor:
            return client.tagged(name) if _is_brief(name, is_last) else client.head_manifest(name)

        return self._ask(name, ask)

    def tagged(self, tag: str) -> Descriptor:
        """What a tag that may well be missing names now."""
        return self._ask(tag, lambda client, _: client.tagged(tag))

    def manifest(self, name: str | Digest) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest; see `Client.manifest`."""

        def ask(client: Client, is_last: bool) -> tuple[Descriptor, bytes]:
            return client.manifest(name, brief=_is_brief(name, is_last))

        return self._ask(name, ask)

    def blob_document(self, digest: Digest) -> bytes:
        """Fetch a small blob whole, at most 8 MiB; its digest is checked."""
        return self._ask(digest, lambda client, _: client.blob_document(digest))

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """The manifests that refer to `subject`: what the registry itself says, and no mirror.

        No digest proves what refers to an image: a mirror's list would be a mirror's word. But if one that
        resolves answers, so that the image is to be had without its registry, that is not waited for, and it
        does not matter if it is away.
        """
        tried = Tried()
        has_answered = False
        for place, is_last in self._order(RESOLVE, None, tried):
            with self._attempt(place, is_last, None, tried):
                found = place.client(is_last and not has_answered).referrers(subject, artifact_type)
                place.health.worked()
                has_answered = True
                if place is self._now()[-1]:
                    return found
        if has_answered:
            return []
        raise tried.told()

    def blob(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Exactly the bytes `[start, end)` of a blob, wherever each of them is from; see `Client.blob`."""
        end = end_of(descriptor, start, end)
        if start == end:
            return
        digest, tried, began = descriptor.digest, Tried(), start
        for place, is_last in self._order(PULL, digest, tried, elsewhere=url is not None):
            with self._attempt(place, is_last, digest, tried):
                for chunk in place.client(is_last).blob(descriptor, start, end, url=url):
                    start += len(chunk)
                    self._served[digest] = place
                    if start == end or start - began >= _CONVINCING:
                        place.health.worked()
                    yield chunk
                return
        raise tried.told()

    def doubt(self, digest: Digest) -> bool:
        """What came of a blob was wrong: it is asked for elsewhere next, if there is an elsewhere (True)."""
        place = self._served.pop(digest, None)
        if place is None:
            return False
        for client in place.clients():
            client.doubt(digest)
        if place is self._now()[-1]:
            return False
        place.lacks[digest] = self._clock() + _LACKING
        error = RegistryError(f"{redact(place.endpoint.url)}: what came of the blob {digest.short} was wrong")
        place.health.noted(error)
        place.health.rests(error)
        return True

    def health(self) -> list[dict[str, Any]]:
        """How it goes with each endpoint there is now, in their order; see `Health.told`."""
        return [place.health.told() for place in self._now()]

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        for client in self._clients():
            client.close()

    def _ask(self, name: str | Digest, ask: Callable[[Client, bool], T]) -> T:
        """The first good answer: to a tag from those that resolve, to a digest from those that pull."""
        digest = name if isinstance(name, Digest) else None
        tried = Tried()
        for place, is_last in self._order(PULL if digest else RESOLVE, digest, tried):
            with self._attempt(place, is_last, digest, tried):
                answer = ask(place.client(is_last), is_last)
                place.health.worked()
                return answer
        raise tried.told()

    def _order(
        self, capability: str, digest: Digest | None, tried: Tried, *, elsewhere: bool = False
    ) -> Iterator[tuple[Candidate, bool]]:
        """Whom to ask, one after the other, and whether it is the last: those that do not rest.

        If even the last is of no use now, those that rest are better than nothing. What is `elsewhere` is
        asked for there, by the last alone.
        """
        able = [place for place in self._now() if capability in place.endpoint.capabilities]
        if not able:
            raise RegistryError(
                f"no endpoint of {self._places[-1].endpoint.host} may be asked to {capability}"
            )
        *mirrors, last = able
        resting = []
        for place in [] if elsewhere else mirrors:
            if digest and place.lacks.get(digest, 0.0) > self._clock():
                continue
            if place.health.admit():
                yield place, False
            else:
                resting.append(place)
        yield last, True
        if tried.is_passing:
            for place in resting:
                yield place, False

    @contextmanager
    def _attempt(
        self, place: Candidate, is_last: bool, digest: Digest | None, tried: Tried
    ) -> Iterator[None]:
        """Keep an error that another endpoint may not have, and what it says of this one."""
        try:
            yield
        except _ITS_OWN as error:
            tried.add(place, error)
            if digest and isinstance(error, NotFound | IntegrityError):
                place.lacks[digest] = self._clock() + _LACKING
            if isinstance(error, NotFound):
                place.health.worked()
                return
            place.health.noted(error)
            if not is_last:
                place.health.rests(error)
        finally:
            place.health.release()

    def _now(self) -> tuple[Candidate, ...]:
        """The places there are now; those that were there before are the same."""
        endpoints = self._endpoints()
        with self._lock:
            if endpoints is not self._seen:
                self._places = tuple(map(self._place_of, endpoints))
                self._seen = endpoints
            return self._places

    def _place_of(self, endpoint: Endpoint) -> Candidate:
        for place in self._ever:
            if place.endpoint == endpoint:
                return place
        self._ever.append(Candidate(endpoint, self._connect, self._clock))
        return self._ever[-1]

    def _connect(self, endpoint: Endpoint, health: Health, is_last: bool) -> Client:
        return Client(
            endpoint,
            credentials=partial(self._find_credentials, endpoint.host, endpoint.repository),
            timeouts=self._timeouts if is_last else hurried(self._timeouts),
            ca_bundle=self._ca_bundle,
            noted=health.noted,
        )

    def _clients(self) -> list[Client]:
        with self._lock:
            places = list(self._ever)
        return [client for place in places for client in place.clients()]


def _is_brief(name: str | Digest, is_last: bool) -> bool:
    """Whether nobody wants to know what else an endpoint has: a mirror's tags are nobody's concern."""
    return not is_last and isinstance(name, str)

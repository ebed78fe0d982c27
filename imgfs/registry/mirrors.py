"""A repository that may be read at several endpoints: its mirrors in order, at last the registry itself.

If an endpoint fails, a read goes on at the next one, that of a blob from the byte it stopped at. An endpoint
that fails is left alone for a while (back-off); the time-outs of all but the last are short.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imgfs.errors import IntegrityError, InvalidImage, NotFound, RegistryError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.auth import KnownAuth
from imgfs.registry.blobs import end_of
from imgfs.registry.candidates import Attempts, Candidate, short_timeouts
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import PULL, RESOLVE, RegistryEndpoint, Traffic
from imgfs.registry.endpoint_state import EndpointState
from imgfs.registry.retry import Timeouts
from imgfs.registry.urls import redact

if TYPE_CHECKING:
    from imgfs.status import EndpointStatus

T = TypeVar("T")

_LACKING = (
    60.0  # seconds before an endpoint is asked again for a blob that it lacked or corrupted (negative cache)
)
_CONVINCING = 1 << 20  # bytes of a blob, when there are many, that prove an endpoint well
_ITS_OWN = (RegistryError, IntegrityError, InvalidImage)  # errors that another endpoint may not have

FindCredentials = Callable[[str, str], Credentials | None]  # for a host and a repository


class Mirrored:
    """Reads at the endpoints that `endpoints()` returns, which may be others each time.

    The interface is that of `Client`, as far as it reads. Safe in threads. `find_credentials` is asked anew
    whenever a host wants to know; `ca_bundle` is a PEM file to trust instead of the usual certificates.
    Errors are those of the registry itself, and say which endpoints were tried before it.
    """

    def __init__(
        self,
        endpoints: Callable[[], tuple[RegistryEndpoint, ...]],
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
        self._seen: tuple[RegistryEndpoint, ...] = ()
        self._candidates: tuple[Candidate, ...] = ()
        self._ever: list[Candidate] = []  # files that are changed may be changed back
        self._served: dict[Digest, Candidate] = {}  # the endpoint that sent the last bytes of a blob

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far, wherever."""
        counts = [client.traffic for client in self._clients()]
        return Traffic(sum(count.requests for count in counts), sum(count.bytes for count in counts))

    def known_auth(self) -> list[tuple[RegistryEndpoint, KnownAuth]]:
        """Return what each endpoint that has been asked is known to want; secret."""
        clients = [
            (candidate.endpoint, client) for candidate in self._now() for client in candidate.clients()
        ]
        return [(endpoint, known) for endpoint, client in clients if (known := client.known_auth)]

    def learn_auth(self, known: Sequence[tuple[RegistryEndpoint, KnownAuth]]) -> None:
        """Begin with what another process knows of the same endpoints."""
        for candidate in self._now():
            for auth in [auth for endpoint, auth in known if endpoint == candidate.endpoint][:1]:
                candidate.client(candidate is self._now()[-1]).learn_auth(auth)

    def connect_ahead(self, count: int) -> None:
        """Have so many connections made to the endpoint that will be asked first, for requests to come.

        One that cannot be asked at all, as its certificates cannot be read, is no error before it is asked.
        """
        able = [candidate for candidate in self._now() if RESOLVE in candidate.endpoint.capabilities]
        for candidate in able[:1]:
            with suppress(*_ITS_OWN):
                candidate.client(candidate is able[-1]).connect_ahead(count)

    def head_manifest(self, name: str | Digest) -> Descriptor:
        """Return what a tag or digest names now; see `Client.head_manifest`."""

        def ask(client: Client, is_last: bool) -> Descriptor:
            return client.tagged(name) if _is_brief(name, is_last) else client.head_manifest(name)

        return self._ask(name, ask)

    def tagged(self, tag: str) -> Descriptor:
        """Return what a tag that may well be missing names now."""
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
        """Return the manifests that refer to `subject`: what the registry itself says, and no mirror.

        No digest proves which manifests refer to an image, so the list of a mirror is not used. If a mirror
        that resolves tags answers, the image can be had without its registry: then the registry is asked with
        short time-outs, and an error of it gives an empty list.
        """
        attempts = Attempts()
        has_answered = False
        for candidate, is_last in self._order(RESOLVE, None, attempts):
            with self._attempt(candidate, is_last, None, attempts):
                found = candidate.client(is_last and not has_answered).referrers(subject, artifact_type)
                candidate.state.worked()
                has_answered = True
                if candidate is self._now()[-1]:
                    return found
        if has_answered:
            return []
        raise attempts.error()

    def blob(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes `[start, end)` of a blob, wherever each of them is from; see `Client.blob`."""
        end = end_of(descriptor, start, end)
        if start == end:
            return
        digest, attempts, began = descriptor.digest, Attempts(), start
        for candidate, is_last in self._order(PULL, digest, attempts, elsewhere=url is not None):
            with self._attempt(candidate, is_last, digest, attempts):
                for chunk in candidate.client(is_last).blob(descriptor, start, end, url=url):
                    start += len(chunk)
                    self._served[digest] = candidate
                    if start == end or start - began >= _CONVINCING:
                        candidate.state.worked()
                    yield chunk
                return
        raise attempts.error()

    def ignores_ranges(self, digest: Digest) -> bool:
        """Return True if the endpoint that served a blob last sends all of it for a range."""
        candidate = self._served.get(digest)
        return candidate is not None and any(client.ignores_ranges(digest) for client in candidate.clients())

    def doubt(self, digest: Digest) -> bool:
        """Note that the bytes of a blob were wrong; return True if another endpoint is asked for it next."""
        candidate = self._served.pop(digest, None)
        if candidate is None:
            return False
        for client in candidate.clients():
            client.doubt(digest)
        if candidate is self._now()[-1]:
            return False
        candidate.missing_until[digest] = self._clock() + _LACKING
        error = RegistryError(
            f"{redact(candidate.endpoint.url)}: what came of the blob {digest.short} was wrong"
        )
        candidate.state.noted(error)
        candidate.state.back_off(error)
        return True

    def health(self) -> list[EndpointStatus]:
        """Return the state of each endpoint, in their order; see `EndpointState.report`."""
        return [candidate.state.report() for candidate in self._now()]

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        for client in self._clients():
            client.close()

    def _ask(self, name: str | Digest, ask: Callable[[Client, bool], T]) -> T:
        """Return the first good answer: for a tag, of endpoints that resolve; for a digest, that pull."""
        digest = name if isinstance(name, Digest) else None
        attempts = Attempts()
        for candidate, is_last in self._order(PULL if digest else RESOLVE, digest, attempts):
            with self._attempt(candidate, is_last, digest, attempts):
                answer = ask(candidate.client(is_last), is_last)
                candidate.state.worked()
                return answer
        raise attempts.error()

    def _order(
        self, capability: str, digest: Digest | None, attempts: Attempts, *, elsewhere: bool = False
    ) -> Iterator[tuple[Candidate, bool]]:
        """Yield the endpoints to ask, in order, and True with the last one; those that back off are left out.

        If the last fails in a way that may pass, those that back off are tried after it. A blob that is
        `elsewhere` (a URL in its descriptor) is fetched by the last endpoint alone.
        """
        able = [candidate for candidate in self._now() if capability in candidate.endpoint.capabilities]
        if not able:
            raise RegistryError(
                f"no endpoint of {self._candidates[-1].endpoint.host} may be asked to {capability}"
            )
        *mirrors, last = able
        backing_off = []
        for candidate in [] if elsewhere else mirrors:
            if digest and candidate.missing_until.get(digest, 0.0) > self._clock():
                continue
            if candidate.state.admit():
                yield candidate, False
            else:
                backing_off.append(candidate)
        yield last, True
        if attempts.is_passing:
            for candidate in backing_off:
                yield candidate, False

    @contextmanager
    def _attempt(
        self, candidate: Candidate, is_last: bool, digest: Digest | None, attempts: Attempts
    ) -> Iterator[None]:
        """Note an error that another endpoint may not have, and its meaning for this endpoint's state."""
        try:
            yield
        except _ITS_OWN as error:
            attempts.add(candidate, error)
            if digest and isinstance(error, NotFound | IntegrityError):
                candidate.missing_until[digest] = self._clock() + _LACKING
            if isinstance(error, NotFound):
                candidate.state.worked()
                return
            candidate.state.noted(error)
            if not is_last:
                candidate.state.back_off(error)
        finally:
            candidate.state.release()

    def _now(self) -> tuple[Candidate, ...]:
        """Return the current candidates; an endpoint that stays keeps its candidate and state."""
        endpoints = self._endpoints()
        with self._lock:
            if endpoints is not self._seen:
                self._candidates = tuple(map(self._candidate_for, endpoints))
                self._seen = endpoints
            return self._candidates

    def _candidate_for(self, endpoint: RegistryEndpoint) -> Candidate:
        for candidate in self._ever:
            if candidate.endpoint == endpoint:
                return candidate
        self._ever.append(Candidate(endpoint, self._connect, self._clock))
        return self._ever[-1]

    def _connect(self, endpoint: RegistryEndpoint, state: EndpointState, is_last: bool) -> Client:
        return Client(
            endpoint,
            credentials=partial(self._find_credentials, endpoint.host, endpoint.repository),
            timeouts=self._timeouts if is_last else short_timeouts(self._timeouts),
            ca_bundle=self._ca_bundle,
            noted=state.noted,
        )

    def _clients(self) -> list[Client]:
        with self._lock:
            candidates = list(self._ever)
        return [client for candidate in candidates for client in candidate.clients()]


def _is_brief(name: str | Digest, is_last: bool) -> bool:
    """Return True if a missing tag is not explained by a list of tags: that of a mirror is never shown."""
    return not is_last and isinstance(name, str)

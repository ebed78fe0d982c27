"""The source of what a reference names: at once, when it is first needed, or with no registry at all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.config import AuthSource, Peers
from imgfs.errors import ImgfsError, LimitReached, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import EngineReference, FileReference, LayoutReference, Reference, RegistryReference
from imgfs.registry.endpoint import Tls, Traffic
from imgfs.transport.source import UNKNOWN_SIZE, Source, WrappedSource, inline

if TYPE_CHECKING:
    from concurrent.futures import Future

    from imgfs.peers.pool import PeerPool
    from imgfs.registry.auth import KnownAuth
    from imgfs.registry.client import Client
    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.endpoint import RegistryEndpoint
    from imgfs.registry.retry import Timeouts
    from imgfs.status import EndpointStatus
    from imgfs.store.store import Store

_FIRST_READ = 2  # requests at once: of a span, and of the window it is decoded with


def open_source(
    reference: Reference,
    *,
    resolver: Resolver | None = None,
    auth_files: Sequence[AuthSource] = (),
    timeouts: Timeouts | None = None,
    ca_bundle: Path | None = None,
    open_store: Callable[[], Store] | None = None,
    peers: Peers = Peers(),  # noqa: B008 - frozen
) -> Source:
    """Return the source of `reference`; asks for nothing yet.

    `resolver` finds mirrors and TLS settings; without it the registry alone is asked, without TLS on this
    machine only. `auth_files` are looked through in order whenever a registry wants credentials. `ca_bundle`
    is a PEM file to trust instead of the usual certificates. `open_store` opens the store that keeps indexes
    of packed archives; without it there can be none. `peers` are asked beside those that a hosts.toml names.
    """
    if isinstance(reference, FileReference):
        from imgfs.transport.open_file import open_file

        return open_file(reference, open_store)
    if isinstance(reference, EngineReference):
        from imgfs.transport.open_engine import open_engine

        return open_engine(reference, open_store)
    if isinstance(reference, LayoutReference):
        from imgfs.transport.layout import LayoutSource

        return LayoutSource(reference)
    return _open_registry(reference, resolver, auth_files, timeouts, ca_bundle, peers)


def load_http() -> None:
    """Load what speaks HTTP, while there is time: it takes long, and an image that is here does without."""
    import imgfs.registry.adapter
    import imgfs.registry.config.credentials
    import imgfs.registry.config.resolver
    import imgfs.registry.proxies
    import imgfs.transport.registry  # noqa: F401


def _open_registry(
    reference: RegistryReference,
    resolver: Resolver | None,
    auth_files: Sequence[AuthSource],
    timeouts: Timeouts | None,
    ca_bundle: Path | None,
    peers: Peers,
) -> Source:
    from imgfs.registry.config.credentials import find_credentials
    from imgfs.registry.config.resolver import Resolver
    from imgfs.registry.mirrors import Mirrored
    from imgfs.registry.retry import Timeouts
    from imgfs.transport.registry import RegistrySource

    timeouts, resolver = timeouts or Timeouts(), resolver or Resolver()
    named = reference.registry, reference.repository, reference.tag, reference.digest
    client = Mirrored(
        partial(resolver.of, *named),
        find_credentials=partial(find_credentials, auth_files, seconds=timeouts.helper),
        timeouts=timeouts,
        ca_bundle=ca_bundle,
    )
    return RegistrySource(reference, client, _open_peers(resolver.peers(reference.registry), peers))


def _open_peers(named: Sequence[tuple[str, Tls]], more: Peers) -> PeerPool | None:
    """Return the peers that hosts.toml names, and `more`; None if there are none. Raises UsageError."""
    if not named and not more.urls:
        return None
    from imgfs.peers.address import parse_peer
    from imgfs.peers.pool import PeerPool

    clients = ((more.certificate, more.key),) if more.certificate else ()
    usual = Tls((more.ca_file,) if more.ca_file else (), clients)
    return PeerPool([*(parse_peer(*one) for one in named), *(parse_peer(url, usual) for url in more.urls)])


def open_client(
    reference: RegistryReference,
    resolver: Resolver,
    *,
    auth_files: Sequence[AuthSource],
    timeouts: Timeouts,
    ca_bundle: Path | None,
) -> Client:
    """Return a client of a reference's registry itself: what is pushed, or listed, is asked of no mirror.

    The options are those of `open_source`. Raises UsageError.
    """
    from imgfs.registry.client import Client
    from imgfs.registry.config.credentials import find_credentials

    endpoint = resolver.for_push(reference.registry, reference.repository)
    named = endpoint.host, endpoint.repository
    return Client(
        endpoint,
        credentials=partial(find_credentials, auth_files, *named, seconds=timeouts.helper),
        timeouts=timeouts,
        ca_bundle=ca_bundle,
    )


def known_auth(source: Source) -> Sequence[tuple[RegistryEndpoint, KnownAuth]] | None:
    """Return what a registry is known to want, for another process: secret. None for all other sources."""
    module = sys.modules.get("imgfs.transport.registry")  # not loaded: then `source` is none of its
    source = source.opened if isinstance(source, DeferredSource) and source.opened else source
    return source.known_auth() if module and isinstance(source, module.RegistrySource) else None


def open_informed(
    connect: Callable[[], Source],
    known: Sequence[tuple[RegistryEndpoint, KnownAuth]],
    opened: Source | None = None,
) -> Source | None:
    """Open a registry's source by `connect`, with what another process knows of it; None if that fails.

    One that is `opened` already is told that.
    """
    from imgfs.transport.registry import RegistrySource

    try:
        source = opened or connect()
        if isinstance(source, RegistrySource):
            source.learn_auth(known)
            source.expect(_FIRST_READ)
    except ImgfsError:  # raised again when it is opened for a read
        return None
    return source


class DeferredSource(WrappedSource):
    """What `connect` opens, the first time it is needed, unless it is `opened`. Safe in threads."""

    def __init__(self, connect: Callable[[], Source], opened: Source | None = None) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._opened = opened
        self._asked: Future[Descriptor] | None = None

    @property
    def opened(self) -> Source | None:
        """Return what was opened, None if nothing was yet."""
        return self._opened

    @property
    def _source(self) -> Source:
        with self._lock:
            if self._opened is None:
                self._opened = self._connect()
            return self._opened

    def ask_ahead(self, requests: int) -> None:
        """Ask what the reference names, by a whole document; expect so many `requests` after that."""
        from imgfs.parallel import begun

        self.expect(requests)
        with suppress(LimitReached):
            self._asked = begun(partial(super().resolve, whole=True), "imgfs-ask")

    def resolve(self, *, whole: bool = False) -> Descriptor:
        """Return what the reference names now, once by what was asked ahead."""
        asked, self._asked = self._asked, None
        return asked.result() if asked else super().resolve(whole=whole)

    def is_offline(self) -> bool:
        """Open it; return True if no registry is to be asked."""
        return isinstance(self._source, OfflineSource)

    def traffic(self) -> Traffic:
        """Return no traffic until the source is opened."""
        return self._opened.traffic() if self._opened else Traffic(0, 0)

    def health(self) -> list[EndpointStatus]:
        """Return the endpoints' health; nothing before the source is opened."""
        return self._opened.health() if self._opened else []

    def close(self) -> None:
        """Let go of what has been opened."""
        if self._opened:
            self._opened.close()


class OfflineSource:
    """An image of a registry that is not to be asked. What is wanted of it raises Unavailable."""

    def __init__(self, reference: RegistryReference) -> None:
        self._reference = reference

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (no document is to be had)
        """Return the digest that a reference has; what a tag names is not known here."""
        digest = self._reference.digest
        if digest is None:
            raise self._absent("what it names is")
        return Descriptor("", digest, UNKNOWN_SIZE)

    def document(self, descriptor: Descriptor) -> bytes:
        """Return what the descriptor itself carries, else nothing."""
        body = inline(descriptor)
        if body is None:
            raise self._absent(f"its document {descriptor.digest.short} is")
        return body

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield what the descriptor itself carries, else nothing."""
        body = inline(descriptor)
        if body is None:
            last = (descriptor.size if end is None else end) - 1
            raise self._absent(f"bytes {start}-{last} of its blob {descriptor.digest.short} are")
        yield body[start:end]

    def tagged(self, tag: str) -> Descriptor:
        """Raise Unavailable: no registry is asked."""
        raise self._absent(f"what its tag {tag!r} names is")

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return nothing: no registry is asked."""
        del digest, artifact_type
        return []

    def ignores_ranges(self, _descriptor: Descriptor) -> bool:
        """No range is answered."""
        return False

    def doubt(self, _descriptor: Descriptor) -> bool:
        """Return False: there is no other place to ask."""
        return False

    def peers(self) -> None:
        """Return None: no registry is asked, and no peer either."""

    def traffic(self) -> Traffic:
        """Return zeros: no registry is asked."""
        return Traffic(0, 0)

    def health(self) -> list[EndpointStatus]:
        """Return no endpoints: no registry is asked."""
        return []

    def expect(self, _requests: int) -> None:
        """Nothing is asked."""

    def close(self) -> None:
        """Nothing is kept open."""

    def _absent(self, what: str) -> Unavailable:
        return Unavailable(
            f"offline: {self._reference}: {what} not in the store (imgfs pull would bring all of it)"
        )

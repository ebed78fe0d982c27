"""The endpoints of a repository: mirrors in their order, then the registry itself (containerd's resolver).

What is said of one registry alone in a hosts.toml comes first, then registries.conf, then a hosts.toml for
all registries. What registries.conf blocks stays blocked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.config import RegistryFiles
from imgfs.errors import UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.reference import DOCKER_HUB
from imgfs.registry.config.hosts_toml import Host, HostsFile, default_directories, find_hosts, own_directories
from imgfs.registry.config.registries_conf import Location, Registry, load_registries
from imgfs.registry.config.reload import Reader, Watched
from imgfs.registry.endpoint import PULL, PUSH, RESOLVE, RegistryEndpoint, Tls
from imgfs.registry.tls import certificates_in, checked_tls, merged_tls
from imgfs.registry.urls import is_loopback

_HUB_ADDRESS = "registry-1.docker.io"
_HUB_NAMES = (DOCKER_HUB, "index.docker.io", _HUB_ADDRESS)


class TlsOptions(NamedTuple):
    """TLS options of the command line.

    `plain_http` is for the registry of the reference: True for plain HTTP, False for TLS, None for plain HTTP
    on loopback only. `insecure`: no certificate is verified. `ca_file`: further authorities, in PEM.
    """

    plain_http: bool | None = None
    insecure: bool = False
    ca_file: Path | None = None


class _Name(NamedTuple):
    """A reference, in parts."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


class Resolver:
    """Finds the endpoints of repositories by the files of users; notices changed files. Safe in threads."""

    def __init__(
        self,
        files: RegistryFiles = RegistryFiles(),  # noqa: B008 - frozen
        options: TlsOptions = TlsOptions(),  # noqa: B008 - frozen
    ) -> None:
        self._files = files
        self._options = options
        self._lock = threading.Lock()
        self._watched: dict[_Name, Watched[tuple[RegistryEndpoint, ...]]] = {}

    def of(
        self, registry: str, repository: str, tag: str | None = None, digest: Digest | None = None
    ) -> tuple[RegistryEndpoint, ...]:
        """Return the endpoints in order, at least one; the same object as long as no file changes.

        Raises UsageError the first time if a file is malformed or the repository is blocked; later on, the
        last version of the files that could be read holds.
        """
        name = _Name(registry, repository, tag, str(digest) if digest else None)
        with self._lock:
            watched = self._watched.setdefault(name, Watched(partial(self._look, name)))
        return watched.value()

    def for_push(self, registry: str, repository: str) -> RegistryEndpoint:
        """Return where to push: the registry itself, or the `server` of its hosts.toml, never a mirror.

        registries.conf moves only what is pulled (containers-registries.conf(5), "mirror").
        """
        reader, name = Reader(), _Name(registry, repository)
        found = load_registries(reader, self._files.registries).find(str(name))
        own = find_hosts(reader, own_directories(self._files.hosts, registry))
        hosts = own or (None if found else self._for_all(reader, registry))
        if hosts and PUSH in hosts.server.capabilities:
            return self._host(reader, name, _asked_once(hosts, registry).server)
        insecure = found is not None and found.location.insecure
        return self._located(reader, name, Location("", insecure))[0]

    def peers(self, registry: str) -> list[tuple[str, Tls]]:
        """Return the URLs and TLS settings of machines that may have cached layers of a registry.

        Raises UsageError if a file is malformed.
        """
        reader = Reader()
        own = find_hosts(reader, own_directories(self._files.hosts, registry))
        found = own or self._for_all(reader, registry)
        return [(url, checked_tls(reader, tls)) for url, tls in found.peers] if found else []

    def _look(self, name: _Name, reader: Reader) -> tuple[RegistryEndpoint, ...]:
        found = load_registries(reader, self._files.registries).find(str(name))
        if found and found.blocked:
            raise UsageError(f"{found.where}: {name} is blocked (prefix {found.prefix!r})")
        hosts = find_hosts(reader, own_directories(self._files.hosts, name.registry))
        if hosts is None and found:
            return self._of_registry(reader, name, found)
        hosts = hosts or self._for_all(reader, name.registry)
        if hosts is None:
            return self._located(reader, name, Location())
        hosts = _asked_once(hosts, name.registry)
        mirrors = (_mirror(self._host(reader, name, host)) for host in hosts.mirrors)
        return (
            *(mirror for mirror in mirrors if mirror.capabilities),
            self._host(reader, name, hosts.server),
        )

    def _for_all(self, reader: Reader, registry: str) -> HostsFile | None:
        return find_hosts(reader, default_directories(reader, self._files.hosts, registry))

    def _host(self, reader: Reader, name: _Name, host: Host) -> RegistryEndpoint:
        """Return the endpoint of a hosts.toml; another host gets `?ns=` ("Registry host namespace")."""
        address = host.host or name.registry
        tls = self._tls(reader, address, host.tls)
        if not host.host:
            scheme = _schemes(address, tls, self._options.plain_http)[0]
            url = f"{scheme}://{_address(address)}/v2"
            guessed = scheme == "http" and self._options.plain_http is None
            known = _known_as(address)
            return RegistryEndpoint(
                url,
                known,
                name.repository,
                headers=host.headers,
                tls=tls,
                dial_timeout=host.dial_timeout,
                guessed=guessed,
            )
        return RegistryEndpoint(
            f"{host.scheme}://{_address(address)}{host.path}",
            _known_as(address),
            name.repository,
            host.capabilities,
            None if _known_as(address) == _known_as(name.registry) else name.registry,
            host.headers,
            tls,
            dial_timeout=host.dial_timeout,
        )

    def _of_registry(self, reader: Reader, name: _Name, found: Registry) -> tuple[RegistryEndpoint, ...]:
        """Return the mirrors of a `[[registry]]` that may be asked for this reference, then its location."""
        endpoints: list[RegistryEndpoint] = []
        for mirror in found.mirrors:
            allowed = _allowed(mirror, name)
            if allowed:
                endpoints += (_mirror(one, allowed) for one in self._located(reader, name, mirror, found))
        return (*endpoints, *self._located(reader, name, found.location, found))

    def _located(
        self, reader: Reader, name: _Name, location: Location, by: Registry | None = None
    ) -> tuple[RegistryEndpoint, ...]:
        """Return the endpoints of a repository where `by` says it is, one for each scheme to try."""
        host, repository = name.registry, name.repository
        if by:
            host, repository = by.at(location, host, repository)
        tls = self._tls(reader, host, Tls(verify=not location.insecure))
        plain = self._options.plain_http if host == name.registry else None
        schemes = _schemes(host, tls, plain, insecure=location.insecure)
        guessed = plain is None and schemes == ("http",)
        return tuple(
            RegistryEndpoint(
                f"{scheme}://{_address(host)}/v2", _known_as(host), repository, tls=tls, guessed=guessed
            )
            for scheme in schemes
        )

    def _tls(self, reader: Reader, host: str, own: Tls) -> Tls:
        """Return the TLS settings of a host: the command line's, `own` and those of all directories."""
        ca_file = self._options.ca_file
        given = Tls((ca_file,) if ca_file else (), (), not self._options.insecure)
        return checked_tls(reader, merged_tls([given, own, *self._certificates(reader, host)]))

    def _certificates(self, reader: Reader, host: str) -> Iterator[Tls]:
        """Yield the certificates in directories of a host, if no hosts.toml is there (`docs/hosts.md`)."""
        for name in _HUB_NAMES if _known_as(host) == DOCKER_HUB else (host,):
            own = own_directories(self._files.hosts, name)
            for directory in (*own, *default_directories(reader, self._files.hosts, name)):
                if not find_hosts(reader, [directory]):
                    yield certificates_in(reader, directory)
            for root in self._files.certificates:
                yield certificates_in(reader, root / name)


def _asked_once(hosts: HostsFile, registry: str) -> HostsFile:
    """Return what a hosts.toml says, with the server once, where its table as a host is the last of them.

    So is the certificate of a registry often given, which has no mirrors. What that table says, and the
    server's own words, hold for the one that is left: it is the registry, not a mirror with one try.
    """
    if not hosts.mirrors:
        return hosts
    *before, last = hosts.mirrors
    server = hosts.server if hosts.server.host else last._replace(host=_address(registry), path="/v2")
    if (last.scheme, _address(last.host), last.path) != (server.scheme, _address(server.host), server.path):
        return hosts
    both = last._replace(
        capabilities=hosts.server.capabilities,
        tls=merged_tls([last.tls, hosts.server.tls]),
        headers={**hosts.server.headers, **last.headers},
        dial_timeout=last.dial_timeout or hosts.server.dial_timeout,
    )
    return hosts._replace(mirrors=tuple(before), server=both)


def _schemes(host: str, tls: Tls, plain: bool | None, *, insecure: bool = False) -> tuple[str, ...]:
    """Return the schemes to try, in order.

    On loopback plain HTTP is a guess, unless a file names certificates (`RegistryEndpoint.guessed`).
    """
    if plain is not None:
        return ("http" if plain else "https",)
    if insecure:
        return "https", "http"
    return ("http" if is_loopback(host) and not (tls.authorities or tls.clients) else "https",)


def _address(registry: str) -> str:
    """Return the host that serves a registry's API."""
    return _HUB_ADDRESS if registry in _HUB_NAMES else registry


def _known_as(registry: str) -> str:
    """Return the name that credentials are kept under."""
    return DOCKER_HUB if registry in _HUB_NAMES else registry


def _mirror(
    endpoint: RegistryEndpoint, allowed: frozenset[str] = frozenset({PULL, RESOLVE})
) -> RegistryEndpoint:
    return replace(endpoint, is_mirror=True, capabilities=endpoint.capabilities & allowed)


def _allowed(mirror: Location, name: _Name) -> frozenset[str]:
    """Return the capabilities of a mirror ("pull-from-mirror").

    One for digests only serves the blobs of a tag, too: their digests are known by then. One for tags only
    serves what is named by a tag.
    """
    if not mirror.by_digest and name.digest:
        return frozenset()
    return frozenset({PULL, RESOLVE} if mirror.by_tag else {PULL})

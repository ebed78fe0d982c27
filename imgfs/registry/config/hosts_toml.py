"""containerd's hosts.toml: the hosts that may stand in for a registry (containerd, `docs/hosts.md`).

It is kept as `certs.d/HOST[:PORT]/hosts.toml`, or below `_default` for every registry without a directory of
its own. It is containerd's file as well, whose later versions know more: keys and capabilities that are not
known here are passed over. `proxy` does not count: proxies are the same for every host.

A table of imgfs's own names other machines' imgfs, `[peer."https://host:port"]` with the keys `ca`, `client`
and `skip_verify` of a host: a table, as containerd passes over those it does not know, but refuses a file
with a capability it does not know.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from imgfs.registry.config.reload import Reader, Table
from imgfs.registry.endpoint import ALL, Tls
from imgfs.registry.urls import UrlError, parse_url

log = logging.getLogger(__name__)

DEFAULT = "_default"
_NAME = "hosts.toml"
_ROOT = "/v2"  # where the API is (distribution-spec, "Endpoints")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|µs|μs|ms|s|m|h)")  # Go, time.ParseDuration
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2


class Host(NamedTuple):
    """A host to ask. `scheme`, `host` and `path` are "" for the registry itself, if the file does not name
    it; the path is the API's root, usually `/v2`."""

    scheme: str
    host: str
    path: str
    capabilities: frozenset[str]
    tls: Tls
    headers: dict[str, str]
    dial_timeout: float | None = None


class HostsFile(NamedTuple):
    """The hosts to be asked in order, and at last the `server`."""

    mirrors: tuple[Host, ...]
    server: Host
    peers: tuple[tuple[str, Tls], ...] = ()  # by URL


@lru_cache(maxsize=64)  # each reference asks anew: what is passed over is warned of once
def parse_hosts(path: Path, body: bytes) -> HostsFile:
    """Read a hosts.toml; raises UsageError naming file and key."""
    root = Table.parse(path, body)
    hosts = root.table("host")
    named = [(url, url.rpartition("@")[2]) for url in hosts.fields]  # the second is fit to be shown
    mirrors = tuple(
        _host(url, hosts.table(url)._replace(at=f"host.{key}."), hosts, key) for url, key in named
    )
    others = root.table("peer")
    peers = tuple((url, _tls(others.table(url)._replace(at=f"peer.{url}."))) for url in others.fields)
    return HostsFile(mirrors, _host(root.text("server"), root, root, "server"), peers)


def own_directories(roots: Iterable[Path], registry: str) -> Iterator[Path]:
    """Yield where each of `roots` may speak of this one registry: `HOST_PORT_` comes before `HOST:PORT`."""
    host, colon, port = registry.rpartition(":")
    for root in roots:
        if colon:
            yield root / f"{host}_{port}_"
        yield root / registry


def default_directories(reader: Reader, roots: Iterable[Path], registry: str) -> Iterator[Path]:
    """Yield the `_default` of those of `roots` that have no directory for this one registry."""
    for root in roots:
        if not any(reader.stamp(directory) for directory in own_directories([root], registry)):
            yield root / DEFAULT


def find_hosts(reader: Reader, directories: Iterable[Path]) -> HostsFile | None:
    """Return the first hosts.toml in one of `directories`.

    An empty one is as good as none, as for containerd.
    """
    for directory in directories:
        body = reader.read(directory / _NAME)
        if body:
            return parse_hosts(directory / _NAME, body)
    return None


def _host(url: str, table: Table, above: Table, key: str) -> Host:
    """Return the host at `url` as its table describes it; a wrong URL is wrong under `above`'s `key`."""
    capabilities, tls, headers = _capabilities(table), _tls(table), _headers(table)
    dial_timeout = _duration(table, "dial_timeout")
    if not url:
        return Host("", "", "", ALL, tls, headers, dial_timeout)
    address = _address(url)
    if not address:
        above.refuse(key, "expected http:// or https:// and a host, perhaps with a port and a path")
    scheme, host, path = address
    if not path.endswith(_ROOT) and not table.flag("override_path"):
        path += _ROOT
    return Host(scheme, host, path, capabilities, tls, headers, dial_timeout)


def _address(url: str) -> tuple[str, str, str] | None:
    """Scheme, host and path of a URL, whose scheme is https if it has none."""
    try:
        found = parse_url(url if "://" in url else f"https://{url}")
    except UrlError:
        return None
    if set("?#") & set(url):
        return None
    named = url.partition("://")[2] or url  # a port stays, should it be the scheme's own: certs.d is named so
    host = named.partition("/")[0].lower()
    return found.scheme, host, posixpath.normpath(f"/{found.target.strip('/')}").rstrip("/")


def _capabilities(table: Table) -> frozenset[str]:
    """Return what a host may be asked for.

    One of which only unknown things are said may be asked for nothing.
    """
    named = frozenset(name.lower() for name in table.texts("capabilities"))
    unknown = sorted(named - ALL)
    if unknown:
        log.warning(
            "%s: %scapabilities: %s: not known here, passed over", table.path, table.at, ", ".join(unknown)
        )
    return named & ALL if named else ALL


def _duration(table: Table, name: str) -> float | None:
    """Return seconds out of a duration as Go writes it, `1m30s` or `500ms`; None for no limit of its own."""
    text = table.text(name)
    if not text:
        return None
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        table.refuse(name, "expected a duration, such as 500ms or 1m30s")
    return sum(float(number) * _UNITS[unit] for number, unit in parts) or None


def _tls(table: Table) -> Tls:
    """Return the files that `ca` and `client` name.

    Relative ones are relative to the directory of hosts.toml.
    """
    authorities = tuple(_path(table, "ca", value) for value in _several(table, "ca"))
    clients = tuple(_pair(table, value) for value in _several(table, "client"))
    return Tls(authorities, clients, not table.flag("skip_verify"))


def _several(table: Table, name: str) -> list[object]:
    """Return a field that is one value or an array of them."""
    value = table.fields.get(name, [])
    return value if isinstance(value, list) else [value]


def _path(table: Table, name: str, value: object) -> Path:
    if not isinstance(value, str) or not value or not value.isprintable():
        table.refuse(name, "expected paths of files")
    return table.path.parent / value


def _pair(table: Table, value: object) -> tuple[Path, Path | None]:
    """Return a client's certificate and key: a path of both, or a pair whose second may be empty."""
    if not isinstance(value, list):
        return _path(table, "client", value), None
    if len(value) != 2:
        table.refuse("client", "expected pairs of a certificate and a key")
    return _path(table, "client", value[0]), _path(table, "client", value[1]) if value[1] != "" else None


def _headers(table: Table) -> dict[str, str]:
    """Return what to send with every request.

    Several values of a header are one with commas (RFC 9110, 5.3).
    """
    fields = table.table("header")
    return {name: _header(fields, name) for name in fields.fields}


def _header(fields: Table, name: str) -> str:
    values = _several(fields, name)
    texts = [value for value in values if isinstance(value, str) and value.isprintable() and value.isascii()]
    if len(texts) < len(values) or not _HEADER.fullmatch(name):
        fields.refuse(name, "expected a header's name and its value or values, in ASCII")
    return ", ".join(texts)

"""registries.conf of podman and its kin (containers-registries.conf(5), .conf.d(5)): where images really are.

A `[[registry]]` speaks of the images whose names begin with its prefix: it may have mirrors, be somewhere
else, or be blocked. What the files say of short names is for `shortnames`. Both versions of the format are
read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from imgfs.config import RegistriesConf
from imgfs.errors import UsageError
from imgfs.registry.config.reload import Reader, Table
from imgfs.registry.urls import UrlError, parse_url

_HOST = r"(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_SEARCHED = re.compile(_HOST)
_LOCATION = re.compile(rf"{_HOST}(?:/[\w.-]+)*", re.ASCII)
_PREFIX = re.compile(rf"{_HOST}(?:(?:/[\w.-]+)+(?::[\w.-]+)?(?:@[\w:+.-]+)?)?|\*(?:\.[\w-]+)+", re.ASCII)
log = logging.getLogger(__name__)

_MIRRORED = {"": (True, True), "all": (True, True), "tag-only": (True, False), "digest-only": (False, True)}
_MODES = ("", "enforcing", "permissive", "disabled")


class Location(NamedTuple):
    """Where the images of a prefix may be; the `place` "" is where they are named. If `insecure`, it may be
    without TLS or with an unverified certificate. `by_tag` and `by_digest`: the references it may be used
    for."""

    place: str = ""
    insecure: bool = False
    by_tag: bool = True
    by_digest: bool = True


@dataclass(frozen=True, slots=True)
class Registry:
    """A `[[registry]]`: what holds for names that begin with `prefix`; `where` names file and table."""

    prefix: str
    where: str = field(compare=False)
    location: Location = Location()  # noqa: RUF009 - frozen
    mirrors: tuple[Location, ...] = ()
    blocked: bool = False

    def matched(self, name: str) -> int:
        """Return how many characters of a name the prefix covers, ending where a part of the name does.

        Else 0.

        `*.example.com` covers every host below it, whatever its port.
        """
        if self.prefix.startswith("*."):
            host = re.sub(r":[0-9]+$", "", name.partition("/")[0])
            return len(host) if host.endswith(self.prefix[1:]) else 0
        ends = "/:@" if "/" in self.prefix else "/"  # what is behind a host and a colon is another registry's
        rest = name[len(self.prefix) :]
        return len(self.prefix) if name.startswith(self.prefix) and (not rest or rest[0] in ends) else 0

    def at(self, location: Location, registry: str, repository: str) -> tuple[str, str]:
        """Return host and repository where a location has `registry/repository`; both may be others."""
        if not location.place:
            return registry, repository
        name = f"{registry}/{repository}"
        host, _, rest = f"{location.place}{name[self.matched(name) or len(name) :]}".partition("/")
        if not rest:
            raise UsageError(f"{self.where}: location {location.place!r} leaves no repository of {name}")
        return host, rest


@dataclass(frozen=True, slots=True)
class Alias:
    """What a short name stands for; "" takes back what an earlier file says. `where` names file and key."""

    name: str
    where: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Registries:
    """What the files say together. `search` is None if no file has `unqualified-search-registries`."""

    registries: Mapping[str, Registry] = field(default_factory=dict)
    search: tuple[str, ...] | None = None
    mode: str = ""
    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def find(self, name: str) -> Registry | None:
        """Return the `[[registry]]` with the longest prefix of `host/repository[:tag][@digest]`.

        A host's own name counts for more than `*`.
        """
        matches = [registry for registry in self.registries.values() if registry.matched(name)]
        return max(matches, key=lambda match: (match.matched(name), match.prefix[0] != "*"), default=None)

    def updated(self, later: Registries) -> Registries:
        """Return what a file that is read after the others makes of this ("Configuration precedence")."""
        return Registries(
            {**self.registries, **later.registries},
            self.search if later.search is None else later.search,
            later.mode or self.mode,
            {**self.aliases, **later.aliases},
        )


def load_registries(reader: Reader, files: Iterable[RegistriesConf]) -> Registries:
    """Read the first of `files` there is, and what is added to it; raises UsageError naming file and key."""
    found, added = Registries(), tuple[Path, ...]()
    for conf in files:
        body, added = reader.read(conf.path), conf.added
        if body is not None:
            found = parse_registries(conf.path, body)
            break
        if conf.named:
            raise UsageError(f"{conf.path}: $CONTAINERS_REGISTRIES_CONF names it, but it is not there")
    for path in _added(reader, added):
        found = found.updated(parse_registries(path, reader.read(path) or b""))
    return found


def load_chosen(reader: Reader, files: Iterable[RegistriesConf]) -> dict[str, Alias]:
    """Return what podman's user has chosen for short names: it counts before what a registries.conf says.

    podman keeps it in a file of its own (short-name-aliases.conf), of which the first there is counts.
    """
    for path in dict.fromkeys(path for conf in files for path in conf.aliases):
        body = reader.read(path)
        if body is not None:
            return _named(Table.parse(path, body))
    return {}


def _named(root: Table) -> dict[str, Alias]:
    aliases = root.table("aliases")
    return {name: Alias(aliases.text(name), f"{root.path}: aliases.{name}") for name in aliases.fields}


def _added(reader: Reader, directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        paths = (directory / name for name in reader.names(directory) if name.endswith(".conf"))
        yield from (path for path in paths if not path.is_dir())


@lru_cache(maxsize=64)  # each reference asks anew: what is passed over is warned of once
def parse_registries(path: Path, body: bytes) -> Registries:
    """Read one registries.conf; raises UsageError naming file and key."""
    root = Table.parse(path, body)
    named = _named(root)
    if "registries" in root.fields:
        return replace(_version_1(root.table("registries")), aliases=named)
    mode = root.text("short-name-mode")
    if mode not in _MODES:
        log.warning("%s: short-name-mode: %r: not known here, passed over", path, mode)
        mode = ""
    search = _hosts(root, "unqualified-search-registries")
    searched = search if "unqualified-search-registries" in root.fields else None
    return Registries(_by_prefix(map(_registry, root.tables("registry")), root), searched, mode, named)


def _by_prefix(registries: Iterable[Registry], table: Table) -> dict[str, Registry]:
    found: dict[str, Registry] = {}
    for registry in registries:
        if found.setdefault(registry.prefix, registry) != registry:
            table.refuse("registry", f"{registry.prefix!r} is described twice, and differently")
    return found


def _registry(table: Table) -> Registry:
    place = _place(table, "location")
    prefix = table.text("prefix").rstrip("/") or place
    if not _PREFIX.fullmatch(prefix):
        table.refuse("prefix", "expected host[:port][/repository…] or *.host")
    digests_only = table.flag("mirror-by-digest-only")
    return Registry(
        prefix,
        f"{table.path}: {table.at.rstrip('.')}",
        Location(place if place != prefix else "", table.flag("insecure")),
        tuple(filter(None, (_mirror(mirror, digests_only) for mirror in table.tables("mirror")))),
        table.flag("blocked"),
    )


def _mirror(table: Table, digests_only: bool) -> Location | None:
    """Read a mirror; None if it is for references of a kind that is not known here."""
    place, which = _place(table, "location"), table.text("pull-from-mirror")
    if not place:
        table.refuse("location", "expected host[:port][/repository…]")
    if which and digests_only:
        table.refuse("pull-from-mirror", "there is mirror-by-digest-only, too")
    if which not in _MIRRORED:
        log.warning(
            "%s: %spull-from-mirror: %r: not known here, the mirror is passed over",
            table.path,
            table.at,
            which,
        )
        return None
    by_tag, by_digest = _MIRRORED["digest-only" if digests_only else which]
    return Location(place, table.flag("insecure"), by_tag, by_digest)


def _place(table: Table, name: str) -> str:
    """Return where images are: no URL and, unlike in a prefix, no tag, as imgfs asks for its own."""
    place = table.text(name).rstrip("/")
    if place and not (_LOCATION.fullmatch(place) and _is_host(place.partition("/")[0])):
        table.refuse(name, "expected host[:port][/repository…], without scheme and tag")
    return place


def _is_host(host: str) -> bool:
    """Return whether `host[:port]` is one that can be asked."""
    try:
        parse_url(f"https://{host}")
    except UrlError:
        return False
    return True


def _hosts(table: Table, name: str) -> tuple[str, ...]:
    hosts = tuple(host.rstrip("/") for host in table.texts(name))
    if not all(_SEARCHED.fullmatch(host) and _is_host(host) for host in hosts):
        table.refuse(name, "expected names of registries, host[:port]")
    return hosts


def _version_1(table: Table) -> Registries:
    """Return the old format: three lists of registries ("Version 1 format")."""
    search, insecure, blocked = (
        _hosts(table.table(name), "registries") for name in ("search", "insecure", "block")
    )
    registries = {
        host: Registry(host, f"{table.path}: registries", Location("", host in insecure), (), host in blocked)
        for host in (*insecure, *blocked)
    }
    return Registries(registries, search)

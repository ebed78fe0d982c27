"""An endpoint of a repository: the registry itself or a mirror; limits of documents, counts of traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MAX_MANIFEST = 4 << 20  # bytes; what the spec asks registries to accept ("Pushing Manifests")
MAX_DOCUMENT = 8 << 20  # bytes of a config


class Traffic(NamedTuple):
    """Requests sent and body bytes received so far."""

    requests: int
    bytes: int


PULL, RESOLVE, PUSH = "pull", "resolve", "push"
ALL = frozenset({PULL, RESOLVE, PUSH})


class Tls(NamedTuple):
    """TLS settings. `authorities` are PEM files trusted beside the usual ones, `clients` pairs
    of a certificate and its key, PEM files too; without `verify` any certificate is accepted. `stamps`
    are those of the files (inode, modification, size): a renewed certificate makes another Tls."""

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path | None], ...] = ()
    verify: bool = True
    stamps: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RegistryEndpoint:
    """A host that may be asked for `repository`.

    `url` is what `/REPOSITORY/manifests/…` is appended to, such as `https://host:5000/v2`. `host` is what
    credentials are looked up under. That its `url` is without TLS may be `guessed`: if what answers there
    speaks TLS, so does imgfs. `namespace` is the registry it stands in for, sent as `?ns=`. It may
    be asked for tags if it can `resolve`, for digests if it can `pull` (containerd's hosts.toml,
    "capabilities"). `dial_timeout` are seconds to be connected in, None for the usual.
    """

    url: str
    host: str
    repository: str
    capabilities: frozenset[str] = ALL
    namespace: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Tls = Tls()  # noqa: RUF009 - frozen
    is_mirror: bool = False
    dial_timeout: float | None = None
    guessed: bool = field(default=False, compare=False)

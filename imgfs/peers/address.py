"""Where a peer is: `https://HOST[:PORT]`, `http://` on this machine only, or `unix:PATH`.

A host stands for all its addresses: a DNS name that has one for each machine (a headless service) names them
all. What goes without TLS could be read on its way, so it does not leave this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgfs.errors import UsageError
from imgfs.registry.endpoint import Tls
from imgfs.registry.urls import UrlError, is_loopback, parse_url, shown


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A host and port, with TLS if there is `tls`; or a socket in the file system."""

    host: str = ""
    port: int = 0
    tls: Tls | None = None
    path: Path | None = None

    def __str__(self) -> str:
        """As it is written."""
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.tls else ''}://{host}:{self.port}"


def parse_peer(text: str, tls: Tls = Tls()) -> PeerAddress:  # noqa: B008 - frozen
    """Read what people write; `tls` is for one with TLS. Raises UsageError."""
    if text.startswith("unix:/"):
        return PeerAddress(path=Path(text.removeprefix("unix:")))
    try:
        url = parse_url(text)
    except UrlError as error:
        raise UsageError(f"peer {shown(text)}: a URL {error}; or unix:/PATH") from error
    if url.target != "/":
        raise UsageError(f"peer {shown(text)}: a path is not expected")
    if url.is_secure:
        return PeerAddress(url.host, url.port, tls)
    if not is_loopback(url.netloc):
        raise UsageError(f"peer {shown(text)}: beyond this machine a peer has TLS: https://")
    return PeerAddress(url.host, url.port)

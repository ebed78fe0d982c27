"""URLs that others say: one parser, whose parts are judged, connected to and sent.

A URL of a server (Location, Link, realm, `urls` of a blob) or of a file (mirrors) is read here and nowhere
else. What judges a host, keys connections by it, connects to it or writes the request takes the same parts
of the same `Url`, so that no second parser can see another host in the text than the one that was judged.

Refused is what parsers are known to read differently (RFC 3986 and the WHATWG's URL standard part there):
user and password or any `@` before the path, backslashes, spaces, control characters and what is not ASCII,
`%` in a host, zones of IPv6, empty labels, ports that are empty, 0, above 65535 or begin with a zero. A
number is read as resolvers read it, in every spelling (`127.1`, `0x7f000001`), and goes on in the usual one.

What is accepted is not rewritten: path and query go out byte for byte, as signed URLs want it. Only the
fragment is left out (RFC 9110, 7.1).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import NamedTuple

from imgfs.oci.reference import LAST_PORT

MAX_URL = 16 << 10  # characters: signatures and the state of uploads have some thousand
_SHOWN = 200  # characters of a refused URL in an error
_VISIBLE = re.compile(r"[!-\[\]-~]*")  # ASCII without spaces, control characters and the backslash
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_ABSOLUTE = re.compile(r"(?i:(https?))://([^/?]*)((?:/[^?]*)?)((?:\?.*)?)")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::([1-9][0-9]{0,4}))?")
_NUMERIC = re.compile(
    r"[0-9]+|0[xX][0-9A-Fa-f]*"
)  # a last label that makes a number of a host (WHATWG, "ends in a number")
_PORTS = {"http": 80, "https": 443}
_LONGEST_NAME, _LONGEST_LABEL = 253, 63  # RFC 1035, 2.3.4


class UrlError(ValueError):
    """A URL that is not followed; the text says why, and never the URL."""


class Origin(NamedTuple):
    """What Authorization is bound to (RFC 6454, 4). The host is in lower case, IPv6 without brackets."""

    scheme: str
    host: str
    port: int


class Url(NamedTuple):
    """An absolute URL: where it goes to, and the `target` there, a path and perhaps a query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return Origin(self.scheme, self.host, self.port)

    @property
    def root(self) -> str:
        """The origin as a URL."""
        return f"{self.scheme}://{self.netloc}/"

    @property
    def netloc(self) -> str:
        """`host[:port]` as in a Host header: the port only if it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_secure(self) -> bool:
        """Whether it is asked for over TLS."""
        return self.scheme == "https"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse_url(text: str) -> Url:
    """Read an absolute http or https URL; raises UrlError for what is none, or not alike to all readers."""
    match = _ABSOLUTE.fullmatch(_plain(text))
    if not match:
        raise UrlError("that is not absolute, or neither http nor https")
    scheme, authority, path, query = match[1].lower(), match[2], match[3], match[4]
    host, port = _authority(authority)
    return Url(scheme, host, port or _PORTS[scheme], f"{path or '/'}{query}")


def resolve_url(base: Url, text: str) -> Url:
    """Return where `text`, said by the answer for `base`, leads (RFC 3986, 5.2); raises UrlError.

    Dots are taken out of a relative path alone: an absolute one stays as it is.
    """
    text = _plain(text)
    if _SCHEME.match(text):
        return parse_url(text)
    if text.startswith("//"):
        return parse_url(f"{base.scheme}:{text}")
    if text.startswith("/") or not text:
        return base._replace(target=text or base.target)
    path, mark, query = text.partition("?")
    own = base.target.partition("?")[0]
    merged = _without_dots(f"{own.rpartition('/')[0]}/{path}") if path else own
    return base._replace(target=f"{merged}{mark}{query}")


def origin(text: str) -> Origin:
    """Return the origin of a URL; raises UrlError."""
    return parse_url(text).origin


def is_loopback(netloc: str) -> bool:
    """Return whether `host[:port]` is this machine."""
    try:
        return is_loopback_host(parse_url(f"http://{netloc}").host)
    except UrlError:
        return False


def is_loopback_host(host: str) -> bool:
    """Return whether a name, or an address in its usual spelling, is this machine, as for listening.

    An IPv4 address may be written as one of IPv6: Linux connects `::ffff:127.0.0.1`, and binds it, as IPv4.
    """
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def redact(text: str) -> str:
    """Return a URL without user, password, query and fragment, which may be as good as a password.

    Never raises.
    """
    shown = re.split(r"[?#]", text, maxsplit=1)[0]
    shown = re.sub(r"^([A-Za-z0-9+.-]*:?//)[^/]*@", r"\1", shown)
    return "".join(sign if sign.isprintable() else "?" for sign in shown)


def shown(text: str) -> str:
    """Return a URL that is refused, quoted, for a message: its beginning, without what may be secret."""
    return repr(redact(text)[:_SHOWN])


def _plain(text: str) -> str:
    """Return a URL without its fragment; raises UrlError for signs that not every reader takes alike."""
    if len(text) > MAX_URL:
        raise UrlError(f"longer than {MAX_URL} characters")
    if not _VISIBLE.fullmatch(text):
        raise UrlError("with spaces, backslashes, control characters or signs beyond ASCII")
    return text.partition("#")[0]


def _authority(text: str) -> tuple[str, int | None]:
    """Host and port; raises UrlError."""
    if "@" in text:
        raise UrlError("with a user or password")
    match = _AUTHORITY.fullmatch(text)
    if not match:
        raise UrlError("without a plain host, perhaps with a port")
    port = int(match[3]) if match[3] else None
    if port is not None and port > LAST_PORT:
        raise UrlError("with a port that is none")
    return (_ipv6(match[1]) if match[1] else _name(match[2].lower())), port


def _ipv6(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise UrlError("with a host that is no IPv6 address") from error


def _name(host: str) -> str:
    """Return a name or an IPv4 address; the dot at a name's end, which some parsers drop, is none of it."""
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > _LONGEST_NAME or not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise UrlError("with a host that is not a name")
    if _NUMERIC.fullmatch(labels[-1]):
        return _ipv4(host)
    return host


def _ipv4(host: str) -> str:
    """Return an address in the usual spelling, of any that resolvers take (`127.1`, `0x7f000001`)."""
    try:
        return str(ipaddress.IPv4Address(socket.inet_aton(host)))
    except OSError as error:
        raise UrlError("with a host that is a number, and not that of an IPv4 address") from error


def _without_dots(path: str) -> str:
    """Return a path without `.` and `..` (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    ends_in_directory = segments[-1] in (".", "..")
    return "/" + "/".join(kept) + ("/" if ends_in_directory and kept else "")

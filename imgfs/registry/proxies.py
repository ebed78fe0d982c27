"""Proxies: which the environment asks for ($HTTP_PROXY, $HTTPS_PROXY, $ALL_PROXY, $NO_PROXY), and SOCKS5.

The rules are those of requests, which other Python programs on the machine follow too: names in capitals or
not; $NO_PROXY means a host and all below it, a host with a port, an address or an IPv4 network. requests is
loaded only where the environment names a proxy at all. It judges the URL as imgfs has parsed it, so there is
no second reading of what a server sent.

A SOCKS5 proxy (RFC 1928; user and password: RFC 1929) is told names and looks them up itself, as with the
engines that are written in Go: `socks5` and `socks5h` mean the same.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

from imgfs.registry.sockets import Deadline, PlainSocket, dial
from imgfs.registry.urls import Url, is_loopback

SOCKS = ("socks5://", "socks5h://")
_PORT = 1080
_VERSION, _CONNECT = 5, 1
_OPEN, _PASSWORD = 0, 2  # methods (RFC 1928, 3)
_IPV4, _NAME, _IPV6 = 1, 3, 4
_REPLIES = {
    2: "does not allow it",
    3: "cannot reach the network",
    4: "cannot reach the host",
    5: "has been refused the connection",
    6: "has waited too long",
}


def proxy_for(url: Url) -> str:
    """Return the URL of the proxy for a request, "" for none; never one for this machine."""
    named = getproxies()
    if is_loopback(url.netloc) or not named.keys() - {"no"}:
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    host = f"[{url.host}]" if ":" in url.host else url.host
    origin = f"{url.scheme}://{host}:{url.port}/"  # with its port, which $NO_PROXY may name
    excepted = named.get("no", "").lower().replace("*.", ".")  # as curl and Go take it
    proxy = select_proxy(origin, get_environ_proxies(origin, no_proxy=excepted)) or ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


@dataclass(frozen=True, slots=True)
class SocksProxy:
    """The address of a SOCKS proxy and its credentials; without `user` none are sent."""

    host: str
    port: int
    user: bytes = b""
    password: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, url: str) -> SocksProxy:
        """Read `socks5://[user:password@]host[:port]`; raises ValueError."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError("a proxy without a host")
        user, password = (unquote(text or "").encode() for text in (parts.username, parts.password))
        if max(len(user), len(password)) > 255:
            raise ValueError("a proxy's user or password of more than 255 bytes")
        return cls(parts.hostname, parts.port or _PORT, user, password)

    def dial(self, host: str, port: int, seconds: float) -> PlainSocket:
        """Return a socket to a host by way of the proxy; raises OSError. Either part has so many seconds."""
        made = dial(self.host, self.port, seconds)
        made.deadline = Deadline()
        made.deadline.begin(seconds)
        try:
            self._enter(made)
            made.sendall(struct.pack("!BBB", _VERSION, _CONNECT, 0) + _place(host) + struct.pack("!H", port))
            _check_reply(made)
        except BaseException:
            made.close()
            raise
        return made

    def _enter(self, made: socket.socket) -> None:
        methods = bytes([_OPEN, _PASSWORD] if self.user else [_OPEN])
        made.sendall(bytes([_VERSION, len(methods)]) + methods)
        version, method = _exactly(made, 2)
        if version != _VERSION or method not in methods:
            raise OSError(errno.EACCES, "the SOCKS proxy wants another way in" if self.user else _NO_PASSWORD)
        if method == _PASSWORD:
            pair = bytes([1, len(self.user)]) + self.user + bytes([len(self.password)]) + self.password
            made.sendall(pair)
            if _exactly(made, 2)[1]:
                raise OSError(errno.EACCES, "the SOCKS proxy refuses user and password")


_NO_PASSWORD = "the SOCKS proxy wants a user and a password, or is none"


def _place(host: str) -> bytes:
    """Return a host as a request has it (RFC 1928, 5)."""
    with contextlib.suppress(ValueError):
        number = ipaddress.ip_address(host.strip("[]"))
        return bytes([_IPV4 if number.version == 4 else _IPV6]) + number.packed
    name = host.encode("ascii")
    return bytes([_NAME, len(name)]) + name


def _check_reply(made: socket.socket) -> None:
    """Read the proxy's reply to its end (RFC 1928, 6); raises OSError for a refusal."""
    version, reply, _, kind = _exactly(made, 4)
    if version != _VERSION or reply:
        raise OSError(errno.ECONNREFUSED, f"the SOCKS proxy {_REPLIES.get(reply, 'fails')}")
    length = {_IPV4: 4, _IPV6: 16}.get(kind) or _exactly(made, 1)[0]
    _exactly(made, length + 2)


def _exactly(made: socket.socket, count: int) -> bytes:
    body = b""
    while len(body) < count:
        chunk = made.recv(count - len(body))
        if not chunk:
            raise OSError(errno.ECONNRESET, "the SOCKS proxy hangs up")
        body += chunk
    return body

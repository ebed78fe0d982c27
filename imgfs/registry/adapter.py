"""How requests connects: within its time, with a TLS context made here, and noticing who is at the other end.

Only `transport` imports this module, when the first request is made.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from imgfs.errors import RegistryError
from imgfs.registry.names import Address, addresses_of

# A connection lies idle for hours between two reads. Probes keep it in the tables of what is on the way, and
# end it after a minute without an echo (tcp(7)).
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_OPTIONS = (*HTTPConnection.default_socket_options, *_KEEP_ALIVE)

Meet = Callable[[str, str], None]  # told a host and the number of one of its addresses


class Adapter(HTTPAdapter):
    """Keeps up to `connections` to each host. `context` is for those with TLS, None if there are none.

    `admit` is asked about the address of a host before it is connected to, and raises RegistryError if that
    is none to go to; `met` is told where a connection went. Neither is of what a proxy finds for us.
    """

    def __init__(
        self, context: ssl.SSLContext | None, connections: int, *, admit: Meet | None, met: Meet
    ) -> None:
        self._ours: dict[str, Any] = {"ssl_context": context} if context else {}
        self._pools = _pools(lambda connection: _dial(connection, admit, met))
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        """Give the context to what makes connections, and have those made here."""
        super().init_poolmanager(connections, maxsize, block, **more, **self._ours)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        """Do so for what makes connections through a proxy, too."""
        manager = super().proxy_manager_for(proxy, **more, **self._ours)
        if not proxy.lower().startswith("socks"):  # has connections of its own
            manager.pool_classes_by_scheme = self._pools
        return manager

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave it to the context: requests would have it believe its own list as well."""


def _pools(dial: Callable[[HTTPConnection], socket.socket]) -> dict[str, Any]:
    """Pools of connections that are made by `dial`."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return dial(self)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _dial(connection: HTTPConnection, admit: Meet | None, met: Meet) -> socket.socket:
    """A socket connected to the host of `connection`, or its proxy, in its time; raises OSError if not.

    The time is for the name and all its addresses together, of which each has a fair part of what is left.
    """
    host, port, seconds = connection.host.strip("[]"), connection.port, _seconds(connection)
    ends = time.monotonic() + seconds
    found = addresses_of(host, port, seconds)
    if connection.proxy is None and admit:
        found = _admitted(host, found, admit)
    failure = OSError(f"{host} has no address")
    for others, address in zip(reversed(range(len(found))), found, strict=True):
        try:
            made = _connected(address, max(0.0, ends - time.monotonic()) / (others + 1))
        except OSError as error:
            failure = error
            continue
        made.settimeout(seconds)  # of a handshake
        if connection.proxy is None:
            met(host, address.number)
        return made
    raise failure


def _seconds(connection: HTTPConnection) -> float:
    assert isinstance(connection.timeout, int | float), "every request has a time"
    return float(connection.timeout)


def _admitted(host: str, found: list[Address], admit: Meet) -> list[Address]:
    """The addresses that may be gone to; raises why not if that is none of them."""
    admitted, refusal = [], None
    for address in found:
        try:
            admit(host, address.number)
        except RegistryError as error:
            refusal = error
        else:
            admitted.append(address)
    if refusal and not admitted:
        raise refusal
    return admitted


def _connected(address: Address, seconds: float) -> socket.socket:
    made = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        for option in _OPTIONS:
            made.setsockopt(*option)
        made.settimeout(max(seconds, 0.001))  # 0 would mean: without waiting at all
        made.connect(address.place)
    except BaseException:
        made.close()
        raise
    return made

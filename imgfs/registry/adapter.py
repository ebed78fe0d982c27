"""How urllib3 is used: connections by the parts of a `Url`, requests byte for byte, heads that end.

What urllib3 is given to parse is never the URL of a request: which host is connected to, what its certificate
must say, the Host header and the request's target are all taken from the same `Url`. Only `transport` imports
this module, when the first request is made.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from queue import Empty
from typing import Any, NamedTuple
from urllib.parse import unquote

from urllib3 import PoolManager, ProxyManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url as parse_proxy

from imgfs.registry.proxies import SOCKS, SocksProxy
from imgfs.registry.sockets import AddressHook, Deadline, PlainSocket, TlsSocket, bound, dial
from imgfs.registry.urls import Url

MAX_HEAD = 256 << 10  # bytes of an answer's head with all 1xx before it; curl takes 300 kB, a line has 64 KiB
MAX_INTERIM = 32  # answers 1xx before the answer: a registry that works long may send some

RequestBody = bytes | Iterable[Any]  # the bytes or memoryviews of a body


class _Order(dict[str, str]):
    """The headers of a request, and beside them what urllib3 does not pass on."""

    def __init__(self, headers: Mapping[str, str], target: str, deadline: Deadline) -> None:
        super().__init__(headers)
        self.target = target
        self.deadline = deadline

    def copy(self) -> _Order:
        """Return a copy with all of it: urllib3 changes one for a proxy."""
        return _Order(self, self.target, self.deadline)


class _Answer(http.client.HTTPResponse):
    """An answer that comes after any interim ones (RFC 9110, 15.2), of which http.client knows 100 alone."""

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # urllib3 calls it, too
            if not 100 <= status < 200:
                return version, status, reason
            if status == http.client.SWITCHING_PROTOCOLS:
                raise OSError(errno.EPROTO, "it goes on in another protocol, unasked")
            http.client.parse_headers(self.fp)
        raise OSError(errno.EPROTO, f"more than {MAX_INTERIM} interim answers")


class Adapter:
    """Keeps up to `connections` to each host. `context` is for those with TLS, None if there are none.

    `check_address(host, address)` is called before each connection, and raises RegistryError to refuse it;
    `on_connect(host, address)` after one was made. Neither is called for connections that a proxy makes.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None,
        connections: int,
        *,
        check_address: AddressHook | None,
        on_connect: AddressHook,
    ) -> None:
        if context:
            context.sslsocket_class = TlsSocket
        self._options: dict[str, Any] = {"num_pools": connections, "maxsize": connections, "block": False}
        if context:
            self._options["ssl_context"] = context
        self._check_address = check_address
        self._on_connect = on_connect
        self._managers: dict[str, PoolManager] = {}  # by proxy, "" for none

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: RequestBody | None,
        *,
        proxy: str,
        timeouts: tuple[float, float],
    ) -> tuple[BaseHTTPResponse, Deadline]:
        """Send a request, through a `proxy` unless that is "": its answer, and what bounds the rest of it.

        `timeouts` are for connecting, and for the answer's head as a whole. Raises OSError, HTTPError, and
        ValueError for what cannot be sent.
        """
        deadline = Deadline()
        forwarded = bool(proxy) and not url.is_secure and not proxy.lower().startswith(SOCKS)
        target = str(url) if forwarded else url.target
        pool = self._manager(proxy).connection_from_host(url.host, url.port, url.scheme)
        answer = pool.urlopen(
            method,
            f"http://{url.netloc}/" if forwarded else "/",  # of which urllib3 needs the form alone
            body=body,
            headers=_Order(_with_host(headers, url), target, deadline),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
            timeout=Timeout(connect=timeouts[0], read=timeouts[1]),
        )
        return answer, deadline

    def connect_ahead(
        self, url: Url, count: int, seconds: float, dialled: Sequence[Future[PlainSocket]] = ()
    ) -> list[ConnectionAhead]:
        """Return `count` connections to be made for requests to come; perhaps fewer.

        Sockets that are `dialled` already are taken first.
        """
        pool = self._manager("").connection_from_host(url.host, url.port, url.scheme)
        assert isinstance(pool, _ConnectsAhead)
        connections = pool.unconnected(count)
        for connection, socket_ in zip(connections, dialled, strict=False):
            connection.dialled = socket_
        return [ConnectionAhead(pool, connection, seconds) for connection in connections]

    def close(self) -> None:
        """Close every connection that is not in use."""
        managers, self._managers = self._managers, {}
        for manager in managers.values():
            manager.clear()

    def close_idle(self) -> None:
        """Close the connections that are not in use, now: a server may answer one after the other.

        Requests that are about to have one make another.
        """
        for manager in list(self._managers.values()):
            for key in manager.pools.keys():  # noqa: SIM118  (it is no mapping)
                pool = manager.pools.get(key)
                with contextlib.suppress(Empty):
                    while pool and pool.pool:
                        if idle := pool.pool.get(block=False):
                            idle.close()

    def _manager(self, proxy: str) -> PoolManager:
        if proxy not in self._managers:
            self._managers[proxy] = self._made(proxy)
        return self._managers[proxy]

    def _made(self, proxy: str) -> PoolManager:
        if proxy.lower().startswith(SOCKS):
            manager = PoolManager(**self._options)
            manager.pool_classes_by_scheme = _pools(_Dialer(None, None, SocksProxy.parse(proxy)))
        elif proxy:
            manager = ProxyManager(
                proxy,
                proxy_headers=_proxy_headers(proxy),
                proxy_ssl_context=_proxy_context(),
                **self._options,
            )
            manager.pool_classes_by_scheme = _pools(_Dialer(None, None))
        else:
            manager = PoolManager(**self._options)
            manager.pool_classes_by_scheme = _pools(_Dialer(self._check_address, self._on_connect))
        return manager


class ConnectionAhead(NamedTuple):
    """A connection that requests may wait for: it must be made, in a thread of its own, or left to them."""

    pool: _ConnectsAhead
    connection: Any
    seconds: float

    def connect(self) -> None:
        """Make it; raises as `Adapter.send`, and where a request waits for it, too."""
        self.pool.connect_ahead(self.connection, self.seconds)

    def leave(self) -> None:
        """Have a request make it, the one that waits for it, or any."""
        self.pool.leave(self.connection)


class _Dialer:
    """Makes the sockets of connections, perhaps to a proxy, or to their host by way of a `socks` proxy."""

    def __init__(
        self,
        check_address: AddressHook | None,
        on_connect: AddressHook | None,
        socks: SocksProxy | None = None,
    ) -> None:
        self._check_address = check_address
        self._on_connect = on_connect
        self._socks = socks

    def dial(self, connection: HTTPConnection) -> PlainSocket:
        """Return a socket for a connection; what is to be said before the first request has as long again."""
        seconds = connection.timeout
        assert isinstance(seconds, int | float), "every request has a time"
        if self._socks:
            return self._socks.dial(connection.host, connection.port or 0, float(seconds))
        assert isinstance(connection, _Exchange)
        dialled, connection.dialled = connection.dialled, None
        made = dialled.result() if dialled else self._dial(connection, float(seconds))
        made.deadline = Deadline()
        made.deadline.begin(float(seconds), MAX_HEAD)
        return made

    def _dial(self, connection: HTTPConnection, seconds: float) -> PlainSocket:
        hooks = {"check_address": self._check_address, "on_connect": self._on_connect}
        return dial(connection.host.strip("[]"), connection.port or 0, seconds, **hooks)


class _Exchange(HTTPConnection):
    """A connection whose requests are written as they were ordered, and whose answers' heads have an end."""

    dialled: Future[PlainSocket] | None = None  # a socket for it, made before it
    _opening: Deadline | None = None  # of what is said to a proxy
    _deadline: Deadline | None = None
    _head: _Answer | None = None

    def request(self, method: str, url: str, body: Any = None, headers: Any = None, **more: Any) -> None:
        """Send a request; an `_Order` says for what."""
        del url  # as urllib3 would write it
        assert isinstance(headers, _Order)
        self._deadline = headers.deadline
        bound(self.sock, None)  # that of the request before
        super().request(method, headers.target, body=body, headers=headers, **more)

    def getresponse(self) -> Any:
        """Return the answer, when its head has come whole within the time of a read."""
        assert self._deadline
        assert isinstance(self.timeout, int | float)
        self._deadline.begin(float(self.timeout), MAX_HEAD)
        bound(self.sock, self._deadline)
        try:
            answer = super().getresponse()
        except BaseException:
            if self._head:  # urllib3 leaves one open whose headers it does not understand
                self._head.close()
            raise
        self._deadline.lift()
        return answer

    def response_class(  # type: ignore[override]  # http.client calls it, and nothing more
        self, *arguments: Any, **more: Any
    ) -> _Answer:
        """Make what http.client reads an answer with."""
        self._head = _Answer(*arguments, **more)
        return self._head


class _ConnectsAhead(HTTPConnectionPool):
    """A pool that can have connections made before there is a request for them.

    A request without an idle connection waits for one of those: it was begun earlier than one of its own.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._ahead_lock = threading.Lock()
        # By connection: what a request may wait for, and whether one does.
        self._ahead: dict[Any, tuple[Future[Any], bool]] = {}

    def unconnected(self, count: int) -> list[Any]:
        """Take up to `count` places for new connections: as many as are wanted beside those that lie idle."""
        taken = [super(_ConnectsAhead, self)._get_conn() for _ in range(count)]
        for connected in [each for each in taken if not each.is_closed]:
            taken.remove(connected)
            self._put_conn(connected)
        with self._ahead_lock:
            self._ahead.update((each, (Future(), False)) for each in taken)
        return taken

    def connect_ahead(self, connection: Any, seconds: float) -> None:
        """Connect, with TLS if there is any, and leave the connection to a request, which may wait for it.

        What fails then is raised there, too; nothing is tried again.
        """
        connection.timeout = seconds
        try:
            connection.connect()
        except BaseException as error:
            connection.close()
            self.leave(connection, error)
            raise
        self.leave(connection)

    def leave(self, connection: Any, error: BaseException | None = None) -> None:
        """Leave a connection to the request that waits for it, else to any; a closed one is connected."""
        with self._ahead_lock:
            waiting, is_awaited = self._ahead.pop(connection)
            if not is_awaited:
                self._put_conn(connection)
            elif error:
                waiting.set_exception(error)
            else:
                waiting.set_result(connection)

    def _get_conn(self, timeout: float | None = None) -> Any:
        """See urllib3: a connection, perhaps one that is still to be connected."""
        with self._ahead_lock:
            connection = super()._get_conn(timeout)
            free = [each for each, (_, is_awaited) in self._ahead.items() if not is_awaited]
            if not connection.is_closed or not free:
                return connection
            self._put_conn(connection)
            waiting, _ = self._ahead[free[0]]
            self._ahead[free[0]] = waiting, True
        return waiting.result()


def _pools(dialer: _Dialer) -> dict[str, type[HTTPConnectionPool]]:
    """Pools of connections whose sockets are made by `dialer`."""

    class Plain(_Exchange):
        def _new_conn(self) -> socket.socket:
            return dialer.dial(self)

    class Secure(_Exchange, HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            made = dialer.dial(self)
            self._opening = made.deadline
            return made

        def _connect_tls_proxy(self, hostname: str, sock: socket.socket) -> ssl.SSLSocket:
            made = super()._connect_tls_proxy(hostname, sock)
            bound(made, self._opening)
            return made

    class PlainPool(_ConnectsAhead):
        ConnectionCls = Plain

    class SecurePool(_ConnectsAhead, HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


def _with_host(headers: Mapping[str, str], url: Url) -> dict[str, str]:
    """Headers with the host that is asked, unless a file of the user's names another."""
    return {**({} if "host" in map(str.lower, headers) else {"Host": url.netloc}), **headers}


def _proxy_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.sslsocket_class = TlsSocket
    return context


def _proxy_headers(proxy: str) -> dict[str, str]:
    """Return the proxy's password, if its URL has one (RFC 9110, 11.7)."""
    pair = unquote(parse_proxy(proxy).auth or "")
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"} if pair else {}

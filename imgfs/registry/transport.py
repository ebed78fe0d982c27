"""Single HTTP requests over kept connections: timeouts on everything, bodies undecoded, traffic counted.

Redirects, authentication and further tries are the client's. Only this module and `adapter` import urllib3,
and only when the first request is made: a command that needs no registry does not pay for it.
"""

from __future__ import annotations

import logging
import math
import os
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs import __version__
from imgfs.errors import LimitReached, RegistryError, Unavailable
from imgfs.parallel import begun
from imgfs.registry.endpoint import Tls, Traffic
from imgfs.registry.errors import no_answer, not_asked
from imgfs.registry.messages import Body, Response, Slot
from imgfs.registry.retry import Timeouts
from imgfs.registry.tls import context_of
from imgfs.registry.urls import Url, UrlError, parse_url, redact, shown
from imgfs.starting import try_thread

if TYPE_CHECKING:
    from concurrent.futures import Future

    from imgfs.registry.adapter import Adapter, ConnectionAhead
    from imgfs.registry.sockets import AddressHook, PlainSocket

log = logging.getLogger(__name__)

CONNECTIONS = 16  # requests under way to one host, for one mount or command
_PROBE = 2.0  # seconds for a TLS handshake that shows whether there is any
_ALERTS = ("SSLV3_ALERT", "TLSV1_ALERT", "TLSV13_ALERT")  # OpenSSL's reasons for what a TLS server refuses
_STORING = ("PUT", "PATCH")
_BODILESS = ("GET", "HEAD")
_USUAL = {"User-Agent": f"imgfs/{__version__}"}
# a blob is its bytes as stored; an encoding on the way would hide them
_ALWAYS = {"Accept-Encoding": "identity"}
_warned: set[tuple[int, str]] = set()  # (process, host) that was warned of


class Transport:
    """Sends requests, from any number of threads. `ca_bundle` is a PEM file to trust instead of the usual.

    To one host no more than CONNECTIONS requests are under way at once; others wait for their turn.
    """

    def __init__(self, timeouts: Timeouts, *, tls: Tls = Tls(), ca_bundle: Path | None = None) -> None:  # noqa: B008
        self._timeouts = timeouts
        self._tls = tls
        self._ca_bundle = ca_bundle
        self._lock = threading.Lock()
        # by TLS, use of the client certificate, and the check of addresses
        self._adapters: dict[tuple[bool, bool, AddressHook | None], Adapter] = {}
        self._peers: dict[str, str] = {}  # the number that a host was last reached at
        self._slots: dict[str, threading.Semaphore] = {}  # by host
        self._requests = 0
        self._bytes = 0

    @property
    def traffic(self) -> Traffic:
        """What went over the wire so far."""
        with self._lock:
            return Traffic(self._requests, self._bytes)

    def peer_address(self, host: str) -> str | None:
        """Return the number at which a host was last reached, None if it was not, or a proxy did it."""
        return self._peers.get(host)

    def note_peer(self, host: str, number: str) -> None:
        """Note the number at which another process has reached a host."""
        self._peers.setdefault(host, number)

    def _sent(self) -> None:
        with self._lock:
            self._requests += 1

    def _received(self, count: int) -> None:
        with self._lock:
            self._bytes += count

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        form: str | bytes | Body | None = None,
        with_client_certificate: bool = False,
        in_turn: bool = True,
        check_address: AddressHook | None = None,
        within: float = math.inf,
    ) -> Response:
        """Send one request and read the answer's head; redirects are not followed.

        `with_client_certificate` is True for the registry's own host only. A request that other requests wait
        for does not wait for a slot. `check_address` is called with each address before it is connected to;
        what it raises is raised here. No step takes longer than `within` seconds, what is left of the
        caller's time; but the answer to a PUT or PATCH may take up to the deadline: the registry moves and
        hashes what it has.
        Raises Unavailable if there is no answer, RegistryError if there cannot be one.
        """
        where = _read(url)
        slot = self._turn(where, within) if in_turn else Slot(None)
        try:
            adapter = self._adapter(
                where, with_client_certificate=with_client_certificate, check_address=check_address
            )
            return self._answer(adapter, method, where, headers, form, within=within, slot=slot)
        except BaseException:
            slot.give_back()
            raise

    def connect_ahead(
        self,
        url: str,
        count: int,
        *,
        with_client_certificate: bool = False,
        check_address: AddressHook | None = None,
    ) -> None:
        """Have so many connections made in threads, for requests that will be sent to `url`'s host soon.

        They are for requests with the same client certificate and check of addresses (see `send`). What fails
        is no error here: a request will connect anew, and say it. Proxies are not asked ahead.
        """
        from imgfs.registry.proxies import proxy_for

        where = _read(url)
        if proxy_for(where):
            return
        count = min(count, CONNECTIONS // 2)
        # To load urllib3, and certificates, takes as long as a round trip: so sockets are dialled first.
        dialled = self._dialled(where, 0 if self._adapters else count, check_address)
        connects: list[ConnectionAhead] = []
        try:
            adapter = self._adapter(
                where, with_client_certificate=with_client_certificate, check_address=check_address
            )
            connects += adapter.connect_ahead(where, count, self._timeouts.connect, dialled)
        finally:
            for unused in dialled[len(connects) :]:
                unused.add_done_callback(_hang_up)
        for each in connects:
            if not try_thread(partial(_quietly, each.connect), "imgfs-connect"):
                each.leave()

    def _dialled(
        self, where: Url, count: int, check_address: AddressHook | None
    ) -> list[Future[PlainSocket]]:
        """Dial so many sockets in threads, as the adapter does; fewer if there are not as many threads."""
        from imgfs.registry.sockets import dial

        hooks = {"check_address": check_address, "on_connect": self._peers.__setitem__}
        dialling = partial(dial, where.host.strip("[]"), where.port, self._timeouts.connect, **hooks)
        dialled: list[Future[PlainSocket]] = []
        with suppress(LimitReached):
            while len(dialled) < count:
                dialled.append(begun(dialling, "imgfs-dial"))
        return dialled

    def speaks_tls(self, host: str, port: int) -> bool:
        """Return True if a TLS handshake succeeds, with any certificate; no request is sent."""
        from imgfs.registry.sockets import dial

        context = context_of(Tls(verify=False), None, shows=False)
        try:
            with (
                dial(host, port, min(self._timeouts.connect, _PROBE)) as plain,
                context.wrap_socket(plain, server_hostname=host),
            ):
                return True
        except OSError as error:
            return isinstance(error, ssl.SSLError) and (error.reason or "").startswith(_ALERTS)

    def close(self) -> None:
        """Close every connection that is not in use."""
        with self._lock:
            adapters, self._adapters = self._adapters, {}
        for adapter in adapters.values():
            adapter.close()

    def _answer(
        self,
        adapter: Adapter,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        form: str | bytes | Body | None,
        *,
        within: float,
        slot: Slot,
    ) -> Response:
        from urllib3.exceptions import HTTPError

        from imgfs.registry.proxies import proxy_for

        self._sent()
        timeouts = self._timeouts
        connect, read = min(timeouts.connect, within), min(timeouts.read, within)
        if method in _STORING:
            connect, read = timeouts.connect, max(timeouts.read, timeouts.deadline)
        body = (form.encode() if isinstance(form, str) else form) or None
        length = {} if body is None and method in _BODILESS else {"Content-Length": str(len(body or b""))}
        sent = {**_USUAL, **headers, **length, **_ALWAYS}
        proxy = proxy_for(url)
        try:
            answer, deadline = adapter.send(method, url, sent, body, proxy=proxy, timeouts=(connect, read))
        except ValueError as error:
            raise not_asked(str(url), error, proxy) from error
        except (HTTPError, OSError) as error:
            self._forget_connections()
            raise no_answer(str(url), error, proxy) from error
        return Response(answer, str(url), self._received, slot, deadline, timeouts.read)

    def _turn(self, url: Url, within: float) -> Slot:
        """Wait until one more request to the host may be sent; raises Unavailable past the deadline."""
        with self._lock:
            slots = self._slots.setdefault(url.netloc, threading.Semaphore(CONNECTIONS))
        if not slots.acquire(timeout=min(self._timeouts.deadline, within)):
            raise Unavailable(f"{redact(str(url))}: not asked: {CONNECTIONS} other requests take too long")
        return Slot(slots)

    def _adapter(
        self, url: Url, *, with_client_certificate: bool, check_address: AddressHook | None
    ) -> Adapter:
        """Return what keeps the connections for a request.

        Raises RegistryError for certificates of no use.
        """
        from imgfs.registry.adapter import Adapter

        secure = url.is_secure
        key = secure, secure and with_client_certificate and bool(self._tls.clients), check_address
        with self._lock:
            if key not in self._adapters:
                if secure and not self._tls.verify:
                    _warn_of(url.netloc)
                context = context_of(self._tls, self._ca_bundle, shows=key[1]) if secure else None
                self._adapters[key] = Adapter(
                    context, CONNECTIONS, check_address=check_address, on_connect=self._peers.__setitem__
                )
            return self._adapters[key]

    def _forget_connections(self) -> None:
        """Close those that lie idle: what has ended one has ended the others, as a rule.

        Those in use are left alone. Certificates are read anew for the next ones.
        """
        with self._lock:
            adapters, self._adapters = self._adapters, {}
        for adapter in adapters.values():
            adapter.close_idle()


def _quietly(connect: Callable[[], None]) -> None:
    from urllib3.exceptions import HTTPError

    with suppress(HTTPError, OSError, RegistryError):
        connect()


def _hang_up(dialled: Future[PlainSocket]) -> None:
    if not dialled.exception():
        dialled.result().close()


def _read(url: str) -> Url:
    try:
        return parse_url(url)
    except UrlError as error:
        raise RegistryError(f"{shown(url)}: cannot be asked for: a URL {error}") from error


def _warn_of(host: str) -> None:
    """Warn once in a process that a certificate is not verified, and silence the warnings of urllib3."""
    import urllib3

    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    if (os.getpid(), host) not in _warned:
        _warned.add((os.getpid(), host))
        log.warning("INSECURE: the certificate of %s is not verified", host)

"""Sockets with a deadline beside the time of one step, and how they are connected, the host's name resolved.

A timeout of a socket is for one step: a peer that sends a byte now and then never exceeds it. What brings
no bytes of a document has an absolute end as well, its `Deadline`: the way through a proxy, the head of an
answer with all that comes before it (1xx), the framing of chunks, trailers. Python's ssl has one for a
handshake.

Of a long body a reader is woken once many bytes have come (SO_RCVLOWAT, socket(7)), not for each segment: a
turn costs as much processor time as a hundred kilobytes.

getaddrinfo(3) takes as long as resolv.conf(5) says, by itself five seconds twice for every server and every
domain to be searched, and cannot be called off. So a thread of its own asks (`addresses_of`), and those who
want to know the same wait for that one: there is never more than one for a name, and it ends when the
resolver does.
"""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from imgfs.errors import LimitReached, RegistryError
from imgfs.starting import start_thread

if TYPE_CHECKING:
    from pathlib import Path

    from _typeshed import WriteableBuffer

_under_way: dict[tuple[int, str, int], Future[list[DnsAddress]]] = {}  # by process, host and port
_lock = threading.Lock()
# A connection lies idle for hours between two reads. Probes keep it in the tables of what is on the way, and
# end it after a minute without an echo (tcp(7)).
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)

_NEARLY = 0.99  # of a step's time
_AT_ONCE = 0.001  # seconds
_T = TypeVar("_T")
AddressHook = Callable[[str, str], None]  # told a host and the number of one of its addresses


class DnsAddress(NamedTuple):
    """Where a socket can be connected to: its family and what that has for an address, number first."""

    family: int
    place: tuple[str | int | bytes, ...]

    @property
    def number(self) -> str:
        """The address without a port or a zone."""
        return str(self.place[0]).partition("%")[0]


def addresses_of(host: str, port: int, seconds: float) -> list[DnsAddress]:
    """Return the addresses of a host, the best one first.

    Raises socket.gaierror if there are none, or none in time.
    """
    try:
        return _ask(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = _asked(host, port)
    done, _ = wait([found], seconds)
    if not done:
        raise socket.gaierror(socket.EAI_AGAIN, f"no name server answers within {seconds:.3g} s")
    return found.result()


def _asked(host: str, port: int) -> Future[list[DnsAddress]]:
    """Return the answer to a question that is under way, or is now."""
    key = os.getpid(), host, port  # a fork has none of its parent's threads
    with _lock:
        if key not in _under_way:
            _under_way[key] = Future()
            try:
                start_thread(partial(_answer, key), "imgfs-name")
            except LimitReached as error:
                _under_way.pop(key)
                raise socket.gaierror(socket.EAI_MEMORY, str(error)) from error
        return _under_way[key]


def _answer(key: tuple[int, str, int]) -> None:
    try:
        found = _ask(*key[1:])
    except Exception as error:  # noqa: BLE001  (raised to the thread that waits)
        _take(key).set_exception(error)
    else:
        _take(key).set_result(found)


def _take(key: tuple[int, str, int]) -> Future[list[DnsAddress]]:
    with _lock:
        return _under_way.pop(key)


def _ask(host: str, port: int, flags: int = 0) -> list[DnsAddress]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # of the encoding "idna"
        raise socket.gaierror(socket.EAI_NONAME, "no name of a host") from error
    return [DnsAddress(family, place) for family, _, _, _, place in found]


class Deadline:
    """When what is being read has to be over, and how many bytes it may have.

    `least` are the bytes that a reader is woken for: there must be as many to come, or it waits in vain.
    """

    def __init__(self) -> None:
        self.least = 1
        self._ends = math.inf
        self._allowed = math.inf

    def begin(self, seconds: float, allowed: float = math.inf) -> None:
        """From now on so many seconds are left, and so many bytes."""
        self._ends = time.monotonic() + seconds
        self._allowed = allowed

    def lift(self) -> None:
        """From now on a step has its own time alone."""
        self._ends = self._allowed = math.inf

    def step(self, usual: float | None) -> float | None:
        """Return the seconds that the next step may take, of the `usual` ones.

        Raises TimeoutError without any.
        """
        if self._ends == math.inf:
            return usual
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left if usual is None else min(usual, left)

    def room(self, size: int) -> int:
        """Return how many of `size` bytes may be received; raises OSError if none may.

        Not more than a head may have: a buffer (128 KiB in Python 3.14) would take what comes behind it, too.
        """
        if self._allowed < 1:
            raise OSError(errno.EMSGSIZE, "the head of its answer is too long")
        return int(min(size, self._allowed))

    def received(self, count: int) -> None:
        """Note that bytes have come."""
        self._allowed -= count


class _Bounded(socket.socket):
    """A socket whose steps end with its `deadline` at the latest, but for a hundredth of what is left."""

    deadline: Deadline | None = None
    _usual: float | None = None  # seconds for one step
    _current: float | None = None  # what the socket has
    _least = 1

    def settimeout(self, value: float | None) -> None:
        self._usual = self._current = value
        super().settimeout(value)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        size = self.deadline.room(buflen) if self.deadline else buflen
        return self._in_time(partial(super().recv, size, flags), len)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        size = nbytes or memoryview(buffer).nbytes
        size = self.deadline.room(size) if self.deadline else size
        return self._in_time(partial(super().recv_into, buffer, size, flags), int)

    def _in_time(self, receive: Callable[[], _T], count: Callable[[_T], int]) -> _T:
        """Receive what comes in time; raises TimeoutError."""
        deadline = self.deadline
        self._wake_at(deadline.least if deadline else 1)
        if deadline:
            self._set_step(deadline.step(self._usual))
        try:
            received = receive()
        except TimeoutError:
            if self._least == 1:
                raise
            received = self._what_has_come(receive)
        if deadline:
            deadline.received(count(received))
        return received

    def _what_has_come(self, receive: Callable[[], _T]) -> _T:
        """Receive less than was to be waited for: it is slow, so all of it counts from now on."""
        if self.deadline:
            self.deadline.least = 1
        self._wake_at(1)
        self._set_step(_AT_ONCE)
        return receive()

    def _set_step(self, seconds: float | None) -> None:
        """Set the time of the next step, unless it is nearly that: it would cost a system call."""
        now = self._current
        if seconds is None or now is None or not _NEARLY * seconds <= now <= seconds / _NEARLY:
            self._current = seconds
            super().settimeout(seconds)

    def _wake_at(self, least: int) -> None:
        if least != self._least:
            self._least = least
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)


class PlainSocket(_Bounded):
    """A connection without TLS."""


class TlsSocket(_Bounded, ssl.SSLSocket):
    """A TLS connection: what contexts make that have this as their `sslsocket_class`."""


def bound(sock: object, deadline: Deadline | None) -> None:
    """Give a connection, with TLS within the TLS of a proxy or not, another deadline."""
    inner = sock if isinstance(sock, _Bounded) else getattr(sock, "socket", None)
    if isinstance(inner, _Bounded):
        inner.deadline = deadline


def dial(
    host: str,
    port: int,
    seconds: float,
    *,
    check_address: AddressHook | None = None,
    on_connect: AddressHook | None = None,
) -> PlainSocket:
    """Return a socket connected to a host in so many seconds; raises OSError if not.

    The time is for the name and all its addresses together, of which each has a fair part of what is left.
    `check_address(host, address)` raises RegistryError to refuse an address; `on_connect(host, address)` is
    called with the one that was connected to.
    """
    ends = time.monotonic() + seconds
    found = addresses_of(host, port, seconds)
    if check_address:
        found = _allowed_addresses(host, found, check_address)
    failure = OSError(f"{host} has no address")
    for others, address in zip(reversed(range(len(found))), found, strict=True):
        try:
            made = _connected(address, max(0.0, ends - time.monotonic()) / (others + 1))
        except OSError as error:
            failure = error
            continue
        made.settimeout(seconds)  # of a handshake
        if on_connect:
            on_connect(host, address.number)
        return made
    raise failure


def dial_unix(path: Path, seconds: float) -> PlainSocket:
    """Return a socket connected to a socket file, whose steps have so many seconds each.

    Raises OSError if not.
    """
    made = PlainSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(str(path))
    except BaseException:
        made.close()
        raise
    return made


def _allowed_addresses(host: str, found: list[DnsAddress], check_address: AddressHook) -> list[DnsAddress]:
    """Return the addresses that may be gone to; raises why not if that is none of them."""
    admitted, refusal = [], None
    for address in found:
        try:
            check_address(host, address.number)
        except RegistryError as error:
            refusal = error
        else:
            admitted.append(address)
    if refusal and not admitted:
        raise refusal
    return admitted


def _connected(address: DnsAddress, seconds: float) -> PlainSocket:
    made = PlainSocket(address.family, socket.SOCK_STREAM)
    try:
        for option in _OPTIONS:
            made.setsockopt(*option)
        made.settimeout(max(seconds, 0.001))  # 0 would mean: without waiting at all
        made.connect(address.place)
    except BaseException:
        made.close()
        raise
    return made

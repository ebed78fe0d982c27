"""What the name of a host means, asked of the machine's resolver for no longer than there is time.

getaddrinfo(3) takes as long as resolv.conf(5) says, by itself five seconds twice for every server and every
domain to be searched, and cannot be called off. So a thread of its own asks, and those who want to know the
same wait for that one: there is never more than one for a name, and it ends when the resolver does.
"""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import Future, wait
from typing import Any, NamedTuple

_under_way: dict[tuple[int, str, int], Future[list[DnsAddress]]] = {}  # by process, host and port
_lock = threading.Lock()


class DnsAddress(NamedTuple):
    """Where a socket can be connected to: its family and what that has for an address, number first."""

    family: int
    place: tuple[Any, ...]

    @property
    def number(self) -> str:
        """The address without a port or a zone."""
        return str(self.place[0]).partition("%")[0]


def addresses_of(host: str, port: int, seconds: float) -> list[DnsAddress]:
    """The addresses of a host, the best one first; socket.gaierror if there are none, or none in time."""
    try:
        return _ask(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = _asked(host, port)
    done, _ = wait([found], seconds)
    if not done:
        raise socket.gaierror(socket.EAI_AGAIN, f"no name server answers within {seconds:.3g} s")
    return found.result()


def _asked(host: str, port: int) -> Future[list[DnsAddress]]:
    """The answer to a question that is under way, or is now."""
    key = os.getpid(), host, port  # a fork has none of its parent's threads
    with _lock:
        if key not in _under_way:
            _under_way[key] = Future()
            threading.Thread(target=_answer, args=(key,), name="imgfs-name", daemon=True).start()
        return _under_way[key]


def _answer(key: tuple[int, str, int]) -> None:
    try:
        found = _ask(*key[1:])
    except Exception as error:  # noqa: BLE001  (who waits gets it)
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

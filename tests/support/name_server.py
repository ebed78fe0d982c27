"""A name server on 127.0.0.1:53, which is for processes in a network of their own (`tests.support.isolated`).

with NameServer({"registry.test": ["127.0.0.1"]}) as names:
    socket.gethostbyname("registry.test")
    names.silent = True
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from typing import Self

_A, _AAAA = 1, 28  # types of records (RFC 1035, 3.2.2; RFC 3596, 2.1)
_FAMILIES = {_A: socket.AF_INET, _AAAA: socket.AF_INET6}
_HEADER = struct.Struct(">6H")  # RFC 1035, 4.1.1
_ANSWER, _NO_SUCH_NAME = 0x8180, 0x8183
_NAME_ABOVE = 0xC00C  # a pointer to the question's name (RFC 1035, 4.1.4)


class NameServer:
    """Says what `names` mean, by their addresses, or, `silent`, nothing; `asked` is what it was asked."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        self.names = {name: list(addresses) for name, addresses in names.items()}
        self.silent = False
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._socket.bind(("127.0.0.1", 53))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, client = self._socket.recvfrom(512)
            if not question:
                return
            name, kind, end = _read_question(question)
            self.asked.append(name)
            if not self.silent:
                self._socket.sendto(self._answer(question[:2], question[12:end], name, kind), client)

    def _answer(self, number: bytes, question: bytes, name: str, kind: int) -> bytes:
        packed = [place for each in self.names.get(name, []) for place in _packed(each, kind)]
        flags = _ANSWER if name in self.names else _NO_SUCH_NAME
        head = number + _HEADER.pack(0, flags, 1, len(packed), 0, 0)[2:]
        records = [struct.pack(">HHHIH", _NAME_ABOVE, kind, 1, 0, len(place)) + place for place in packed]
        return head + question + b"".join(records)


def _packed(address: str, kind: int) -> list[bytes]:
    try:
        return [socket.inet_pton(_FAMILIES[kind], address)]
    except (KeyError, OSError):
        return []


def _read_question(message: bytes) -> tuple[str, int, int]:
    """Return the name and type that the first question is about, and where it ends (RFC 1035, 4.1.2)."""
    labels, at = [], _HEADER.size
    while length := message[at]:
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    (kind,) = struct.unpack_from(">H", message, at + 1)
    return ".".join(labels).lower(), kind, at + 5

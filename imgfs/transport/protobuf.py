"""Messages of Protocol Buffers as bytes: as much of the wire format as containerd's APIs need.

A message is a sequence of fields: a key, `number << 3 | wire type` as a varint, and a value (protobuf.dev,
"Encoding"). Varints (0) and lengths with bytes (2) are used here; the fixed widths (1, 5) of fields that are
not known are passed over, groups (3, 4) are refused: no version of the language that has them is in use.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TypeVar

from imgfs.errors import RegistryError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}
_LONGEST = 10  # bytes of a varint of 64 bits
_ALL_BITS = (1 << 64) - 1
_MOST = 1 << 16  # fields of a message: of two bytes each, those of 16 MiB would take 1 GiB of memory

Value = int | bytes
_T = TypeVar("_T", int, bytes)


def encode_message(*fields: tuple[int, str | bytes | int]) -> bytes:
    """Return a message of fields by their numbers; what is empty or 0 is left out, as proto3 has it."""
    return b"".join(_encoded(number, value) for number, value in fields if value)


def encode_map(number: int, entries: Mapping[str, str]) -> bytes:
    """Return a field that is a map of strings: each entry a message of its own, of key and value."""
    return b"".join(_encoded(number, encode_message((1, key), (2, entries[key]))) for key in entries)


def decode_message(body: bytes, where: str) -> Iterator[tuple[int, Value]]:
    """Yield the fields of a message in their order.

    Raises RegistryError, naming `where`, for what is none, and for more fields than any message has.
    """
    at = 0
    for count in itertools.count(1):
        if at == len(body):
            return
        if count > _MOST:
            raise RegistryError(f"{where}: more than {_MOST} fields")
        key, at = _varint(body, at, where)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise RegistryError(f"{where}: a field without a number at byte {at}")
        if kind == _VARINT:
            value, at = _varint(body, at, where)
            yield number, value
            continue
        if kind == _BYTES:
            length, at = _varint(body, at, where)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise RegistryError(f"{where}: a field of wire type {kind} at byte {at}")
        if length > len(body) - at:
            raise RegistryError(f"{where}: a field of {length} bytes, of which {len(body) - at} are there")
        yield number, body[at : at + length]
        at += length


class ProtobufMessage:
    """The fields of a message, by their numbers: of each the last, as proto3 has it, or all."""

    def __init__(self, body: bytes, where: str) -> None:
        self._where = where
        self._fields: dict[int, list[Value]] = {}
        for number, value in decode_message(body, where):
            self._fields.setdefault(number, []).append(value)

    def number(self, field: int) -> int:
        """Return an int64, 0 if it is not there."""
        value = self._last(field, int)
        return value - (1 << 64) if value >> 63 else value

    def body(self, field: int) -> bytes:
        """Return bytes, none if they are not there."""
        return self._last(field, bytes)

    def text(self, field: int) -> str:
        """Return a string, "" if it is not there."""
        return self._decoded(field, self.body(field))

    def message(self, field: int) -> ProtobufMessage:
        """Return a message within this one, without fields if it is not there."""
        return ProtobufMessage(self.body(field), f"{self._where}.{field}")

    def messages(self, field: int) -> Iterator[ProtobufMessage]:
        """Yield all messages of a repeated field, each parsed when it is asked for."""
        return (ProtobufMessage(body, f"{self._where}.{field}") for body in self.bodies(field))

    def has(self, field: int) -> bool:
        """Return True if a field is there, though it may be empty."""
        return field in self._fields

    def bodies(self, field: int) -> list[bytes]:
        """Return the bytes of a repeated field."""
        return [body for body in self._fields.get(field, []) if isinstance(body, bytes)]

    def texts(self, field: int) -> list[str]:
        """Return all strings of a repeated field."""
        return [self._decoded(field, body) for body in self.bodies(field)]

    def map(self, field: int) -> dict[str, str]:
        """Return a map of strings."""
        return {entry.text(1): entry.text(2) for entry in self.messages(field)}

    def _decoded(self, field: int, body: bytes) -> str:
        """Return a string, which is UTF-8: put right, two names of other bytes would be the same."""
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise RegistryError(f"{self._where}: field {field} is not UTF-8") from error

    def _last(self, field: int, kind: type[_T]) -> _T:
        value = self._fields.get(field, [kind()])[-1]
        if not isinstance(value, kind):
            raise RegistryError(f"{self._where}: field {field} has another type")
        return value


def _encoded(number: int, value: str | bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint_of(number << 3 | _VARINT) + _varint_of(value)
    body = value.encode() if isinstance(value, str) else value
    return _varint_of(number << 3 | _BYTES) + _varint_of(len(body)) + body


def _varint_of(value: int) -> bytes:
    """Return a number of 64 bits, seven in a byte, the lowest first; a negative one as its complement."""
    value &= _ALL_BITS
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _varint(body: bytes, at: int, where: str) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = 0
    for place, byte in enumerate(body[at : at + _LONGEST]):
        value |= (byte & 0x7F) << 7 * place
        if not byte & 0x80:
            if value >> 64:
                break
            return value, at + place + 1
    raise RegistryError(f"{where}: no number at byte {at}")

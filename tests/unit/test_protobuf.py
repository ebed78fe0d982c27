"""Messages of Protocol Buffers: what is written is read, and bytes of any kind are a message or an error."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.errors import RegistryError
from imgfs.transport.protobuf import ProtobufMessage, decode_message, encode_map, encode_message

NUMBERS = st.integers(1, 2**29 - 1)
VALUES = st.one_of(st.integers(1, 2**64 - 1), st.binary(min_size=1))


@given(st.lists(st.tuples(NUMBERS, VALUES)))
def test_what_is_written_is_read(fields: list[tuple[int, int | bytes]]) -> None:
    assert list(decode_message(encode_message(*fields), "m")) == fields


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(body: bytes) -> None:
    found: list[bytes | int] = []
    with suppress(RegistryError):
        found += (value for _, value in decode_message(body, "m"))
    assert sum(len(value) for value in found if isinstance(value, bytes)) <= len(body)


def test_a_message_of_protobufs_own_documentation() -> None:
    assert encode_message((1, 150)) == b"\x08\x96\x01"
    assert encode_message((2, "testing")) == b"\x12\x07testing"
    assert encode_message((3, b"\x08\x96\x01"), (4, 0), (5, "")) == b"\x1a\x03\x08\x96\x01"
    message = ProtobufMessage(b"\x1a\x03\x08\x96\x01", "m")
    assert (message.message(3).number(1), message.number(4), message.text(5)) == (150, 0, "")


def test_a_negative_number_comes_back() -> None:
    for number in (-1, -(1 << 63), (1 << 63) - 1):
        assert ProtobufMessage(encode_message((1, number)), "m").number(1) == number


def test_strings_that_are_not_utf8_are_refused_and_not_made_alike() -> None:
    message = ProtobufMessage(encode_message((1, b"\xff"), (2, b"\xfe")), "a request")
    for read in (message.text, message.texts):
        with pytest.raises(RegistryError, match="a request: field 1 is not UTF-8"):
            read(1)


def test_the_last_of_a_field_counts_and_what_is_not_known_is_passed_over() -> None:
    fixed = b"\x31" + bytes(8) + b"\x3d" + bytes(4)  # fields 6 (64 bits) and 7 (32 bits)
    message = ProtobufMessage(
        encode_message((1, "a")) + fixed + encode_message((1, "b"), (2, 2**64 - 5)), "m"
    )
    assert (message.text(1), message.number(2)) == ("b", -5)
    repeated = encode_message((9, b"\x0a\x01x"), (8, 1), (9, b"\x10\x01"))
    assert [part.text(1) for part in ProtobufMessage(repeated, "m").messages(9)] == ["x", ""]


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text(min_size=1)))
def test_maps_and_repeated_strings_are_read_as_they_are_written(
    entries: dict[str, str], texts: list[str]
) -> None:
    message = ProtobufMessage(encode_map(4, entries) + encode_message(*((7, text) for text in texts)), "m")
    assert (message.map(4), message.texts(7), message.map(5)) == (entries, texts, {})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\x08", "no number at byte 1"),
        (b"\x08" + b"\xff" * 11, "no number"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "no number"),  # beyond 64 bits
        (b"\x0a\x05ab", "of 5 bytes, of which 2 are there"),
        (b"\x0a\xff\xff\xff\xff\x0f", "of which 0 are there"),
        (b"\x31\0", "of 8 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x02\0", "without a number"),
    ],
)
def test_what_is_no_message_is_said(body: bytes, says: str) -> None:
    with pytest.raises(RegistryError, match=says):
        list(decode_message(body, "m"))


def test_a_field_of_another_type_is_said() -> None:
    with pytest.raises(RegistryError, match=r"m: field 1 has another type"):
        ProtobufMessage(b"\x08\x01", "m").text(1)


def test_fields_beyond_number_are_no_message() -> None:
    ProtobufMessage(b"\x0a\x00" * (1 << 16), "m")
    with pytest.raises(RegistryError, match="m: more than 65536 fields"):
        ProtobufMessage(b"\x0a\x00" * (8 << 20), "m")

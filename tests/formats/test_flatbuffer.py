from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import InvalidImage
from imgfs.layer.soci.flatbuffer import (
    INT8,
    INT32,
    INT64,
    STRING,
    TABLE,
    UINT32,
    VECTOR,
    VTABLES,
    Flatbuffer,
    FlatbufferBuilder,
    Schema,
)

ALL: Schema = (INT8, STRING, INT64, INT32, TABLE, UINT32, VECTOR)
LEAF: Schema = (STRING,)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)


def by_hand(*, vtable: bytes, table: bytes, rest: bytes = b"") -> bytes:
    """A buffer: its vtable, its root table (whose first field, the way to the vtable, is set), and more."""
    at = 4 + len(vtable)
    at += -at % 4
    head = struct.pack("<I", at) + vtable
    return head.ljust(at, b"\0") + struct.pack("<i", at - 4) + table + rest


def read(body: bytes, schema: Schema = LEAF) -> list[object]:
    buffer = Flatbuffer(body)
    return buffer.table(buffer.root(), schema)


def walked(body: bytes) -> object:
    """Everything there is in a buffer of ALL and LEAF."""
    buffer = Flatbuffer(body)
    values = buffer.table(buffer.root(), ALL)
    leaf = [] if values[4] is None else buffer.table(values[4], LEAF)
    texts = [] if values[6] is None else [buffer.string(at) for at in buffer.pointers(values[6])]
    return [*values[:4], leaf, values[5], texts]


@given(st.integers(-128, 127), st.binary(), I64, st.integers(-9, 9), st.integers(0, 9), st.lists(st.binary()))
def test_what_is_written_is_read(
    small: int, text: bytes, large: int, number: int, unsigned: int, texts: list[bytes]
) -> None:
    builder = FlatbufferBuilder()
    leaf = builder.table(LEAF, [builder.string(text)])
    vector = builder.vector([builder.string(each, shared=True) for each in texts])
    values = [small, builder.string(text), large, number, leaf, unsigned, vector]
    body = builder.finish(builder.table(ALL, values))
    assert walked(body) == [small, text, large, number, [text], unsigned, texts]
    assert len(body) % 8 == 0


def test_absent_fields_are_the_defaults() -> None:
    builder = FlatbufferBuilder()
    body = builder.finish(builder.table(ALL, [0, None, 0, 0, None, 0, None]))
    assert read(body, ALL) == [0, b"", 0, 0, None, 0, None]
    assert len(body) < 24


def test_a_newer_writers_fields_are_left_alone() -> None:
    builder = FlatbufferBuilder()
    text = builder.string(b"text")
    body = builder.finish(builder.table((STRING, INT64, STRING), [text, 7, text]))
    assert read(body, LEAF) == [b"text"]


def test_tables_of_one_shape_share_a_vtable() -> None:
    builder = FlatbufferBuilder()
    leaves = [builder.table(LEAF, [builder.string(b"x", shared=True)]) for _ in range(100)]
    body = builder.finish(builder.table((VECTOR,), [builder.vector(leaves)]))
    assert len(body) < 100 * (4 + 12) + 60


def test_64_bit_numbers_lie_at_multiples_of_8() -> None:
    for length in range(9):
        builder = FlatbufferBuilder()
        builder.string(bytes(length))
        body = builder.finish(builder.table((INT8, INT64), [1, 0x1122334455667788]))
        assert body.index(bytes.fromhex("8877665544332211")) % 8 == 0


TEXT = struct.pack("<I", 4) + struct.pack("<I", 4) + b"text\0"  # a string right after the field that names it
PLAIN = {"vtable": struct.pack("<HHH", 6, 8, 4), "table": TEXT}


def test_a_buffer_made_by_hand_is_read() -> None:
    assert read(by_hand(**PLAIN)) == [b"text"]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "outside of the buffer"),
        (b"\4\0\0", "outside of the buffer"),
        (struct.pack("<I", 1 << 31) + bytes(20), "outside of the buffer"),
        (struct.pack("<Ii", 4, 1 << 30) + bytes(20), "outside of the buffer"),  # a vtable before the buffer
        (struct.pack("<Ii", 4, -(1 << 30)) + bytes(20), "outside of the buffer"),
        (by_hand(vtable=struct.pack("<HHH", 5, 8, 4), table=TEXT), "impossible length"),
        (by_hand(vtable=struct.pack("<HHH", 2, 8, 4), table=TEXT), "impossible length"),
        (by_hand(vtable=struct.pack("<HHH", 6, 2, 4), table=TEXT), "impossible length"),
        (by_hand(vtable=struct.pack("<HHH", 600, 8, 4), table=TEXT), "impossible length"),
        (by_hand(vtable=struct.pack("<HHH", 6, 8, 2), table=TEXT), "overlap"),
        (by_hand(vtable=struct.pack("<HHH", 6, 8, 6), table=TEXT), "outside of its table"),
        (by_hand(vtable=struct.pack("<HHH", 6, 6, 4), table=TEXT), "outside of its table"),
        (by_hand(vtable=struct.pack("<HHH", 6, 8, 4), table=b"\4\0\0"), "outside of the buffer"),
        (by_hand(**PLAIN)[:-2], "do not fit"),
        (by_hand(vtable=PLAIN["vtable"], table=struct.pack("<II", 4, (1 << 32) - 1)), "do not fit"),
        (by_hand(vtable=PLAIN["vtable"], table=struct.pack("<I", (1 << 32) - 1)), "outside of the buffer"),
    ],
)
def test_what_points_out_of_the_buffer_is_refused(body: bytes, complaint: str) -> None:
    with pytest.raises(InvalidImage, match=complaint) as caught:
        read(body)
    assert "flatbuffer offset" in str(caught.value)


def test_two_fields_at_one_place_are_refused() -> None:
    body = by_hand(vtable=struct.pack("<HHHH", 8, 12, 4, 4), table=TEXT)
    with pytest.raises(InvalidImage, match="overlap"):
        read(body, (STRING, STRING))


def test_a_vector_of_tables_that_are_all_the_same_one_cannot_multiply_a_buffer() -> None:
    builder = FlatbufferBuilder()
    leaf = builder.table(LEAF, [builder.string(bytes(100_000))])
    body = builder.finish(builder.table((VECTOR,), [builder.vector([leaf] * 1000)]))
    buffer = Flatbuffer(body)
    (vector,) = buffer.table(buffer.root(), (VECTOR,))
    leaves = (len(buffer.table(at, LEAF)[0]) for at in buffer.pointers(vector))
    assert next(leaves) == 100_000
    with pytest.raises(InvalidImage, match="again and again"):
        sum(leaves)


def test_a_vector_longer_than_the_buffer_is_refused_before_it_is_read() -> None:
    builder = FlatbufferBuilder()
    body = bytearray(builder.finish(builder.table((VECTOR,), [builder.vector([])])))
    body[-4:] = struct.pack("<I", 1 << 30)
    buffer = Flatbuffer(bytes(body))
    with pytest.raises(InvalidImage, match="1073741824 elements do not fit"):
        buffer.pointers(len(body) - 4)


def test_no_more_vtables_are_remembered_than_a_writer_makes() -> None:
    body = bytes(8) + (struct.pack("<HH", 4, 4) + struct.pack("<i", 4)) * (VTABLES + 1)
    buffer = Flatbuffer(body)
    tables = (buffer.table(12 + 8 * number, ()) for number in range(VTABLES + 1))
    with pytest.raises(InvalidImage, match=f"more than {VTABLES} vtables"):
        list(tables)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_buffer_is_read_or_refused(data: st.DataObject) -> None:
    builder = FlatbufferBuilder()
    texts = builder.vector([builder.string(b"x" * number) for number in range(5)])
    leaf = builder.table(LEAF, [builder.string(b"leaf")])
    body = bytearray(builder.finish(builder.table(ALL, [1, builder.string(b"t"), 2, 3, leaf, 4, texts])))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        walked(bytes(body[: data.draw(st.integers(0, len(body)))]))
    except InvalidImage as error:
        assert error.where  # noqa: PT017  # not every damage is noticed

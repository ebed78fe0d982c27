"""A request's stream cut into spans, wherever its chunks end."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.storing import split
from imgfs.errors import IntegrityError

STREAM = bytes(range(100))
FIRST = 1000  # offset of the stream in the blob


@given(
    ends=st.lists(st.integers(1, 100), min_size=2, max_size=8, unique=True).map(sorted),
    shared=st.integers(-3, 1),
    cuts=st.lists(st.integers(1, 99), unique=True).map(sorted),
)
def test_each_span_has_its_bytes_wherever_chunks_end(ends: list[int], shared: int, cuts: list[int]) -> None:
    starts = [0, *(max(0, end - shared) for end in ends[:-1])]  # some share a byte, others have some between
    ranges = [(FIRST + min(start, end), FIRST + end) for start, end in zip(starts, ends, strict=True)]
    chunks = (STREAM[start:end] for start, end in zip([0, *cuts], [*cuts, 100], strict=True))
    found = [b"".join(body) for body in split(chunks, ranges, range(len(ranges)))]
    assert found == [STREAM[start - FIRST : end - FIRST] for start, end in ranges]


def test_a_whole_chunk_is_handed_on_as_it_is() -> None:
    chunks = [bytes([number]) * 10 for number in range(4)]
    found = chain.from_iterable(split(iter(chunks), [(0, 20), (20, 40)], [0, 1]))
    assert all(given is part for given, part in zip(chunks, found, strict=True))


def test_a_stream_that_ends_early_names_the_span() -> None:
    with pytest.raises(IntegrityError, match=r"length of span 8: expected 20, got 5|span 8"):
        list(split(iter([bytes(15)]), [(0, 10), (10, 30)], [7, 8]))

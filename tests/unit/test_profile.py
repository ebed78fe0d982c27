"""Profiles: what was touched, in order; from a registry, so read with suspicion."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.profile import MAX_JSON, AccessProfile, ProfileLayer, ProfileRecorder
from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Digest

LAYERS = tuple(ProfileLayer(str(Digest.of(bytes([n]))), 100 * (n + 1)) for n in range(3))
GOOD = AccessProfile(LAYERS, ((0, 5), (0, 6), (2, 299), (1, 0), (0, 5)))

touches = st.integers(0, 2).flatmap(
    lambda layer: st.tuples(st.just(layer), st.integers(0, LAYERS[layer].spans - 1))
)
profiles = st.lists(touches).map(lambda touched: AccessProfile(LAYERS, tuple(touched)))

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(profiles)
def test_a_profile_comes_back_as_it_was_written(profile: AccessProfile) -> None:
    assert AccessProfile.from_json(profile.to_json()) == profile


def test_spans_that_follow_each_other_are_written_as_one() -> None:
    assert json.loads(GOOD.to_json())["touches"] == [[0, 5, 2], [2, 299, 1], [1, 0, 1], [0, 5, 1]]


@given(st.binary(max_size=50) | anything.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_profile_is_an_invalid_image(body: bytes) -> None:
    with pytest.raises(InvalidImage, match="profile"):
        AccessProfile.from_json(body)


@given(st.sampled_from(["version", "layers", "touches"]), anything)
def test_a_profile_with_anything_in_a_field_is_read_or_refused(field: str, value: object) -> None:
    document = {**json.loads(GOOD.to_json()), field: value}
    try:
        profile = AccessProfile.from_json(json.dumps(document).encode())
    except InvalidImage:
        return
    assert all(0 <= span < profile.layers[layer].spans for layer, span in profile.touches)


@pytest.mark.parametrize(
    ("touches", "why"),
    [
        ([[3, 0, 1]], "no such span"),
        ([[0, 100, 1]], "no such span"),
        ([[0, 99, 2]], "no such span"),
        ([[0, -1, 1]], "'-1' is no number"),
        ([[0, True, 1]], "'True' is no number"),
        ([[0, 1]], "not a list of 3 to 3"),
        ([[2, 0, 300]] * 900, "more than 250000 spans"),
    ],
)
def test_a_bad_touch_is_refused_and_named(touches: list[list[int]], why: str) -> None:
    document = {**json.loads(GOOD.to_json()), "touches": touches}
    with pytest.raises(InvalidImage, match=rf"profile: touches\[\d+\]: {why}"):
        AccessProfile.from_json(json.dumps(document).encode())


def test_a_huge_document_is_not_even_parsed() -> None:
    with pytest.raises(InvalidImage, match="at most"):
        AccessProfile.from_json(b"[" * (MAX_JSON + 1))


def test_touches_are_found_in_another_image_by_digest() -> None:
    other = [ProfileLayer(str(Digest.of(b"new")), 100), LAYERS[2], LAYERS[0]]
    assert GOOD.resolve(other) == [(2, 5), (2, 6), (1, 299)]


def test_a_layer_that_is_cut_into_other_spans_is_another_layer() -> None:
    assert GOOD.resolve([LAYERS[0]._replace(spans=101)]) == []


def test_touches_are_recorded_in_order() -> None:
    recorder = ProfileRecorder(LAYERS, 1000)
    for layer, span in GOOD.touches:
        recorder.touched(layer, span, 10)
    assert recorder.profile() == GOOD
    assert recorder.count == 5


def test_whoever_reads_most_of_a_large_image_is_not_recorded_to_the_end() -> None:
    recorder = ProfileRecorder(LAYERS, 300 << 20)
    for span in range(100):
        recorder.touched(0, span, 3 << 20)
    assert recorder.count == 50


def test_of_a_small_image_everything_may_be_needed() -> None:
    recorder = ProfileRecorder(LAYERS, 50 << 20)
    for span in range(50):
        recorder.touched(0, span, 1 << 20)
    assert recorder.count == 50

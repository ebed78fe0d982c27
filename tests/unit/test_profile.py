"""Profiles: what was touched, in order; from a registry, so read with suspicion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.profile import (
    MAX_JSON,
    AccessProfile,
    FlatRange,
    ProfileFile,
    ProfileLayer,
    ProfileRecorder,
    joined,
    origin_of,
    published_profile,
    vouched_profile,
)
from imgfs.errors import InvalidImage
from imgfs.image.profiles import ranges_of
from imgfs.oci.descriptor import Digest
from imgfs.predict.files import FilesByPath
from tests.support import tarmake as tar
from tests.support.layers import merged

LAYERS = tuple(ProfileLayer(str(Digest.of(bytes([n]))), "tar", 100 * (n + 1)) for n in range(3))
FILE = ProfileFile(1, b"usr/bin/\xff\xe4", 10, 20, 500)
GOOD = AccessProfile(
    LAYERS, tuple(map(FlatRange._make, [(0, 5, 2), (2, 299, 1), (1, 0, 1), (0, 5, 1)])), (FILE,)
)

touches = st.integers(0, 2).flatmap(
    lambda layer: st.builds(
        FlatRange, st.just(layer), st.integers(0, LAYERS[layer].size // 2), st.integers(1, 50)
    )
)
paths = st.binary(max_size=30).filter(lambda path: 0 not in path)


@st.composite
def profiles(draw: st.DrawFn) -> AccessProfile:
    """Profiles with touches, and files of some of these."""
    touched = tuple(draw(st.lists(touches)))
    numbers = st.integers(0, len(touched) - 1) if touched else st.nothing()
    length = st.integers(0, 9)
    files = draw(st.lists(st.builds(ProfileFile, numbers, paths, length, length, st.integers(18, 99))))
    return AccessProfile(LAYERS, touched, tuple(files))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(profiles())
def test_a_profile_comes_back_as_it_was_written(profile: AccessProfile) -> None:
    assert AccessProfile.from_json(profile.to_json()) == profile


def test_ranges_that_follow_each_other_are_made_one() -> None:
    ranges = [FlatRange(0, 0, 5), FlatRange(0, 5, 2), FlatRange(1, 7, 2), FlatRange(0, 7, 1)]
    assert list(joined(ranges)) == [(0, 0, 7), (1, 7, 2), (0, 7, 1)]


def test_what_is_published_has_no_paths() -> None:
    assert AccessProfile.from_json(published_profile(GOOD.to_json())) == GOOD._replace(files=())


@given(st.binary(max_size=50) | anything.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_profile_is_an_invalid_image(body: bytes) -> None:
    with pytest.raises(InvalidImage, match="profile"):
        AccessProfile.from_json(body)


@given(st.sampled_from(["version", "layers", "touches", "files"]), anything)
def test_a_profile_with_anything_in_a_field_is_read_or_refused(field: str, value: object) -> None:
    document = {**json.loads(GOOD.to_json()), field: value}
    try:
        profile = AccessProfile.from_json(json.dumps(document).encode())
    except InvalidImage:
        return
    assert all(0 <= start < profile.layers[layer].size for layer, start, _ in profile.touches)


@pytest.mark.parametrize(
    ("touches", "why"),
    [
        ([[3, 0, 1]], "no such bytes"),
        ([[0, 100, 1]], "no such bytes"),
        ([[0, 99, 2]], "no such bytes"),
        ([[0, 9, 0]], "no such bytes"),
        ([[0, -1, 1]], "'-1' is not a number"),
        ([[0, True, 1]], "'True' is not a number"),
        ([[0, 1]], "not a list of 3 to 3"),
    ],
)
def test_a_bad_touch_is_refused_and_named(touches: list[list[int]], why: str) -> None:
    document = {**json.loads(GOOD.to_json()), "touches": touches}
    with pytest.raises(InvalidImage, match=rf"profile: touches\[\d+\]: {why}"):
        AccessProfile.from_json(json.dumps(document).encode())


def test_a_huge_document_is_not_even_parsed() -> None:
    with pytest.raises(InvalidImage, match="at most"):
        AccessProfile.from_json(b"[" * (MAX_JSON + 1))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ([4, "a", 0, 1, 1], "no such bytes"),
        ([0, "a", 1, 1, 1], "no such bytes"),
        ([0, "a\0", 0, 1, 1], "no path"),
        ([0, "\ud800", 0, 1, 1], "no path"),
        ([0, "a" * 5000, 0, 1, 1], "no path"),
        ([0, 7, 0, 1, 1], "no path"),
        ([0, "a", 0, 1], "not a list of 5 to 5"),
    ],
)
def test_a_bad_file_is_refused_and_named(file: list[object], why: str) -> None:
    document = {**json.loads(GOOD.to_json()), "files": [file]}
    with pytest.raises(InvalidImage, match=rf"profile: files\[0\]: {why}"):
        AccessProfile.from_json(json.dumps(document).encode())


def nowhere(_file: ProfileFile) -> list[FlatRange]:
    return []


def test_touches_are_found_in_another_image_by_diff_id() -> None:
    other = [ProfileLayer(str(Digest.of(b"new")), "tar", 100), LAYERS[2], LAYERS[0]]
    assert list(GOOD.resolve(other, nowhere)) == [(2, 5, 2), (1, 299, 1), (2, 5, 1)]


def test_of_a_layer_that_another_image_has_not_files_are_asked_for_in_order() -> None:
    files = (FILE._replace(touch=0), FILE, FILE._replace(touch=2, path=b"b"))
    profile = GOOD._replace(files=files)
    found = list(profile.resolve([LAYERS[0]], lambda file: [FlatRange(0, 90, file.touch)]))
    assert found == [(0, 5, 2), (0, 90, 1), (0, 90, 2), (0, 5, 1)]


@pytest.mark.parametrize("other", [LAYERS[0]._replace(space="toc"), LAYERS[0]._replace(size=101)])
def test_a_layer_whose_flat_bytes_lie_otherwise_is_another(other: ProfileLayer) -> None:
    assert list(GOOD.resolve([other], nowhere)) == []


def test_what_a_stranger_publishes_names_no_files_and_whose_it_is() -> None:
    vouched = vouched_profile(GOOD.to_json(), "registry/app")
    assert origin_of(vouched) == "registry/app"
    assert AccessProfile.from_json(vouched) == GOOD._replace(files=())
    with pytest.raises(InvalidImage):
        vouched_profile(b"[]", "registry/app")


def test_an_image_has_files_looked_for_within_bounds(tmp_path: Path) -> None:
    """Its links may lead to each other over 80,000 names, and a file may have a million pieces."""
    links = [tar.symlink(f"l{number}", f"{'d/../' * 700}l{number - 1}") for number in range(1, 30)]
    with merged(
        tmp_path, tar.archive(tar.directory("d"), tar.file("d/f", b"f"), tar.symlink("l0", "d/f"), *links)
    ) as tree:
        files = FilesByPath(tree)

        def found(path: bytes) -> list[FlatRange]:
            return list(ranges_of(ProfileFile(0, path, 0, 1, 1), files, tree))

        assert [len(found(path)) for path in (b"d/f", b"l0", b"l1", b"l29")] == [1, 1, 0, 0]
        files.left = 2000
        assert sum(len(found(b"d/f")) for _ in range(2000)) < 100


def test_touches_are_recorded_in_order() -> None:
    recorder = ProfileRecorder(1000)
    for layer, span in [(0, 5), (2, 7), (0, 1)]:
        recorder.touched(layer, span, 10)
    assert recorder.touches() == [(0, 5), (2, 7), (0, 1)]
    assert recorder.count == 3


def test_whoever_reads_most_of_a_large_image_is_not_recorded_to_the_end() -> None:
    recorder = ProfileRecorder(300 << 20)
    for span in range(100):
        recorder.touched(0, span, 3 << 20)
    assert recorder.count == 50


def test_of_a_small_image_everything_may_be_needed() -> None:
    recorder = ProfileRecorder(50 << 20)
    for span in range(50):
        recorder.touched(0, span, 1 << 20)
    assert recorder.count == 50

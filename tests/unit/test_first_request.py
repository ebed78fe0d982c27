"""The request that is sent before a mount has loaded the rest: for which lines, and where its answer goes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from imgfs.cli.first_request import FirstRequest
from imgfs.cli.plain_line import parse
from imgfs.errors import NotFound
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import parse_reference
from imgfs.store.store import Store
from imgfs.transport.connect import DeferredSource, OfflineSource

TAG, DIGEST = "registry.example.com/team/app:v1", Digest("sha256", "7" * 64)
NAMED = Descriptor("", DIGEST, 1)


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FirstRequest | None]]:
    """Yield what finds out whether a line of `imgfs mount` begins with a request."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    (tmp_path / "mnt").mkdir()

    def of(*words: str, image: str = TAG) -> FirstRequest | None:
        where = ["--store", str(tmp_path / "store")]
        options = parse(["mount", *where, *words, image, str(tmp_path / "mnt")])
        options.question = None
        return FirstRequest.of(options, stack)

    with ExitStack() as stack:
        yield of


def test_an_image_that_is_new_here_is_asked_for_at_once(first: Callable[..., FirstRequest | None]) -> None:
    found = first()
    assert found
    assert found.reference == parse_reference(TAG)
    assert found.source.opened is None  # nothing is sent before the daemon is forked


def test_an_image_beside_others_is_new(first: Callable[..., FirstRequest | None], tmp_path: Path) -> None:
    Store(tmp_path / "store").put_resolution(TAG.replace("v1", "v10"), DIGEST, DIGEST)
    assert first()


def test_one_that_is_known_is_not_asked_for(
    first: Callable[..., FirstRequest | None], tmp_path: Path
) -> None:
    Store(tmp_path / "store").put_resolution(TAG, DIGEST, DIGEST)
    assert first() is None


@pytest.mark.parametrize("image", [f"registry.example.com/app@{DIGEST}", "oci:layout:v1", "no//name"])
def test_what_no_tag_of_a_registry_is_meant_by_is_not_asked_for(
    first: Callable[..., FirstRequest | None], image: str
) -> None:
    assert first(image=image) is None


@pytest.mark.parametrize(
    "words",
    [["--offline"], ["--scratch", "work"], ["-o", "nonsense"], ["--index", "none"], ["--replay", "x"]],
)
def test_a_line_that_may_be_refused_asks_for_nothing(
    first: Callable[..., FirstRequest | None], words: list[str]
) -> None:
    assert first(*words) is None


def test_nothing_is_asked_for_a_directory_that_cannot_be_mounted_on(
    first: Callable[..., FirstRequest | None], tmp_path: Path
) -> None:
    (tmp_path / "mnt" / "file").touch()
    assert first() is None


def test_on_one_processor_nothing_is_loaded_beside_it(
    first: Callable[..., FirstRequest | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    assert first() is None


class _Registry(OfflineSource):
    """Counts how often it is asked what a tag names; says so, or raises it."""

    def __init__(self, answer: Descriptor | Exception) -> None:
        self.answer = answer
        self.asked: list[bool] = []

    def resolve(self, *, whole: bool = False) -> Descriptor:
        self.asked.append(whole)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_answer_serves_once() -> None:
    registry = _Registry(NAMED)
    source = DeferredSource(lambda: registry)
    source.ask_ahead(3)
    assert source.resolve(whole=True) == NAMED
    assert registry.asked == [True]
    assert source.resolve() == NAMED
    assert registry.asked == [True, False]


def test_its_error_is_raised_where_the_answer_is_wanted() -> None:
    source = DeferredSource(lambda: _Registry(NotFound("there is no such tag", status=404)))
    source.ask_ahead(3)
    with pytest.raises(NotFound, match="no such tag"):
        source.resolve()

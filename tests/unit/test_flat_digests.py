"""Digests of spans' flat bytes: published, imported where there are peers, and proved with the layer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from imgfs.errors import IntegrityError
from imgfs.image.image import Image
from imgfs.image.verify import Verifier
from imgfs.layer.index import LayerIndex
from imgfs.oci.published import DIGESTS
from imgfs.peers.pool import PeerPool
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.mounted import gzipped, zstd
from tests.support.offerings import Offering, contents, offering, prepared


@cache
def image_files() -> dict[bytes, bytes]:
    return {b"prose": prose(2_600_000, 4), b"more": prose(700_000, 5)}


@cache
def image_tar() -> bytes:
    return tar.archive(*(tar.file(name, body) for name, body in image_files().items()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mine")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Offering]:
    """An image whose reader has peers configured, none of which answers."""
    with closing(PeerPool([])) as pool:
        found = offering(tmp_path / "theirs", [gzipped(image_tar(), 6)])
        found.source.pool = pool
        found.refer()
        yield found


def flat_spans(made: Offering, store: Store) -> list[tuple[int, int, bytes]]:
    """Bounds and digest of the spans that may come from peers."""
    path = store.layer(made.layers[0].digest).index
    assert path
    with LayerIndex(path) as index:
        spans = [index.flat_span(number) for number in range(index.span_count())]
        return [(span.start, span.end, span.parts[0].digest) for span in spans if span]


def check(found: list[tuple[int, int, bytes]]) -> None:
    assert [start for start, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
    assert found[-1][1] == len(image_tar())
    assert [digest for *_, digest in found] == [
        hashlib.sha256(image_tar()[start:end]).digest() for start, end, _ in found
    ]


def test_they_come_with_a_published_index_if_there_are_peers(made: Offering, store: Store) -> None:
    prepared(made.source, store)
    check(flat_spans(made, store))


def test_without_peers_nothing_is_fetched_of_them(made: Offering, store: Store) -> None:
    made.source.pool = None
    (digests,) = [layer.digests for layer in made.published.layers.values()]
    assert digests
    made.source.broken.add(digests.digest)
    _, told = prepared(made.source, store)
    assert (told.warned, flat_spans(made, store)) == ([], [])


def test_they_are_of_the_spans_of_a_seekable_copy(tmp_path: Path, store: Store) -> None:
    made = offering(
        tmp_path / "theirs", [zstd(tar.archive(tar.file("big", prose(9_000_000, 2))))], repack=True
    )
    made.refer()
    with closing(PeerPool([])) as made.source.pool:
        resolved, _ = prepared(made.source, store)
    body = prose(9_000_000, 2)
    with Image(resolved, made.source, store) as image:
        assert image.content.layers[0].index.blob
        assert dict(contents(image))[b"big"] == body
        for start, end, digest in flat_spans(made, store):
            flat = image.content.layers[0].read(start, end - start)
            assert hashlib.sha256(flat).digest() == digest


def test_a_scan_makes_them_if_there_are_peers(made: Offering, store: Store) -> None:
    made.source.referring.clear()
    _, told = prepared(made.source, store)
    assert told.streamed
    check(flat_spans(made, store))


def falsified(made: Offering, body: bytes) -> None:
    """Publish another list of digests."""
    ((digest, layer),) = made.published.layers.items()
    assert layer.digests
    other = replace(made.source.add(body, DIGESTS), annotations=layer.digests.annotations)
    made.refer(replace(made.published, layers={digest: layer._replace(digests=other)}))


@pytest.mark.parametrize("length", [0, 31, 32, 3200])
def test_a_list_of_another_length_is_not_used_nor_is_its_index(
    made: Offering, store: Store, length: int
) -> None:
    falsified(made, bytes(length))
    _, told = prepared(made.source, store)
    assert "bytes of digests for" in told.warned[0]
    check(flat_spans(made, store))


def test_a_list_that_lies_is_found_out_when_the_layer_is_here_whole(made: Offering, store: Store) -> None:
    """Else a process with this index would go on to accept a peer's bytes as verified ones."""
    (layer,) = made.published.layers.values()
    assert layer.digests
    falsified(made, bytes(32) + made.source.bodies[layer.digests.digest][32:])
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        assert dict(contents(image)) == image_files()
        image.content.layers[0].read(0, len(image_tar()))
        with pytest.raises(IntegrityError, match="flat bytes of span 0"):
            Verifier(image, store).verify_all()
        assert image.content.is_refused(0)

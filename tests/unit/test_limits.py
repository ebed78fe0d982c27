"""What is read of layers and indexes costs what `imgfs.layer.limits` says."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from imgfs.errors import ImgfsError, InvalidImage
from imgfs.layer import limits
from imgfs.layer.entry import Codec, Entry, Extent, Kind
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.soci import ztoc
from imgfs.layer.toc.toc import read_toc
from imgfs.store.store import Store
from imgfs.transport.resumable import ResumableDownloads
from imgfs.tree.reader import Tree
from scripts.proving import hostile
from tests.support.fake_source import FakeSource
from tests.support.layers import write_tree
from tests.support.tarmake import archive, file

COUNT = 5_000
DIGEST = "sha256:" + "0" * 64


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of memory that something takes at the most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["dir", "reg", "chunk"])
def test_a_table_of_contents_takes_no_more_memory_than_is_said(kind: str) -> None:
    fields: list[dict[str, object]] = [{"name": f"{n:x}", "type": "dir"} for n in range(COUNT)]
    if kind == "reg":
        more: dict[str, object] = {"type": "reg", "size": 1, "chunkDigest": DIGEST}
        fields = [{"name": f"{n:x}", "offset": 10 * n, **more} for n in range(COUNT)]
    elif kind == "chunk":
        more = {"name": "a", "chunkSize": 1, "chunkDigest": DIGEST}
        fields = [{"type": "chunk", "offset": 10 * n, "chunkOffset": n, **more} for n in range(COUNT)]
        fields[0] |= {"type": "reg", "size": COUNT}
    body = json.dumps({"version": 1, "entries": fields}, separators=(",", ":")).encode()
    peak = peak_of(lambda: read_toc(body, codec=Codec.GZIP, end=1 << 40))
    assert peak < 4 * len(body) + 1536 * COUNT


@pytest.mark.parametrize("seed", range(12))
def test_a_ztoc_takes_no_more_memory_than_is_said(seed: int) -> None:
    assert hostile.lying_ztoc(Random(seed)) in ("parsed", "refused")


def test_a_ztoc_larger_than_is_said_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ztoc, "ZTOC_LIMIT", 100)
    with pytest.raises(InvalidImage, match="101 bytes are more than 100"):
        ztoc.parse_ztoc(bytes(101), size=1)


def heavy(number: int) -> Entry:
    extents = tuple(Extent(2 * at, 1, at) for at in range(10_000))  # a quarter of a megabyte, packed
    return Entry(b"%d" % number, Kind.FILE, 0o644, 0, 0, 20_000, 0, extents=extents)


def test_entries_are_written_as_they_are_met_however_heavy(tmp_path: Path) -> None:
    one, count = heavy(0), 60
    writer = IndexWriter(tmp_path / "index")

    def write() -> None:
        for number in range(count):
            writer.add_entry(one._replace(path=b"%d" % number))
        writer.finish(digest="", diff_id="", format="tar", size=0, flat_size=0)

    assert peak_of(write) < 10 << 20  # of 15 MB in all
    layer = [one._replace(path=b"%d" % number) for number in range(count)]
    write_tree(tmp_path / "tree", [layer], tmp_path)
    with Tree(tmp_path / "tree") as tree:
        assert sum(len(it.extents) for it in tree.nodes()) == count * 10_000


def test_a_small_blob_of_deep_paths_makes_no_large_tree(tmp_path: Path) -> None:
    deep = "/".join("x" * 2000)
    members = [file(f"{number}/{deep}") for number in range(100)]
    with pytest.raises(InvalidImage, match="imply more than"):
        write_tree(tmp_path / "tree", [archive(*members)], tmp_path)
    size = (tmp_path / "tree").stat().st_size + 150 * limits.IMPLIED_MORE
    assert size < 8 << 20


def test_every_bound_is_in_the_table() -> None:
    table = limits.__doc__ or ""
    assert f"{limits.PATH_LIMIT:,} bytes" in table
    assert f"{limits.COMPONENTS_EACH} looked up for each entry, and {limits.COMPONENTS_MORE:,}" in table
    assert f"{limits.IMPLIED_EACH} for each entry, and {limits.IMPLIED_MORE:,}" in table
    assert f"{limits.STEPS_EACH} steps of SQLite for each of its bytes" in table
    assert f"{limits.DATABASE_RATIO} times its size" in table


def test_an_index_and_a_tree_take_less_than_300_bytes_a_file(tmp_path: Path) -> None:
    layer = [
        Entry(
            b"usr/share/package-%03d/module-%05d.py" % (n % 200, n),
            Kind.FILE,
            0o644,
            0,
            0,
            900,
            n * 10**9 + n,
        )
        for n in range(COUNT)
    ]
    write_tree(tmp_path / "tree", [layer], tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 300 * COUNT


@pytest.mark.parametrize("size", [1 << 46, 1 << 62, (1 << 63) - 1])
def test_the_size_that_a_manifest_claims_of_a_layer_takes_no_memory(tmp_path: Path, size: int) -> None:
    """Nothing of such a layer is kept for another try: there is a mark for each 256 KiB of what is kept."""
    source, kept = FakeSource(), list[int]()
    layer = replace(source.add(b"short"), size=size)
    stored = Store(tmp_path / "store").layer(layer.digest)

    def fetch() -> None:
        with suppress(ImgfsError):
            assert list(ResumableDownloads(4).blob(layer, source, stored, kept.append)) == [b"short"]

    assert peak_of(fetch) < 1 << 20
    assert (kept, list(stored.directory.iterdir())) == ([], [])

"""Tables of contents as real writers make them: every entry and every byte is the tar's."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.layer.entry import Codec, Entry
from imgfs.layer.tar.reader import tar_entries
from imgfs.layer.toc.detect import find_toc
from imgfs.layer.toc.toc import Toc
from tests.support import blobs, tarmake
from tests.support.toc_writers import Convert, containerd, needs_ctr_remote, needs_skopeo, skopeo_chunked
from tests.support.tocmake import Made, bare, check, fetched, files, tar_files

pytestmark = pytest.mark.parts

T = 1_600_000_000_123_456_789
HOLES = blobs.prose(70_000) + bytes(200_000) + blobs.prose(300_000, 1)
TAR = tarmake.archive(
    tarmake.directory("etc/", mode=0o1777, mtime_ns=T),
    tarmake.file(
        "etc/passwd", b"root:x:0\n", mode=0o4755, uid=5, gid=70_000, xattrs={b"user.a": b"\0\xff"}, mtime_ns=T
    ),
    tarmake.file("etc/empty", mtime_ns=T),
    tarmake.file("etc/holes", HOLES, mtime_ns=T),
    tarmake.file("etc/" + "long" * 40, blobs.prose(1234, 2), mtime_ns=T),
    tarmake.file("\u00e4/\U0001f600", b"no parent", mtime_ns=T),
    tarmake.symlink("etc/link", "passwd", mtime_ns=T),
    tarmake.hardlink("etc/hard", "etc/passwd"),
    tarmake.device("null", "c", 1, 3),
    tarmake.fifo("pipe"),
    tarmake.whiteout("etc/gone"),
    tarmake.opaque("opt"),
    tarmake.file("last", b"x" * 600, mtime_ns=T),
)


@pytest.fixture(scope="module")
def convert() -> Iterator[Convert]:
    with containerd() as convert:
        yield convert


def toc_of(made: Made) -> Toc:
    found, _ = fetched(find_toc(made.layer), made.blob)
    assert isinstance(found, Toc)
    check(found, len(made.blob))
    return found


def by_path(entries: list[Entry], *, seconds: bool) -> dict[bytes, Entry]:
    return {entry.path: bare(entry, seconds=seconds) for entry in entries}


@needs_skopeo
def test_skopeos_zstd_chunked_is_the_tar(tmp_path: Path) -> None:
    made = skopeo_chunked(TAR, tmp_path)
    found = toc_of(made)
    assert [bare(entry) for entry in found.entries] == [bare(entry) for entry in tar_entries(TAR)]
    assert files(found, made.blob) == tar_files(TAR)
    assert {span.codec for span in found.spans} == {Codec.ZSTD}
    chunked = next(entry for entry in found.entries if entry.path == b"etc/holes")
    assert sum(extent.length for extent in chunked.extents) < len(HOLES), "no hole was found"


@needs_ctr_remote
@pytest.mark.parametrize("options", [["--estargz"], ["--estargz", "--estargz-chunk-size", "50000"]])
def test_ctr_remotes_estargz_is_the_tar(convert: Convert, options: list[str]) -> None:
    made = convert(TAR, *options)
    found = toc_of(made)
    assert by_path(found.entries, seconds=False) == by_path(tar_entries(TAR), seconds=True)
    assert files(found, made.blob) == tar_files(TAR)
    assert found.prefetch_end == 0
    of_the_format = {b"stargz.index.json", b".no.prefetch.landmark"}
    assert {entry.path for entry in tar_entries(gzip.decompress(made.blob))} == {
        *(entry.path for entry in found.entries),
        *of_the_format,
    }


@needs_ctr_remote
def test_ctr_remotes_recorded_files_come_before_the_landmark(convert: Convert) -> None:
    made = convert(TAR, "--estargz", first=["etc/passwd", "last"])
    found = toc_of(made)
    before = [span for span in found.spans if span.end <= (found.prefetch_end or 0)]
    early = {path for path, extents in ((entry.path, entry.extents) for entry in found.entries) if extents}
    inside = {
        entry.path
        for entry in found.entries
        if entry.path in early and entry.extents[0].flat < before[-1].flat_end
    }
    assert inside == {b"etc/passwd", b"last"}
    assert files(found, made.blob) == tar_files(TAR)


@needs_ctr_remote
def test_ctr_remotes_zstd_chunked_is_the_tar(convert: Convert) -> None:
    made = convert(TAR, "--zstdchunked")
    found = toc_of(made)
    assert by_path(found.entries, seconds=False) == by_path(tar_entries(TAR), seconds=True)
    assert files(found, made.blob) == tar_files(TAR)
    assert {span.codec for span in found.spans} == {Codec.ZSTD}

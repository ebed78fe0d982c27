from __future__ import annotations

import bz2
import hashlib
import lzma
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import ImgfsError, IntegrityError, InvalidImage, StoreError, Unavailable
from imgfs.layer.codec.blob import fastest_engine
from imgfs.layer.codec.span import decode_span
from imgfs.layer.codec.zlib_engine import InflateEngine, ZlibEngine
from imgfs.layer.entry import Codec, Entry, Span
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.layer.schema import Summary
from imgfs.layer.tar.reader import tar_entries
from imgfs.oci.descriptor import Descriptor, Digest
from tests.support import blobs, tarmake
from tests.support.blobs import deflate, gzip_member, gzip_members, prose, skippable, zstd_frames
from tests.support.patience import allowed
from tests.support.tarmake import archive, directory, file, symlink

MIB = 1 << 20
STEP = 4096


class FlatBytes:
    """A flat file in memory; it fails at `full` bytes, as a disk does."""

    def __init__(self, full: int = 1 << 62) -> None:
        self.body = bytearray()
        self._full = full

    def write(self, offset: int, piece: bytes | memoryview) -> None:
        if offset + len(piece) > self._full:
            raise StoreError("cannot write to the store: No space left on device")
        assert offset == len(self.body)
        self.body += piece


class Scanned(NamedTuple):
    """What a scan has left behind."""

    flat: bytes
    summary: Summary
    entries: list[Entry]
    spans: list[Span]


def scanned(
    blob: bytes,
    *,
    diff_id: Digest,
    digest: Digest | None = None,
    size: int | None = None,
    chunks: Iterable[bytes] | None = None,
    media_type: str = "application/vnd.oci.image.layer.v1.tar",
    flat: FlatBytes | None = None,
    step: int = STEP,
    plausible: int = 1 << 30,
    engine: Callable[[], InflateEngine] = ZlibEngine,
) -> Scanned:
    """Scan a blob and read its index again; by default its digest and size are as promised."""
    digest, size = digest or Digest.of(blob), len(blob) if size is None else size
    layer = Descriptor(media_type, digest, size)
    flat = flat or FlatBytes()
    given_chunks = iter([blob] if chunks is None else chunks)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "index"
        writer = IndexWriter(path)
        try:
            length = scan(
                given_chunks, layer, diff_id, flat, writer, plausible=plausible, step=step, engine=engine
            )
        finally:
            writer.close()
        assert length == len(flat.body)
        with LayerIndex(path) as index:
            spans = [index.span(number) for number in range(index.span_count())]
            return Scanned(bytes(flat.body), index.summary, list(index.entries()), spans)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("imgfs-")] == []


def layer_tar() -> bytes:
    """A tar of 200 KB that has something of everything."""
    source = random.Random(3)
    long = b"a/" + b"very-" * 40 + b"long"
    files = [file(f"usr/lib/{number}", prose(source.randrange(9000), number)) for number in range(25)]
    return archive(
        directory("usr/"),
        directory("usr/lib/", xattrs={b"user.x": b"\0\1"}),
        *files,
        file("noise", source.randbytes(30_000), xattrs={b"security.capability": b"\1\0\0\2\0"}),
        file("zeros", bytes(40_000)),
        tarmake.gnu_long(long) + tarmake.member("short", b"0", b"body", magic=tarmake.GNU),
        tarmake.sparse_pax("1.0", "sparse", 1 << 20, [(4096, b"x" * 700), (500_000, b"y" * 512)]),
        symlink("usr/lib64", "lib"),
        file("end", prose(5000)),
    )


TAR = layer_tar()
DIFF_ID = Digest.of(TAR)
TINY = deflate([TAR], memory=2, flush=0)
BLOBS = {
    "tar": TAR,
    "gzip": gzip_member(TAR, TINY),
    "gzip flushes": gzip_member(TAR, deflate(blobs.every(TAR, 2048), flush=2)),
    "gzip members": gzip_members(TAR, 3000),
    "bgzip": blobs.bgzf(TAR, 10_000),
    "gzip member and members": gzip_member(TAR[:90_000], deflate([TAR[:90_000]], memory=2, flush=0))
    + gzip_members(TAR[90_000:], 1111)
    + bytes(77),
    "zstd": zstd_frames([TAR]),
    "xz": lzma.compress(TAR),
    "bzip2": bz2.compress(TAR),
    "zstd frames": skippable(b"head") + zstd_frames(blobs.every(TAR, 2500)) + skippable(bytes(99)),
    "zstd frames without sizes": zstd_frames(blobs.every(TAR, 5000), checksum=False, sized=False),
}
EVERY_FORMAT = pytest.mark.parametrize("name", BLOBS)


def check_spans(found: Scanned, blob: bytes, flat: bytes) -> None:
    """Every span decodes alone, in any order, and together they are the flat layer."""
    assert found.spans[0].flat_start == found.spans[0].start == 0
    assert found.spans[-1].flat_end == len(flat)
    assert all(before.flat_end == after.flat_start for before, after in pairwise(found.spans))
    shared = [bool(span.checkpoint and span.checkpoint.bits) for span in found.spans]
    assert all(before.end - shared[after.number] == after.start for before, after in pairwise(found.spans))
    for span in random.Random(7).sample(found.spans, len(found.spans)):
        packed = blob[span.start : span.end]
        assert hashlib.sha256(packed).digest() == span.digest
        pieces = decode_span(span, blobs.every(packed, 999))
        assert b"".join(bytes(piece) for piece in pieces) == flat[span.flat_start : span.flat_end]


# What a scan leaves behind


@EVERY_FORMAT
def test_the_flat_layer_is_written_as_it_is(name: str) -> None:
    assert scanned(BLOBS[name], diff_id=DIFF_ID).flat == TAR


@EVERY_FORMAT
def test_the_entries_are_those_of_the_tar(name: str) -> None:
    found = scanned(BLOBS[name], diff_id=DIFF_ID)
    assert found.entries == tar_entries(TAR)
    assert found.summary.entries == len(found.entries) == 33


@EVERY_FORMAT
def test_the_spans_cover_the_flat_layer_and_decode_alone_in_any_order(name: str) -> None:
    found = scanned(BLOBS[name], diff_id=DIFF_ID)
    assert (len(found.spans) == 1) if name in ("zstd", "xz", "bzip2") else (len(found.spans) > 10)
    check_spans(found, BLOBS[name], TAR)


def test_a_gzip_layer_of_one_member_has_spans_in_mid_byte() -> None:
    spans = scanned(BLOBS["gzip"], diff_id=DIFF_ID).spans
    assert {span.checkpoint.bits for span in spans if span.checkpoint} == set(range(8))


def test_a_gzip_layer_of_members_may_have_both_kinds_of_span() -> None:
    spans = scanned(BLOBS["gzip member and members"], diff_id=DIFF_ID).spans
    assert {span.codec for span in spans} == {Codec.GZIP, Codec.DEFLATE}


@EVERY_FORMAT
def test_the_summary_says_what_was_scanned(name: str) -> None:
    blob = BLOBS[name]
    summary = scanned(blob, diff_id=DIFF_ID).summary
    form = {"bgzip": "gzip members", "gzip member and members": "gzip members"}.get(name, name)
    form = form if form == "gzip members" else form.partition(" ")[0]
    assert summary == Summary(str(Digest.of(blob)), str(DIFF_ID), form, len(blob), len(TAR), 33)


def test_other_digest_algorithms_are_checked_as_well() -> None:
    sha512 = Digest.of(TAR, "sha512")
    assert scanned(TAR, diff_id=sha512, digest=sha512).summary.diff_id == str(sha512)


@pytest.mark.parametrize("blob", [b"", gzip_member(b""), zstd_frames([b""]), skippable(b"")])
def test_a_layer_may_be_empty(blob: bytes) -> None:
    found = scanned(blob, diff_id=Digest.of(b""))
    assert (found.flat, found.entries, found.spans) == (b"", [], [])


@pytest.mark.parametrize("pack", [bytes, gzip_member, lambda flat: zstd_frames([flat])])
def test_a_layer_may_have_no_entries(pack: Callable[[bytes], bytes]) -> None:
    flat = tarmake.end()
    found = scanned(pack(flat), diff_id=Digest.of(flat))
    assert (found.flat, found.entries) == (flat, [])
    check_spans(found, pack(flat), flat)


# How it arrives


WHOLE = {name: scanned(blob, diff_id=DIFF_ID) for name, blob in BLOBS.items()}


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(BLOBS)), sizes=st.lists(st.integers(0, 9000), max_size=40))
def test_how_a_blob_is_cut_into_chunks_changes_nothing(name: str, sizes: list[int]) -> None:
    blob = BLOBS[name]
    chunks = [*blobs.split(blob, sizes), b""]
    assert scanned(blob, diff_id=DIFF_ID, chunks=chunks) == WHOLE[name]


def test_however_a_blob_arrives_it_is_cut_into_the_same_spans() -> None:
    """A profile of one mount's spans means those of the next."""
    tar = archive(file("prose", prose(6_000_000)), file("noise", random.Random(5).randbytes(2_000_000)))
    blob, chance = gzip_member(tar), random.Random(6)

    def arriving(smallest: int, largest: int) -> list[tuple[int, int, int, int]]:
        sizes = [chance.randint(smallest, largest) for _ in range(len(blob) // smallest + 1)]
        found = scanned(
            blob,
            diff_id=Digest.of(tar),
            chunks=blobs.split(blob, sizes),
            step=100_000,
            engine=fastest_engine,
        )
        return [(span.flat_start, span.flat_end, span.start, span.end) for span in found.spans]

    whole = arriving(len(blob), len(blob))
    assert len(whole) > 30
    assert arriving(1_000, 40_000) == arriving(300_000, 900_000) == whole


@pytest.mark.parametrize("name", ["tar", "gzip", "bgzip", "zstd frames"])
def test_a_blob_may_arrive_byte_by_byte(name: str) -> None:
    blob = BLOBS[name]
    start = [*blobs.every(blob[:9000], 1), blob[9000:]]
    assert scanned(blob, diff_id=DIFF_ID, chunks=start) == WHOLE[name]


def test_an_empty_chunk_is_not_the_end() -> None:
    blob = BLOBS["gzip"]
    chunks = [b"", blob[:3], b"", b"", blob[3:5000], b"", blob[5000:], b""]
    assert scanned(blob, diff_id=DIFF_ID, chunks=chunks) == WHOLE["gzip"]


paths = st.binary(min_size=1, max_size=130).filter(lambda path: b"\0" not in path)
bodies = st.builds(lambda size, seed: prose(size, seed), st.integers(0, 3000), st.integers(0, 3))
pieces = st.builds(
    lambda size, body: [(size, body)] if body else [],
    st.integers(0, 20).map(lambda blocks: blocks * 512),
    bodies,
)
members = st.one_of(
    st.builds(file, paths, bodies, mtime_ns=st.integers(-(1 << 40), 1 << 60)),
    st.builds(file, paths, bodies, xattrs=st.dictionaries(st.just(b"user.x"), st.binary(max_size=2000))),
    st.builds(directory, paths),
    st.builds(symlink, paths, paths),
    st.builds(tarmake.hardlink, paths, paths),
    st.builds(lambda path, body: tarmake.gnu_long(path) + tarmake.member(b"", body=body), paths, bodies),
    st.builds(
        lambda version, path, parts: tarmake.sparse_pax(version, path, 20_000, parts),
        st.sampled_from(["0.0", "0.1", "1.0"]),
        paths.filter(lambda path: b"\n" not in path),
        pieces,
    ),
    st.builds(lambda path, parts: tarmake.sparse_old(path, 20_000, parts), paths, pieces),
)


@settings(max_examples=40, deadline=None)
@given(
    tar=st.lists(members, max_size=8).map(lambda parts: archive(*parts)),
    sizes=st.lists(st.integers(1, 700), max_size=30),
    step=st.integers(1, 5000),
)
def test_the_tar_reader_sees_the_same_in_a_stream_as_in_one_piece(
    tar: bytes, sizes: list[int], step: int
) -> None:
    found = scanned(tar, diff_id=Digest.of(tar), chunks=blobs.split(tar, sizes), step=step)
    assert found.entries == tar_entries(tar)
    check_spans(found, tar, tar)


# What is not as promised


@EVERY_FORMAT
def test_a_wrong_blob_digest_is_an_integrity_error_about_the_blob(name: str) -> None:
    other = Digest.of(b"another blob")
    with pytest.raises(IntegrityError, match=f"^layer blob: expected {other}, got sha256:") as caught:
        scanned(BLOBS[name], diff_id=DIFF_ID, digest=other)
    assert caught.value.actual == Digest.of(BLOBS[name])


@EVERY_FORMAT
def test_a_wrong_diff_id_is_an_integrity_error_about_the_uncompressed_layer(name: str) -> None:
    other = Digest.of(b"another tar")
    with pytest.raises(IntegrityError, match=rf"^uncompressed layer \w+.* \(DiffID\): expected {other}"):
        scanned(BLOBS[name], diff_id=other)


@EVERY_FORMAT
@settings(max_examples=12, deadline=None)
@given(at=st.floats(0, 0.999), mask=st.integers(1, 255))
def test_damage_on_the_way_is_an_integrity_error(name: str, at: float, mask: int) -> None:
    blob = bytearray(BLOBS[name])
    blob[int(at * len(blob))] ^= mask
    with pytest.raises(IntegrityError, match=r"^layer blob: expected "):
        scanned(
            bytes(blob), diff_id=DIFF_ID, digest=Digest.of(BLOBS[name]), chunks=blobs.every(bytes(blob), 5000)
        )


@pytest.mark.parametrize(
    ("name", "where"),
    [("tar", r"tar offset \d+"), ("gzip", r"(gzip|tar) offset \d+"), ("zstd frames", r"zstd offset \d+")],
)
def test_a_blob_as_promised_that_is_broken_is_an_invalid_image(name: str, where: str) -> None:
    blob = bytearray(BLOBS[name])
    middle = tar_entries(TAR)[15].extents[0].flat - 512 if name == "tar" else len(blob) // 2
    blob[middle : middle + 200] = b"\xff" * 200
    with pytest.raises(InvalidImage, match=f"^{where}: "):
        scanned(bytes(blob), diff_id=DIFF_ID)


@EVERY_FORMAT
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_blob_cut_short_on_the_way_is_an_integrity_error(name: str, kept: float) -> None:
    blob = BLOBS[name]
    part = blob[: int(len(blob) * kept)]
    with pytest.raises(
        IntegrityError, match=f"^length of the layer blob: expected {len(blob)}, got {len(part)}$"
    ):
        scanned(part, diff_id=DIFF_ID, digest=Digest.of(blob), size=len(blob))


@EVERY_FORMAT
def test_a_blob_that_goes_on_past_its_size_is_an_integrity_error(name: str) -> None:
    blob = BLOBS[name]

    def endless() -> Iterator[bytes]:
        yield blob
        while True:
            yield bytes(1000)

    with pytest.raises(IntegrityError, match=f"^length of the layer blob: expected {len(blob)}, got "):
        scanned(blob, diff_id=DIFF_ID, chunks=endless())


@pytest.mark.parametrize("wrong", [-1, 1, 1000])
def test_a_descriptor_of_the_right_digest_and_another_size_is_not_believed(wrong: int) -> None:
    blob = BLOBS["gzip"]
    with pytest.raises(IntegrityError, match="length of the layer blob"):
        scanned(blob, diff_id=DIFF_ID, size=len(blob) + wrong)


@pytest.mark.parametrize("name", [name for name in BLOBS if name != "tar"])
def test_a_blob_that_was_packed_cut_short_is_an_invalid_image(name: str) -> None:
    blob = BLOBS[name].rstrip(b"\0")[:-100]
    with pytest.raises(
        InvalidImage, match=r"^(gzip|zstd|xz|bzip2) offset \d+: the \w+ stream ends in mid-\w+$"
    ):
        scanned(blob, diff_id=DIFF_ID)


@pytest.mark.parametrize("pack", [bytes, gzip_member, lambda flat: zstd_frames([flat])])
@pytest.mark.parametrize("missing", [1, 511, 512, 513, 5200])
def test_a_layer_whose_last_member_is_cut_short_is_an_invalid_image(
    pack: Callable[[bytes], bytes], missing: int
) -> None:
    flat = archive(file("a", b"whole"), file("b", prose(5000)))[: -1024 - 120 - missing]
    with pytest.raises(InvalidImage, match=r"^tar offset \d+: .*(truncated|inside its last member)"):
        scanned(pack(flat), diff_id=Digest.of(flat))


@pytest.mark.parametrize("garbage", [b"x", b"no layer at all" * 100, b"\x1f", b"\x7fELF" + bytes(2000)])
def test_what_is_no_layer_is_an_invalid_image(garbage: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"^tar offset 0: "):
        scanned(garbage, diff_id=Digest.of(garbage))


def test_a_blob_that_does_not_call_itself_a_tar_is_refused_with_its_type() -> None:
    with pytest.raises(InvalidImage, match=r"tar offset 0: not a tar header.*; a blob of type 'x/qcow2'"):
        scanned(b"QFI\xfb" * 150, diff_id=Digest.of(b""), media_type="x/qcow2")


@pytest.mark.parametrize("chunks", [[b"PK", b"\x03\x04\x14"], [b"\x04", b"\x22\x4d\x18"]])
def test_a_layer_packed_otherwise_is_refused_by_name_however_it_arrives(chunks: list[bytes]) -> None:
    blob = b"".join(chunks)
    with pytest.raises(InvalidImage, match=r"packed with (zip|lz4)"):
        scanned(blob, diff_id=DIFF_ID, chunks=chunks)


def test_a_refused_format_that_is_not_even_the_promised_blob_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError, match="layer blob"):
        scanned(b"PK\x03\x04", diff_id=DIFF_ID, digest=DIFF_ID)


# Bombs


@pytest.mark.parametrize("bomb", [blobs.gzip_bomb(64 * MIB), blobs.zstd_bomb(20_000)], ids=["gzip", "zstd"])
def test_a_bomb_is_stopped_once_it_is_implausible(bomb: bytes) -> None:
    flat = FlatBytes()
    with pytest.raises(
        InvalidImage, match=f"its {len(bomb)} bytes decode to over {max(MIB, 100 * len(bomb))}"
    ):
        scanned(bomb, diff_id=DIFF_ID, flat=flat, plausible=MIB)
    assert len(flat.body) <= 100 * len(bomb) + 64 * MIB


def test_a_bomb_is_not_downloaded_to_its_end() -> None:
    bomb = blobs.gzip_bomb(64 * MIB) * 120
    taken = []

    def chunks() -> Iterator[bytes]:
        for chunk in blobs.every(bomb, 1000):
            taken.append(chunk)
            yield chunk
        raise AssertionError("taken to its end")

    with pytest.raises(InvalidImage, match="bomb"):
        scanned(bomb, diff_id=DIFF_ID, chunks=chunks(), plausible=MIB)
    assert len(taken) < len(bomb) // 1000 / 2


def test_a_layer_of_zeros_is_plausible_up_to_the_limit() -> None:
    flat = archive(file("zeros", bytes(4 * MIB)))
    assert scanned(gzip_member(flat), diff_id=Digest.of(flat), plausible=len(flat)).flat == flat
    with pytest.raises(InvalidImage, match="bomb"):
        scanned(gzip_member(flat), diff_id=Digest.of(flat), plausible=len(flat) - 1)


# Failures around it


@EVERY_FORMAT
@pytest.mark.parametrize("full", [0, 100_000, len(TAR) - 1])
def test_a_full_disk_comes_out_as_a_store_error(name: str, full: int) -> None:
    with pytest.raises(StoreError, match="No space left"):
        scanned(BLOBS[name], diff_id=DIFF_ID, flat=FlatBytes(full), chunks=blobs.every(BLOBS[name], 1000))


@EVERY_FORMAT
@pytest.mark.parametrize("kept", [0, 1, 5000])
def test_what_the_source_raises_comes_out(name: str, kept: int) -> None:
    def cut_off() -> Iterator[bytes]:
        yield from blobs.every(BLOBS[name][:kept], 1000)
        raise Unavailable("the connection was cut")

    with pytest.raises(Unavailable, match="the connection was cut"):
        scanned(BLOBS[name], diff_id=DIFF_ID, chunks=cut_off())


def test_what_the_source_raises_while_a_broken_blob_is_judged_comes_out() -> None:
    def cut_off() -> Iterator[bytes]:
        yield b"no layer at all" * 100
        raise Unavailable("the connection was cut")

    with pytest.raises(Unavailable, match="the connection was cut"):
        scanned(bytes(9999), diff_id=DIFF_ID, chunks=cut_off())


def test_a_source_that_hangs_does_not_keep_a_failed_scan() -> None:
    go_on = threading.Event()
    large = archive(file("large", bytes(4 * MIB)))

    def hanging() -> Iterator[bytes]:
        yield from blobs.every(large[:-1000], 100_000)  # more chunks than it takes to learn of the full disk
        go_on.wait(20)

    with pytest.raises(StoreError, match="No space left"):
        scanned(large, diff_id=DIFF_ID, chunks=hanging(), flat=FlatBytes(0))
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "imgfs-pull":
            thread.join(20)


def test_an_index_that_was_not_finished_is_no_index(tmp_path: Path) -> None:
    blob = BLOBS["gzip"]
    layer = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(blob), len(blob))
    writer = IndexWriter(tmp_path / "index")
    with pytest.raises(IntegrityError):
        scan(iter([blob]), layer, Digest.of(b"other"), FlatBytes(), writer, step=STEP)
    writer.close()
    with pytest.raises(StoreError):
        LayerIndex(tmp_path / "index")


@settings(max_examples=60, deadline=None)
@given(
    head=st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", skippable(b""), TAR[:512]]),
    tail=st.binary(max_size=700),
)
def test_hostile_bytes_end_in_one_of_our_errors_or_a_layer(head: bytes, tail: bytes) -> None:
    blob = head + tail
    try:
        found = scanned(blob, diff_id=Digest.of(blob))
    except ImgfsError as error:
        assert isinstance(error, InvalidImage | IntegrityError)  # noqa: PT017  (either is right)
    else:
        assert found.flat == blob


# What people pack with


def big_tar() -> bytes:
    """Some megabytes, half text, half noise."""
    source = random.Random(11)
    texts = [file(f"text/{number}", prose(100_000, number)) for number in range(15)]
    noises = [file(f"noise/{number}", source.randbytes(50_000)) for number in range(15)]
    return archive(*texts, *noises, file("zeros", bytes(MIB)))


@pytest.mark.parts
@pytest.mark.parametrize(
    ("command", "least"),
    [
        ("gzip -c", 10),
        ("gzip -1 -c", 10),
        ("gzip -9 --rsyncable -c", 10),
        ("pigz -c", 10),
        ("pigz -i -b 128 -c", 10),
        ("pigz -p 1 -c", 10),
        ("bgzip -c", 30),
        ("zstd -q -c", 1),
        ("pigz --comment words --alias name -c", 10),
        ("zstd -q -T2 --long=27 -c", 1),
        ("zstd -q --ultra --long=31 -1 -c", 1),
        ("zstd -q --format=gzip -c", 10),
        ("pzstd -q -p 3 -c", 1),
    ],
)
def test_what_real_tools_pack_is_indexed_and_decoded_span_by_span(command: str, least: int) -> None:
    words = command.split()
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    flat = big_tar()
    blob = subprocess.run(words, input=flat, stdout=subprocess.PIPE, check=True, timeout=allowed(60)).stdout
    found = scanned(blob, diff_id=Digest.of(flat), chunks=blobs.every(blob, 100_000), step=65_536)
    assert found.entries == tar_entries(flat)
    assert len(found.spans) >= least
    check_spans(found, blob, flat)


@pytest.mark.parts
def test_zstd_files_joined_are_indexed_frame_by_frame() -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    flat = big_tar()
    parts = [
        subprocess.run(
            ["zstd", "-q", "-c"], input=part, stdout=subprocess.PIPE, check=True, timeout=allowed(60)
        ).stdout
        for part in blobs.every(flat, 500_000)
    ]
    blob = b"".join(parts)
    found = scanned(blob, diff_id=Digest.of(flat), chunks=blobs.every(blob, 100_000), step=65_536)
    assert len(found.spans) == len(parts)
    check_spans(found, blob, flat)

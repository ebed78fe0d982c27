"""`imgfs pull`: all of an image in the store, fetched once, verified, and then used without its registry."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest

from imgfs.errors import IntegrityError, NotFound, StoreError, Unavailable
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.pull import MeteredSource, pull_image
from imgfs.image.resolve import resolve
from imgfs.image.trust import Trust
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import import_index
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.store.checksum import write_checksum
from imgfs.store.partial import UNIT
from imgfs.store.store import Store
from imgfs.transport.resumable import ResumableDownloads
from tests.support import tarmake as tar
from tests.support.blobs import noise, prose
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fake_source import FakeSource
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Ran,
    Stored,
    Wire,
    documents,
    drop_caches,
    gzipped,
    gzipped_in_members,
    on_terminal,
    plain,
    serve,
    sha256,
    until,
    zstd,
)
from tests.support.patience import allowed
from tests.unit.test_prepare import AMD64, Journal, left_in

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="drops the kernel's caches, and mounts")


BLOB = Digest.of(b"a blob")


@cache
def large() -> dict[str, bytes]:
    """The files of the largest layer; made when a test first asks: collecting does without."""
    return {"large/noise": noise(1, 11_000_000), "large/prose": prose(3_000_000, 1)}


@cache
def layers() -> list[dict[str, bytes]]:
    """The files of each layer."""
    return [
        large(),
        {f"members/{number}": prose(5000 + number, number) for number in range(200)},
        {"zstd/noise": noise(2, 2_000_000)},
        {"tar/noise": noise(3, 5_500_000), "tar/empty": b""},
    ]


@cache
def everything() -> dict[str, bytes]:
    return {name: body for files in layers() for name, body in files.items()}


def packed(files: dict[str, bytes]) -> bytes:
    return tar.archive(*(tar.file(name, body) for name, body in files.items()))


@cache
def stored() -> list[Stored]:
    first, members, frames, flat = map(packed, layers())
    return [gzipped(first), gzipped_in_members(members), zstd(frames, 300_000), plain(flat)]


def big() -> Stored:
    return stored()[0]


def total() -> int:
    """Bytes of all blobs."""
    return sum(len(layer.blob) for layer in stored())


def shown(at: Path) -> dict[str, bytes]:
    """All files below a directory."""
    files = (path for path in at.rglob("*") if path.is_file())
    return {str(path.relative_to(at)): path.read_bytes() for path in files}


def pulled(imgfs: Imgfs, image: str, *options: str) -> Ran:
    """A pull that succeeds; its summary is `err`."""
    ran = imgfs.run("pull", *options, image)
    assert ran.code == 0, ran
    return ran


@contextlib.contextmanager
def offline(imgfs: Imgfs, image: str, *options: str) -> Iterator[Path]:
    """A mount that asks nobody."""
    at = imgfs.mountpoint()
    assert imgfs.run("mount", "--offline", *options, image, at).code == 0
    imgfs.watch(at)
    drop_caches()
    yield at
    assert imgfs.status(at)["requests_fetched"] == 0
    imgfs.umount(at)


@pytest.fixture
def image(server: FaultServer) -> str:
    return serve(server, "app", "v1", stored())


def ranges(server: FaultServer, blob: bytes) -> list[tuple[int, int]]:
    """What was asked of a blob, as half-open ranges."""
    found = []
    for one in server.seen(sha256(blob), "GET"):
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", one.headers.get("range", f"bytes=0-{len(blob) - 1}"))
        assert match
        found.append((int(match[1]), int(match[2]) + 1))
    return found


def asked_for(server: FaultServer) -> int:
    """How many bytes of layers were asked for."""
    return sum(end - start for layer in stored() for start, end in ranges(server, layer.blob))


# -- with a real registry ------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parts
@needs_docker_registry
@needs_root
def test_every_byte_of_a_pulled_image_is_read_with_its_registry_stopped(imgfs: Imgfs, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        image = f"{host}/team/app:v1"
        pushed = push_image(
            host,
            "team/app",
            "v1",
            [layer.blob for layer in stored()],
            diff_ids=[layer.diff_id for layer in stored()],
            media_types=[layer.media_type for layer in stored()],
        )
        ran = pulled(imgfs, image)
    assert ran.text == f"{image}@{pushed.manifest.digest}\n"
    assert re.fullmatch(r"imgfs: .* fetched in .* s, .*/s; 4 layers of .* are in the store\n", ran.err)
    with offline(imgfs, image) as at:
        assert shown(at) == everything()
    with offline(imgfs, ran.text.strip()) as at:
        assert shown(at) == everything()


@pytest.mark.kernel
@pytest.mark.parts
@needs_docker_registry
@needs_root
def test_an_image_with_a_published_index_is_pulled_by_spans(imgfs: Imgfs, tmp_path: Path) -> None:
    publisher = Imgfs(tmp_path / "publisher")
    with docker_registry(tmp_path / "registry") as host:
        image = f"{host}/team/app:v1"
        push_image(host, "team/app", "v1", [big().blob])
        assert publisher.run("index", "push", image).code == 0
        publisher.close()
        (pinned,) = pulled(imgfs, image).text.split()
    for name in (image, pinned):  # the pull has verified the index: even a digest may be mounted by it
        with offline(imgfs, name) as at:
            assert shown(at) == large()
            assert imgfs.status(at)["layers"][0]["index"] == "verified"


# -- what is fetched -----------------------------------------------------------------------------------------


def test_what_is_there_is_not_fetched_again(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    pulled(imgfs, image)
    assert asked_for(server) == total()
    server.log.clear()
    ran = pulled(imgfs, image)
    assert "nothing was missing" in ran.err
    assert [(one.method, one.path) for one in server.log] == [("HEAD", "/v2/app/manifests/v1")]


def test_a_large_layer_comes_by_several_ranges_that_are_all_of_it(
    imgfs: Imgfs, server: FaultServer, image: str
) -> None:
    pulled(imgfs, image)
    found = sorted(ranges(server, big().blob))
    assert len(found) > 1
    assert (found[0][0], found[-1][1]) == (0, len(big().blob))
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]


@pytest.mark.kernel
@needs_root
def test_of_a_partly_cached_image_the_rest_is_fetched(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    at = imgfs.mount(image, "--replay", "none")
    imgfs.evict(image)
    assert (at / "zstd/noise").read_bytes() == everything()["zstd/noise"]
    imgfs.umount(at)
    before = asked_for(server)
    server.log.clear()
    pulled(imgfs, image)
    assert before > 0
    assert asked_for(server) < total() - 1_500_000
    with offline(imgfs, image) as at:
        assert shown(at) == everything()


def test_the_platform_that_is_named_is_pulled(imgfs: Imgfs, server: FaultServer) -> None:
    stored = [gzipped(packed({"a": b"a"}))]
    image = serve(server, "app", "v1", stored, config={"architecture": "arm64"})
    ran = pulled(imgfs, image, "--quiet", "--platform", "linux/arm64")
    assert ran.err == ""
    digest = json.loads(imgfs.run("inspect", "--offline", "--json", image).out)["digest"]
    assert ran.text == f"{image}@{digest}\n"


def test_the_rate_is_kept_to(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [plain(packed({"a": noise(7, 6_000_000)}))])
    began = time.monotonic()
    pulled(imgfs, image, "--limit-rate", "3M")
    assert time.monotonic() - began > 1.2  # the last chunks are waited for by nobody


def test_progress_is_drawn_on_a_terminal_with_bytes_and_rate(imgfs: Imgfs, image: str) -> None:
    ran = on_terminal(imgfs.command("pull", image), imgfs.environment)
    assert ran.code == 0
    short = big().descriptor()["digest"].removeprefix("sha256:")[:12]
    drawn = re.sub(r"\x1b\[[\d;]*m", "", ran.err)
    assert re.search(rf"{short}  ━+  +11\.\d MB of 11\.\d MB +[\d.]+ [kMG]?B/s  pulled", drawn), ran.err
    assert on_terminal(imgfs.command("pull", "-q", image), imgfs.environment).err == ""


# -- when it is interrupted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_is_ended_goes_on_where_it_stopped(
    imgfs: Imgfs, server: FaultServer, number: signal.Signals
) -> None:
    image = serve(server, "app", "v1", [big()])
    process = imgfs.start("pull", "--limit-rate", "5M", image)
    until(lambda: marked(imgfs) >= 5, "half of it is there")
    process.send_signal(number)
    _, err = process.communicate(timeout=allowed(60))
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert err == (b"imgfs: interrupted\n" if number is signal.SIGINT else b"")
    here = marked(imgfs) * UNIT
    server.log.clear()
    pulled(imgfs, image)
    assert asked_for_of(server, big()) <= len(big().blob) - here + UNIT
    assert imgfs.run("cat", "--offline", image, "large/noise").out == large()["large/noise"]
    assert not list(imgfs.store.glob("layers/*/*/part*"))


def marked(imgfs: Imgfs) -> int:
    """How many units of a layer are there."""
    return sum(path.read_bytes()[40:].count(1) for path in imgfs.store.glob("layers/*/*/part.map"))


def asked_for_of(server: FaultServer, layer: Stored) -> int:
    return sum(end - start for start, end in ranges(server, layer.blob))


@pytest.mark.kernel
@needs_root
def test_spans_that_have_come_before_a_kill_are_kept(imgfs: Imgfs, server: FaultServer) -> None:
    stored = plain(packed({"a": noise(8, 12_000_000)}))
    image = serve(server, "app", "v1", [stored])
    pulled(imgfs, image)
    imgfs.evict(image)
    process = imgfs.start("pull", "--limit-rate", "4M", image)
    until(lambda: present(imgfs) >= 3, "some spans are there")
    process.kill()
    process.wait()
    here = present(imgfs)
    server.log.clear()
    pulled(imgfs, image)
    assert asked_for_of(server, stored) <= len(stored.blob) - here * 900_000
    assert imgfs.run("cat", "--offline", image, "a").out == noise(8, 12_000_000)


def present(imgfs: Imgfs) -> int:
    (layer,) = json.loads(imgfs.ok("store", "ls", "--json"))["layers"]
    found: int = layer["present"]
    return found


def test_a_registry_that_goes_away_is_one_line_and_what_came_stays(imgfs: Imgfs, server: FaultServer) -> None:
    stored = plain(packed({"a": noise(13, 60_000_000)}))  # more than sockets hold
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [stored], wire.host)
        process = imgfs.start("pull", "--limit-rate", "20M", "--read-timeout", "1", image)
        until(lambda: marked(imgfs) >= 5, "some of it is there")
        wire.cut()
        _, err = process.communicate(timeout=allowed(60))
        assert Ran(process.returncode, b"", err.decode()).complaint()
        here = marked(imgfs) * UNIT
        wire.mend()
        server.log.clear()
        pulled(imgfs, image)
        assert asked_for_of(server, stored) <= len(stored.blob) - here + UNIT
        assert imgfs.run("cat", "--offline", image, "a").out == noise(13, 60_000_000)


def test_a_pull_survives_what_passes(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    for fault in (
        Fault(status=503, headers={"Retry-After": "0"}, body=b""),
        Fault(drop=True),
        Fault(cut_after=100_000),
    ):
        server.inject(fault, on="/blobs/", times=2)
    pulled(imgfs, image)
    assert imgfs.run("cat", "--offline", image, "tar/noise").out == everything()["tar/noise"]


# -- when something is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [5, 6_000_000, -3])
def test_a_damaged_layer_is_one_line_and_no_hindrance_once_it_is_whole(
    imgfs: Imgfs, server: FaultServer, image: str, at: int
) -> None:
    digest = sha256(big().blob)
    spoiled = bytearray(big().blob)
    spoiled[at] ^= 0x40
    server.blobs[digest] = bytes(spoiled)
    said = imgfs.run("pull", image).complaint()
    assert digest.removeprefix("sha256:")[:12] in said
    server.blobs[digest] = big().blob
    pulled(imgfs, image)
    assert imgfs.run("cat", "--offline", image, "large/noise").out == large()["large/noise"]


@pytest.mark.kernel
@needs_root
def test_a_damaged_span_is_one_line(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    pulled(imgfs, image)
    imgfs.evict(image)
    blob = stored()[3].blob
    server.blobs[sha256(blob)] = blob[:3_000_000] + b"?" + blob[3_000_001:]
    said = imgfs.run("pull", image).complaint()
    assert "span" in said
    assert "expected" in said
    server.blobs[sha256(blob)] = blob
    pulled(imgfs, image)
    assert imgfs.run("cat", "--offline", image, "tar/noise").out == everything()["tar/noise"]


@needs_root
@pytest.mark.parametrize("limit", ["2m", "9m", "14m"])
def test_a_disk_that_fills_is_one_line(imgfs: Imgfs, image: str, limit: str) -> None:
    imgfs.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={limit}", "none", imgfs.store], check=True)
    try:
        ran = imgfs.run("pull", image)
        *warned, said = ran.err.splitlines()
        assert all("fetched twice, as there was no room" in line for line in warned)  # a layer before that
        assert ran.code == 1
        assert said.startswith("imgfs: ")
        assert "No space left on device" in said or "disk is full" in said  # so SQLite says it
        subprocess.run(["mount", "-o", "remount,size=200m", imgfs.store], check=True)
        pulled(imgfs, image)
        assert imgfs.run("cat", "--offline", image, "large/noise").out == large()["large/noise"]
    finally:
        imgfs.close()
        subprocess.run(["umount", "-l", imgfs.store], check=True)


def test_what_is_no_image_is_one_line(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    assert "no tag 'v2'" in imgfs.run("pull", image.replace("v1", "v2")).complaint()
    assert "rate" in imgfs.run("pull", "--limit-rate", "fast", image).err


def test_a_pull_without_its_registry_says_that_all_is_here(imgfs: Imgfs, server: FaultServer) -> None:
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [big()], wire.host)
        pulled(imgfs, image)
        wire.cut()
        ran = imgfs.run("pull", "--read-timeout", "1", image)
    assert ran.code == 0
    assert re.search(r"cannot be reached \(.*refused.*\); using .* as resolved", ran.err)
    assert "1 layer of" in ran.err
    assert "nothing was missing" in ran.err


def test_a_pull_without_its_registry_does_not_make_do_with_a_part(imgfs: Imgfs, server: FaultServer) -> None:
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [big()], wire.host)
        imgfs.run("inspect", image)
        wire.cut()
        error = imgfs.run("pull", "--read-timeout", "1", image)
    assert error.code == 1
    assert "not all of the image is in the store, and its registry cannot be reached" in error.err


# -- its parts -----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_an_index_that_makes_something_else_of_a_layer_is_found_out(store: Store) -> None:
    """Its spans have digests, but it may name them in any order: only the DiffID tells."""
    source = FakeSource()
    made = documents([plain(packed({"a": noise(12, 9_000_000)}))])
    for blob in made.blobs.values():
        source.add(blob)
    source.root = source.add(made.manifest, OCI_MANIFEST)
    resolved = resolve("registry.test/app:1", source, store, AMD64)
    prepare(resolved, source, store, Journal())
    ((layer, _),) = resolved.layers.values()
    path = store.layer(layer.digest).index
    assert path
    import_index(path, "registry.test/app")
    write_checksum(path)
    evict([store.layer(layer.digest)])
    trust = Trust("registry.test/app", in_digests=True, in_registry=True)
    pull_image(resolved, source, store, Journal(), trust)
    with LayerIndex(path) as index:
        assert index.summary.origin == ""  # that was true: nobody needs to vouch for it any more
    import_index(path, "registry.test/app")
    evict([store.layer(layer.digest)])
    with closing(sqlite3.connect(path)) as file, file:
        first, second = file.execute("SELECT number FROM span ORDER BY number LIMIT 2 OFFSET 1").fetchall()
        swap(file, first[0], second[0])
    write_checksum(path)
    with pytest.raises(IntegrityError, match=r"DiffID"):
        pull_image(resolved, source, store, Journal(), trust)
    pull_image(resolved, source, store, Journal(), trust)  # without that index
    with Image(resolved, source, store) as image:
        assert b"".join(image.read(image.tree.resolve(b"a").ino)) == noise(12, 9_000_000)


def swap(index: sqlite3.Connection, one: int, other: int) -> None:
    """Have two spans of one length change places in the blob."""
    rows = {
        number: index.execute("SELECT start,end,digest,parts FROM span WHERE number=?", (number,)).fetchone()
        for number in (one, other)
    }
    for number, source in ((one, other), (other, one)):
        index.execute(
            "UPDATE span SET start=?, end=?, digest=?, parts=? WHERE number=?", (*rows[source], number)
        )


def test_a_part_knows_what_is_missing(store: Store) -> None:
    layer = store.layer(BLOB)
    size = 5 * UNIT + 100
    with closing(layer.part(size)) as part:
        assert list(part.missing(2 * UNIT)) == [
            (0, 2 * UNIT),
            (2 * UNIT, 4 * UNIT),
            (4 * UNIT, size),
        ]
        part.write(3 * UNIT, noise(1, UNIT))
        part.mark(3)
        part.write(5 * UNIT, noise(2, 100))
        part.mark(5)
    with closing(layer.part(size)) as part:
        assert list(part.missing(8 * UNIT)) == [(0, 3 * UNIT), (4 * UNIT, 5 * UNIT)]
        assert part.here() == UNIT + 100
        assert (part.piece(3).read(), part.piece(5).read()) == (noise(1, UNIT), noise(2, 100))
    with closing(layer.part(size + 1)) as part:
        assert part.here() == 0  # another blob's


def test_a_part_of_before_a_reboot_does_not_count(store: Store) -> None:
    layer = store.layer(BLOB)
    with closing(layer.part(UNIT)) as part:
        part.mark(0)
    path = layer.directory / "part.map"
    body = bytearray(path.read_bytes())
    body[8] ^= 1  # the boot id begins here
    path.write_bytes(body)
    with closing(layer.part(UNIT)) as part:
        assert not part.has(0)


def test_a_part_that_has_been_given_up_takes_no_more(store: Store) -> None:
    part = store.layer(BLOB).part(UNIT)
    part.close()
    with pytest.raises(StoreError, match="given up"):
        part.write(0, b"late")
    with pytest.raises(StoreError, match="given up"):
        part.mark(0)


def downloaded(source: FakeSource, store: Store, blob: Descriptor, had: list[int], connections: int) -> bytes:
    downloads = ResumableDownloads(connections)
    chunks = downloads.blob(blob, source, store.layer(blob.digest), had.append)
    return b"".join(chunk if isinstance(chunk, bytes) else chunk.read() for chunk in chunks)


@pytest.mark.parametrize(("connections", "requests"), [(1, 1), (4, 3)])
def test_a_blob_comes_in_order_however_its_ranges_do(store: Store, connections: int, requests: int) -> None:
    source = FakeSource()
    body = noise(9, (20 << 20) + 5)
    blob = source.add(body)
    had: list[int] = []
    assert downloaded(source, store, blob, had, connections) == body
    assert (had, len(source.ranges)) == ([0], requests)
    assert left_in(store.layer(blob.digest)) == {"part", "part.map"}  # until the layer has an index
    assert downloaded(source, store, blob, had, connections) == body
    assert (had, len(source.ranges)) == ([0, blob.size], requests)
    store.layer(blob.digest).drop_part()
    assert left_in(store.layer(blob.digest)) == set()


@pytest.mark.parametrize("connections", [1, 4])
def test_what_keeps_one_range_away_is_raised_and_the_others_are_kept(store: Store, connections: int) -> None:
    source = FakeSource()
    body = noise(10, 12 * UNIT)
    blob = source.add(body)
    source.broken.add(blob.digest)
    had: list[int] = []
    with pytest.raises(NotFound, match="no blob"):
        downloaded(source, store, blob, had, connections)
    with closing(store.layer(blob.digest).part(blob.size)) as part:
        part.write(0, body[:UNIT])
        part.mark(0)
    source.broken.clear()
    source.forget_requests()
    assert downloaded(source, store, blob, had, connections) == body
    assert had == [0, UNIT]
    assert sum(end - start for start, end in source.ranges) == 11 * UNIT


def test_a_kept_blob_that_is_shorter_than_it_was_is_fetched_anew(store: Store) -> None:
    source = FakeSource()
    body = noise(14, 12 * UNIT)
    blob = source.add(body)
    had: list[int] = []
    downloaded(source, store, blob, had, 1)
    os.truncate(store.layer(blob.digest).directory / "part", 3 * UNIT)
    assert downloaded(source, store, blob, had, 1) == body
    assert had == [0, 0]


def test_a_metered_source_ends_its_waits_when_it_is_closed() -> None:
    source = FakeSource()
    blob = source.add(noise(11, 1 << 20))
    arrived: list[int] = []
    metered = MeteredSource(source, lambda _, count: arrived.append(count), limit_rate=1)
    chunks = metered.blob(blob)
    next(chunks)
    metered.close()
    with pytest.raises(Unavailable, match="given up"):
        next(chunks)
    assert len(arrived) == 2

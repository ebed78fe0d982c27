"""What has been fetched of a layer is not fetched again, however the first mount or pull of it ended."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgfs.errors import Unavailable
from imgfs.image.prepare import prepare
from imgfs.image.resolve import resolve
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_MANIFEST
from imgfs.store.layer import StoredLayer
from imgfs.store.partial import UNIT
from imgfs.store.store import Store
from tests.registry.test_pull import packed
from tests.support.blobs import noise, prose
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fake_source import FakeSource
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Stored,
    Wire,
    documents,
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

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")

SLACK = 2 << 20  # bytes that a kill may cost: what is in sockets, and less than two units
RATE = 12e6


@cache
def files() -> dict[str, bytes]:
    """What is in the layer, by name; made when a test first asks, as the layer: collecting does without."""
    return {"noise": noise(21, 11_000_000), "prose": prose(3_000_000, 21)}


@cache
def big() -> Stored:
    return gzipped(packed(files()))


def blob_size() -> int:
    """Bytes of the blob."""
    return len(big().blob)


@pytest.fixture
def wire(server: FaultServer) -> Iterator[Wire]:
    with Wire(server.host, RATE) as wire:
        yield wire


@pytest.fixture
def image(server: FaultServer, wire: Wire) -> str:
    return serve(server, "app", "v1", [big()], wire.host)


def stop(imgfs: Imgfs, wire: Wire, count: int, words: Sequence[str | Path], how: int = signal.SIGKILL) -> str:
    """Begin a command, and end it by a signal once the wire has carried `count` bytes in all: its stderr."""
    process = imgfs.start(*words)
    until(lambda: wire.received >= count or process.poll() is not None, f"{count} bytes have come")
    assert process.poll() is None, process.communicate()
    process.send_signal(how)
    _, err = process.communicate(timeout=allowed(30))
    return err.decode()


def finish(imgfs: Imgfs, image: str) -> None:
    """Whatever is missing is fetched, and all is as it should be."""
    ran = imgfs.run("ls", "-R", image)
    assert ran.code == 0, ran
    assert imgfs.run("cat", "--offline", image, "noise").out == files()["noise"]
    assert imgfs.run("cat", "--offline", image, "prose").out == files()["prose"]
    assert not list(imgfs.store.glob("layers/*/*/part*"))


def index_of(store: Path) -> list[str]:
    (path,) = store.glob("layers/*/*/index")
    with closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


# -- killed --------------------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.parts
@needs_docker_registry
@pytest.mark.parametrize("first", ["ls", "mount", "pull"])
def test_what_a_killed_first_use_has_fetched_is_not_fetched_again(
    imgfs: Imgfs, tmp_path: Path, first: str
) -> None:
    twin = Imgfs(tmp_path / "twin")
    with docker_registry(tmp_path / "registry") as host, Wire(host, RATE) as wire:
        push_image(host, "app", "v1", [big().blob])
        image = f"{wire.host}/app:v1"
        words = [first, image, *([str(imgfs.mountpoint())] if first == "mount" else [])]
        finish(twin, image)
        before, wire.received = wire.received, 0
        for share in (0.3, 0.8):
            stop(imgfs, wire, int(share * blob_size()), words)
        finish(imgfs, image)
        assert wire.received <= before + 2 * SLACK
        assert index_of(imgfs.store) == index_of(twin.store)
        assert imgfs.ok("ls", "-lR", image) == twin.ok("ls", "-lR", image)
    twin.close()


def test_a_mount_goes_on_where_a_pull_was_killed(
    imgfs: Imgfs, server: FaultServer, wire: Wire, image: str
) -> None:
    """Its several ranges leave holes."""
    stop(imgfs, wire, blob_size() // 2, ["pull", image])
    here = kept(imgfs)
    assert here > blob_size() // 2 - 4 * SLACK
    wire.received = 0
    finish(imgfs, image)
    assert wire.received <= blob_size() - here + UNIT


def kept(imgfs: Imgfs) -> int:
    """How many bytes are kept of a layer."""
    (path,) = imgfs.store.glob("layers/*/*/part.map")
    return path.read_bytes()[40:].count(1) * UNIT


def test_the_line_of_a_layer_says_where_the_next_goes_on(imgfs: Imgfs, wire: Wire, image: str) -> None:
    said = stop(imgfs, wire, blob_size() // 2, ["mount", image, imgfs.mountpoint()], signal.SIGINT)
    assert "interrupted" in said
    (layer,) = json.loads(imgfs.ok("store", "ls", "--json"))["layers"]
    assert (layer["state"], layer["partial"] >= kept(imgfs)) == ("incomplete", True)
    assert "MB fetched" in imgfs.ok("store", "ls")
    said = on_terminal(imgfs.command("ls", image), imgfs.environment).err
    _, found, at = said.partition("  going on at ")
    assert found, said
    assert abs(float(at.partition(" MB")[0]) - blob_size() / 2e6) < 2


def test_two_processes_go_on_with_one_download(imgfs: Imgfs, wire: Wire, image: str) -> None:
    stop(imgfs, wire, blob_size() // 2, ["ls", image])
    processes = [imgfs.start("ls", image) for _ in range(2)]
    assert [process.wait(allowed(60)) for process in processes] == [0, 0]
    assert wire.received <= blob_size() + SLACK
    finish(imgfs, image)


# -- broken off by others ------------------------------------------------------------------------------------


def test_a_registry_that_goes_away_costs_nothing_that_has_come(imgfs: Imgfs, wire: Wire, image: str) -> None:
    process = imgfs.start("ls", "--read-timeout", "1", image)
    until(lambda: wire.received >= blob_size() // 2, "half of it has come")
    wire.cut()
    assert process.wait(allowed(60)) == 1
    wire.mend()
    finish(imgfs, image)
    assert wire.received <= blob_size() + SLACK


def test_a_registry_that_ignores_ranges_sends_all_of_it_once_more(
    imgfs: Imgfs, server: FaultServer, wire: Wire, image: str
) -> None:
    stop(imgfs, wire, blob_size() // 2, ["ls", image])
    wire.received, wire.rate = 0, None
    server.inject(Fault(ignore_range=True), on="/blobs/sha256", times=100)
    finish(imgfs, image)
    assert wire.received <= blob_size() + SLACK


def test_a_pull_from_a_registry_that_ignores_ranges_receives_each_layer_once(
    imgfs: Imgfs, server: FaultServer, wire: Wire, image: str
) -> None:
    server.inject(Fault(ignore_range=True), on="/blobs/sha256", times=100)
    assert imgfs.run("pull", image).code == 0
    assert wire.received <= blob_size() + SLACK
    finish(imgfs, image)


def test_a_pull_with_holes_goes_on_at_a_registry_that_ignores_ranges(
    imgfs: Imgfs, server: FaultServer, wire: Wire, image: str
) -> None:
    stop(imgfs, wire, blob_size() // 2, ["pull", image])
    wire.received = 0
    server.inject(Fault(ignore_range=True), on="/blobs/sha256", times=100)
    assert imgfs.run("pull", image).code == 0
    assert (
        wire.received <= blob_size() + blob_size() // 2 + SLACK
    )  # up to its first hole before it shows what it does
    finish(imgfs, image)


@pytest.mark.parametrize(
    "fault", [Fault(status=416, body=b""), Fault(headers={"Content-Range": "bytes 0-9/10"})]
)
def test_a_wrong_answer_to_the_rest_costs_nothing_that_has_come(
    imgfs: Imgfs, server: FaultServer, wire: Wire, image: str, fault: Fault
) -> None:
    stop(imgfs, wire, blob_size() // 2, ["ls", image])
    here = kept(imgfs)
    server.inject(fault, on=sha256(big().blob), times=100)
    wire.rate = None
    imgfs.run("ls", "--read-timeout", "2", image).complaint()
    assert kept(imgfs) == here
    server.behave()
    wire.received = 0
    finish(imgfs, image)
    assert wire.received <= blob_size() - here + SLACK


@needs_root
@pytest.mark.parametrize("size", ["6m", "12m"])  # less than the blob; less than the flat layer
def test_what_has_come_before_a_disk_was_full_is_not_fetched_again(
    imgfs: Imgfs, wire: Wire, image: str, size: str
) -> None:
    wire.rate = None
    imgfs.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", imgfs.store], check=True)
    try:
        assert "No space left on device" in imgfs.run("ls", image).complaint()
        here = kept(imgfs)
        assert here > 1 << 20
        subprocess.run(["mount", "-o", "remount,size=200m", imgfs.store], check=True)
        wire.received = 0
        finish(imgfs, image)
        assert wire.received <= blob_size() - here + SLACK
    finally:
        imgfs.close()
        subprocess.run(["umount", "-l", imgfs.store], check=True)


@needs_root
def test_a_disk_with_room_for_the_layer_only_keeps_nothing_beside_it(
    imgfs: Imgfs, server: FaultServer
) -> None:
    stored = plain(packed({"noise": files()["noise"]}))
    image = serve(server, "app", "v1", [stored])
    imgfs.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=15m", "none", imgfs.store], check=True)
    try:
        ran = imgfs.run("ls", image)
        assert (ran.code, ran.text) == (0, "noise\n")
        assert "no room to keep" in ran.err
        assert imgfs.run("cat", "--offline", image, "noise").out == files()["noise"]
    finally:
        imgfs.close()
        subprocess.run(["umount", "-l", imgfs.store], check=True)


# -- what is kept is not believed ----------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "at"), [("ls", 0), ("ls", 40), ("pull", 2_000_000)])
def test_what_a_liar_has_sent_costs_a_fetch_and_nothing_else(
    imgfs: Imgfs, server: FaultServer, wire: Wire, command: str, at: int
) -> None:
    """Of the same digest, at another registry; broken off before it could be found out."""
    with FaultServer() as liar, Wire(liar.host, RATE) as line:
        lying = serve(liar, "app", "v1", [big()], line.host)
        liar.blobs[sha256(big().blob)] = big().blob[:at] + b"?" * 10 + big().blob[at + 10 :]
        stop(imgfs, line, blob_size() // 2, [command, lying])
    honest = serve(server, "app", "v1", [big()], wire.host)
    wire.rate = None
    ran = imgfs.run("ls", honest)
    assert ran.code == 0
    assert "what was here of a layer is fetched again" in ran.err
    assert sha256(big().blob) in ran.err
    finish(imgfs, honest)
    assert wire.received <= 2 * blob_size() + SLACK


def test_what_an_image_has_wrong_itself_is_not_fetched_again(imgfs: Imgfs, server: FaultServer) -> None:
    stored = big()._replace(diff_id=sha256(b"another"))
    with Wire(server.host, RATE) as wire:
        image = serve(server, "app", "v1", [stored], wire.host)
        stop(imgfs, wire, blob_size() // 2, ["ls", image])
        assert "DiffID" in imgfs.run("ls", image).complaint()
        assert wire.received <= blob_size() + SLACK


# -- the store -----------------------------------------------------------------------------------------------


def test_what_is_kept_counts_in_the_store_and_goes_with_prune(imgfs: Imgfs, wire: Wire, image: str) -> None:
    stop(imgfs, wire, blob_size() // 2, ["ls", image])
    assert imgfs.ok("store", "check").endswith("everything is what it was\n")
    here = kept(imgfs)
    (layer,) = json.loads(imgfs.ok("store", "prune", "--dry-run", "--json"))["layers"]
    assert layer["disk"] >= here
    assert imgfs.run("store", "prune").code == 0
    assert not list(imgfs.store.glob("layers/*/*/part*"))
    wire.rate = None
    finish(imgfs, image)


def test_what_is_kept_counts_for_the_limit_as_it_is_written(tmp_path: Path) -> None:
    written: list[int] = []
    layer = StoredLayer(tmp_path, Digest.of(b"x"), note_written=written.append)
    with closing(layer.part(UNIT)) as part:
        part.write(0, b"x" * 1000)
    assert written == [1000]
    assert layer.cached() >= 1000


# -- every format, wherever it breaks off --------------------------------------------------------------------


@cache
def smaller() -> bytes:
    return packed({"a": noise(22, 1_500_000), "b": prose(2_000_000, 22), "c": b""})


NAMES = ["gzip", "gzip members", "zstd", "zstd frames", "tar", "xz", "bzip2"]


@cache
def made(name: str) -> Stored:
    """The smaller layer in one of the formats."""
    of_type = "application/vnd.oci.image.layer.v1.tar+"
    makers: dict[str, Callable[[], Stored]] = {
        "gzip": lambda: gzipped(smaller()),
        "gzip members": lambda: gzipped_in_members(smaller()),
        "zstd": lambda: zstd(smaller()),
        "zstd frames": lambda: zstd(smaller(), 300_000),
        "tar": lambda: plain(smaller()),
        "xz": lambda: Stored(lzma.compress(smaller(), preset=0), sha256(smaller()), f"{of_type}xz"),
        "bzip2": lambda: Stored(bz2.compress(smaller(), 1), sha256(smaller()), f"{of_type}bzip2"),
    }
    return makers[name]()


class BreakingSource(FakeSource):
    """Breaks off after so many bytes of a blob, for each of `breaks` once."""

    def __init__(self, breaks: Sequence[int]) -> None:
        super().__init__()
        self.breaks = list(breaks)

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        left = self.breaks.pop(0) if self.breaks else descriptor.size
        for chunk in super().blob(descriptor, start, end):
            yield chunk[:left]
            left -= len(chunk)
            if left <= 0 and self.breaks is not None and left != 0:
                raise Unavailable("broken off")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None)
@given(breaks=st.lists(st.integers(1, 2_000_000), max_size=4), connections=st.sampled_from([1, 4]))
def test_whatever_the_format_and_wherever_it_breaks_off(
    name: str, breaks: list[int], connections: int
) -> None:
    source = BreakingSource(breaks)
    image = documents([made(name)])
    for blob in image.blobs.values():
        source.add(blob)
    source.root = source.add(image.manifest, OCI_MANIFEST)
    with TemporaryDirectory() as directory:
        store, twin = Store(Path(directory) / "store"), Store(Path(directory) / "twin")
        resolved = resolve("registry.test/app:1", source, store, AMD64)
        tries = 0
        while True:
            tries += 1
            try:
                prepare(resolved, source, store, Journal(), connections=connections)
            except Unavailable:
                continue
            break
        (layer,) = resolved.manifest.layers
        here = store.layer(layer.digest)
        assert source.traffic().bytes <= layer.size + tries * (UNIT + (64 << 10)) * connections
        assert left_in(here) == {"index", "flat", "presence"}
        whole = FakeSource(source.root)
        whole.bodies = source.bodies
        resolve("registry.test/app:1", whole, twin, AMD64)
        prepare(resolved, whole, twin, Journal())
        assert index_of(store.root) == index_of(twin.root)
        assert here.flat_file.read_bytes() == twin.layer(layer.digest).flat_file.read_bytes()
        evict([here])

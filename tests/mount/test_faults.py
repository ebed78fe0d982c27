"""What a registry does to those who read from it for days: which of it a reader notices, and how.

A real docker-registry stands behind a proxy that misbehaves. What passes is healed within the read, and every
byte is compared with the layers. What lasts is EIO in the time that was stated, a line in the daemon's log
and in `imgfs status`, and over as soon as the registry is well again.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from imgfs.layer.index import LayerIndex
from imgfs.store.store import Store
from scripts.lab.registry import Registry
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fault_proxy import HARMLESS, PASSING, FaultProxy, Step, Trouble, refusal
from tests.support.fault_server import Fault
from tests.support.mounted import Imgfs, Stored, Wire, errno_of, gzipped, plain, until, zstd
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    needs_docker_registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="evicts what root's kernel has cached"),
]

READ_TIMEOUT = allowed(1.2)  # seconds that a read may wait in most of these tests
SLACK = 6.0  # seconds that a busy machine may add to them
CACHED = b"cached " * 3000
_CHANCE = random.Random(5)
LOWER = {
    "hidden": b"under a file of the upper layer",
    **{f"noise{number}": _CHANCE.randbytes(700_000) for number in range(4)},
}
MIDDLE = {f"prose{number}": prose(900_000, number) for number in range(5)}
UPPER = {"cached": CACHED, "hidden": b"above", **{f"few{number}": b"%d" % number * 99 for number in range(9)}}
FILES = {**LOWER, **MIDDLE, **UPPER}
SIZES = {name: len(body) for name, body in FILES.items()}


def tar_of(files: Mapping[str, bytes]) -> bytes:
    return tar.archive(*(tar.file(name, body) for name, body in files.items()))


LAYERS = (gzipped(tar_of(LOWER)), zstd(tar_of(MIDDLE), 200_000), plain(tar_of(UPPER)))


def blob_of(layer: Stored) -> str:
    """A pattern for the path of a layer's blob."""
    return f"/blobs/{layer.descriptor()['digest']}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        push(host, "app")
        yield host


def push(host: str, repository: str, layers: tuple[Stored, ...] = LAYERS) -> None:
    push_image(
        host,
        repository,
        "v1",
        [layer.blob for layer in layers],
        diff_ids=[layer.diff_id for layer in layers],
        media_types=[layer.media_type for layer in layers],
    )


def evict(imgfs: Imgfs, mountpoint: Path) -> None:
    """Drop what a store and the kernel have of an image's bytes, while it is mounted."""
    for place in Store(imgfs.store).layers():
        if place.index:
            with LayerIndex(place.index) as index:
                flat = place.flat(size=index.summary.flat_size, spans=index.span_count())
            flat.evict()
            flat.close()
    for name in FILES:
        forget(mountpoint / name)


def forget(path: Path) -> None:
    """Drop what the kernel has of a file's bytes."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def whole_image(at: Path) -> dict[str, bytes]:
    """Every byte of a mount, by four readers."""
    with ThreadPoolExecutor(4) as readers:
        return dict(zip(FILES, readers.map(lambda name: (at / name).read_bytes(), FILES), strict=True))


class Scene(NamedTuple):
    """A mount of the image from a registry behind a proxy that misbehaves, over a line that can be cut."""

    imgfs: Imgfs
    proxy: FaultProxy
    wire: Wire
    at: Path

    def evict(self) -> None:
        evict(self.imgfs, self.at)


@contextmanager
def scene_of(imgfs: Imgfs, registry: str, name: str, *options: str) -> Iterator[Scene]:
    with FaultProxy(registry) as proxy, Wire(proxy.host) as wire:
        at = imgfs.mount(f"{wire.host}/app:v1", *options, at=imgfs.mountpoint(name))
        yield Scene(imgfs, proxy, wire, at)
        proxy.script()
        imgfs.umount(at)


@pytest.fixture(scope="module")
def patient(module_imgfs: Imgfs, registry: str) -> Iterator[Scene]:
    """A mount that waits as long as mounts do by themselves."""
    with scene_of(module_imgfs, registry, "patient") as scene:
        yield scene


@pytest.fixture(scope="module")
def hasty(module_imgfs: Imgfs, registry: str) -> Iterator[Scene]:
    """A mount whose reads fail soon, and say so."""
    module_imgfs.expected.append("ERROR imgfs.fuse.errors: EIO: /(noise|prose)")
    with scene_of(module_imgfs, registry, "hasty", "--read-timeout", str(READ_TIMEOUT)) as scene:
        yield scene


# -- what passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [*PASSING, *HARMLESS], ids=lambda trouble: trouble.name)
def test_what_passes_is_not_noticed(patient: Scene, trouble: Trouble) -> None:
    patient.evict()
    patient.proxy.script(*passing(trouble))
    assert whole_image(patient.at) == FILES
    assert patient.proxy.troubled >= len(LAYERS)


def passing(trouble: Trouble) -> Iterator[Step]:
    """Trouble with the first request for each layer, and the second if it raises no doubts."""
    return (Step(trouble.fault, blob_of(layer), times=1 if trouble.doubted else 2) for layer in LAYERS)


def test_a_body_that_stalls_is_asked_for_again(patient: Scene) -> None:
    patient.evict()
    patient.proxy.script(Step(Fault(stall_after=5_000), blob_of(LAYERS[0]), times=2))
    assert whole_image(patient.at) == FILES
    assert patient.proxy.troubled == 2


def test_trouble_after_some_megabytes_is_not_noticed(patient: Scene) -> None:
    patient.evict()
    faults = (Fault(cut_after=200_000), Fault(status=503, body=b""), Fault(unanswered=True))
    places = (700_000, 1_500_000, 2_400_000)
    patient.proxy.script(*(Step(fault, after=at) for fault, at in zip(faults, places, strict=True)))
    assert whole_image(patient.at) == FILES
    assert patient.proxy.troubled > 0


def test_connections_that_are_refused_for_a_moment_are_not_noticed(patient: Scene) -> None:
    patient.evict()
    patient.wire.cut()
    mending = threading.Timer(0.8, patient.wire.mend)
    mending.start()
    assert whole_image(patient.at) == FILES
    mending.join()


def test_a_registry_restarted_under_load_is_not_noticed(imgfs: Imgfs, tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        push(registry.host, "app")
        at = imgfs.mount(f"{registry.host}/app:v1")
        for _ in range(2):
            evict(imgfs, at)
            with ThreadPoolExecutor(1) as reading:
                found = reading.submit(whole_image, at)
                registry.close()
                registry.start()
                assert found.result() == FILES
        imgfs.umount(at)


def test_a_token_that_expires_in_mid_read_is_renewed(patient: Scene) -> None:
    proxy = patient.proxy
    proxy.token_server = proxy.url
    try:
        for expires in (Step(Fault(meanwhile=proxy.valid_tokens.clear)), None):
            patient.evict()
            proxy.valid_tokens.clear()
            proxy.script(*filter(None, [expires]))
            assert whole_image(patient.at) == FILES
    finally:
        proxy.token_server = None


def test_a_signed_redirect_that_expires_in_mid_read_is_asked_for_again(patient: Scene, registry: str) -> None:
    def expire() -> None:
        patient.proxy.signature = "2"
        cdn.signatures = {"2"}

    with FaultProxy(registry) as cdn:
        cdn.signatures = {"1"}
        patient.proxy.blob_host = cdn.host
        try:
            for trouble in ((), (Step(Fault(meanwhile=expire, cut_after=1000)),)):
                patient.evict()
                cdn.script(*trouble)
                assert whole_image(patient.at) == FILES
        finally:
            patient.proxy.blob_host = None
        assert {"sig=1", "sig=2"} <= {one.path.partition("?")[2] for one in cdn.log}
        assert not any("authorization" in one.headers for one in cdn.log)


# -- what lasts ----------------------------------------------------------------------------------------------

LASTING = (
    *PASSING,
    Trouble("a stall before the answer", Fault(pause=READ_TIMEOUT + SLACK), "no answer"),
    Trouble("a stall in mid-body", Fault(stall_after=5_000), "cut short|nothing"),
    Trouble("a trickle", Fault(rate=500), "too slow|timed out"),
    Trouble("401", refusal(401, "UNAUTHORIZED"), "401"),
    Trouble("404", refusal(404, "BLOB_UNKNOWN"), "404"),
    Trouble("no Content-Range", Fault(headers={"Content-Range": None}), "Content-Range"),
    Trouble("nowhere", Fault(status=302, headers={"Location": "http://127.0.0.1:1/"}, body=b""), "refused"),
)


@pytest.mark.parametrize("trouble", LASTING, ids=lambda trouble: trouble.name)
def test_what_lasts_is_an_error_in_time_that_is_explained_and_then_heals(
    hasty: Scene, trouble: Trouble
) -> None:
    hasty.evict()
    hasty.proxy.script(Step(trouble.fault, blob_of(LAYERS[0]), times=None))
    fails_in_time(hasty, trouble.says)
    assert (hasty.at / "prose1").read_bytes() == FILES["prose1"]  # of another layer
    hasty.proxy.script()
    heals(hasty)


def fails_in_time(scene: Scene, says: str, victim: str = "noise2") -> None:
    """Have a read fail as a user sees it: EIO, the reason in the log with the file, and in the status."""
    began = time.monotonic()
    assert errno_of(lambda: (scene.at / victim).read_bytes()) == errno.EIO
    assert time.monotonic() - began < allowed(READ_TIMEOUT + SLACK)
    logged = scene.imgfs.logged()
    assert any(re.search(f"ERROR .* EIO: /{victim}: .*({says})", line) for line in logged), logged
    shown = " ".join(scene.imgfs.ok("status", scene.at).split())
    assert re.search(f"failing since .*({says})", shown), shown


def heals(scene: Scene) -> None:
    """Nobody has to do anything."""
    until(lambda: errno_of(lambda: whole_image(scene.at)) is None, "the mount has healed", SLACK)
    assert whole_image(scene.at) == FILES
    assert "failing since" not in scene.imgfs.ok("status", scene.at)


def test_a_registry_that_has_gone_is_an_error_in_time_until_it_is_back(hasty: Scene) -> None:
    hasty.evict()
    hasty.wire.cut()
    fails_in_time(hasty, "refused")
    hasty.wire.mend()
    heals(hasty)


def test_a_token_server_that_refuses_is_an_error_until_it_does_not(hasty: Scene) -> None:
    hasty.evict()
    hasty.proxy.token_server = hasty.proxy.url
    hasty.proxy.token_reply = {"token": "worthless"}
    try:
        fails_in_time(hasty, "401")
        hasty.proxy.token_reply = {}
        heals(hasty)
    finally:
        hasty.proxy.token_server = None


# -- what it keeps from nobody -------------------------------------------------------------------------------

CROWD = 40  # the kernel of itself lets a mount have 12 reads under way (max_background)


def test_what_is_cached_is_read_at_once_while_a_crowd_waits_for_a_dead_registry(
    imgfs: Imgfs, registry: str
) -> None:
    with scene_of(imgfs, registry, "dead", "--read-timeout", "9") as scene:
        evict(imgfs, scene.at)
        assert (scene.at / "cached").read_bytes() == CACHED
        scene.wire.stall()
        with crowd(scene, CROWD):
            forget(scene.at / "cached")
            assert (scene.at / "cached").read_bytes() == CACHED


def test_names_and_the_status_are_there_at_once_while_a_crowd_waits_for_a_dead_registry(
    imgfs: Imgfs, registry: str
) -> None:
    with scene_of(imgfs, registry, "dead", "--read-timeout", "9") as scene:
        evict(imgfs, scene.at)
        scene.wire.stall()
        with crowd(scene, CROWD):
            assert sorted(os.listdir(scene.at)) == sorted(FILES)
            assert {name: (scene.at / name).stat().st_size for name in FILES} == SIZES
            assert imgfs.status(scene.at)["mountpoint"] == str(scene.at)


@contextmanager
def crowd(scene: Scene, size: int) -> Iterator[None]:
    """So many who wait, past the kernel's cache, each for a place that is not here.

    What is done meanwhile must not take long; then the registry is well again, and nobody has failed.
    """
    names = [name for name in FILES if len(FILES[name]) > 500_000]
    places = [(scene.at / names[number % len(names)], number * mmap.PAGESIZE) for number in range(size)]
    with ThreadPoolExecutor(size) as readers:
        waiting = [readers.submit(read_past_cache, *place) for place in places]
        time.sleep(0.5)  # they reach the kernel: nobody else can tell
        began = time.monotonic()
        yield
        assert time.monotonic() - began < allowed(SLACK)
        assert not any(one.done() for one in waiting)
        scene.wire.cut()
        scene.wire.mend()
        for one in waiting:
            one.result()


def read_past_cache(path: Path, offset: int) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(file, [mmap.mmap(-1, mmap.PAGESIZE)], offset)
    finally:
        os.close(file)


def test_another_mount_is_served_while_one_waits_for_a_dead_registry(imgfs: Imgfs, registry: str) -> None:
    with scene_of(imgfs, registry, "dead", "--read-timeout", "8") as dead:
        other = imgfs.mount(f"{registry}/app:v1", at=imgfs.mountpoint("well"))
        evict(imgfs, dead.at)  # and of the other, which shares the store
        for name in FILES:
            forget(other / name)
        dead.wire.stall()
        before = imgfs.status(dead.at)["requests_fetched"]
        with ThreadPoolExecutor(1) as reading:
            waiting = reading.submit(errno_of, lambda: (dead.at / "noise1").read_bytes())
            until(lambda: imgfs.status(dead.at)["requests_fetched"] > before, "a request is under way")
            began = time.monotonic()
            assert whole_image(other) == FILES
            assert time.monotonic() - began < allowed(SLACK)
            assert not waiting.done()
            dead.wire.cut()
            dead.wire.mend()
            assert waiting.result() is None
        imgfs.umount(other)

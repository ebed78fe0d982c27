"""One store, two mounts of the same layer from two registries: neither sees what the other is sent."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import Imgfs, drop_caches, errno_of, plain, serve

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="evicts what root's kernel has cached"),
]


@cache
def noise_body() -> bytes:
    return random.Random(7).randbytes(3_000_000)


@cache
def image_layer() -> bytes:
    return tar.archive(tar.file("noise", noise_body()))


def flat_file(imgfs: Imgfs) -> Path:
    return Store(imgfs.store).layer(Digest.of(image_layer())).flat_file


def test_garbage_that_comes_after_another_process_has_marked_the_span_is_not_written(imgfs: Imgfs) -> None:
    imgfs.expected = [r"expected [0-9a-f]+, got", r"noise: ", r"asking elsewhere"]
    asked, marked = threading.Event(), threading.Event()

    def wait() -> None:
        asked.set()
        assert marked.wait(60)

    with FaultServer() as honest, FaultServer() as slow:
        stored = plain(image_layer())
        images = [serve(server, "app", "v1", [stored]) for server in (slow, honest)]
        slow_at, at = (
            imgfs.mount(image, at=imgfs.mountpoint(name)) for image, name in zip(images, "ab", strict=True)
        )
        imgfs.evict(images[0])
        digest = next(name for name, body in slow.blobs.items() if body == image_layer())
        slow.blobs[digest] = b"\xee" * len(image_layer())  # what a registry can do whenever it likes
        for _ in range(40):
            slow.inject(Fault(meanwhile=wait), on=digest)
        with ThreadPoolExecutor(1) as reader:
            failed = reader.submit(lambda: errno_of((slow_at / "noise").read_bytes))
            assert asked.wait(60)
            assert (at / "noise").read_bytes() == noise_body()
            marked.set()
            failed.result()
        drop_caches()
        assert (at / "noise").read_bytes() == noise_body()
        assert flat_file(imgfs).read_bytes()[: len(image_layer())] == image_layer()

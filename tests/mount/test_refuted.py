"""A layer whose index was vouched for and is found to be wrong while it is mounted: nothing of it stays."""

from __future__ import annotations

import errno
import mmap
import os
from functools import cache
from pathlib import Path
from threading import Thread

import pytest

from imgfs.image.image import Image
from imgfs.image.verify import Verifier
from imgfs.mount.fuse import serve_by_fuse
from imgfs.mount.options import MountOptions
from imgfs.mount.serving import ServedMount, status
from imgfs.store.store import Store
from imgfs.syscalls import detach_mount
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.children import Child
from tests.support.lies import lie
from tests.support.mounted import errno_of, mount_of, until
from tests.support.offerings import prepared

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's libfuse needs fusermount3"),
]


@cache
def true_body() -> bytes:
    return prose(3_000_000, 9)


@cache
def false_body() -> bytes:
    return true_body().swapcase()


def test_no_reader_keeps_pages_of_a_layer_that_was_refuted(tmp_path: Path) -> None:
    made = lie(
        tmp_path, tar.archive(tar.file("file", true_body())), tar.archive(tar.file("file", false_body()))
    )
    store, at = Store(tmp_path / "store"), tmp_path / "mnt"
    at.mkdir()
    hearing, telling = os.pipe()

    def daemon() -> None:
        resolved, _ = prepared(made.source, store)
        options = MountOptions(mountpoint=at)
        with Image(resolved, made.source, store) as image:

            def verify() -> None:
                os.read(hearing, 1)
                Verifier(image, store).verify_complete()

            Thread(target=verify).start()
            serve_by_fuse(
                ServedMount(image, store, options, lambda: status(image, store, options, 0), lambda: None)
            )

    with Child(daemon):
        try:
            until(lambda: mount_of(at), "mounted")
            with open(at / "file", "rb", buffering=0) as file:
                mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                assert file.read() == mapped[:] == false_body(), "what the registry serves and vouches for"
                os.write(telling, b"!")
                until(lambda: errno_of(lambda: os.pread(file.fileno(), 10, 0)) == errno.EIO, "refuted")
        finally:
            detach_mount(str(at))
    os.close(hearing)
    os.close(telling)

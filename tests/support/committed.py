"""What tests of commit begin with: an image, a mount of it in which something has changed, and the command.

    image, at = committed.image, committed.at

has a test module use the fixtures.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, write_image

T = 1_600_000_000_123_456_789
LAYERS = [
    gzipped(tar.archive(tar.directory("./", mtime_ns=T), tar.file("a", b"first"), tar.file("b", b"b"))),
    gzipped(tar.archive(tar.file("a", b"second"), tar.file("c", b"c", uid=1000, mtime_ns=T + 1))),
]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", LAYERS)


@pytest.fixture
def at(imgfs: Imgfs, image: str) -> Path:
    """A mount in which something has changed."""
    at = imgfs.mount(image, "--scratch", "work")
    (at / "a").write_bytes(b"changed")
    (at / "b").unlink()
    for path, time in ((at / "a", T + 2), (at, T + 3)):
        os.utime(path, ns=(0, time))
    return at


def commit(imgfs: Imgfs, scratch: str | Path, new: str, *options: str) -> str:
    """Return the digest of the image that is made."""
    told = imgfs.ok("commit", *options, scratch, new)
    name, _, digest = told.strip().rpartition("@")
    assert name == new
    return digest

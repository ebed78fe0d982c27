"""Small images with a bit of everything that a scratch can trip over, and their trees as plain directories.

    base = write_base(tmp_path)          # umoci unpacks it; as root, with owners, devices and all xattrs
    imgfs.mount(base.reference, "--rw")  # shows what is in base.tree

Names in it come from `NAMES` only, so that what a test makes up at random meets what the image has. The image
of `write_cases` has the same little tree under many names, a playground for each of many changes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support import tarmake as tar
from tests.support.mounted import gzipped, write_image
from tests.support.umoci_oracle import unpack_layout

NAMES = (b"a", b"b", b"c", b"d", b"\xfe ")  # the last one is no UTF-8
T = 1_600_000_000_123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_raw (capabilities(7))
LARGE = random.Random(3).randbytes(3 << 20)
HOLE = 300_000  # bytes between the two pieces of the sparse file


class Base(NamedTuple):
    """The image, and the directory that holds its tree."""

    reference: str
    tree: Path


def write_base(directory: Path) -> Base:
    """Write the image as an OCI layout below `directory`, and have umoci unpack it. Raises UmociError."""
    directory.mkdir(exist_ok=True)
    layout = directory / "layout"
    reference = write_image(layout, [gzipped(_lowest()), gzipped(_middle()), gzipped(_highest())])
    return Base(reference, unpack_layout(layout, "test", directory / "bundle"))


def write_cases(layout: Path, cases: Iterable[str]) -> str:
    """Write an image of one little tree for each case, below its name, as an OCI layout; its reference.

    It holds nothing that an ordinary user cannot unpack.
    """
    cases = list(cases)
    lower = tar.directory("./", mtime_ns=T) + b"".join(map(_lower_case, cases))
    return write_image(layout, [gzipped(tar.archive(lower)), gzipped(tar.archive(*map(_upper_case, cases)))])


def _lower_case(name: str) -> bytes:
    return b"".join(
        [
            tar.directory(name, mtime_ns=T),
            tar.file(f"{name}/file", b"of the image", mtime_ns=T + 1, mode=0o640),
            tar.file(f"{name}/other", b"another one", mtime_ns=T + 2, xattrs={b"user.a": b"x"}),
            tar.file(f"{name}/large", LARGE[:200_000], mtime_ns=T + 3),
            tar.file(f"{name}/program", b"#!/bin/sh\n", mtime_ns=T + 4, mode=0o4755),
            tar.file(f"{name}/gone", b"whited out"),
            tar.symlink(f"{name}/symlink", "file", mtime_ns=T + 5),
            tar.fifo(f"{name}/fifo"),
            tar.directory(f"{name}/empty", mtime_ns=T + 6, mode=0o700),
            tar.directory(f"{name}/directory", mtime_ns=T + 7, xattrs={b"user.a": b"y"}),
            tar.file(f"{name}/directory/file", b"inside", mtime_ns=T + 8),
            tar.directory(f"{name}/directory/deep", mtime_ns=T + 9),
            tar.file(f"{name}/directory/deep/file", b"deep inside", mtime_ns=T + 10),
            tar.file(f"{name}/link1", b"three names", mtime_ns=T + 11),
            tar.hardlink(f"{name}/link2", f"{name}/link1"),
            tar.hardlink(f"{name}/directory/link3", f"{name}/link1"),
        ]
    )


def _upper_case(name: str) -> bytes:
    return tar.whiteout(f"{name}/gone") + tar.file(f"{name}/directory/upper", b"higher", mtime_ns=T + 12)


def _lowest() -> bytes:
    """Directories in directories, hard links across them, a large file, and much that goes away again."""
    return tar.archive(
        tar.directory("./", mtime_ns=T),
        tar.directory("a", mtime_ns=T + 1, xattrs={b"user.a": b"of a directory"}),
        tar.file("a/a", b"three names", mode=0o640, mtime_ns=T + 2, xattrs={b"user.b": b"\x00\xff"}),
        tar.directory("a/b", mode=0o700, mtime_ns=T + 3),
        tar.directory("a/b/c", mtime_ns=T + 4),
        tar.file("a/b/c/a", b"deep", mtime_ns=T + 5),
        tar.hardlink("a/b/d", "a/a"),
        tar.file("a/c", b"whited out by the middle layer"),
        tar.symlink("a/d", "b/c", mtime_ns=T + 6),
        tar.directory("b", mtime_ns=T + 7),
        tar.hardlink("b/a", "a/a"),
        tar.directory("b/b", mtime_ns=T + 8),
        tar.file("b/b/a", b"below what becomes opaque"),
        tar.file("b/c", LARGE, mtime_ns=T + 9),
        tar.directory("c", mode=0o750, mtime_ns=T + 10),
        tar.file("d", b"becomes a directory"),
    )


def _middle() -> bytes:
    """Whiteouts, an opaque directory, a kind replaced by another, a link to a file of the layer below."""
    return tar.archive(
        tar.whiteout("a/c"),
        tar.opaque("b/b"),
        tar.file("b/b/c", b"after the opaque mark", mtime_ns=T + 11),
        tar.directory("d", mode=0o755, mtime_ns=T + 12),
        tar.directory("d/a", mtime_ns=T + 13),
        tar.directory("d/a/a", mtime_ns=T + 14),
        tar.hardlink("d/b", "b/c"),
        tar.symlink("d/c", "b", mtime_ns=T + 15),
        tar.symlink("d/d", "nowhere", mtime_ns=T + 16),
        tar.sparse_pax("1.0", "d/a/b", HOLE + 10, [(0, b"start"), (HOLE + 5, b"ended")]),
        tar.file(b"d/\xfe ", b"", mtime_ns=T + 17),
    )


def _highest() -> bytes:
    """Special files, owners and modes; `b/b` once more, so that it is a merged directory again."""
    return tar.archive(
        tar.file("a/c", b"here again", mtime_ns=T + 18),
        tar.directory("b/b", mtime_ns=T + 19),
        tar.file("b/b/d", b"#!/bin/sh\n", mode=0o4755, mtime_ns=T + 20),
        tar.device("c/a", "c", 5, 77, mode=0o660),
        tar.fifo("c/b", mode=0o620),
        tar.symlink("c/c", "c", mtime_ns=T + 21),
        tar.directory("c/d", mode=0o2775, uid=1000, gid=50, mtime_ns=T + 22),
        tar.file("c/d/a", b"owned", uid=1000, gid=50, mode=0o600, mtime_ns=T + 23),
        tar.file(
            "c/d/b",
            b"capable",
            mode=0o755,
            mtime_ns=T + 24,
            xattrs={b"security.capability": CAPABILITY, b"trusted.t": b"for root"},
        ),
    )

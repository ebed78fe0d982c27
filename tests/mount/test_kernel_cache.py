"""What the kernel need not ask twice: it answers by itself, even while the daemon is stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, caches_kept, drop_caches, gzipped, write_image
from tests.support.patience import allowed

pytestmark = pytest.mark.kernel

NAMES = [f"name-{number:04}" for number in range(2000)]  # more than one reply has room for
VISIT = """
import os, sys
for directory, directories, files in os.walk(sys.argv[1]):
    for name in directories + files:
        path = os.path.join(directory, name)
        print(path, os.lstat(path).st_size)
        if os.path.islink(path):
            print(os.readlink(path))
        elif os.path.isfile(path):
            descriptor = os.open(path, os.O_RDONLY)  # open() would ask whether it is a terminal
            print(os.read(descriptor, 100))
            os.close(descriptor)
"""


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    lower = tar.archive(
        tar.directory("many"),
        *(tar.file(f"many/{name}", b"") for name in NAMES),
        tar.directory("few"),
        tar.file("few/old", b"old"),
        tar.symlink("link", "few/old"),
    )
    return write_image(imgfs.directory / "layout", [gzipped(lower)])


@pytest.fixture
def stopped(imgfs: Imgfs) -> Iterator[list[int]]:
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def visited(at: Path) -> bytes:
    """All that a program sees which walks through a tree and reads everything."""
    command = [sys.executable, "-c", VISIT, str(at)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=allowed(30)).stdout


def test_a_second_visit_of_an_image_that_is_here_asks_the_daemon_nothing(
    imgfs: Imgfs, image: str, stopped: list[int]
) -> None:
    at = imgfs.mount(image, "--driver", "fuse")
    with caches_kept():
        first = visited(at)
        assert first.count(b"\n") == 2 * len(NAMES) + 6
        assert visited(at) == first  # the first one's open was told that there need be none
        pid = imgfs.pid(at)
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        assert visited(at) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop caches")
def test_a_file_that_was_read_is_opened_and_read_again_without_the_daemon_though_most_is_not_here(
    imgfs: Imgfs, stopped: list[int]
) -> None:
    layers = [tar.archive(tar.file("old", b"old")), tar.archive(tar.file("noise", os.urandom(2 << 20)))]
    image = write_image(imgfs.directory / "layout", [gzipped(layer) for layer in layers])
    imgfs.umount(imgfs.mount(image, "--driver", "fuse"))
    imgfs.evict(image)
    at = imgfs.mount(image, "--driver", "fuse")
    with caches_kept():
        assert read_once(at / "old") == b"old"
        assert [layer["spans_present"] > 0 for layer in imgfs.status(at)["layers"]] == [True, False]
        pid = imgfs.pid(at)
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        assert read_once(at / "old") == b"old"


def read_bytes(path: Path) -> bytes:
    return path.read_bytes()


def read_once(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)  # open() would ask whether it is a terminal
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop caches")
def test_what_the_kernel_has_forgotten_it_is_told_again(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--driver", "fuse")
    first = visited(at)
    drop_caches()
    assert visited(at) == first


def test_a_listing_that_the_kernel_keeps_changes_with_its_directory(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--driver", "fuse", "--rw")
    many, few = at / "many", at / "few"
    for _ in range(2):
        assert (sorted(os.listdir(many)), os.listdir(few)) == (NAMES, ["old"])
    (many / NAMES[7]).unlink()
    (few / "new").write_bytes(b"")
    for _ in range(2):
        assert sorted(os.listdir(many)) == NAMES[:7] + NAMES[8:]
        assert sorted(os.listdir(few)) == ["new", "old"]
    os.rename(many / NAMES[8], few / "moved")
    os.rename(few, at / "fewer")
    os.listdir(at)
    (at / "few").mkdir()
    for _ in range(2):
        assert sorted(os.listdir(many)) == NAMES[:7] + NAMES[9:]
        assert (sorted(os.listdir(at / "fewer")), os.listdir(at / "few")) == (["moved", "new", "old"], [])
        assert sorted(os.listdir(at)) == ["few", "fewer", "link", "many"]


def test_a_reader_of_a_listing_that_changes_misses_nothing_that_stays(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--driver", "fuse", "--rw") / "many"
    os.listdir(at)  # the kernel keeps it
    seen = []
    with os.scandir(at) as entries:
        for count, found in enumerate(entries):
            seen.append(found.name)
            if count == 10:
                (at / NAMES[1500]).unlink()
                (at / "zz-new").write_bytes(b"")
    assert len(seen) == len(set(seen))
    assert set(seen) >= set(NAMES) - {NAMES[1500]}


@pytest.mark.parametrize("readers", [1, 4])
def test_those_who_read_a_whole_tree_are_given_several_files_at_once(imgfs: Imgfs, readers: int) -> None:
    contents = {f"d/{number:03}": bytes([number % 251]) * (number * 53) for number in range(300)}
    contents["d/100"] = bytes(300_000)  # more than is stored ahead
    contents["d/200"] = b""
    layer = tar.archive(tar.directory("d"), *(tar.file(name, body) for name, body in contents.items()))
    image = write_image(imgfs.directory / "layout", [gzipped(layer)])
    at = imgfs.mount(image, "--driver", "fuse")
    with caches_kept():
        os.listdir(at / "d")  # else the kernel does not know the files
        with ThreadPoolExecutor(readers) as threads:
            assert list(threads.map(read_bytes, map(at.joinpath, contents))) == list(contents.values())
        reads = imgfs.status(at)["layers"][0]["hits"]
    assert 8 < reads < 60 + 40 * (readers - 1)  # of 299 files: the first ones, then some for each 64


def test_what_readers_of_a_whole_tree_are_given_counts_as_read_for_what_is_fetched_ahead(
    imgfs: Imgfs,
) -> None:
    chance = random.Random(4)
    names = [f"d/{number:04}" for number in range(4000)]
    layer = gzipped(
        tar.archive(tar.directory("d"), *(tar.file(name, chance.randbytes(2000)) for name in names))
    )
    image = write_image(imgfs.directory / "layout", [layer])
    imgfs.umount(imgfs.mount(image))
    imgfs.evict(image)
    at = imgfs.mount(image, "--driver", "fuse", "--replay", "none")
    with caches_kept():
        os.listdir(at / "d")
        assert all(len(read_bytes(at / name)) == 2000 for name in names)
    assert imgfs.status(at)["layers"][0]["brought"]["sweep"]["bytes_used"] > len(layer) * 2 / 3

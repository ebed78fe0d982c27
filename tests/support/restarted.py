"""Mounts of `--restart`: an image to read, and what kills daemons again and again meanwhile."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, command_line, gzipped, processes_of_tests, write_image
from tests.support.patience import allowed

NOISE = random.Random(17).randbytes(3_000_000)
FILES = {f"d{number % 7}/f{number}": b"%d " % number * (number * 40) for number in range(120)} | {
    "noise": NOISE
}
LAYER = gzipped(
    tar.archive(
        *(tar.directory(f"d{number}") for number in range(7)),
        *(tar.file(name, body) for name, body in FILES.items()),
    )
)
RESTARTED = r" WARNING .* restart \d+ of the daemon"


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    """The image, in a layout; its daemons may be restarted."""
    imgfs.expected.append(RESTARTED)
    return write_image(imgfs.directory / "layout", [LAYER])


def contents(at: Path) -> dict[str, bytes]:
    """Return every file below a mount, read past the kernel's cache."""
    paths = [Path(directory, name) for directory, _, names in os.walk(at) for name in names]
    return {str(path.relative_to(at)): uncached(path) for path in paths}


def uncached(path: Path) -> bytes:
    """Return a file's bytes, by O_DIRECT.

    Where the file system has none, what the kernel has cached goes first.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    body = b""
    try:
        with mmap.mmap(-1, 4 << 20) as room:
            while count := os.preadv(fd, [room], len(body)):
                body += room[:count]
    finally:
        os.close(fd)
    return body


def successors(imgfs: Imgfs) -> list[int]:
    """Return the pids of the processes that were started to take a mount over."""
    others = processes_of_tests(imgfs.store)
    words = {pid: command_line(pid) for pid in others}
    return [pid for pid in others if b"mount.successor" in words[pid] and b"holder.py" not in words[pid]]


def holders(imgfs: Imgfs) -> list[int]:
    """Return the pids of the holders."""
    return [pid for pid in processes_of_tests(imgfs.store) if b"holder.py\0" in command_line(pid)]


@contextmanager
def killed_again_and_again(imgfs: Imgfs, first: int, pauses: list[float]) -> Iterator[list[int]]:
    """Kill the daemon, and each of its successors, after one of the pauses each; gives their pids."""
    killed: list[int] = []

    def next_one() -> int | None:
        return next((new for new in successors(imgfs) if new not in killed), None)

    def kill_all() -> None:
        pid: int | None = first
        for pause in pauses:
            time.sleep(pause)
            assert pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
            pid = None
            began = time.monotonic()
            while pid is None and time.monotonic() < began + allowed(60):
                time.sleep(0.02)
                pid = next_one()

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        yield killed
    finally:
        killer.join()

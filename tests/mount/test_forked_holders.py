"""Holders that `imgfs serve` forks from one process: what they share, and that they are as any others."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.mounts.holders import HolderProcess
from tests.support.mounted import Imgfs, is_alive, until, write_image
from tests.support.restarted import FILES, LAYER, RESTARTED, contents, holders
from tests.support.served import Server, forked_from

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse")]


@pytest.fixture
def server(imgfs: Imgfs) -> Iterator[Server]:
    with Server(imgfs, "s") as server:
        yield server


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [LAYER])


def mounted(server: Server, image: str, name: str, *before: str) -> tuple[Path, int]:
    """Mount an image by the server; return where, and the pid of its holder."""
    at = server.imgfs.mountpoint(name)
    others = holders(server.imgfs)
    assert server.mount("--restart", image, at, before=before).code == 0
    server.imgfs.watch(at)
    (holder,) = set(holders(server.imgfs)) - set(others)
    return at, holder


def waiting(server: Server) -> int:
    """Return the pid of the process that holders are forked from."""

    def found() -> list[int]:
        return [pid for pid in forked_from(server.process.pid) if b"waits to hold" in words_of(pid)]

    until(found, "it waits")
    return found()[0]


def words_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def field_of(pid: int, name: str, file: str = "status") -> str:
    (said,) = re.findall(rf"^{name}:\s+(.*)$", Path(f"/proc/{pid}/{file}").read_text(), re.M)
    return str(said)


def test_they_share_their_memory_and_outlive_all_that_started_them(server: Server, image: str) -> None:
    imgfs, parent = server.imgfs, waiting(server)
    imgfs.expected.append(RESTARTED)
    places = [mounted(server, image, f"mnt{number}") for number in range(3)]
    own = int(field_of(parent, "Rss", "smaps_rollup").split()[0])
    for at, pid in places:
        found = HolderProcess.of(pid)
        assert found
        assert found.mountpoint == str(at)
        assert int(field_of(pid, "PPid")) == parent
        assert int(field_of(pid, "Private_Dirty", "smaps_rollup").split()[0]) < own / 3
    server.end()
    until(lambda: not is_alive(parent), "nothing is left to be forked from")
    for at, pid in places:
        os.kill(imgfs.pid(at), signal.SIGKILL)
        assert contents(at) == FILES
        assert is_alive(pid)
        imgfs.umount(at)
    until(lambda: not holders(imgfs), "each ends with its mount")


def test_one_is_given_what_a_process_inherits(imgfs: Imgfs, image: str) -> None:
    """What it is started with are its daemon's things, and not those of the server or its caller."""
    begun = 'umask 027; ulimit -n 499; ulimit -c 0; echo 300 >/proc/self/oom_score_adj; exec nice -n 3 "$@"'
    left_open = imgfs.directory / "left open"
    with left_open.open("wb") as file:
        high = fcntl.fcntl(file, fcntl.F_DUPFD, 200)  # a number that no holder has for something else
    with os.fdopen(high), Server(imgfs, "s", pass_fds=[high]) as server:
        parent = waiting(server)
        _, pid = mounted(server, image, "mnt", "sh", "-c", begun, "sh")
        assert int(field_of(pid, "PPid")) == parent
    assert field_of(pid, "Umask") == "0027"
    assert os.getpriority(os.PRIO_PROCESS, pid) == 3
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "300\n"
    assert re.search(r"^Max open files +499 ", Path(f"/proc/{pid}/limits").read_text(), re.M)
    assert (os.getsid(pid), os.readlink(f"/proc/{pid}/cwd")) == (pid, "/")
    opened = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    assert str(left_open) not in opened


def test_one_that_would_have_other_variables_has_an_interpreter_of_its_own(
    server: Server, image: str
) -> None:
    parent = waiting(server)
    server.imgfs.environment["OTHER"] = "1"
    _, pid = mounted(server, image, "mnt")
    assert int(field_of(pid, "PPid")) != parent
    assert b"OTHER=1" in Path(f"/proc/{pid}/environ").read_bytes()


def test_without_a_process_to_fork_from_a_mount_is_held_too(server: Server, image: str) -> None:
    parent = waiting(server)
    os.kill(parent, signal.SIGSTOP)
    try:
        _, pid = mounted(server, image, "stopped")
        assert int(field_of(pid, "PPid")) != parent
    finally:
        os.kill(parent, signal.SIGKILL)
    until(lambda: waiting(server) != parent, "another one waits")
    mounted(server, image, "mnt")

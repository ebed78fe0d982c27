"""`imgfs mount --exit-idle`: a daemon that nothing is asked of ends, and comes back for the next reader."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.mounts.holders import idle_mounts
from imgfs.mounts.table import imgfs_mount_at
from tests.support.mounted import Imgfs, drop_caches, is_alive, processes_of_tests, until, write_image
from tests.support.restarted import FILES, LAYER, contents, holders, successors
from tests.support.served import Server, forked_from

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]


@pytest.fixture
def server(imgfs: Imgfs) -> Iterator[Server]:
    with Server(imgfs, "s") as server:  # a short name: that of a socket has 107 bytes at most
        yield server


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [LAYER])


def anonymous(pid: int) -> int:
    """Return the memory of a process, in kB, that no file backs and no other process shares."""
    (kilobytes,) = re.findall(r"^Pss_Anon:\s+(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    return int(kilobytes)


@pytest.mark.drivers("fuse")
def test_a_holder_takes_hardly_more_memory_than_an_interpreter(imgfs: Imgfs, image: str) -> None:
    imgfs.mount(image, "--restart")
    (holding,) = holders(imgfs)
    wait = "import os, select, sys, time; print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-ISc", wait]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as bare:
        assert bare.stdout
        assert bare.stdout.readline() == b"\n"
        assert anonymous(holding) <= 1.3 * anonymous(bare.pid)
        bare.communicate()


def test_an_idle_daemon_ends_and_the_next_reader_has_it_started_again(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(r" WARNING .* restart 1 of the daemon")
    at = imgfs.mount(image, "--restart", "--exit-idle", "3")
    first = imgfs.pid(at)
    (row,) = (row for row in json.loads(imgfs.ok("ps", "--json")) if row["mountpoint"] == str(at))
    assert (row["idle"], row["pid"]) == (False, first)
    until(lambda: not is_alive(first), "the daemon has ended")
    (row,) = (row for row in json.loads(imgfs.ok("ps", "--json")) if row["mountpoint"] == str(at))
    assert (row["idle"], row["pid"], bool(row["image"])) == (True, None, True)
    assert processes_of_tests(imgfs.store) == holders(imgfs), "to be listed does not wake it"
    assert "is mounted" in imgfs.run("store", "rm", image).err
    assert contents(at) == FILES
    woken = imgfs.status(at)
    assert (woken["pid"] != first, woken["restarts"]) == (True, 0)
    os.kill(woken["pid"], signal.SIGKILL)
    assert (contents(at), imgfs.status(at)["restarts"]) == (FILES, 1)
    until(lambda: not successors(imgfs), "the daemon has ended again")
    imgfs.program("umount", at)
    imgfs.gone(at)
    until(lambda: not holders(imgfs), "the holder has ended")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may drop caches")
def test_what_the_kernel_forgets_and_what_looks_at_all_mounts_wake_no_daemon(
    imgfs: Imgfs, image: str
) -> None:
    at = imgfs.mount(image, "--restart", "--exit-idle", "1")
    assert contents(at) == FILES
    before = os.statvfs(at), imgfs.program("stat", at).out
    until(lambda: processes_of_tests(imgfs.store) == holders(imgfs), "the daemon has ended")
    assert (os.statvfs(at), imgfs.program("stat", at).out) == before
    assert imgfs.program("df", at).code == 0
    drop_caches()
    assert (os.statvfs(at), imgfs.program("stat", at).out) == before
    time.sleep(0.5)  # in which a daemon would be started
    assert processes_of_tests(imgfs.store) == holders(imgfs)
    assert contents(at) == FILES


def serves(pid: int) -> bool:
    """Return whether a process serves a mount, or did since it was started."""
    return any("/dev/fuse" in os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir())


def test_idle_mounts_share(server: Server, image: str) -> None:
    """A process serves several that were idle, ends with the last, and takes none with it."""

    def sharing() -> list[int]:
        return forked_from(server.process.pid)

    def are_idle() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it ends just now
            waiting = [pid for pid in sharing() if not serves(pid)]
            return set(processes_of_tests(imgfs.store)) == {server.process.pid, *holders(imgfs), *waiting}
        return False

    imgfs = server.imgfs
    places = [imgfs.mountpoint(f"mnt{number}") for number in range(3)]
    for at in places:
        if at == places[2]:
            imgfs.environment["OTHER"] = "1"
        assert server.mount("--driver", imgfs.driver, "--restart", "--exit-idle", "2", image, at).code == 0
        imgfs.watch(at)
    for _ in range(2):
        until(are_idle, "all are idle")
        shared = set(sharing())  # one of them ends once its mounts are idle again
        assert [contents(at) for at in places] == [FILES] * 3
        pids = list(map(imgfs.pid, places))
        shared |= set(sharing())
        assert set(pids[:2]) <= shared
        assert pids[2] not in shared, "other variables: other registries and secrets"
    imgfs.umount(places[0])
    until(lambda: len(holders(imgfs)) == 2, "its holder has ended")
    killed = imgfs.pid(places[1])
    assert killed in sharing()
    assert idle_mounts([imgfs_mount_at(places[1])]) == set()
    os.kill(killed, signal.SIGKILL)
    assert contents(places[1]) == FILES
    alone = imgfs.status(places[1])
    assert (alone["pid"] in [killed, *sharing()], alone["restarts"]) == (False, 1)


@pytest.mark.drivers("fuse")
def test_a_daemon_of_its_own_ends_soon_once_a_server_has_begun_that_would_serve_the_mount(
    imgfs: Imgfs, image: str
) -> None:
    imgfs.environment["IMGFS_SERVE"] = str(imgfs.directory / "s.sock")
    at = imgfs.mount(image, "--restart", "--exit-idle", "600")
    first = imgfs.pid(at)
    with Server(imgfs, "s") as server:
        until(lambda: not is_alive(first), "the daemon has ended")
        assert contents(at) == FILES
        assert imgfs.pid(at) in forked_from(server.process.pid)
        imgfs.umount(at)

"""`imgfs mount --exit-idle`: a daemon that nothing is asked of ends, and comes back for the next reader."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.support.mounted import Imgfs, drop_caches, is_alive, processes_of_tests, until, write_image
from tests.support.restarted import FILES, LAYER, contents, holders, successors

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [LAYER])


def test_an_idle_daemon_ends_and_the_next_reader_has_it_started_again(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(r" WARNING .* restart 1 of the daemon")
    at = imgfs.mount(image, "--restart", "--exit-idle", "1")
    first = imgfs.pid(at)
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
def test_what_the_kernel_forgets_wakes_no_daemon(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart", "--exit-idle", "1")
    assert contents(at) == FILES
    until(lambda: processes_of_tests(imgfs.store) == holders(imgfs), "the daemon has ended")
    drop_caches()
    time.sleep(0.5)  # in which a daemon would be started
    assert processes_of_tests(imgfs.store) == holders(imgfs)
    assert contents(at) == FILES

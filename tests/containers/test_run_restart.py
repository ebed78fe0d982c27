"""A container whose image's daemon is killed goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.mounted import Imgfs, is_alive, processes_of_tests, until
from tests.support.restarted import RESTARTED, holders, killed_again_and_again

pytestmark = containers.marks
layout, image, run = containers.layout, containers.image, containers.run

SCRIPT = (
    "n=0; while [ ! -e /end ]; do n=$((n+1)); echo $n >/new; mv /new /now; cat /now >>/all; "
    "cat /bin/busybox | md5sum >/sum || exit 9; done; wc -l </all; echo $n; exit 3"
)


def daemon(imgfs: Imgfs) -> int:
    record = next(imgfs.store.rglob("running.json"))
    return int(json.loads(record.read_text())["daemon"]["pid"])


@pytest.mark.parametrize("driver", ["fuse", "auto"])
def test_a_container_goes_on_when_the_daemon_of_its_image_is_killed(
    imgfs: Imgfs, image: str, driver: str
) -> None:
    imgfs.expected.append(RESTARTED)
    imgfs.ok("run", "-d", "--name", "box", "--driver", driver, image, "sh", "-c", SCRIPT)
    until(lambda: holders(imgfs), "it has run for long enough to have a holder")
    with killed_again_and_again(imgfs, daemon(imgfs), [0.1, 0.3, 0.2]) as killed:
        until(lambda: len(killed) == 3, "it was killed")
    assert not any(map(is_alive, killed))
    imgfs.ok("exec", "box", "touch", "/end")
    assert imgfs.ok("wait", "box") == "3\n"
    counted, made = imgfs.ok("logs", "box").split()
    assert counted == made
    imgfs.ok("rm", "box")
    until(lambda: not processes_of_tests(imgfs.store), "all of it has ended")


def test_a_short_container_has_no_holder(imgfs: Imgfs, image: str) -> None:
    began = time.monotonic()
    imgfs.ok("run", "--rm", image, "true")
    assert not holders(imgfs) or time.monotonic() - began > 1.0


def test_a_container_goes_on_where_no_holder_can_be_started(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(" WARNING .* no process can be started that has the mount served again: ")
    program = (
        "import sys; import imgfs.mount.resume as resume\n"
        "def fail(*_): raise OSError(12, 'Cannot allocate memory')\n"
        "resume.Succession._start_holder = fail\n"
        "from imgfs.cli import main; sys.exit(main())"
    )
    words = ["run", "--rm", "--driver", "fuse", image, "sh", "-c", "sleep 2; cat /srv/file"]
    done = imgfs.program(sys.executable, "-c", program, *words)
    assert (done.code, done.out, done.err) == (0, b"of the image", "")
    assert "Cannot allocate memory" in "\n".join(imgfs.logged())


def test_what_a_killed_monitor_leaves_is_ended_with_its_holder(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(RESTARTED)
    imgfs.ok("run", "-d", "--name", "box", image, "sleep", "600")
    until(lambda: holders(imgfs), "it has a holder")
    record = json.loads(next(imgfs.store.rglob("running.json")).read_text())
    os.kill(record["daemon"]["pid"], signal.SIGKILL)
    os.kill(record["monitor"]["pid"], signal.SIGKILL)
    imgfs.ok("rm", "-f", "-t", "0", "box")
    until(lambda: not processes_of_tests(imgfs.store), "all of it has ended")
    assert not list(Path(imgfs.store).rglob("running.json"))


def test_an_ordinary_users_container_goes_on(nobody: Imgfs) -> None:
    nobody.expected.append(RESTARTED)
    image = containers.busybox(nobody.directory / "layout")
    nobody.ok("run", "-d", "--name", "box", image, "sh", "-c", SCRIPT)
    until(lambda: holders(nobody), "it has run for long enough to have a holder")
    with killed_again_and_again(nobody, daemon(nobody), [0.1, 0.2]) as killed:
        until(lambda: len(killed) == 2, "it was killed")
    nobody.ok("exec", "box", "touch", "/end")
    assert nobody.ok("wait", "box") == "3\n"
    counted, made = nobody.ok("logs", "box").split()
    assert counted == made
    nobody.ok("rm", "box")
    until(lambda: not processes_of_tests(nobody.store), "all of it has ended")

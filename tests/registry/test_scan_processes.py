"""Layers scanned by processes, seen from the command line: one that dies, and a command that is ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import pytest

from tests.registry.test_pull import packed
from tests.support.blobs import noise
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Wire, gzipped, is_alive, serve, until
from tests.support.patience import allowed

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no processes")


@pytest.fixture
def wire() -> Iterator[Wire]:
    with FaultServer() as server, Wire(server.host, 1e6) as wire:
        server.referrers_api = True
        layers = [gzipped(packed({f"file{number}": noise(number, 3_000_000)})) for number in range(3)]
        serve(server, "app", "v1", layers)
        yield wire


def begun(imgfs: Imgfs, wire: Wire, *words: str) -> tuple[Popen[bytes], list[int]]:
    """A command that has begun to fetch layers, and the processes that scan them."""
    process = imgfs.start(*words, f"{wire.host}/app:v1")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: process.poll() is not None or wire.received > 1_000_000, "a layer is on its way")
    assert process.poll() is None, process.communicate()
    return process, [int(pid) for pid in children.read_text().split()]


def leftovers(imgfs: Imgfs) -> list[str]:
    return [path.name for path in imgfs.store.rglob(".new-*")]


def test_a_killed_scanner_is_one_line_and_what_has_come_is_kept(imgfs: Imgfs, wire: Wire) -> None:
    process, scanners = begun(imgfs, wire, "ls", "-R")
    assert len(scanners) == min(3, len(os.sched_getaffinity(0)))
    os.kill(scanners[0], signal.SIGKILL)
    wire.rate = None
    _, err = process.communicate(timeout=allowed(30))
    (line,) = [line for line in err.decode().splitlines() if line.startswith("imgfs: ")]
    assert (process.returncode, line.endswith("the process that scanned it was killed by signal 9")) == (
        1,
        True,
    )
    assert not any(map(is_alive, scanners))
    assert leftovers(imgfs) == []
    assert {f"file{number}" for number in range(3)} <= set(imgfs.ok("ls", f"{wire.host}/app:v1").split())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", ["pull", "index build"])
def test_no_scanner_outlives_its_command(imgfs: Imgfs, wire: Wire, command: str, how: signal.Signals) -> None:
    process, scanners = begun(imgfs, wire, *command.split())
    assert scanners
    process.send_signal(how)
    process.communicate(timeout=allowed(30))
    until(lambda: not any(map(is_alive, scanners)), "the scanners have ended")
    if how == signal.SIGINT:
        assert leftovers(imgfs) == []

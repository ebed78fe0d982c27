"""Three machines start an image at once: the registry sends it about once, and none waits for a bad one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.mounted import Imgfs, Stored, Wire, gzipped, until
from tests.support.patience import allowed

pytestmark = [
    needs_docker_registry,
    pytest.mark.kernel,
    pytest.mark.drivers("fuse"),
    pytest.mark.timeout(300),
]

RATE = 3e6  # bytes per second on a connection: some seconds for the image


@cache
def files() -> dict[str, bytes]:
    """What is in the image, by path."""
    chance = random.Random(11)
    return {"opt/large": chance.randbytes(18_000_000), "usr/other": chance.randbytes(9_000_000)}


@cache
def layers() -> list[Stored]:
    """The image's layers: one for each file."""
    return [gzipped(tar.archive(tar.file(name, body))) for name, body in files().items()]


def size() -> int:
    """The bytes of the image's layers."""
    return sum(len(layer.blob) for layer in layers())


class Cluster:
    """Machines with stores of their own that serve each other, and the line to their registry."""

    def __init__(
        self, image: str, wire: Wire, machines: list[Imgfs], servers: list[subprocess.Popen[bytes]]
    ) -> None:
        self.image = image
        self.wire = wire
        self.machines = machines
        self.servers = servers
        self.running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        """Have all mount the image."""
        for one in self.machines:
            self.running.append(one.start("mount", "--index", "none", self.image, one.mountpoint()))

    def has_begun(self, number: int, units: int) -> bool:
        """Return True once a machine has fetched so many units of a layer itself."""
        maps = self.machines[number].store.glob("layers/*/*/part.map")
        return any(path.read_bytes()[40:].count(1) >= units for path in maps)

    def check(self, *numbers: int) -> None:
        """Wait for the mounts of these machines, and read them."""
        for number in numbers:
            one, command = self.machines[number], self.running[number]
            said = command.communicate(timeout=allowed(120))[1]
            assert command.returncode == 0, said.decode()
            at = one.directory / "mnt"
            found = {str(path.relative_to(at)): path for path in at.rglob("*") if path.is_file()}
            assert found.keys() == files().keys()
            assert [name for name, path in found.items() if path.read_bytes() != files()[name]] == []
            one.watch(at)
            one.umount(at)


@contextmanager
def serving(one: Imgfs) -> Iterator[subprocess.Popen[bytes]]:
    """`imgfs serve --peer` of a machine, its own peer, too: as where one name has all addresses."""
    place = f"unix:{one.directory}/peer"
    words = ("serve", "--socket", one.directory / "serve", "--peer", place)
    running = one.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until((one.directory / "serve").exists, "the server to be ready")
    yield running
    if running.poll() is None:
        running.terminate()
    running.wait(allowed(20))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        host = stack.enter_context(docker_registry(tmp_path / "registry"))
        push_image(
            host, "ns/app", "v1", [one.blob for one in layers()], diff_ids=[one.diff_id for one in layers()]
        )
        wire = stack.enter_context(Wire(host, RATE))
        machines = [stack.enter_context(closing(Imgfs(tmp_path / f"node{number}"))) for number in range(3)]
        for one in machines:
            one.environment["IMGFS_PEERS"] = " ".join(f"unix:{other.directory}/peer" for other in machines)
        servers = [stack.enter_context(serving(one)) for one in machines]
        yield Cluster(f"{wire.host}/ns/app:v1", wire, machines, servers)


def test_three_machines_at_once_fetch_an_image_about_once(cluster: Cluster) -> None:
    cluster.begin()
    cluster.check(0, 1, 2)
    assert cluster.wire.received < 1.5 * size(), "3.0 if none knew of another"


@pytest.mark.parametrize("is_served_on", [True, False])
def test_a_machine_that_is_killed_in_the_middle_holds_up_no_other(
    cluster: Cluster, is_served_on: bool
) -> None:
    """Its mount alone, or its server, too."""
    cluster.begin()
    until(lambda: cluster.has_begun(0, 4), "the first machine to have fetched a mebibyte")
    cluster.running[0].kill()
    if not is_served_on:
        cluster.servers[0].kill()
    cluster.check(1, 2)
    assert cluster.wire.received < 2.2 * size()


def test_a_machine_that_stands_still_holds_up_no_other(cluster: Cluster) -> None:
    cluster.begin()
    until(lambda: cluster.has_begun(0, 4), "the first machine to have fetched a mebibyte")
    os.kill(cluster.running[0].pid, signal.SIGSTOP)
    try:
        cluster.check(1, 2)
    finally:
        os.kill(cluster.running[0].pid, signal.SIGCONT)
    cluster.check(0)

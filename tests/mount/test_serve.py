"""`imgfs serve`: mounts whose processes are forked from one that waits, and are as any other's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.forkserver.request import REFUSED
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import Imgfs, gzipped, is_alive, serve, until, write_image
from tests.support.served import Server

pytestmark = pytest.mark.kernel

FURTHER = 24.0  # MiB that one of four idle mounts may take: 15 here, and 38 if nothing were shared


@pytest.fixture
def server(imgfs: Imgfs) -> Iterator[Server]:
    with Server(imgfs) as server:
        yield server


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(tar.archive(tar.file("a", b"1")))])


def shared(pid: int) -> float:
    """MiB of a process; what n processes share counts for an nth (proc(5), smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def test_mounts_are_forked_share_memory_and_outlive_the_server_and_each_other(
    server: Server, image: str
) -> None:
    imgfs, places = server.imgfs, [server.imgfs.mountpoint(f"mnt{number}") for number in range(4)]
    for at in places:  # by a name in the command's own directory
        assert server.mount(image, at.name, cwd=at.parent) == (0, b"", "")
    assert server.said(": imgfs mount") == 4
    assert Path(f"/proc/{server.process.pid}/cmdline").read_bytes().rstrip(b"\0").endswith(b"\0serve")
    pids = [imgfs.watch(at) for at in places]
    assert Path(f"/proc/{pids[0]}/cmdline").read_bytes().rstrip(b"\0").endswith(b"mnt0")
    assert max(map(shared, pids)) < FURTHER
    server.end()
    assert not server.socket.exists()
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not is_alive(pids[0]), "the daemon is dead")
    subprocess.run(["umount", "-l", places[0]], check=True)
    imgfs.gone(places[0])
    for at in places[1:]:
        assert (at / "a").read_bytes() == b"1"
        imgfs.umount(at)


def test_a_command_that_is_not_like_the_server_does_all_of_it_by_itself(server: Server, image: str) -> None:
    at = server.imgfs.mountpoint()
    words = [sys.executable, "-m", "imgfs", "mount", image, str(at)]
    if os.geteuid() == 0:
        assert server.imgfs.program("unshare", "--uts", *words).code == 0
        assert server.said("is not served: uts: ") == 1
    else:
        assert server.imgfs.program("setpriv", "--no-new-privs", *words).code == 1  # fusermount3 is set-uid
        assert server.said("is not served: NoNewPrivs: 1, not 0") == 1
        return
    server.imgfs.watch(at)
    server.imgfs.umount(at)


def test_a_client_with_fewer_rights_costs_no_process(server: Server) -> None:
    """It is refused before it has sent anything: a sandbox could have any number of processes wait for it."""
    silent = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(1))"
    words = "setpriv", "--no-new-privs", sys.executable, "-c", silent, server.socket
    assert server.imgfs.program(*words).text == f"{REFUSED!r}\n"
    assert server.said("is not served: NoNewPrivs: 1, not 0") == 1


CONFINED = """
import ctypes, os, sys
call = ctypes.CDLL(None, use_errno=True).syscall
rules = call(444, (ctypes.c_uint64 * 1)(1 << 12), 8, 0)  # landlock_create_ruleset: no device files are made
if rules < 0 or call(446, rules, 0):  # landlock_restrict_self
    sys.exit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="other users need no_new_privs for Landlock")
def test_what_landlock_forbids_root_the_server_does_not_do_instead(server: Server, image: str) -> None:
    """Of this confinement /proc tells nothing; one of its rules is that nothing is mounted."""
    server.imgfs.expected.append(" ERROR imgfs.daemonize: .*: fusermount3: failed to access")
    at = server.imgfs.mountpoint()
    mount = "-m", "imgfs", "mount", "--driver", "fuse", image, at
    assert server.imgfs.program(sys.executable, "-c", CONFINED, *mount).code == 1
    assert server.said("is not served: it may not look into this process") == 1
    assert not os.path.ismount(at)


def test_errors_and_exit_codes_are_the_commands(server: Server) -> None:
    at = server.imgfs.mountpoint()
    closed = 'exec "$@" <&-'
    words = [sys.executable, "-m", "imgfs", "mount", "oci:/nowhere:x", str(at)]
    assert "/nowhere" in server.imgfs.program("sh", "-c", closed, "sh", *words).complaint(2)
    said = server.mount("oci:/nowhere:x", at)
    assert "/nowhere" in said.complaint(2)
    assert server.mount("oci:/nowhere:x", "/nowhere").code == 1
    assert server.said(": imgfs mount") == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_command_ends_with_its_client(server: Server, number: signal.Signals, code: int) -> None:
    with FaultServer() as registry:
        image = serve(registry, "app", "v1", [gzipped(tar.archive(tar.file("a", b"1")))])
        registry.inject(Fault(stall_after=0), on="/manifests/", times=9)
        at = server.imgfs.mountpoint()
        words = [sys.executable, "-m", "imgfs", "mount", image, str(at)]
        client = subprocess.Popen(words, env=server.imgfs.environment, stderr=subprocess.DEVNULL)
        until(lambda: server.said(": imgfs mount"), "it is carried out")
        until(lambda: registry.seen("/manifests/"), "it waits for the registry")
        client.send_signal(number)
        assert client.wait(60) == code
        until(lambda: not server.forked(), "the forked process has ended")

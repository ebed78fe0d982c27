"""A daemon that is stopped, or says nothing: every command tells in time, and its mount can be taken down."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.mounts import status_client as asking_module
from imgfs.mounts import unmount as unmount_module
from imgfs.mounts.status_client import DaemonSilent, daemon_of, is_killed_process, read_status, read_statuses
from imgfs.mounts.table import Mount, imgfs_mount_at, mount_at
from imgfs.status import MountStatus
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, drop_caches, gzipped, is_alive, until, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.drivers("fuse", "kernel"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root's mounts have both drivers"),
]

BOUND = 40.0  # seconds for a command; most of it is for a busy machine


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_image(tmp_path / "layout", [gzipped(tar.archive(tar.file("a", b"1")))])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("options", [(), ("--rw",)])
def test_every_command_says_within_seconds_that_the_daemon_is_stopped(
    imgfs: Imgfs, image: str, options: tuple[str, ...]
) -> None:
    at = imgfs.mount(image, *options)
    pid = imgfs.pid(at)
    with stopped(pid):
        for words in (("status", at), ("status", "--json", at), ("umount", at), ("mount", image, at)):
            began = time.monotonic()
            said = imgfs.run(*words, timeout=BOUND).complaint()
            assert f"its daemon (pid {pid}) is stopped: kill -CONT {pid}, or imgfs umount -l {at}" in said
            assert time.monotonic() - began < BOUND
        assert imgfs.run("diff", at, timeout=BOUND).code == 2
    assert (at / "a").read_bytes() == b"1"
    assert imgfs.status(at)["pid"] == pid
    imgfs.umount(at)
    assert not is_alive(pid)


def test_one_daemon_that_does_not_answer_hides_no_other(imgfs: Imgfs, image: str) -> None:
    """Of several mounts that are asked together; by the kernel's driver each is asked by itself."""
    places = [imgfs.mount(image, at=imgfs.mountpoint(name)) for name in ("first", "silent", "last")]
    pids = [imgfs.pid(at) for at in places]

    def listed() -> list[int | None]:
        rows = {row["mountpoint"]: row["pid"] for row in json.loads(imgfs.ok("ps", "--json", timeout=BOUND))}
        return [rows[str(at)] for at in places]

    assert listed() == pids
    forks: list[None] = []
    os.register_at_fork(before=lambda: forks.append(None))
    found = read_statuses([imgfs_mount_at(at) for at in places])
    assert [status.pid for status in found if isinstance(status, MountStatus)] == pids
    assert len(forks) <= 1
    with stopped(pids[1]):
        assert listed() == [pids[0], None, pids[2]]
        rows = {
            row["mountpoint"]: row["state"] for row in json.loads(imgfs.ok("ps", "--json", timeout=BOUND))
        }
        assert [rows[str(at)] for at in places] == ["served", "silent", "served"]
    for at in places:
        imgfs.umount(at)


@pytest.mark.parametrize("options", [(), ("--rw",)])
def test_a_stopped_daemons_mount_is_taken_away_lazily(
    imgfs: Imgfs, image: str, options: tuple[str, ...]
) -> None:
    at = imgfs.mount(image, *options)
    pid = imgfs.pid(at)
    with stopped(pid):
        drop_caches()
        assert imgfs.ok("umount", "-l", at, timeout=BOUND) == ""
        assert mount_at(at) is None
        assert is_alive(pid)
    until(lambda: not is_alive(pid), "it ends once it goes on", 30.0)
    imgfs.gone(at)
    imgfs.umount(imgfs.mount(image))


@pytest.mark.drivers("fuse")
def test_a_stopped_daemon_of_a_mount_that_is_gone_is_not_that_of_a_new_one(imgfs: Imgfs, image: str) -> None:
    """The number of its device is used again."""
    at = imgfs.mount(image)
    before, pid = imgfs_mount_at(at), imgfs.pid(at)
    assert daemon_of(before) == pid
    with stopped(pid):
        assert imgfs.ok("umount", "-l", at, timeout=BOUND) == ""
        until(lambda: daemon_of(before) is None, "the connection has ended")
        assert is_alive(pid)
    until(lambda: not is_alive(pid), "it ends once it goes on", 30.0)
    imgfs.gone(at)


@pytest.mark.drivers("fuse")
def test_a_reader_that_waits_for_a_daemon_is_freed_by_force(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    pid = imgfs.pid(at)
    with stopped(pid):
        drop_caches()
        words = ["env", "LC_ALL=C", "cat", str(at / "a")]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as reader:
            waits = Path(f"/proc/{reader.pid}/wchan")
            until(lambda: "request_wait" in waits.read_text(), "it waits for the daemon")
            imgfs.run("umount", "--force", at, timeout=BOUND)  # it may still be busy
            _, said = reader.communicate(timeout=BOUND)
            assert "connect" in said  # Transport endpoint is not connected, or: connection abort
        if mount_at(at):
            assert imgfs.ok("umount", "--force", at, timeout=BOUND) == ""
        assert mount_at(at) is None
    until(lambda: not is_alive(pid), "it ends once it goes on", 30.0)
    imgfs.gone(at)


LEAVES_A_THREAD = f"""
import ctypes, signal, sys, threading, time

def leave(*_):
    threading.Thread(target=time.sleep, args=(600,)).start()
    ctypes.CDLL(None).syscall({60 if os.uname().machine == "x86_64" else 93}, 0)  # exit(2), of one thread

signal.signal(signal.SIGUSR1, leave)
from imgfs.cli import main
sys.exit(main())
"""  # as if it were killed while a thread of it waits in the kernel


@pytest.mark.drivers("fuse")
@pytest.mark.parametrize("words", [("umount",), ("umount", "--lazy"), ("umount", "--force")], ids=" ".join)
def test_of_a_daemon_that_was_killed_and_has_a_thread_in_the_kernel_readers_are_freed_by_umount(
    imgfs: Imgfs, image: str, words: tuple[str, ...]
) -> None:
    """Nobody else answers or ends its connection, and its readers cannot be killed."""
    at = imgfs.mountpoint()
    done = imgfs.program(sys.executable, "-c", LEAVES_A_THREAD, "mount", image, at)
    assert (done.code, done.out, done.err) == (0, b"", "")
    imgfs.watch(at)
    pid = imgfs.pid(at)
    os.kill(pid, signal.SIGUSR1)
    with killed_in_the_end(pid):
        _free_readers(imgfs, at, pid, words)
    until(lambda: not is_alive(pid), "the thread has ended")
    imgfs.gone(at)


@contextmanager
def killed_in_the_end(pid: int) -> Iterator[None]:
    """Kill a process: it would pass for the daemon of a later mount of its device number."""
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)


def _free_readers(imgfs: Imgfs, at: Path, pid: int, words: tuple[str, ...]) -> None:
    until(lambda: is_killed_process(pid), "its first thread has ended")
    said = imgfs.run("status", at, timeout=BOUND).complaint()
    todo = f"imgfs umount {at}"
    assert said.endswith(f"its daemon (pid {pid}) was killed, and the kernel waits for it: {todo}")
    drop_caches()
    reader = ["env", "LC_ALL=C", "cat", str(at / "a")]
    with subprocess.Popen(reader, stderr=subprocess.PIPE, text=True) as reading:
        waits = Path(f"/proc/{reading.pid}/wchan")
        until(lambda: "request_wait" in waits.read_text(), "it waits for the daemon")
        imgfs.run(*words, at, timeout=BOUND)  # it may still be busy
        assert "connect" in reading.communicate(timeout=BOUND)[1]
    if mount_at(at):
        assert imgfs.ok("umount", at, timeout=BOUND) == ""
    assert mount_at(at) is None


@pytest.mark.drivers("kernel")
def test_what_the_kernel_serves_itself_is_not_forced(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    said = imgfs.run("umount", "--force", at).complaint()
    todo = f"imgfs umount {at}; if that hangs, kill -9 {imgfs.pid(at)}, its daemon, before it"
    assert said == f"{at}: by the kernel's driver there is nothing to be forced: {todo}"
    assert (at / "a").read_bytes() == b"1"


def test_an_ordinary_user_without_fusectl_is_told_what_root_can_do(nobody: Imgfs) -> None:
    if nobody.driver != "fuse":
        pytest.skip("ordinary users have FUSE only")
    image = write_image(nobody.directory / "layout", [gzipped(tar.archive(tar.file("a", b"1")))])
    at = nobody.mount(image)
    ran = nobody.run("umount", "--force", at)
    if ran.code:
        assert ran.complaint().endswith(f"; as root: umount -f {at}")
        nobody.umount(at)
    else:
        nobody.gone(at)


def test_an_ordinary_user_is_told_the_same(nobody: Imgfs, tmp_path: Path) -> None:
    if nobody.driver != "fuse":
        pytest.skip("ordinary users have FUSE only")
    image = write_image(nobody.directory / "layout", [gzipped(tar.archive(tar.file("a", b"1")))])
    at = nobody.mount(image)
    pid = nobody.pid(at)
    with stopped(pid):
        assert f"its daemon (pid {pid}) is stopped" in nobody.run("status", at, timeout=BOUND).complaint()
        assert nobody.ok("umount", "-l", at, timeout=BOUND) == ""
    nobody.gone(at)


def test_a_daemon_that_says_nothing_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(Path("/mnt"), "fuse.imgfs", "image", "0:1048575")
    asked = []

    def ask(mount: Mount) -> MountStatus:
        asked.append(mount)
        raise DaemonSilent(mount)

    monkeypatch.setattr(unmount_module, "read_status", ask)
    with pytest.raises(DaemonSilent):
        unmount_module.unmount(mount)
    assert asked == [mount]


def test_who_listens_and_says_nothing_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_module, "ANSWER", 0.3)
    monkeypatch.setattr("imgfs.mounts.table.RUNTIME", tmp_path)
    (tmp_path / "one").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "one/status"))
        listener.listen()
        mount = Mount(tmp_path / "mnt", "erofs", str(tmp_path / "one/image"), "0:1048575")
        with pytest.raises(DaemonSilent, match=f"pid {os.getpid()}.* does not answer: imgfs umount -l"):
            read_status(mount)


@pytest.mark.parametrize("options", [[], ["--rw"]])
def test_a_mount_that_another_namespace_has_still_is_said_to_go_on(
    imgfs: Imgfs, tmp_path: Path, options: list[str]
) -> None:
    """`unshare -m` has copies of all mounts; where they are private, unmounting here ends none of them."""
    at = imgfs.mount(write_image(tmp_path / "own", [gzipped(tar.archive(tar.file("a", b"a")))]), *options)
    daemon = imgfs.pid(at)
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo in; exec sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        ended = imgfs.run("umount", at)
        said = f"imgfs: warning: {at}: unmounted here, but its daemon (pid {daemon}) goes on: process "
        assert ended.err.startswith(said)
        assert ended.err.endswith(" has the mount in another mount namespace\n")  # perhaps another test's
        assert ended.code == 0  # as umount(8) ends
        assert mount_at(at) is None
        other.kill()
    until(lambda: not is_alive(daemon), "the daemon ends with the last that has the mount")
    imgfs.gone(at)

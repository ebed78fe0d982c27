"""`imgfs mount --restart`: a mount that outlives its daemon, however often that is killed."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from imgfs.content.profile import AccessProfile
from imgfs.errors import MountError
from imgfs.mount import holder, holder_protocol, holder_start, resume, watched_server
from imgfs.mounts.table import mount_at
from tests.support import restarted
from tests.support.fault_server import FaultServer
from tests.support.mounted import (
    Imgfs,
    Wire,
    drop_caches,
    errno_of,
    is_alive,
    processes_of_tests,
    serve,
    until,
    write_image,
)
from tests.support.pythons import MORE_MODULES
from tests.support.restarted import (
    FILES,
    LAYER,
    NOISE,
    RESTARTED,
    contents,
    holders,
    killed_again_and_again,
    successors,
    uncached,
)

pytestmark = pytest.mark.kernel
image = restarted.image


ENDS_BUT_FOR_A_THREAD = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_daemon_of_which_but_a_thread_is_left_that_waits_for_a_successor_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDS_BUT_FOR_A_THREAD]) as process:
        try:
            server = watched_server.Server(process.pid, *os.pipe(), serves=True)
            status = Path(f"/proc/{process.pid}/task/{process.pid}/status")
            until(lambda: "\nState:\tZ" in status.read_text(), "its first thread has ended")
            assert not server.has_ended()
            assert (server.is_stuck(), server.has_ended()) == (False, True)
            server.close()
        finally:
            process.kill()


@pytest.mark.drivers("fuse", "kernel")
def test_readers_notice_nothing_of_a_storm_of_kills(imgfs: Imgfs) -> None:
    imgfs.expected.append(RESTARTED)
    pauses = [random.Random(3).uniform(0.0, 0.5) for _ in range(10)]
    with FaultServer() as server, ThreadPoolExecutor(3) as readers:
        image = serve(server, "app", "v1", [LAYER])
        at = imgfs.mount(image, "--restart")
        imgfs.evict(image)
        with killed_again_and_again(imgfs, imgfs.pid(at), pauses) as killed:
            reads = []
            while len(killed) < len(pauses):
                reads += [readers.submit(contents, at) for _ in range(3)]
                reads[-1].result()
        assert len(reads) >= 3
        assert all(read.result() == FILES for read in reads)
        status = imgfs.status(at)
        assert (status["restarts"], status["driver"]) == (len(pauses), imgfs.driver)
        assert "restarted 10 times" in imgfs.ok("status", at)
        imgfs.umount(at)
    until(lambda: not processes_of_tests(imgfs.store), "the holder has ended")
    assert mount_at(at) is None


def test_a_read_that_waits_for_the_registry_is_answered_by_the_successor(imgfs: Imgfs) -> None:
    imgfs.expected.append(RESTARTED)
    with FaultServer() as server, Wire(server.host) as wire, ThreadPoolExecutor(1) as reader:
        image = serve(server, "app", "v1", [LAYER], wire.host)
        at = imgfs.mount(image, "--restart")
        imgfs.evict(image)
        wire.stall()
        pid = imgfs.pid(at)
        read = reader.submit((at / "noise").read_bytes)
        time.sleep(0.3)
        assert not read.done()
        os.kill(pid, signal.SIGKILL)
        until(lambda: successors(imgfs), "there is a successor")
        wire.mend()
        assert read.result() == NOISE
        imgfs.umount(at)


def counted(imgfs: Imgfs, at: Path) -> dict[str, Any]:
    """What a mount has counted that no reader changes just now."""
    status = imgfs.status(at)
    layer = status["layers"][0]
    names = ("needed", "needed_fetched", "fetched", "misses", "requests", "brought", "spans_touched", "hits")
    timeline = {name: sum(sums) for name, sums in status["timeline"]["fetched"].items()}
    kept = {name: status[name] for name in ("bytes_served", "spans_recorded", "requests_fetched")}
    return {**kept, **{name: layer[name] for name in names}, "timeline": timeline}


def test_statistics_and_the_profile_go_on(imgfs: Imgfs) -> None:
    imgfs.expected.append(RESTARTED)
    with FaultServer() as server:
        image = serve(server, "app", "v1", [LAYER])
        at = imgfs.mount(image, "--restart", "--record", "all")
        imgfs.evict(image)
        found = []
        for number in range(1, 5):
            uncached(at / "noise") if number == 3 else uncached(at / f"d{number}/f{number}")
            found.append(counted(imgfs, at))
            if number == 2:
                assert imgfs.ok("upgrade", at) == ""
            else:
                os.kill(imgfs.pid(at), signal.SIGKILL)
            assert counted(imgfs, at) == found[-1]
        assert found[0]["fetched"] > 0
        assert found[3]["bytes_served"] > found[2]["bytes_served"] > len(NOISE)
        imgfs.umount(at)
    assert found[3]["spans_recorded"] == found[3]["spans_touched"] > found[0]["spans_recorded"] > 0
    (profile,) = imgfs.store.rglob("all.json")
    ranges = AccessProfile.from_json(profile.read_bytes()).touches
    assert sum(each.length for each in ranges) > len(NOISE)


LOADS = """
import sys
from imgfs.mount import resume
program, *words = resume.successor_program()
resume.successor_program = lambda: [program, "-X", "importtime", *words]
from imgfs.cli import main
sys.exit(main())
"""  # a daemon whose successors write to the log what they import


def test_a_successor_loads_little_before_it_answers(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append("^import time: ")
    at = imgfs.mountpoint()
    mount = "mount", "--restart", image, at
    assert imgfs.program(sys.executable, "-c", LOADS, *mount) == (0, b"", "")
    imgfs.watch(at)
    os.kill(imgfs.pid(at), signal.SIGKILL)
    assert (at / "noise").read_bytes() == NOISE
    lines = [line.rpartition("|")[2].strip() for line in imgfs.logged() if line.startswith("import time: ")]
    own = [name for name in lines if name.startswith("imgfs")]
    assert len(own) <= 113  # each takes 0.3 ms
    assert len(lines) - len(own) <= 142 + MORE_MODULES
    late = "trio", "requests", "ssl", "asyncio", "subprocess", "http", "imgfs.status", "imgfs.overlay.union"
    assert not [name for name in lines if name.startswith(late)]
    imgfs.umount(at)


@pytest.mark.drivers("fuse", "kernel")
def test_what_runs_out_of_the_mount_goes_on(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart")
    with open(at / "noise", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        cwd = subprocess.Popen(["sleep", "600"], cwd=at / "d1")
        os.kill(imgfs.pid(at), signal.SIGKILL)
        drop_caches()
        assert hashlib.sha256(mapped).digest() == hashlib.sha256(NOISE).digest()
        assert file.read() == NOISE
        assert sorted(os.listdir(f"/proc/{cwd.pid}/cwd")) == sorted(os.listdir(at / "d1"))
        cwd.kill()
        cwd.wait()
    imgfs.umount(at)


def test_an_ordinary_users_mount_lives_on_and_is_unmounted(nobody: Imgfs) -> None:
    nobody.expected.append(RESTARTED)
    image = write_image(nobody.directory / "layout", [LAYER])
    at = nobody.mount(image, "--restart")
    for _ in range(2):
        os.kill(nobody.pid(at), signal.SIGKILL)
        assert nobody.program("cat", at / "noise").out == NOISE
    assert nobody.status(at)["restarts"] == 2
    pid = nobody.pid(at)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not processes_of_tests(nobody.store), "all of it has ended")
    assert mount_at(at) is None
    nobody.gone(at)


@pytest.mark.drivers("fuse", "kernel")
@pytest.mark.parametrize("words", [("umount", "{at}"), ("umount", "-l", "{at}"), ("kill", "{pid}")])
def test_however_it_ends_nothing_is_left(imgfs: Imgfs, image: str, words: tuple[str, ...]) -> None:
    at = imgfs.mount(image, "--restart")
    os.kill(imgfs.pid(at), signal.SIGKILL)
    pid = imgfs.pid(at)
    assert len(holders(imgfs)) == 1
    done = imgfs.program(*(word.format(at=at, pid=pid) for word in words))
    assert (done.code, done.err) == (0, "")
    until(lambda: not processes_of_tests(imgfs.store), "all of it has ended")
    assert (mount_at(at), is_alive(pid)) == (None, False)
    imgfs.gone(at)


def test_without_the_holder_a_kill_is_the_end(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart")
    for pid in holders(imgfs):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not holders(imgfs), "the holder is dead")
    assert (at / "noise").read_bytes() == NOISE
    os.kill(imgfs.pid(at), signal.SIGKILL)
    until(lambda: errno_of(lambda: os.statvfs(at)) == errno.ENOTCONN, "the connection has ended")
    imgfs.umount(at)


def test_successors_that_cannot_serve_are_not_tried_for_ever(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(" ERROR .* the tree has been removed meanwhile")
    at = imgfs.mount(image, "--restart")
    shutil.rmtree(imgfs.store / "trees")
    os.kill(imgfs.pid(at), signal.SIGKILL)
    until(lambda: errno_of(lambda: os.statvfs(at)) == errno.ENOTCONN, "the holder has given up")
    until(lambda: not processes_of_tests(imgfs.store), "it has ended")
    assert sum(" ERROR " in line for line in imgfs.logged()) == holder.TRIES
    imgfs.umount(at)


def test_what_cannot_be_restarted_is_said_before_any_request(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    for option, reason in (
        (["--foreground"], "whatever started a daemon in the foreground has to start it again"),
        (["-o", "auto_unmount"], "-o auto_unmount unmounts what a daemon leaves behind"),
    ):
        said = imgfs.run("mount", "--restart", *option, image, at).complaint(2)
        assert said == f"--restart: {reason}"


def test_a_kernel_that_sends_nothing_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, is_new in {
        "6.8.0-45-generic": False,
        "6.10": True,
        "5.15.1": False,
        "7.0-rc1": True,
    }.items():
        monkeypatch.setattr(os, "uname", lambda release=release: os.uname_result(("", "", release, "", "")))
        if is_new:
            resume.check_kernel()
        else:
            with pytest.raises(MountError, match=f"Linux {release}, and has to be 6.9"):
                resume.check_kernel()


# -- a daemon that lives, and does not answer ----------------------------------------------------------------

BEAT = 0.2  # seconds
KEEN = f"""
import os, signal, sys, threading
from imgfs.mount import holder_protocol
holder_protocol.BEAT = {BEAT}

def loop(*_):
    while True:
        pass

def wait(*_):
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

signal.signal(signal.SIGUSR1, loop)
signal.signal(signal.SIGUSR2, wait)
from imgfs.cli import main
sys.exit(main())
"""  # a daemon that is easily noticed to be stuck, and that signals make loop, or wait for ever


def mount_keen(imgfs: Imgfs, image: str, *options: str) -> Path:
    at = imgfs.mountpoint()
    done = imgfs.program(sys.executable, "-c", KEEN, "mount", "--restart", *options, image, at)
    assert (done.code, done.out, done.err) == (0, b"", "")
    imgfs.watch(at)
    return at


@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGSTOP, "T"), (signal.SIGUSR1, "R"), (signal.SIGUSR2, "S")]
)
def test_a_daemon_that_is_stuck_is_replaced(
    imgfs: Imgfs, image: str, number: signal.Signals, state: str
) -> None:
    pid_in_log = r"the daemon \(pid \d+\) is stuck, state (.): it is killed"
    imgfs.expected.append(f" WARNING .* {pid_in_log}")
    at = mount_keen(imgfs, image)
    imgfs.evict(image)
    pid = imgfs.pid(at)
    os.kill(pid, number)
    assert contents(at) == FILES
    assert not is_alive(pid)
    found = [re.search(pid_in_log, line) for line in imgfs.logged()]
    assert [match[1] for match in found if match] == [state]
    assert imgfs.status(at)["restarts"] == 1
    imgfs.umount(at)


def test_a_stuck_daemons_mount_is_taken_away_lazily_and_nothing_is_left(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(" WARNING .* is stuck, state T: it is killed")
    at = mount_keen(imgfs, image)
    os.kill(imgfs.pid(at), signal.SIGSTOP)
    assert imgfs.ok("umount", "-l", at, timeout=40) == ""
    imgfs.gone(at)
    until(lambda: not processes_of_tests(imgfs.store), "the daemon and its holder have ended")


@pytest.mark.drivers("fuse", "kernel")
def test_nothing_hangs_while_no_process_serves(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart")
    pid = imgfs.pid(at)
    os.kill(pid, signal.SIGSTOP)
    for words in (("status", at), ("umount", at), ("status", "--json", at)):
        said = imgfs.run(*words, timeout=30).complaint()
        why = f"its daemon (pid {pid}) is stopped: it is being replaced: wait, or imgfs umount -l {at}"
        assert said == f"{at}: {why}"
    rows = {row["mountpoint"]: row for row in json.loads(imgfs.ok("ps", "--json", timeout=30))}
    assert (rows[str(at)]["pid"], rows[str(at)]["restarts"]) == (None, None)
    os.kill(pid, signal.SIGKILL)
    imgfs.umount(at)


def test_a_daemon_that_waits_for_a_registry_is_left_alone(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire, ThreadPoolExecutor(1) as reader:
        image = serve(server, "app", "v1", [LAYER], wire.host)
        at = mount_keen(imgfs, image, "--plain-http")
        imgfs.evict(image)
        wire.stall()
        read = reader.submit((at / "noise").read_bytes)
        time.sleep(1.5 * watched_server.ASLEEP * BEAT * 1.5)
        assert not read.done()
        wire.mend()
        assert read.result() == NOISE
        assert imgfs.status(at)["restarts"] == 0
        imgfs.umount(at)


@pytest.mark.parametrize(
    ("state", "seconds", "silences"),
    [
        ("T", 0.0, watched_server.STOPPED),
        ("S", 0.0, watched_server.ASLEEP),
        ("R", 9.0, watched_server.ASLEEP),  # loops
        ("R", 0.01, None),  # gets no processor
        ("D", 0.0, None),  # waits for a disk
        ("t", 0.0, None),  # is looked at by a debugger
    ],
)
def test_what_counts_as_stuck(
    monkeypatch: pytest.MonkeyPatch, state: str, seconds: float, silences: int | None
) -> None:
    used = 0.0

    def processor_time(_: watched_server.Server) -> float:
        nonlocal used
        used += seconds
        return used

    monkeypatch.setattr(watched_server.Server, "state", lambda _: state)
    monkeypatch.setattr(watched_server.Server, "_processor_time", processor_time)
    read, written = os.pipe()
    with open(read, "rb"), open(written, "wb", buffering=0) as pipe:
        server = watched_server.Server(os.getpid(), read, written, serves=True)
        judged = [server.is_stuck() for _ in range(40)]
        assert (judged.index(True) + 1 if any(judged) else None) == silences
        pipe.write(holder_protocol.BEATS)
        server.listen()
        assert not server.is_stuck()
        assert server.said == b""
        os.close(server.fd)


# -- the holder ----------------------------------------------------------------------------------------------


def held(tmp_path: Path, said: bytes, script: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Have a holder hold for a daemon that has said something and is dead; its successors run `script`."""
    daemon = subprocess.Popen(["true"])
    daemon.wait()
    control, written = os.pipe()
    os.write(written, said)
    os.close(written)
    orders, told = os.pipe()
    program = tmp_path / "successor"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with open(os.devnull, "rb") as null, open(control, "rb") as pipe:
        fds = [null.fileno(), null.fileno(), orders, null.fileno()]
        numbers = *fds, 0.2, 0, holder_protocol.NO_ORDER, f"{daemon.pid}/{daemon.pid}:{pipe.fileno()}:{told}:"
        given = ["/mnt", "0:99", *map(str, numbers), holder_protocol.NO_POOL, str(program), "word"]
        python, *words = holder_start.holder_program()
        return subprocess.run(
            [python, *options, *words, *given],
            pass_fds=(*fds, pipe.fileno(), told),
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=60,
        )


def test_a_mount_that_has_ended_needs_no_successor(tmp_path: Path) -> None:
    assert held(tmp_path, b"se", "touch started").returncode == 0
    assert not (tmp_path / "started").exists()


def test_the_holder_counts_only_successors_that_do_not_serve_one_after_the_other(tmp_path: Path) -> None:
    serves_at = 'echo "$1 $7" >>started; if [ $7 = 3 ]; then printf s >/proc/self/fd/$5; fi'
    assert held(tmp_path, b"s", serves_at).returncode == 1
    started = [f"word {number}" for number in range(1, 3 + holder.TRIES)]
    assert (tmp_path / "started").read_text().splitlines() == [*started, f"word {3 + holder.TRIES}"]


def test_the_holder_imports_its_own_modules_and_no_package(tmp_path: Path) -> None:
    done = held(tmp_path, b"se", "", "-X", "importtime")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.decode().splitlines()}
    own = {f"imgfs.mount.{name}" for name in ("holder", "holder_orders", "holder_protocol", "watched_server")}
    assert {name for name in loaded if name.startswith("imgfs")} == own
    assert not [name for name in loaded if name.startswith(("socket", "subprocess", "contextlib", "typing"))]
    assert done.returncode == 0
    assert "select" in loaded

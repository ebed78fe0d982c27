"""`imgfs run` where `imgfs serve` waits: a container is as it is without, and ends with its command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.containers import busybox, first_line, first_pid, shell
from tests.support.mounted import Imgfs, is_alive, until
from tests.support.served import Server

pytestmark = containers.marks
layout, image, run = containers.layout, containers.image, containers.run

SLEEPS = "trap 'exit 42' TERM; trap 'echo one' USR1; echo up; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def server(module_imgfs: Imgfs) -> Iterator[Server]:
    with Server(module_imgfs) as server:
        yield server


def test_it_has_the_input_variables_directory_and_limits_of_its_command(
    run: Imgfs, server: Server, image: str, tmp_path: Path
) -> None:
    script = "cat; cat file; echo $WORD; ulimit -n; umask; cat /proc/self/oom_score_adj >&2; exit 7"
    words = run.command("run", "-i", "-e", "WORD", "-v", ".:/here", "-w", "/here", image, "sh", "-c", script)
    (tmp_path / "file").write_text("of the directory\n")
    begin = 'echo 5 >/proc/self/oom_score_adj; ulimit -n 99; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", begin, "sh", *words],
        env={**run.environment, "WORD": "a word"},
        cwd=tmp_path,
        input=b"of the input\n",
        capture_output=True,
        check=False,
    )
    said = b"of the input\nof the directory\na word\n99\n0022\n"
    assert server.said("WORD") == 0
    assert (done.returncode, done.stdout, done.stderr) == (7, said, b"5\n")
    assert server.said(": imgfs run") == 1


def test_signals_reach_it_and_its_exit_code_is_the_commands(run: Imgfs, server: Server, image: str) -> None:
    process = run.start("run", image, "sh", "-c", SLEEPS)
    assert first_line(process) == "up"
    process.send_signal(signal.SIGUSR1)
    assert first_line(process) == "one"
    process.terminate()
    assert process.wait(60) == 42
    until(lambda: not server.forked(), "the forked process has ended")


def test_it_ends_with_its_command_and_not_with_the_server(
    run: Imgfs, image: str, module_imgfs: Imgfs
) -> None:
    with Server(module_imgfs, "another") as another:
        process = run.start("run", "--name", "kept", "--stop-timeout", "1", image, "sh", "-c", SLEEPS)
        assert first_line(process) == "up"
        assert another.said(": imgfs run") == 1
        pid = first_pid(run, "kept")
    assert is_alive(pid)
    process.kill()
    process.communicate()
    until(lambda: not is_alive(pid), "the container has ended")


def test_what_only_its_own_process_can_open_is_not_asked_of_the_server(
    run: Imgfs, server: Server, image: str
) -> None:
    before = server.log.read_text()
    inside = run.command("run", "--env-file", "/dev/fd/9", image, "sh", "-c", "echo $WORD")
    words = ["sh", "-c", 'echo WORD=here | "$@" 9<&0', "sh", *inside]
    assert subprocess.run(words, env=run.environment, capture_output=True, check=True).stdout == b"here\n"
    assert server.log.read_text() == before


def cgroups_to_join() -> Path | None:
    """The top of a hierarchy in which a cgroup can be made, if there is one."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    names = [line.split(":")[1].removeprefix("name=") for line in lines]
    tops = [Path("/sys/fs/cgroup", name) for name in names if name] or [Path("/sys/fs/cgroup")]
    return next((top for top in tops if os.access(top / "cgroup.procs", os.W_OK)), None)


@pytest.mark.skipif(cgroups_to_join() is None, reason="no cgroup can be made here")
def test_a_container_is_in_the_cgroups_of_its_command(run: Imgfs, server: Server, image: str) -> None:
    top = cgroups_to_join()
    assert top
    own = top / f"test-served-{os.getpid()}"
    own.mkdir()
    try:
        script = f'echo $$ >{own}/cgroup.procs; exec "$@"'
        words = run.command("run", "--name", "bound", image, "sh", "-c", SLEEPS)
        process = subprocess.Popen(
            ["sh", "-c", script, "sh", *words], env=run.environment, stdout=subprocess.PIPE
        )
        assert first_line(process) == "up"
        forked = server.forked()
        process.terminate()
        cgroups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in forked]
        process.communicate()
        assert process.returncode == 42
        assert [own.name in text for text in cgroups] == [True]
    finally:
        until(lambda: not (own / "cgroup.procs").read_text(), "all have left it")
        own.rmdir()


def test_an_ordinary_users_server_serves_his_mounts_and_containers_and_no_other_users(nobody: Imgfs) -> None:
    image, at = busybox(nobody.directory / "layout", Cmd=["sh"]), nobody.mountpoint()
    with Server(nobody) as server:
        assert nobody.run("mount", "--driver", "fuse", image, at).code == 0
        nobody.watch(at)
        ran = shell(nobody, image, "id -u; touch /new; exit 5")
        assert (ran.code, ran.text, ran.err) == (5, "0\n", "")
        assert (server.said(": imgfs mount"), server.said(": imgfs run")) == (1, 1)
        words = [sys.executable, "-m", "imgfs", "mount", "oci:/nowhere:x", str(at)]
        roots = {**nobody.environment, "HOME": "/root", "IMGFS_STORE": str(nobody.directory / "roots")}
        assert subprocess.run(words, env=roots, capture_output=True, check=False).returncode == 1
        assert server.said(": imgfs mount") == 1
    nobody.umount(at)


def test_an_error_is_said_once_with_podmans_code(run: Imgfs, server: Server, image: str) -> None:
    ran = shell(run, image, "true", "--user", "no-one-has-it")
    assert (ran.code, ran.err.count("\n")) == (126, 1)
    assert run.run("run", "--no-such-option", image).code == 125
    assert server.said("Traceback") == 0

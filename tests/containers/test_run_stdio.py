"""The standard files of a container: pipes of imgfs's, and nothing of the caller's is open in it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.containers import RUNTIMES, first_line, has_static_busybox
from tests.support.mounted import Imgfs

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
    pytest.mark.skipif(not has_static_busybox(), reason="there is no static busybox"),
    pytest.mark.parametrize("runtime", RUNTIMES),
]
layout, image, run = containers.layout, containers.image, containers.run

OPEN = "busybox ls -l /proc/$$/fd; true"
KINDS = "for f in 0 1 2; do test -t $f && echo terminal; test -p /proc/$$/fd/$f && echo pipe; done; echo end"


@pytest.mark.parametrize("options", [[], ["-i"]])
def test_without_a_terminal_of_its_own_it_has_none_of_its_callers(
    run: Imgfs, image: str, runtime: str, options: list[str], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    script = f"({KINDS}) >/out/seen; exec 3<>/dev/tty && echo terminal >>/out/seen"
    words = ("run", "--runtime", runtime, *options, "-v", f"{tmp_path}:/out", image, "sh", "-c", script)
    process = run.start(*words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.write(ours, b"typed\n\x04")
    process.wait(30)
    os.close(ours)
    os.close(theirs)
    words_seen = (tmp_path / "seen").read_text().split()
    assert "terminal" not in words_seen
    assert words_seen.count("pipe") >= 1  # its standard output is a file, its standard error a pipe


@pytest.mark.parametrize("options", [[], ["-i"]])
def test_no_file_of_the_callers_is_open_in_it(
    run: Imgfs, image: str, runtime: str, options: list[str], tmp_path: Path
) -> None:
    command = run.command("run", "--runtime", runtime, *options, image, "sh", "-c", OPEN)
    script = 'exec 5<>secret 7<. 9<>/dev/ptmx; LISTEN_FDS=8 LISTEN_PID=$$ exec "$@" <>in >>out 2>>err'
    (tmp_path / "in").touch()
    words = ["bash", "-c", script, "bash", *command]
    done = subprocess.run(words, env=run.environment, cwd=tmp_path, timeout=60, check=False)
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines() if " -> " in line]
    shown = {words[-3]: words[-1] for words in lines}
    assert done.returncode == 0, (tmp_path / "err").read_text()
    assert set(shown) <= {"0", "1", "2", "10"}  # 10: the shell's own
    assert shown["0"] == "/dev/null" or shown["0"].startswith("pipe:")
    assert shown["1"].startswith("pipe:")
    assert shown["2"].startswith("pipe:")


def test_what_a_service_manager_tells_imgfs_it_does_not_tell_the_container(
    run: Imgfs, image: str, runtime: str, tmp_path: Path
) -> None:
    words = run.command("run", "--runtime", runtime, image, "sh", "-c", "echo ${NOTIFY_SOCKET-none}; ls /run")
    ran = run.program("env", f"NOTIFY_SOCKET={tmp_path}/notify", "LISTEN_FDS=3", *words)
    assert ran.text == "none\n"


def test_much_is_passed_on_whole(run: Imgfs, image: str, runtime: str) -> None:
    script = "busybox head -c 9000000 /dev/zero >&2 & busybox cat; wait"
    process = run.start("run", "-i", "--runtime", runtime, image, "sh", "-c", script, stdin=subprocess.PIPE)
    body = os.urandom(1 << 20) * 9
    out, err = process.communicate(body, timeout=60)
    assert (process.returncode, out == body, err == bytes(9_000_000)) == (0, True, True)


def test_what_cannot_be_written_is_an_error(run: Imgfs, image: str, runtime: str) -> None:
    words = run.command("run", "--runtime", runtime, image, "echo", "much")
    ran = run.program("sh", "-c", '"$@" >/dev/full', "sh", *words)
    assert ran.complaint(125) == "standard output: No space left on device"


def test_an_ordinary_user_of_the_image_can_open_its_standard_files(
    run: Imgfs, image: str, runtime: str
) -> None:
    script = "echo out >/dev/stdout; echo err >/proc/self/fd/2; read line </dev/stdin; echo $line"
    words = ("run", "-i", "-u", "web", "--runtime", runtime, image, "sh", "-c", script)
    process = run.start(*words, stdin=subprocess.PIPE)
    assert process.communicate(b"in\n", timeout=30) == (b"out\nin\n", b"err\n")


def test_files_that_do_not_wait_are_waited_for(run: Imgfs, image: str, runtime: str) -> None:
    """A shell may leave its terminal's or its pipes' description non-blocking."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    words = ("--runtime", runtime, image, "busybox", "head", "-c", "3000000", "/dev/zero")
    process = run.start("run", *words, stdout=theirs)
    os.close(theirs)
    with open(ours, "rb") as file:
        assert file.read() == bytes(3_000_000)
    assert process.wait(30) == 0


def test_a_container_that_does_not_heed_a_sigterm_is_killed_in_the_time_given(
    run: Imgfs, image: str, runtime: str
) -> None:
    """Process 1 of a container ignores what it has no handler for (pid_namespaces(7))."""
    words = ("--runtime", runtime, "--stop-timeout", "1", image, "sh", "-c", "echo up; exec sleep 90")
    process = run.start("run", *words)
    assert first_line(process) == "up"
    process.terminate()
    assert process.wait(60) == 137
    process.communicate()


@pytest.mark.parametrize(
    ("number", "script", "code"),
    [
        (signal.SIGTERM, "echo up; exec cat /dev/zero", 137),
        (signal.SIGINT, "trap 'exit 7' INT; cat /dev/zero & sleep 2; echo up >&2; wait", 7),
    ],
)
def test_a_container_that_is_told_to_end_ends_though_its_output_is_not_read(
    run: Imgfs, image: str, runtime: str, number: signal.Signals, script: str, code: int
) -> None:
    """runc copies the output itself, and waits for all of it to be read."""
    words = ("--runtime", runtime, "--stop-timeout", "1", image, "sh", "-c", script)
    process = run.start("run", *words)
    stream = process.stderr if number == signal.SIGINT else process.stdout
    assert stream
    assert stream.readline() == b"up\n"
    process.send_signal(number)
    assert process.wait(40) == code
    process.communicate()

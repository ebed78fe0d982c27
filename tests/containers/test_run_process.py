"""A container as a process among others: pipes, terminals, signals, children, and how each of them ends."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import containers
from tests.support.containers import RUNTIMES, first_line, first_pid, has_static_busybox, shell
from tests.support.mounted import Imgfs, is_alive, until
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
    pytest.mark.skipif(not has_static_busybox(), reason="there is no static busybox"),
    pytest.mark.parametrize("runtime", RUNTIMES),
]
layout, image, run = containers.layout, containers.image, containers.run


def in_shell(run: Imgfs, script: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """A script of bash's in which "$@" is `imgfs run` with these words."""
    command = ["bash", "-c", script, "bash", *run.command("run", *words)]
    return subprocess.run(command, env=run.environment, capture_output=True, timeout=allowed(60), check=False)


def test_who_has_read_enough_ends_what_writes(run: Imgfs, image: str, runtime: str) -> None:
    script = '"$@" | head -n 1; test ${PIPESTATUS[0]} -ne 0'
    done = in_shell(run, script, "--runtime", runtime, image, "busybox", "yes")
    assert (done.returncode, done.stdout) == (0, b"y\n")


def test_a_command_that_has_read_enough_ends_who_writes_to_it(run: Imgfs, image: str, runtime: str) -> None:
    script = 'yes | "$@"; echo ${PIPESTATUS[*]}'
    done = in_shell(run, script, "--runtime", runtime, "-i", image, "busybox", "head", "-n", "1")
    assert done.stdout == b"y\n141 0\n"


def test_the_end_of_the_input_is_not_the_end_of_the_output(run: Imgfs, image: str, runtime: str) -> None:
    words = ("run", "--runtime", runtime, "-i", image, "sh", "-c", "cat; sleep 0.3; echo more; echo err >&2")
    process = run.start(*words, stdin=subprocess.PIPE)
    assert process.communicate(b"in\n", timeout=allowed(60)) == (b"in\nmore\n", b"err\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files_are_as_good_as_empty_ones(
    run: Imgfs, image: str, runtime: str, closed: str
) -> None:
    done = in_shell(
        run, f'"$@" {closed}', "--runtime", runtime, "-i", image, "sh", "-c", "cat; echo x; exit 3"
    )
    assert (done.returncode, done.stderr) == (3, b"")


def test_children_end_with_the_command(run: Imgfs, image: str, runtime: str) -> None:
    begun = time.monotonic()
    ran = shell(run, image, "sleep 90 & busybox setsid sleep 90 & echo out; exit 3", "--runtime", runtime)
    assert (ran.code, ran.text) == (3, "out\n")
    assert time.monotonic() - begun < allowed(45)


def test_orphans_are_reaped_by_an_init(run: Imgfs, image: str, runtime: str) -> None:
    script = "(sleep 0.1 &); sleep 0.5; grep -l 'State:.Z' /proc/[0-9]*/status | grep -c ."
    assert shell(run, image, script, "--runtime", runtime, "--init").text == "0\n"
    assert shell(run, image, f"exec sh -c '{script}; true'", "--runtime", runtime).text in ("0\n", "1\n")


def test_a_signal_of_an_init_systems_reaches_the_command(run: Imgfs, image: str, runtime: str) -> None:
    number = signal.SIGRTMIN + 3
    script = f"trap 'echo got it; exit 9' {number}; echo up; while :; do sleep 0.1; done"
    process = run.start("run", "--runtime", runtime, image, "sh", "-c", script)
    assert first_line(process) == "up"
    process.send_signal(number)
    assert process.communicate(timeout=allowed(60)) == (b"got it\n", b"")
    assert process.returncode == 9


def test_a_killed_runtime_takes_its_container_along(run: Imgfs, image: str, runtime: str) -> None:
    name = f"lost-{runtime}"
    process = run.start("run", "--runtime", runtime, "--name", name, image, "sh", "-c", "echo up; sleep 90")
    assert first_line(process) == "up"
    pid = first_pid(run, name)
    os.kill(parent_of(pid), signal.SIGKILL)
    assert process.wait(30) == 137
    until(lambda: not is_alive(pid), "the container has ended")


def parent_of(pid: int) -> int:
    status = Path("/proc", str(pid), "status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def test_an_orphan_that_does_not_stop_is_killed_in_the_time_given(
    run: Imgfs, image: str, runtime: str, tmp_path: Path
) -> None:
    name = f"stubborn-{runtime}"
    script = "trap 'echo told >>/out/word' QUIT; trap '' TERM; echo up; while :; do sleep 0.1; done"
    options = ("--stop-signal", "QUIT", "--stop-timeout", "1", "-v", f"{tmp_path}:/out")
    words = ("run", "--runtime", runtime, "--name", name, *options, image, "sh", "-c", script)
    process = run.start(*words)
    assert first_line(process) == "up"
    pid = first_pid(run, name)
    process.kill()
    process.communicate()
    until(lambda: not is_alive(pid), "the container has ended", 8.0)  # not after the usual 10 s
    assert (tmp_path / "word").read_text() == "told\n"


class Terminal:
    """A command that has a terminal of its own, seen from the terminal's other end."""

    def __init__(self, run: Imgfs, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(24, 80)
        command = [
            "setsid",
            "-c",
            *run.command("run", "-it", *words),
        ]  # not a group's leader: it does not fork
        self.process = subprocess.Popen(
            command, env=run.environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, text: bytes) -> None:
        """Wait until it was written."""
        end = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 4096)
        self.seen = self.seen.partition(text)[2]


@pytest.fixture
def terminal(run: Imgfs, image: str, runtime: str) -> Iterator[Terminal]:
    """A shell on a terminal that says when its size changes, and survives an interrupt but no key to quit."""
    traps = "trap 'busybox stty size' WINCH; trap 'echo interrupted' INT; trap 'exit 7' QUIT"
    script = f"{traps}; busybox stty size; while :; do sleep 0.1; done"
    found = Terminal(run, "-it", "--runtime", runtime, image, "sh", "-c", script)
    yield found
    os.write(found.ours, b"\x1c")
    assert found.process.wait(30) == 7
    os.close(found.ours)


def test_a_terminal_has_its_size_and_follows_it(terminal: Terminal) -> None:
    terminal.expect(b"24 80")
    terminal.resize(41, 99)
    terminal.expect(b"41 99")


def test_the_keys_of_a_terminal_mean_the_container(terminal: Terminal) -> None:
    terminal.expect(b"24 80")
    os.write(terminal.ours, b"\x03")
    terminal.expect(b"interrupted")
    assert terminal.process.poll() is None


@pytest.mark.parametrize("options", [[], ["-it"]])
def test_a_terminal_that_is_closed_ends_its_container(
    run: Imgfs, image: str, runtime: str, options: list[str]
) -> None:
    name = f"hung-up-{runtime}"
    words = ("--runtime", runtime, "--name", name, "--stop-timeout", "1", *options)
    found = Terminal(run, *words, image, "sh", "-c", "echo up; while :; do sleep 0.1; done")
    found.expect(b"up")
    pid = first_pid(run, name)
    os.close(found.ours)
    until(lambda: not is_alive(pid), "the container has ended")
    found.process.wait(30)


def test_what_ignores_the_end_of_its_terminal_goes_on(run: Imgfs, image: str, runtime: str) -> None:
    script = "trap 'exit 9' TERM; trap 'exit 8' HUP; echo up; while :; do sleep 0.1; done"
    words = run.command("run", "--runtime", runtime, image, "sh", "-c", script)
    process = subprocess.Popen(["nohup", *words], env=run.environment, stdout=subprocess.PIPE)
    assert first_line(process) == "up"
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    process.terminate()
    assert process.communicate(timeout=allowed(60))[0] == b""
    assert process.returncode == 9

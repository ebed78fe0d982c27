"""Containers that outlive the command that started them: listed, read, entered, ended, removed."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import containers
from tests.support.containers import (
    PODMAN,
    RUNTIMES,
    busybox,
    first_pid,
    installed,
    needs_podman,
    podman_is_5,
    traces,
)
from tests.support.mounted import Imgfs, is_alive, until
from tests.support.patience import allowed

pytestmark = containers.marks
layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman

GOES_ON = "trap 'exit 7' TERM; echo up; echo oops >&2; while :; do sleep 0.1; done"


@contextlib.contextmanager
def detached(imgfs: Imgfs, image: str, script: str, *options: str | Path, name: str = "box") -> Iterator[str]:
    """A detached container for the block; its id."""
    identity = imgfs.ok("run", "-d", "--name", name, *options, image, "sh", "-c", script).strip()
    try:
        yield identity
    finally:
        imgfs.run("rm", "-f", "-t", "0", name)


def inspected(imgfs: Imgfs, name: str = "box") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(imgfs.ok("container", "inspect", name))[0]
    return found


def logged(imgfs: Imgfs, count: int, name: str = "box") -> None:
    """Wait until a container has said so many lines."""
    until(
        lambda: len((imgfs.run("logs", name).text + imgfs.run("logs", name).err).splitlines()) >= count,
        "said",
    )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_detached_container_goes_on_is_read_and_stopped(run: Imgfs, image: str, runtime: str) -> None:
    with detached(run, image, GOES_ON, "--runtime", runtime) as identity:
        assert len(identity) == 64
        assert set(identity) <= set("0123456789abcdef")
        logged(run, 2)
        ran = run.run("logs", "box")
        assert (ran.code, ran.text, ran.err) == (0, "up\n", "oops\n")
        row = json.loads(run.ok("ps", "--format", "json"))[0]
        assert (row["Id"], row["Names"], row["State"], row["Exited"]) == (identity, ["box"], "running", False)
        assert row["Pid"] == first_pid(run, "box")
        assert run.ok("stop", identity[:5]) == f"{identity[:5]}\n"
        state = inspected(run)["State"]
        assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 7, 0)
        assert run.ok("wait", "box") == "7\n"
        assert run.ok("ps", "-q") == ""
        assert run.ok("ps", "-aq") == f"{identity[:12]}\n"
        assert run.ok("rm", "box") == "box\n"
        assert run.ok("ps", "-aq") == ""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exec_runs_beside_it_and_is_confined_as_it_is(run: Imgfs, image: str, runtime: str) -> None:
    facts = (
        "busybox grep -E '^(Cap|NoNewPrivs|Seccomp)' /proc/self/status; busybox readlink /proc/self/ns/pid"
    )
    options = ("--runtime", runtime, "--cap-drop", "KILL", "--security-opt", "no-new-privileges")
    with detached(run, image, f"{facts}; {GOES_ON}", *options):
        logged(run, 9)
        first = run.run("logs", "box").text.splitlines()[:-1]
        assert run.ok("exec", "box", "sh", "-c", facts).splitlines() == first
        as_user = run.ok("exec", "-u", "web", "box", "sh", "-c", f"id; echo $HOME; {facts}")
        assert as_user.startswith("uid=33(web) gid=34(web) groups=34(web),44(extra)\n/srv\n")
        assert "CapEff:\t0000000000000000\n" in as_user


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_exec_has_podmans_options_and_exit_codes(run: Imgfs, image: str, runtime: str) -> None:
    with detached(run, image, GOES_ON, "--runtime", runtime, "-e", "A=first", "-w", "/srv"):
        assert run.ok("exec", "box", "sh", "-c", "pwd; echo $A") == "/srv\nfirst\n"
        assert (
            run.ok("exec", "-w", "/etc", "-e", "A=more", "box", "sh", "-c", "pwd; echo $A") == "/etc\nmore\n"
        )
        process = run.start("exec", "-i", "box", "cat", stdin=subprocess.PIPE)
        assert process.communicate(b"x" * 200_000)[0] == b"x" * 200_000
        assert run.run("exec", "box", "sh", "-c", "exit 3").code == 3
        assert "'nope'" in run.run("exec", "box", "nope").complaint(127)
        assert "is a directory" in run.run("exec", "box", "/srv").complaint(126)
        assert "not executable" in run.run("exec", "box", "/bin/plain").complaint(126)
        assert "'nope'" in run.run("exec", "-u", "nope", "box", "true").complaint(125)
        assert run.run("exec", "--nope", "box", "true").code == 125
        assert run.run("exec", "nothing", "true").complaint(125).endswith("no such container")
        assert len(run.ok("exec", "-d", "box", "sh", "-c", "echo there >/tmp/it").strip()) == 64
        until(lambda: run.run("exec", "box", "cat", "/tmp/it").text == "there\n", "it has run")
        run.ok("stop", "-t", "0", "box")
        assert "exited" in run.run("exec", "box", "true").complaint(255)


def test_exec_reads_the_passwd_that_the_container_has_now(run: Imgfs, image: str) -> None:
    """A link in the container never leads out of it."""
    script = "rm /etc/passwd; busybox ln -s ../../../../../../etc/passwd.here /etc/passwd; " + GOES_ON
    with detached(run, image, f"echo me:x:55:66::/me:/bin/sh >/etc/passwd.here; {script}"):
        logged(run, 2)
        assert run.ok("exec", "-u", "me", "box", "sh", "-c", "id -u; id -g; echo $HOME") == "55\n66\n/me\n"


def test_exec_begins_in_no_directory_of_a_process(run: Imgfs, image: str) -> None:
    """The container has its working directory lead to what a runtime has open (CVE-2024-21626)."""
    links = "busybox ln -s /proc/self/fd/3 /its; busybox ln -s /proc/1/cwd /first; busybox ln -s etc /good"
    with detached(run, image, f"{links}; {GOES_ON}"):
        logged(run, 2)
        said = "the working directory /its of the container: No such file or directory"
        assert run.run("exec", "-w", "/its", "box", "true").complaint(127) == said
        assert "it is a process's" in run.run("exec", "-w", "/first", "box", "true").complaint(126)
        assert run.ok("exec", "-w", "/good", "box", "sh", "-c", "pwd -P") == "/etc\n"


def test_a_terminal_of_a_detached_container_is_logged(run: Imgfs, image: str) -> None:
    with detached(run, image, f"tty; {GOES_ON}", "-t"):
        logged(run, 3)
        assert run.run("logs", "box").out == b"/dev/pts/0\r\nup\r\noops\r\n"


def test_input_that_is_asked_for_never_comes_and_never_ends(run: Imgfs, image: str) -> None:
    with detached(run, image, "cat; echo over", "-i"):
        time.sleep(0.5)
        assert run.ok("ps", "-q") != ""
    with detached(run, image, "cat; echo over"):
        assert run.ok("wait", "box") == "0\n"
        assert run.ok("logs", "box") == "over\n"


def test_logs_are_shown_from_where_and_as_long_as_asked_for(run: Imgfs, image: str) -> None:
    script = "echo 1; echo 2; busybox printf 3; sleep 1; echo; echo 4; sleep 1; echo 5"
    with detached(run, image, script):
        assert run.ok("logs", "-f", "box") == "1\n2\n3\n4\n5\n"
        assert run.ok("logs", "--tail", "2", "box") == "4\n5\n"
        assert run.ok("logs", "--tail", "0", "box") == ""
        stamped = run.ok("logs", "-t", "box").splitlines()
        assert [line.partition(" ")[2] for line in stamped] == ["1", "2", "3", "4", "5"]
        since = stamped[3].partition(" ")[0]
        assert run.ok("logs", "--since", since[:26] + "Z", "box").splitlines()[-2:] == ["4", "5"]
        assert run.ok("logs", "--until", "1h", "box") == ""
        assert run.ok("logs", "--since", "1h", "box") == "1\n2\n3\n4\n5\n"
        assert "not a time" in run.run("logs", "--since", "nonsense", "box").err


def test_a_log_has_its_largest_size(run: Imgfs, image: str) -> None:
    script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    with detached(run, image, script, "--log-opt", "max-size=8k"):
        run.ok("wait", "box")
        sizes = [path.stat().st_size for path in (run.store / "containers/box").glob("output.log*")]
        assert len(sizes) == 2
        assert max(sizes) <= 8192
        lines = run.ok("logs", "box").splitlines()
        assert lines[-1] == "line 1999"
        assert lines == [f"line {number}" for number in range(2000 - len(lines), 2000)]


def test_names_and_ids_are_unique_and_podmans(run: Imgfs, image: str, tmp_path: Path) -> None:
    with detached(
        run, image, GOES_ON, "--cidfile", tmp_path / "id", "--pidfile", tmp_path / "pid"
    ) as identity:
        assert (tmp_path / "id").read_text() == identity
        assert int((tmp_path / "pid").read_text()) == first_pid(run, "box")
        said = run.run("run", "-d", "--name", "box", image, "true").complaint(125)
        assert said.startswith("a container called box is running")
        assert "already exists" in run.run(
            "run", "-d", "--cidfile", tmp_path / "id", image, "true"
        ).complaint(125)
        run.ok("stop", "-t", "0", "box")
        assert "imgfs rm box" in run.run("run", "--name", "box", image, "true").complaint(125)
    identity = run.ok("run", "-d", image, "sh", "-c", "echo $HOSTNAME").strip()
    run.ok("wait", identity)
    assert run.ok("logs", identity[:12]) == f"{identity[:12]}\n"
    assert "_" in run.ok("ps", "-a", "--format", "{{.Names}}")
    run.ok("rm", identity)


def test_a_container_that_cannot_begin_is_none(run: Imgfs, image: str) -> None:
    assert "'nope'" in run.run("run", "-d", "--name", "box", image, "nope").complaint(127)
    assert run.run("run", "-d", "--name", "box", image, "/bin/plain").code == 126
    assert run.run("run", "-d", "-v", "/nowhere:/x", image, "true").code == 125
    assert run.ok("ps", "-aq") == ""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_that_removes_itself_leaves_only_its_exit_code(run: Imgfs, image: str, runtime: str) -> None:
    script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.1; done"
    run.ok("run", "-d", "--rm", "--runtime", runtime, "--name", "box", image, "sh", "-c", script)
    logged(run, 1)
    waiting = run.start("wait", "box")
    time.sleep(2)
    run.ok("kill", "-s", "USR1", "box")
    assert waiting.communicate(timeout=allowed(60))[0] == b"9\n"
    assert run.ok("ps", "-aq") == ""


def test_what_does_not_stop_is_killed_in_the_time_given(run: Imgfs, image: str) -> None:
    with detached(run, image, "trap '' TERM; echo up; while :; do sleep 0.1; done"):
        logged(run, 1)
        began = time.monotonic()
        run.ok("stop", "-t", "1", "box")
        assert time.monotonic() - began > 1
        assert run.ok("wait", "box") == "137\n"
        assert run.ok("stop", "box") == "box\n"  # it has stopped


def test_the_images_stop_signal_stops_it(run: Imgfs, layout: Path) -> None:
    image = busybox(layout, "stop-signal", StopSignal="SIGUSR1")
    with detached(run, image, "trap 'exit 4' USR1; echo up; while :; do sleep 0.1; done"):
        logged(run, 1)
        run.ok("stop", "box")
        assert run.ok("wait", "box") == "4\n"


def test_signals_are_sent_to_it_and_only_as_long_as_it_runs(run: Imgfs, image: str) -> None:
    with detached(run, image, "trap 'exit 5' USR1; echo up; while :; do sleep 0.1; done"):
        logged(run, 1)
        assert run.ok("kill", "-s", "USR1", "box") == "box\n"
        assert run.ok("wait", "box") == "5\n"
        assert "exited" in run.run("kill", "box").complaint(125)
        assert run.run("kill", "-s", "NOPE", "box").complaint(125) == "invalid signal: NOPE"


def test_removing_has_podmans_exit_codes(run: Imgfs, image: str) -> None:
    with detached(run, image, GOES_ON):
        assert "it is running" in run.run("rm", "box").complaint(2)
        assert run.run("rm", "nothing").complaint(1).endswith("no such container")
        assert run.ok("rm", "-f", "nothing") == ""
        assert run.ok("rm", "-f", "box") == "box\n"
        assert run.run("container", "exists", "box").code == 1
    with detached(run, image, "true", name="one"), detached(run, image, GOES_ON, name="two"):
        run.ok("wait", "one")
        assert len(run.ok("container", "prune").splitlines()) == 1
        assert run.ok("ps", "-a", "--format", "{{.Names}}") == "two\n"
        assert len(run.ok("rm", "-f", "--all").splitlines()) == 1


def test_a_container_in_the_foreground_is_listed_and_entered_too(run: Imgfs, image: str) -> None:
    process = run.start("run", "--name", "fore", image, "sh", "-c", GOES_ON)
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    until(lambda: run.ok("ps", "--format", "{{.Names}} {{.State}}") == "fore running\n", "it is listed")
    assert run.ok("exec", "fore", "echo", "inside") == "inside\n"
    assert "not detached" in run.run("logs", "fore").complaint(125)
    run.ok("stop", "fore")
    assert process.wait(30) == 7
    process.communicate()


def test_mounts_and_containers_are_listed_apart(run: Imgfs, image: str) -> None:
    mounts = run.ok("ps").splitlines()
    assert mounts[0].startswith("MOUNTPOINT")
    with detached(run, image, GOES_ON):
        listed = run.ok("ps").splitlines()
        at = listed.index("")
        assert listed[at + 1].split()[:2] == ["CONTAINER", "ID"]
        assert listed[at + 2].split()[-1] == "box"
        assert [line.split()[-1] for line in run.ok("ps", "-c").splitlines()] == ["NAMES", "box"]
        assert isinstance(json.loads(run.ok("ps", "--json")), list)
        assert run.ok("ps", "-q", "--filter", "name=other") == ""
        assert run.ok("ps", "-q", "--filter", "name=bo", "--filter", "status=running") != ""
        assert run.run("ps", "--filter", "nonsense=1").code == 2
        assert "no field 'Nope'" in run.run("ps", "--format", "{{.Nope}}").complaint(2)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_killed_monitor_leaves_a_container_that_can_be_ended(run: Imgfs, image: str, runtime: str) -> None:
    with detached(run, image, "echo up; sleep 900", "--runtime", runtime):
        logged(run, 1)
        pid = first_pid(run, "box")
        os.kill(inspected(run)["State"]["ConmonPid"], signal.SIGKILL)
        until(lambda: "killed" in run.run("exec", "box", "true").err, "its end is seen")
        assert inspected(run)["State"]["Status"] == "running"
        run.ok("stop", "-t", "0", "box")
        until(lambda: not is_alive(pid), "it has ended")
        state = inspected(run)["State"]
        assert (state["Status"], state["ExitCode"]) == ("unknown", 255)
        assert run.ok("wait", "box") == "255\n"
        run.ok("rm", "box")


def test_the_end_of_a_monitor_by_a_signal_is_the_containers(run: Imgfs, image: str) -> None:
    with detached(run, image, GOES_ON):
        logged(run, 2)
        os.kill(inspected(run)["State"]["ConmonPid"], signal.SIGTERM)
        assert run.ok("wait", "box") == "7\n"


def test_the_caller_waits_for_nothing_of_a_detached_container(run: Imgfs, image: str) -> None:
    """Its pipes are closed, its directory is free, and its end is no matter."""
    with detached(run, image, GOES_ON):
        monitor = inspected(run)["State"]["ConmonPid"]
        assert os.readlink(f"/proc/{monitor}/cwd") == "/"
        assert {os.readlink(f"/proc/{monitor}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
        assert os.getsid(monitor) != os.getsid(0)


def test_other_users_see_nothing_of_it(run: Imgfs, image: str) -> None:
    with detached(run, image, GOES_ON):
        for path in (run.store / "containers/box").iterdir():
            assert (
                path.is_dir()
                or path.stat().st_mode & 0o077 == 0
                or path.name in ("pid", "config.json", "log")
            )
        assert (run.store / "containers/box").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_users_containers_are_his_own(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    with detached(nobody, image, GOES_ON, "--runtime", runtime):
        logged(nobody, 2)
        assert (
            nobody.ok("exec", "box", "sh", "-c", "id -u; cat /srv/file; echo; touch /srv/file")
            == "0\nof the image\n"
        )
        assert nobody.ok("ps", "--format", "{{.Names}}") == "box\n"
        nobody.ok("stop", "box")
        assert nobody.ok("wait", "box") == "7\n"
        nobody.ok("rm", "box")
    with detached(nobody, image, "echo up; sleep 900", "--runtime", runtime):
        logged(nobody, 1)
        os.kill(inspected(nobody)["State"]["ConmonPid"], signal.SIGKILL)
        nobody.ok("rm", "-f", "-t", "0", "box")
    until(lambda: traces(nobody) == [], "nothing is left")


@needs_podman
@pytest.mark.skipif(not installed("skopeo"), reason="skopeo is not installed")
def test_podman_says_the_same(run: Imgfs, image: str, podman: Sequence[str], layout: Path) -> None:
    """Exit codes and output of each command, side by side."""
    ours = [[*run.command(word)] for word in ("run", "exec", "logs", "stop", "wait", "rm", "ps", "kill")]
    commands = {words[-1]: words for words in ours}
    theirs = {name: [*podman, name] for name in commands}
    options = [option for option in PODMAN if option != "--rm"]
    run.program(*podman, "load", "-q", "-i", _archive(run, image))
    said = []
    for words, first, where in (
        (theirs, options, "localhost/box:latest"),
        (commands, ["--runtime=runc"], image),
    ):
        script = "trap 'exit 7' TERM; echo up; echo oops >&2; while :; do sleep 0.1; done"
        started = run.program(*words["run"], "-d", *first, "--name", "side", where, "sh", "-c", script)
        assert started.code == 0, started
        time.sleep(1)
        answers: list[object] = [started.code, len(started.text)]
        for line in (
            "logs side",
            "exec side sh -c 'exit 3'",
            "exec side nope",
            "exec side /srv",
            "exec other true",
            "ps -q --filter name=other",
            "rm side",
            "rm other",
            "kill -s NOPE side",
            "stop side",
            "stop side",
            "wait side",
            "kill side",
            "exec side true",
            "logs side",
            "logs other",
            "rm side",
            "rm side",
            "stop side",
            "wait side",
        ):
            name, *rest = shlex.split(line)
            ran = run.program(*words[name], *rest)
            answers.append((line, ran.code, ran.out, ran.err if ran.code == 0 else ""))
        said.append(answers)
    if podman_is_5():  # podman 4 has 126, as a shell
        said[0][said[0].index(("exec side /srv", 255, b"", ""))] = ("exec side /srv", 126, b"", "")
    assert said[0] == said[1]


def _archive(run: Imgfs, image: str) -> Path:
    path = run.directory / "box.tar"
    path.unlink(missing_ok=True)
    done = run.program(
        "skopeo", "--insecure-policy", "copy", image, f"docker-archive:{path}:localhost/box:latest"
    )
    assert done.code == 0, done.err
    return path

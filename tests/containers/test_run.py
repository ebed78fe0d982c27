"""Containers, for real: what their commands see, how they end, and that nothing of them stays."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imgfs.mounts.table import mounts
from tests.support import containers
from tests.support.containers import (
    PODMAN,
    RUNTIMES,
    as_podman,
    busybox,
    first_line,
    first_pid,
    installed,
    needs_podman,
    shell,
    traces,
)
from tests.support.mounted import NOBODY, Imgfs, Ran, is_alive, mount_flags, mount_of, until
from tests.support.patience import allowed

pytestmark = containers.marks
layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_container_runs_the_images_command_as_its_config_says(
    run: Imgfs, layout: Path, runtime: str
) -> None:
    script = "id; pwd; echo $A-$HOME; cat /srv/file"
    config = {"User": "web", "WorkingDir": "/srv/new", "Env": ["PATH=/bin", "A=1"]}
    image = busybox(layout, "config", Entrypoint=["sh", "-c"], Cmd=[script], **config)
    assert run.ok("run", "--runtime", runtime, image).splitlines() == [
        "uid=33(web) gid=34(web) groups=34(web),44(extra)",
        "/srv/new",
        "1-/srv",
        "of the image",
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_is_apart_from_the_machine(run: Imgfs, image: str, runtime: str) -> None:
    script = "hostname; echo $$; cat /etc/hostname; touch /new /srv/file; echo $HOSTNAME"
    ran = shell(run, image, script, "--runtime", runtime, "--name", "box")
    assert (ran.code, ran.err) == (0, "")
    assert ran.text.splitlines() == [
        "box",
        "1",
        "box",
        "box",
    ]
    assert shell(run, image, "ls /new").code == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 42"], 42),
        (["false"], 1),
        (["nope"], 127),
        (["plain"], 127),
        (["/bin/plain"], 126),
        (["/srv"], 126),
        (["sh", "-c", "sh -c 'kill -9 $$'; exit $?"], 137),
    ],
)
def test_the_exit_code_is_the_commands_or_says_why_there_is_none(
    run: Imgfs, image: str, runtime: str, command: list[str], code: int
) -> None:
    ran = run.run("run", "--runtime", runtime, image, *command)
    assert ran.code == code
    if code in (126, 127):
        assert "command" in ran.complaint(code)


@pytest.mark.parametrize(
    ("options", "command", "said"),
    [
        (["--runtime", "/nowhere/runc"], ["true"], "/nowhere/runc: no such runtime"),
        (["--name", "a/b"], ["true"], "'a/b' is not a name for a container"),
        (["--entrypoint", ""], [], "the image names no command"),
        (["-v", "/nowhere/at/all:/x"], ["true"], "/nowhere/at/all: no such file or directory"),
        (["--env-file", "/nowhere/env"], ["true"], "/nowhere/env: No such file or directory"),
        (["-e", "=x"], ["true"], "'=x' is not a variable"),
        (["-t"], ["true"], "-t: standard input is not a terminal"),
    ],
)
def test_what_imgfs_cannot_do_is_one_line_and_125(
    run: Imgfs, image: str, options: list[str], command: list[str], said: str
) -> None:
    assert run.run("run", *options, image, *command).complaint(125).startswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-u", "nobody"], "user 'nobody' is not in the image's /etc/passwd"),
        (["-u", "web:nogroup"], "group 'nogroup' is not in the image's /etc/group"),
        (["-w", "/etc/passwd"], "the working directory /etc/passwd of the image: not a directory"),
    ],
)
def test_what_the_image_lacks_is_one_line_and_126_as_podman_has_it(
    run: Imgfs, image: str, options: list[str], said: str
) -> None:
    assert run.run("run", *options, image, "true").complaint(126) == said


@pytest.mark.usefixtures("image")  # the layout is there
def test_an_image_that_is_not_there_is_one_line_and_125(run: Imgfs, layout: Path) -> None:
    assert "nope" in run.run("run", f"oci:{layout}:nope", "true").complaint(125)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command_and_its_exit_code_comes_back(
    run: Imgfs, image: str, runtime: str, number: signal.Signals
) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo up; while :; do sleep 0.1; done"
    process = run.start("run", "--runtime", runtime, image, "sh", "-c", script)
    assert first_line(process) == "up"
    process.send_signal(number)
    out, err = process.communicate(timeout=allowed(60))
    assert (process.returncode, out, err) == (9, f"got {name}\n".encode(), b"")


def test_a_container_that_is_killed_ends_with_137(run: Imgfs, image: str) -> None:
    process = run.start("run", "--name", "victim", image, "sh", "-c", "echo up; sleep 90")
    assert first_line(process) == "up"
    os.kill(first_pid(run, "victim"), signal.SIGKILL)
    assert process.wait(30) == 137


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_command_that_is_killed_takes_its_container_along(run: Imgfs, image: str, runtime: str) -> None:
    script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
    process = run.start("run", "--runtime", runtime, "--name", "orphan", image, "sh", "-c", script)
    assert first_line(process) == "up"
    pid = first_pid(run, "orphan")
    process.kill()
    process.communicate()
    until(lambda: not is_alive(pid), "the container has ended")


def test_the_images_stop_signal_is_what_ends_an_orphan(run: Imgfs, layout: Path, tmp_path: Path) -> None:
    image = busybox(layout, "stop", StopSignal="SIGUSR1")
    script = "trap 'echo stopped >/out/word; exit 0' USR1; echo up; while :; do sleep 0.1; done"
    process = run.start("run", "-v", f"{tmp_path}:/out", image, "sh", "-c", script)
    assert first_line(process) == "up"
    process.kill()
    process.communicate()
    until(lambda: (tmp_path / "word").exists(), "the signal has arrived")


@pytest.mark.parametrize("delay", [0.05, 0.15, 0.25, 0.35, None])
def test_a_signal_while_it_starts_leaves_nothing(run: Imgfs, image: str, delay: float | None) -> None:
    process = run.start("run", image, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    if delay is None:  # as soon as there is anything to be left
        until(lambda: list((run.store / "containers").glob("*")), "a directory is made", pause=0.0005)
    else:
        time.sleep(delay)
    for _ in range(200):  # the first may come before the shell has its trap
        process.terminate()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.communicate(timeout=allowed(60))
    assert process.returncode in (0, 143, -signal.SIGTERM)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_terminal_is_handed_through_and_given_back_as_it_was(run: Imgfs, image: str, runtime: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    before = termios.tcgetattr(theirs)
    on_it: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    process = run.start("run", "--runtime", runtime, "-it", image, "sh", "-c", "tty; cat; exit 3", **on_it)
    seen = b""
    while b"/dev/pts/0" not in seen:
        seen += os.read(ours, 4096)
    os.write(ours, b"hello\n\x04")  # the terminal's end of file: only one in raw mode hands it through
    assert process.wait(30) == 3
    seen += os.read(ours, 4096)
    assert seen.count(b"hello") == 2  # its echo, and what cat says
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_standard_input_is_there_if_asked_for(run: Imgfs, image: str) -> None:
    process = run.start("run", "-i", image, "cat", stdin=subprocess.PIPE)
    assert process.communicate(b"x" * 300_000, timeout=allowed(60))[0] == b"x" * 300_000
    process = run.start("run", image, "cat", stdin=subprocess.PIPE)
    assert process.communicate(b"x", timeout=allowed(60))[0] == b""


def test_variables_come_from_files_from_here_and_from_the_command_line(
    run: Imgfs, image: str, tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("# these\nA=file\n\nB=file \nLC_ALL\nNOT_SET_AT_ALL\n")
    ran = shell(
        run,
        image,
        "echo $A,$B,$LC_ALL,${NOT_SET_AT_ALL-none}",
        "--env-file",
        tmp_path / "env",
        "-e",
        "A=line",
    )
    assert ran.text == "line,file ,C.UTF-8,none\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_directories_of_the_machines_are_shown(run: Imgfs, image: str, tmp_path: Path, runtime: str) -> None:
    (tmp_path / "file").write_text("here")
    binds = ("-v", f"{tmp_path}:/data", "-v", f"{tmp_path}:/srv/ro:ro", "-v", f"{tmp_path}/file:/etc/one")
    script = "cat /data/file /srv/ro/file /etc/one; echo there >/data/new; echo no >/srv/ro/x"
    ran = shell(run, image, script, "--runtime", runtime, *binds)
    assert (ran.code, ran.text) == (1, "hereherehere")
    assert "Read-only file system" in ran.err
    assert (tmp_path / "new").read_text() == "there\n"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_images_volumes_begin_with_what_it_has_there(run: Imgfs, layout: Path, runtime: str) -> None:
    image = busybox(layout, "volumes", Volumes={"/srv": {}, "/data/deep": {}})
    look = "stat -c '%n %u:%g %a' /srv /srv/file /data/deep; cat /srv/file"
    script = f"{look}; touch /srv/x /data/deep/x && touch /x"
    ran = shell(run, image, script, "--runtime", runtime, "--read-only")
    assert ran.text.splitlines() == [
        "/srv 33:34 750",
        "/srv/file 33:34 600",
        "/data/deep 0:0 755",
        "of the image",
    ]
    assert "touch: /x: Read-only file system" in ran.err


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_read_only_container_can_write_where_podman_lets_it(run: Imgfs, image: str, runtime: str) -> None:
    script = "touch /tmp/x /run/x /var/tmp/x && touch /srv/x"
    ran = shell(run, image, script, "--read-only", "--runtime", runtime)
    assert (ran.code, ran.err.strip()) == (1, "touch: /srv/x: Read-only file system")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_tmpfs_begins_with_what_the_image_has_there(run: Imgfs, image: str, runtime: str) -> None:
    script = "cat /srv/file; grep -c ' /srv .* tmpfs .*size=1024k' /proc/self/mountinfo"
    ran = shell(run, image, script, "--tmpfs", "/srv:size=1m", "--runtime", runtime)
    assert ran.text.split("image") == ["of the ", "1\n"]


def test_the_network_is_the_machines_or_none(run: Imgfs, image: str) -> None:
    here = sorted(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:])
    script = "grep : /proc/net/dev"
    shown = shell(run, image, script).text.splitlines()
    assert sorted(line.split(":")[0].strip() for line in shown) == here
    alone = shell(run, image, script, "--network", "none").text.splitlines()
    assert [line.split(":")[0].strip() for line in alone] == ["lo"]


def test_what_is_changed_is_kept_if_asked_for(run: Imgfs, image: str) -> None:
    keep = ("--scratch", "kept")
    assert shell(run, image, "echo new >/new; rm /srv/file; chown 33:44 /etc/group", *keep).code == 0
    assert shell(run, image, "cat /new; ls /srv; stat -c %u:%g /etc/group", *keep).text == "new\n33:44\n"
    assert {"A /new", "D /srv/file", "C /etc/group"} <= set(run.ok("diff", "kept").splitlines())
    run.ok("scratch", "rm", "kept")


def test_a_name_is_for_one_container_at_a_time(run: Imgfs, image: str) -> None:
    process = run.start(
        "run", "--name", "one", image, "sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done"
    )
    assert first_line(process) == "up"
    said = run.run("run", "--name", "one", image, "true").complaint(125)
    assert said == "a container called one is running: choose another --name"
    process.terminate()
    assert process.wait(30) == 0
    run.ok("run", "--name", "one", image, "true")


def test_a_container_keeps_no_other_mount_going_but_what_it_is_shown(run: Imgfs, image: str) -> None:
    shown, other = (run.mount(image, at=run.mountpoint(name)) for name in ("shown", "other"))
    script = "trap 'exit 0' TERM; cat /shown/srv/file; echo; while :; do sleep 0.1; done"
    process = run.start("run", "-v", f"{shown}/srv:/shown/srv:ro", image, "sh", "-c", script)
    assert first_line(process) == "of the image"
    pid = run.pid(other)
    run.umount(other)
    assert not is_alive(pid)
    process.terminate()
    assert process.wait(30) == 0
    run.umount(shown)


def test_what_a_killed_one_has_left_is_removed_by_the_next(run: Imgfs, image: str) -> None:
    left = run.store / "containers/left"
    (left / "rootfs").mkdir(parents=True)
    (left / "volumes/0").mkdir(parents=True)
    (left / "lock").touch()
    run.ok("run", image, "true")
    assert not left.exists()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_limits_hold_or_are_warned_of(run: Imgfs, image: str, runtime: str) -> None:
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
    ran = shell(run, image, script, "--memory", "64m", "--cpus", "0.5", "--runtime", runtime)
    if ran.err:
        assert ran.err.startswith("imgfs: warning: no limit of ")
        assert len(ran.err.splitlines()) == 1
    else:
        assert ran.text.split() == [str(64 << 20)]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_where_cgroups_cannot_be_written_it_runs_and_says_what_does_not_hold(
    run: Imgfs, image: str, runtime: str
) -> None:
    places = [str(one.mountpoint) for one in mounts() if one.filesystem in ("cgroup", "cgroup2")]
    closed = "".join(f"mount -o remount,ro,bind {place} && " for place in places)
    words = run.command("run", "--runtime", runtime, "--memory", "64m", image, "echo", "runs")
    ran = run.program("unshare", "-m", "sh", "-c", f'{closed} exec "$@"', "sh", *words)
    assert (ran.code, ran.text) == (0, "runs\n")
    assert ran.err.splitlines() == [
        "imgfs: warning: no limit of memory is enforced: cgroups cannot be written",
        "imgfs: warning: no access to devices is limited: cgroups cannot be written",
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_without_the_capability_over_limits_it_runs_as_well(run: Imgfs, image: str, runtime: str) -> None:
    words = run.command("run", "--runtime", runtime, image, "echo", "runs")
    ran = run.program("setpriv", "--bounding-set=-sys_resource,-audit_write,-kill", *words)
    assert (ran.code, ran.text, ran.err) == (0, "runs\n", "")


# An ordinary user.


@pytest.fixture
def users_image(nobody: Imgfs) -> str:
    return busybox(nobody.directory / "layout", Cmd=["sh"])


def lent(nobody: Imgfs, directory: Path, *words: str | Path) -> Ran:
    """A command as an ordinary user whom subuid(5) lends 70,000 ids."""
    ids = directory / "ids"
    ids.write_text("65534:200000:70000\n")
    files = ("/etc/subuid", "/etc/subgid")
    lend = " && ".join(f"mount --bind {ids} {path}" for path in files)
    drop = "exec setpriv --reuid 65534 --regid 65534 --clear-groups"
    as_root = Imgfs(directory / "root", environment=nobody.environment)
    as_root.environment |= {"HOME": nobody.environment["HOME"]}
    script = f'{lend} && cd {nobody.directory} && {drop} "$@"'
    return as_root.program("unshare", "-m", "sh", "-c", script, "sh", *words)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_is_root_in_his_container(nobody: Imgfs, users_image: str, runtime: str) -> None:
    script = "id -u; cat /srv/file; touch /srv/file /new; stat -c ' %u:%g' /srv/file /new; exit 5"
    ran = shell(nobody, users_image, script, "--runtime", runtime)
    assert (ran.code, ran.text, ran.err) == (5, "0\nof the image 0:0\n 0:0\n", "")
    until(lambda: traces(nobody) == [], "nothing is left")


def test_an_ordinary_users_store_is_his_own_inside_too(nobody: Imgfs, users_image: str) -> None:
    """Inside he is root, but what is where is settled outside."""
    del nobody.environment["IMGFS_STORE"]
    nobody.environment["XDG_CACHE_HOME"] = str(nobody.directory / "cache")
    nobody.directory.joinpath("cache").mkdir()
    os.chown(nobody.directory / "cache", *(nobody.user or ()))
    assert shell(nobody, users_image, "id -u").text == "0\n"
    assert (nobody.directory / "cache/imgfs/trees").is_dir()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_with_one_id_other_users_are_root_and_that_is_said(
    nobody: Imgfs, users_image: str, runtime: str
) -> None:
    ran = shell(nobody, users_image, "id -u", "--runtime", runtime, "-u", "web", "--network", "none")
    assert (ran.code, ran.text) == (0, "0\n")
    assert ran.err.startswith("imgfs: warning: user 'web' runs as root, which is you")
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.skipif(not installed("newuidmap"), reason="newuidmap is not installed")
def test_with_lent_ids_the_images_users_are_themselves(
    nobody: Imgfs, users_image: str, open_path: Path, runtime: str
) -> None:
    script = "id; cat /srv/file; touch /srv/new /tmp/mine; stat -c ' %u:%g' /srv/file /srv/new /root"
    words = nobody.command("run", "--runtime", runtime, "-u", "web", users_image, "sh", "-c", script)
    ran = lent(nobody, open_path, *words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.text == (
        "uid=33(web) gid=34(web) groups=34(web),44(extra)\nof the image 33:34\n 33:34\n 0:0\n"
    )
    said = lent(nobody, open_path, *nobody.command("run", "-u", "99999", users_image, "true")).complaint(126)
    assert said == "user '99999': /etc/subuid and /etc/subgid give you no id for 99999"
    until(lambda: traces(nobody) == [], "nothing is left")


@pytest.mark.skipif(not installed("newuidmap"), reason="newuidmap is not installed")
def test_a_users_scratch_is_the_same_in_a_container_and_mounted(
    nobody: Imgfs, users_image: str, open_path: Path
) -> None:
    script = "echo new >/new; chown 33:44 /new; rm /srv/file; chmod 4711 /bin/script"
    words = nobody.command("run", "--scratch", "work", users_image, "sh", "-c", script)
    assert lent(nobody, open_path, *words).code == 0
    assert {"A /new", "D /srv/file", "C /bin/script"} <= set(nobody.ok("diff", "work").splitlines())
    at = nobody.mount(users_image, "--scratch", "work")
    assert nobody.program("cat", at / "new").text == "new\n"
    nobody.umount(at)
    look = "stat -c '%u:%g %a' /new /bin/script"
    words = nobody.command("run", "--scratch", "work", users_image, "sh", "-c", look)
    ran = lent(nobody, open_path, *words)
    assert (ran.text, ran.err) == ("33:44 644\n0:0 4711\n", "")
    nobody.ok("scratch", "rm", "work")


def test_a_user_without_user_namespaces_is_told(nobody: Imgfs, users_image: str, open_path: Path) -> None:
    top = open_path / "top"  # in a chroot the kernel gives nobody a user namespace (user_namespaces(7))
    top.mkdir()
    words = nobody.command("run", users_image, "true")
    script = f'mount --rbind / {top} && exec chroot --userspec=65534:65534 --groups= {top} "$@"'
    as_root = Imgfs(open_path / "root", environment=nobody.environment)
    ran = as_root.program("unshare", "-m", "sh", "-c", script, "sh", *words)
    assert (
        ran.complaint(125) == "this machine does not let you have a user namespace: Operation not permitted"
    )


# Bundles, for other engines.


@pytest.mark.skipif(not installed("runc"), reason="runc is not installed")
def test_a_bundle_is_for_other_engines(run: Imgfs, layout: Path, tmp_path: Path) -> None:
    image = busybox(
        layout, "bundle", Cmd=["sh", "-c", "id -u; exit 6"], User="web", Labels={"run.oci.handler": "krun"}
    )
    assert run.ok("bundle", image, tmp_path / "box") == ""
    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o700
    config = json.loads((tmp_path / "box/config.json").read_text())
    assert "run.oci.handler" not in config["annotations"]
    done = run.program("runc", "--root", tmp_path / "state", "run", "-b", tmp_path / "box", "imgfs-test-box")
    assert (done.code, done.text) == (6, "33\n")
    run.ok("umount", tmp_path / "box/rootfs")
    assert mount_of(tmp_path / "box/rootfs") is None


@pytest.mark.skipif(not installed("runc"), reason="runc is not installed")
def test_a_users_bundle_is_for_a_runtime_without_privileges(nobody: Imgfs, users_image: str) -> None:
    box = nobody.directory / "box"
    assert nobody.ok("bundle", users_image, box, "sh", "-c", "id -u; cat /srv/file; exit 6") == ""
    done = nobody.program("runc", "--root", nobody.directory / "state", "run", "-b", box, "imgfs-test-user")
    assert (done.code, done.text) == (6, "0\nof the image")
    nobody.ok("umount", box / "rootfs")


@pytest.mark.parametrize("name", ["", "config.json", "rootfs"])
def test_a_bundle_goes_where_no_other_user_has_a_hand_in_it(
    run: Imgfs, image: str, tmp_path: Path, name: str
) -> None:
    box, precious = tmp_path / "box", tmp_path / "precious"
    precious.mkdir()
    (precious / "config.json").write_text("precious")
    box.mkdir()
    if name:
        box.chmod(0o1777)
        (box / name).symlink_to(precious / name if name == "config.json" else precious)
    os.chown(box / name, NOBODY.uid, NOBODY.gid, follow_symlinks=False)
    said = run.run("bundle", image, box).complaint()
    assert said.startswith(f"{box / name}: ")
    assert [path.read_text() for path in precious.iterdir()] == ["precious"]
    assert mount_of(box / "rootfs") is None


def test_a_bundle_that_others_may_enter_is_told(run: Imgfs, image: str, tmp_path: Path) -> None:
    (tmp_path / "box").mkdir(mode=0o755)
    ran = run.run("bundle", image, tmp_path / "box")
    assert "nosuid" not in mount_flags(tmp_path / "box/rootfs")
    words = f"{tmp_path}/box: other users may run the image's set-uid programs here: chmod go-x it"
    assert (ran.code, ran.err) == (0, f"imgfs: warning: {words}\n")
    run.ok("umount", tmp_path / "box/rootfs")


def test_a_bundle_that_cannot_be_made_is_not_left_mounted(run: Imgfs, image: str, tmp_path: Path) -> None:
    said = run.run("bundle", "-u", "nobody", image, tmp_path / "box").complaint(2)
    assert said == "user 'nobody' is not in the image's /etc/passwd"
    assert mount_of(tmp_path / "box/rootfs") is None


# podman.

SHOW = (
    "id; pwd; env | grep -v -e HOSTNAME -e ^container= | sort; stat -c '%u:%g %a' . /srv /srv/*; "
    "grep -e Cap -e NoNewPrivs /proc/self/status; umask"
)
SAME: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {  # config, options, command
    "shell form": ({"Cmd": ["/bin/sh", "-c", SHOW]}, [], []),
    "no PATH": ({"Cmd": ["sh", "-c", SHOW], "Env": None}, [], []),
    "entrypoint": ({"Entrypoint": ["echo", "a"], "Cmd": ["b"]}, [], []),
    "entrypoint with a command": ({"Entrypoint": ["echo", "a"], "Cmd": ["b"]}, [], ["c"]),
    "another entrypoint": ({"Entrypoint": ["echo"], "Cmd": ["b"]}, ["--entrypoint", "id"], []),
    "another entrypoint as JSON": ({"Cmd": ["b"]}, ["--entrypoint", '["echo", "x"]'], ["y"]),
    "no entrypoint": ({"Entrypoint": ["echo"]}, ["--entrypoint", ""], ["id"]),
    "no command": ({}, [], []),
    "user": ({"Cmd": ["sh", "-c", SHOW], "User": "web"}, [], []),
    "user by number": ({"Cmd": ["sh", "-c", SHOW], "User": "33"}, [], []),
    "user and group": ({"Cmd": ["sh", "-c", SHOW], "User": "web:extra"}, [], []),
    "unknown number": ({"Cmd": ["sh", "-c", "id -u; id -g; echo $HOME"], "User": "1234"}, [], []),
    "root by name": ({"Cmd": ["sh", "-c", SHOW], "User": "root"}, [], []),
    "group only": ({"Cmd": ["sh", "-c", SHOW], "User": ":44"}, [], []),
    "unknown user": ({"Cmd": ["id"], "User": "nobody"}, [], []),
    "unknown group": ({"Cmd": ["id"], "User": "web:nogroup"}, [], []),
    "another user": ({"Cmd": ["id"], "User": "web"}, ["-u", "0"], []),
    "new directory": ({"Cmd": ["sh", "-c", SHOW], "WorkingDir": "/a/b", "User": "web"}, [], []),
    "directory that is a file": ({"Cmd": ["id"], "WorkingDir": "/etc/passwd"}, [], []),
    "variables": (
        {"Cmd": ["sh", "-c", SHOW], "Env": ["PATH=/bin", "A=1", "B", "C=", "A=2"]},
        ["-e", "A=3"],
        [],
    ),
    "HOME": ({"Cmd": ["sh", "-c", SHOW], "Env": ["PATH=/bin", "HOME=/x"]}, [], []),
    "volumes": ({"Cmd": ["sh", "-c", SHOW], "Volumes": {"/srv": {}}}, ["--read-only"], []),
    "tmpfs": ({"Cmd": ["sh", "-c", "stat -c '%u:%g %a' /srv/file"]}, ["--tmpfs", "/srv"], []),
    "not found": ({}, [], ["nope"]),
    "not executable": ({}, [], ["/bin/plain"]),
    "not executable in PATH": ({}, [], ["plain"]),
    "a directory": ({}, [], ["/srv"]),
    "no interpreter": ({}, [], ["script"]),
    "exit code": ({}, [], ["sh", "-c", "exit 42"]),
    "killed": ({}, [], ["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]),
    "hostname": ({}, ["--hostname", "box"], ["sh", "-c", "hostname; echo $HOSTNAME"]),
}

CODES_BY_5 = {("no command", 125): 127}  # podman 5 leaves it to the runtime to find that there is none


@needs_podman
@pytest.mark.parametrize("case", SAME)
def test_the_result_is_that_of_podman_run(run: Imgfs, podman: Sequence[str], layout: Path, case: str) -> None:
    config, options, command = SAME[case]
    tag = f"same-{case.lower().replace(' ', '-')}"  # which no other test's image has
    image = busybox(layout, tag, **config)
    pulled = run.program(*podman, "pull", "-q", image)
    assert pulled.code == 0, pulled
    theirs = run.program(*podman, "run", *PODMAN, *options, pulled.text.strip(), *command)
    ours = run.run("run", "--network", "none", *options, image, *command)
    assert as_podman(ours, CODES_BY_5.get((case, ours.code))) == (theirs.code, theirs.text), (ours, theirs)


@needs_podman
def test_what_is_mounted_is_a_rootfs_for_podman(run: Imgfs, podman: Sequence[str], image: str) -> None:
    at = run.mount(image, "--rw")
    ran = run.program(
        *podman, "run", *PODMAN, "--rootfs", at, "sh", "-c", "cat /srv/file; touch /new; exit 8"
    )
    assert (ran.code, ran.text) == (8, "of the image"), ran.err
    assert (at / "new").exists()
    run.umount(at)

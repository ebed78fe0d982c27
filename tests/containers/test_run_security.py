"""What containers may do and how much they may use: as podman has it, where podman has it; else one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from imgfs.runtime.devices import find_profile
from imgfs.runtime.host import capabilities
from imgfs.runtime.security import ALL, UNCONFINED, Security
from tests.support import containers
from tests.support.containers import (
    PODMAN,
    RUNTIMES,
    as_podman,
    busybox,
    needs_podman,
    shell,
)
from tests.support.mounted import Imgfs

pytestmark = containers.marks
layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman

RIGHTS = "id; grep -e Cap -e NoNewPrivs -e Seccomp: /proc/self/status"
HIDDEN = (
    "for p in /proc/acpi /proc/kcore /proc/keys /proc/timer_list /sys/firmware; "
    "do busybox head -c 1 $p | busybox wc -c; ls $p; done"
)
FROZEN = (
    "for p in /proc/sys/vm/swappiness /proc/sysrq-trigger /sys/kernel/mm/ksm/run /sys/kernel/uevent_helper; "
    "do test -w $p; echo $?; done"
)
FORKS = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait; echo all"
SAME: dict[str, tuple[list[str], str]] = {  # options, command
    "as it is": ([], RIGHTS),
    "another user": (["-u", "web"], RIGHTS),
    "capabilities more": (["--cap-add", "NET_ADMIN,cap_sys_ptrace", "--cap-add=mknod"], RIGHTS),
    "capabilities of another user": (["-u", "web", "--cap-add", "NET_ADMIN"], RIGHTS),
    "capabilities less": (["--cap-drop", "CHOWN", "--cap-drop", "CAP_KILL"], RIGHTS),
    "all but one": (["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"], RIGHTS),
    "none but one": (["--cap-drop", "ALL", "--cap-add", "CHOWN"], RIGHTS),
    "privileged": (["--privileged"], f"{RIGHTS}; {HIDDEN}; {FROZEN}"),
    "privileged as another user": (["--privileged", "-u", "web"], RIGHTS),
    "no new privileges": (["--security-opt", "no-new-privileges"], RIGHTS),
    "unconfined": (["--security-opt", "seccomp=unconfined"], RIGHTS),
    "groups": (["--group-add", "web", "--group-add", "77", "-u", "1234"], "id -u; id -G"),
    "hidden": ([], HIDDEN),
    "frozen": ([], FROZEN),
    "shown again": (["--security-opt", "unmask=/proc/acpi:/proc/timer_list"], HIDDEN),
    "all shown again": (["--security-opt", "unmask=ALL"], f"{HIDDEN}; {FROZEN}"),
    "more hidden": (["--security-opt", "mask=/srv"], "ls -A /srv; touch /srv/x"),
    "mount": ([], "busybox mount -t tmpfs none /srv; busybox umount /proc; busybox mount -o remount,rw /sys"),
    "mount with the capability": (["--cap-add", "SYS_ADMIN"], "busybox mount -t tmpfs none /srv; ls /srv"),
    "unshare": ([], "for f in -m -n -u -i -p -U; do busybox unshare $f true; echo $?; done"),
    "chroot": ([], "busybox chroot / true && echo yes"),
    "mknod": ([], "busybox mknod /x c 1 3; busybox hostname x; busybox date -s 2020-01-01"),
    "network": ([], "busybox ip link set lo down; busybox ping -c1 127.0.0.1 | grep -c from"),
    "devices": ([], "ls -l /dev | grep -v -e ^total -e core | grep -o '^[^ ]*' | sort"),
    "a device more": (
        ["--device", "/dev/null:/dev/hole:rw", "--device=/dev/zero:r"],
        "echo >/dev/hole; ls /dev | grep -v core",
    ),
    "ulimit": (
        ["--ulimit", "core=0", "--ulimit", "fsize=512000:1024000"],
        "ulimit -c; ulimit -f; ulimit -Hf",
    ),
    "shm": (["--shm-size", "3m"], "grep -o 'shm .*size=[0-9a-z]*' /proc/mounts | grep -o 'size.*'"),
    "read-only without tmpfs": (["--read-only", "--read-only-tmpfs=false"], "touch /tmp/x; touch /dev/shm/x"),
    "mounts": (
        [
            "--mount",
            "type=tmpfs,dst=/b,tmpfs-size=1m,tmpfs-mode=1700",
            "--mount=type=bind,src=/,target=/c,ro",
        ],
        "stat -c %a /b; touch /b/x /c/x; ls /b",
    ),
    "init": (["--init"], "test $$ -ne 1 && echo another; (sleep 0.2 &); exit 5"),
    "hosts": (["--add-host", "mine:10.0.0.7", "--add-host", "six:fe80::1"], "grep -e mine -e six /etc/hosts"),
    "processes": (["--pids-limit", "5"], FORKS),
    "processes without limit": (["--pids-limit", "-1"], FORKS),
    "unknown group": (["--group-add", "nope"], "id"),
}

CODES_BY_5 = {("read-only without tmpfs", 0): 1}  # podman 5's /dev/shm is read-only then


@needs_podman
@pytest.mark.parametrize("case", SAME)
def test_rights_and_limits_are_those_of_podman_run(
    run: Imgfs, podman: Sequence[str], layout: Path, case: str
) -> None:
    options, script = SAME[case]
    image = busybox(layout, "rights", Cmd=["sh"])
    pulled = run.program(*podman, "pull", "-q", image)
    assert pulled.code == 0, pulled
    words = (*podman, "run", *PODMAN, *options, pulled.text.strip(), "sh", "-c", script)
    theirs = run.program(*words)
    while theirs.code == 127 and "/attach: no such file" in theirs.err:  # podman came too late
        theirs = run.program(*words)
    ours = shell(run, image, script, "--network", "none", *options)
    assert as_podman(ours, CODES_BY_5.get((case, ours.code))) == (theirs.code, theirs.text), (ours, theirs)


TRANSLATED: dict[str, tuple[list[str], Security]] = {
    "default": ([], Security()),
    "all": (["--cap-add", "ALL"], Security(added=(ALL,))),
    "none": (["--cap-drop", "ALL"], Security(dropped=(ALL,))),
    "unconfined": (["--security-opt", "seccomp=unconfined"], Security(seccomp=UNCONFINED)),
}


@needs_podman
@pytest.mark.parametrize("case", TRANSLATED)
def test_a_profile_means_what_it_means_to_podman(
    run: Imgfs, podman: Sequence[str], layout: Path, case: str
) -> None:
    options, security = TRANSLATED[case]
    pulled = run.program(*podman, "pull", "-q", busybox(layout, "profile", Cmd=["sh"])).text.strip()
    words = [word for word in PODMAN if word != "--rm"]
    made = run.program(*podman, "create", *words, *options, pulled).text.strip()
    try:
        assert run.program(*podman, "init", made).code == 0
        path = run.program(*podman, "inspect", "-f", "{{.OCIConfigPath}}", made).text.strip()
        theirs = json.loads(Path(path).read_text())
    finally:
        run.program(*podman, "rm", "-f", "-t", "0", made)
    found, held = find_profile(security), capabilities()
    ours = found and found.filter(frozenset(security.bounding(held)))
    assert ours == theirs["linux"].get("seccomp")
    sets = security.capabilities(held, is_root=True)
    assert {name: names for name, names in sets.items() if names} == theirs["process"]["capabilities"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_system_calls_are_filtered_by_a_profile_of_ones_own(
    run: Imgfs, image: str, tmp_path: Path, runtime: str
) -> None:
    rule = {"names": ["unlink", "unlinkat"], "action": "SCMP_ACT_ERRNO", "errno": "ENOTTY"}
    (tmp_path / "own.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    options = ("--runtime", runtime, "--security-opt", f"seccomp={tmp_path}/own.json")
    ran = shell(run, image, "grep Seccomp: /proc/self/status; rm /srv/file; echo $?", *options)
    assert ran.text.split() == ["Seccomp:", "2", "1"]
    assert "Inappropriate ioctl" in ran.err


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_where_no_profile_is_system_calls_are_filtered_as_well(
    run: Imgfs, image: str, runtime: str, tmp_path: Path
) -> None:
    script = "grep Seccomp: /proc/self/status; busybox unshare -u true && echo unshared"
    words = run.command("run", "--runtime", runtime, "--cap-add=SYS_ADMIN", image, "sh", "-c", script)
    places = [path for path in ("/etc/containers", "/usr/share/containers") if Path(path).exists()]
    bare = "".join(f"mount --bind {tmp_path} {place} && " for place in places)
    ran = run.program("unshare", "-m", "sh", "-c", f'{bare} exec "$@"', "sh", *words)
    assert (ran.code, ran.text.split(), ran.err) == (0, ["Seccomp:", "2", "unshared"], "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_users_system_calls_are_filtered(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    ran = shell(nobody, image, "grep -e Seccomp: -e CapEff /proc/self/status", "--runtime", runtime)
    assert ran.text.split() == ["CapEff:", "00000000800405fb", "Seccomp:", "2"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_may_hand_on_devices_he_can_open(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    script = "head -c 3 /dev/hole | wc -c; test -e /dev/zero && echo zero"
    ran = shell(
        nobody,
        image,
        script.replace("head", "busybox head").replace("wc", "busybox wc"),
        "--runtime",
        runtime,
        "--device",
        "/dev/zero:/dev/hole",
    )
    assert (ran.code, ran.text.split(), ran.err) == (0, ["3", "zero"], "")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_with_privileges_has_his_own_only(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    script = "grep Seccomp: /proc/self/status; busybox mount -t tmpfs none /srv && ls -A /srv; ls /dev/mem"
    ran = shell(nobody, image, script, "--runtime", runtime, "--privileged")
    assert ran.text.split() == ["Seccomp:", "0"]
    assert ran.err == "ls: /dev/mem: No such file or directory\n"


def test_an_init_does_not_hide_that_there_is_no_such_command(run: Imgfs, image: str) -> None:
    assert "there is no command 'nope'" in run.run("run", "--init", image, "nope").complaint(127)


def test_without_the_capability_over_limits_they_are_lowered_and_that_is_said(run: Imgfs, image: str) -> None:
    options = ("--ulimit", "nofile=100:5000", "--ulimit", "core=0", "--cap-add", "SYS_RESOURCE")
    words = run.command("run", *options, image, "sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c")
    drop = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
    ran = run.program("sh", "-c", 'ulimit -n 1000; exec "$@"', "sh", *drop, *words)
    assert (ran.code, ran.text.split()) == (0, ["100", "1000", "0"])
    assert ran.err.splitlines() == [
        "imgfs: warning: CAP_SYS_RESOURCE cannot be given: imgfs itself has no such capability",
        "imgfs: warning: the limit of nofile is 100:1000: raising it needs CAP_SYS_RESOURCE",
    ]


def test_a_bundle_has_the_same_rights(run: Imgfs, image: str, tmp_path: Path) -> None:
    options = ("--cap-drop", "ALL", "--ulimit", "nofile=10:20", "--init", "--annotation", "a=b", "-l", "c=d")
    run.ok("bundle", *options, image, tmp_path / "box", "sh")
    config = json.loads((tmp_path / "box/config.json").read_text())
    run.ok("umount", tmp_path / "box/rootfs")
    process = config["process"]
    assert process["capabilities"]["bounding"] == []
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert process["args"] == ["/run/imgfs-init", "--", "sh"]
    assert config["linux"]["seccomp"]["defaultAction"]
    assert config["annotations"].items() >= {"a": "b", "c": "d"}.items()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["-p", "80:80:80:80"], 125, "'80:80:80:80' is not a port, like 8080:80, 127.0.0.1:8080:80"),
        (["--pid", "host"], 125, "--pid: a container has processes of its own, so that none is left of it"),
        (["--cap-add", "FLY"], 125, "'FLY' is not a capability, like NET_ADMIN or ALL"),
        (["--cap-add", "CHOWN", "--cap-drop", "chown"], 125, "CAP_CHOWN cannot be added and dropped at once"),
        (["--security-opt", "label=type:x"], 125, "'label=type:x' is none of imgfs's"),
        (["--security-opt", "seccomp=/nowhere"], 125, "/nowhere: no such seccomp profile"),
        (["--security-opt", "seccomp=/etc/passwd"], 125, "/etc/passwd: no seccomp profile: not JSON"),
        (["--device", "null"], 125, "'null' is not SRC, SRC:DST or SRC:DST:rwm, from the root"),
        (["--device", "/nowhere"], 125, "--device /nowhere: No such file or directory"),
        (["--device", "/etc/passwd"], 125, "--device /etc/passwd: not a device file"),
        (["--ulimit", "files=7"], 125, "'files=7' is not a limit, like nofile=1024:4096 or core=-1"),
        (["--ulimit", "nofile=7:5"], 125, "'nofile=7:5': the soft limit is above the hard one"),
        (["--ulimit", "nofile=-1:5"], 125, "'nofile=-1:5': the soft limit is above the hard one"),
        (["--pids-limit", "-2"], 125, "'-2' is not a number of processes"),
        (["--shm-size", "big"], 125, "'big' is not an amount of memory, like 512m or 2g"),
        (
            ["--mount", "type=ramfs,dst=/x"],
            125,
            "'ramfs' is not mounted here: type=bind, type=volume or type=tmpfs",
        ),
        (["--mount", "type=bind,dst=/x"], 125, "'type=bind,dst=/x': src= is missing"),
        (["--mount", "type=bind,src=/,dst=x"], 125, "'x' does not begin with a slash"),
        (["--mount", "type=tmpfs,dst=/x,src=/"], 125, "'src' is nothing that type=tmpfs has"),
        (["--mount", "type=tmpfs,dst=/x,tmpfs-mode=9"], 125, "'9' is not a mode, like 1777"),
        (["--mount", "type=bind,src=/nowhere,dst=/x"], 125, "/nowhere: no such file or directory"),
        (
            ["-v", "da ta:/data"],
            125,
            "'da ta' is not a name for a volume (letters, digits, '_', '.', '-'; at most 128)",
        ),
        (["--add-host", "db"], 125, "'db' is not NAME:ADDRESS, like db:10.0.0.7"),
        (["--annotation", "=x"], 125, "'=x' is not KEY=VALUE"),
        (["--stop-signal", "STOPPED"], 125, "'STOPPED' is not a signal, like QUIT or 3"),
        (["--stop-timeout", "soon"], 125, "'soon' is not a number of seconds"),
        (["--read-only-tmpfs=perhaps"], 125, "'perhaps' is neither true nor false"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(
    run: Imgfs, image: str, options: list[str], code: int, said: str
) -> None:
    ran = run.run("run", *options, image, "true")
    assert ran.code == code
    assert said in ran.err.splitlines()[-1]
    assert len([line for line in ran.err.splitlines() if not line.startswith("usage: ")]) == 1
    assert re.match(r"(usage: )?imgfs", ran.err)

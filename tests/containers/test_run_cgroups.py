"""Containers and cgroups: limits that hold, and version 2, mounted where only the test sees it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.runtime.host import capabilities, cgroups_of_this_machine
from tests.support import containers
from tests.support.containers import RUNTIMES, busybox, has_static_busybox, shell
from tests.support.mounted import NOBODY, Imgfs, Ran, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make cgroups"),
    pytest.mark.skipif(not has_static_busybox(), reason="there is no static busybox"),
]
layout, image, run = containers.layout, containers.image, containers.run

VERSION_2 = "umount -R /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
LOOK = "grep -c ' /sys/fs/cgroup cgroup2 ro,' /proc/mounts; cat /proc/self/cgroup | busybox tail -n 1"


def can_see_version_2() -> bool:
    done = subprocess.run(["unshare", "-m", "sh", "-c", VERSION_2], capture_output=True, check=False)
    return done.returncode == 0


needs_version_2 = pytest.mark.skipif(not can_see_version_2(), reason="no cgroups of version 2 alone")


def can_limit(controller: str) -> bool:
    found = cgroups_of_this_machine()
    return found.parent is not None and controller in found.controllers


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.skipif(not can_limit("memory"), reason="cgroups here do not limit memory")
def test_who_wants_more_memory_than_there_may_be_is_killed(run: Imgfs, image: str, runtime: str) -> None:
    script = "busybox tail /dev/zero; echo $?"  # looks for the end of a line
    ran = shell(run, image, script, "--memory", "24m", "--runtime", runtime)
    assert (ran.code, ran.text) == (0, "137\n")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.skipif(not can_limit("cpu"), reason="cgroups here do not limit processors")
def test_who_wants_more_processors_than_there_may_be_waits(run: Imgfs, image: str, runtime: str) -> None:
    script = "busybox timeout 1 sh -c 'while :; do :; done'; grep throttled /sys/fs/cgroup/cpu*/cpu.stat"
    ran = shell(run, image, script, "--cpus", "0.2", "--runtime", runtime)
    times = [int(word) for word in ran.text.split() if word.isdecimal()]
    assert max(times) > 0, ran


@needs_version_2
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_version_2_alone_is_used_and_what_it_does_not_limit_is_said(
    run: Imgfs, image: str, runtime: str
) -> None:
    words = run.command("run", "--runtime", runtime, "--memory", "64m", image, "sh", "-c", f"{LOOK}; exit 4")
    ran = run.program("unshare", "-m", "sh", "-c", f'{VERSION_2} && exec "$@"', "sh", *words)
    assert (ran.code, ran.text.split()) == (4, ["1", "0::/"]), ran
    warnings = [line.partition("warning: no ")[2].split(":")[0] for line in ran.err.splitlines()]
    listed = in_version_2("cat cgroup.controllers").text.split()
    expected = [] if "memory" in listed else ["limit of memory is enforced"]
    if runtime == "crun" and "CAP_SYS_RESOURCE" not in capabilities():
        expected.append("access to devices is limited")
    assert warnings == expected


@pytest.fixture
def delegated() -> Iterator[str]:
    """The name of a cgroup of version 2 that belongs to an ordinary user, from the top."""
    name = f"imgfs-test-{os.getpid()}"
    in_version_2(f"mkdir -p {name}/leaf; chown -R {NOBODY.uid} {name}")
    yield name
    until(lambda: in_version_2(f"rmdir {name}/*/ {name}").code == 0, "its cgroups are empty")


def in_version_2(script: str, *words: str) -> Ran:
    """What a script does in the top of version 2."""
    words = ("unshare", "-m", "sh", "-c", f"{VERSION_2} && cd /sys/fs/cgroup && {script}", "sh", *words)
    done = subprocess.run(words, capture_output=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr.decode())


@needs_version_2
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_users_containers_are_in_what_is_delegated_to_him(
    nobody: Imgfs, delegated: str, runtime: str
) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    script = f"{LOOK}; busybox ls -d /sys/fs/cgroup/cgroup.procs; exit 4"
    words = nobody.command("run", "--runtime", runtime, image, "sh", "-c", script)
    drop = f"setpriv --reuid {NOBODY.uid} --regid {NOBODY.gid} --clear-groups"
    environment = " ".join(f"{name}='{value}'" for name, value in nobody.environment.items())
    go = f"echo $$ >{delegated}/leaf/cgroup.procs && cd {nobody.directory}"
    ran = in_version_2(f'{go} && env -i {environment} {drop} "$@"', *words)
    assert (ran.code, ran.text.split(), ran.err) == (4, ["1", "0::/", "/sys/fs/cgroup/cgroup.procs"], "")


@needs_version_2
def test_the_cgroup_of_a_container_is_removed(run: Imgfs, image: str) -> None:
    words = run.command("run", "--name", "v2box", "--runtime", "runc", image, "true")
    listed = "; ls -d /sys/fs/cgroup/*v2box* 2>&1 | grep -v 'No such'; true"
    ran = run.program("unshare", "-m", "sh", "-c", f'{VERSION_2} && "$@" {listed}', "sh", *words)
    assert (ran.code, ran.text) == (0, ""), ran


def test_cgroups_of_both_versions_at_once_need_nobodys_help(run: Imgfs, image: str) -> None:
    if not Path("/sys/fs/cgroup/unified/cgroup.procs").exists():
        pytest.skip("there is one version only")
    for runtime in ("crun", "runc"):
        assert shell(run, image, "echo runs", "--runtime", runtime) == Ran(0, b"runs\n", "")


FAILS = """\
#!/bin/sh
# a crun that makes its cgroup, and cannot join it
while [ $# -gt 0 ]; do case $1 in --bundle) bundle=$2 ;; --log) log=$2 ;; esac; shift; done
cgroup=$(sed -n 's/.*"cgroupsPath": *"\\([^"]*\\)".*/\\1/p' "$bundle/config.json")
echo "$cgroup" >'{told}'
for place in $(awk '/ - cgroup2? / {{ print $5 }}' /proc/self/mountinfo); do
    mkdir -p "$place$cgroup/container" || exit 3
done
echo "write to cgroup.procs: No space left on device" | tee "$log" >&2
exit 1
"""


@pytest.mark.skipif(cgroups_of_this_machine().parent is None, reason="no cgroups can be made")
def test_a_cgroup_that_the_runtime_cannot_join_is_removed(run: Imgfs, image: str, tmp_path: Path) -> None:
    crun, told = tmp_path / "crun", tmp_path / "told"
    crun.write_text(FAILS.format(told=told))
    crun.chmod(0o755)
    ran = run.run("run", "--runtime", crun, image, "true")
    assert (ran.code, ran.err.splitlines()[-1]) == (126, "write to cgroup.procs: No space left on device")
    cgroup = told.read_text().strip()
    assert cgroup.rpartition("/")[2].startswith("imgfs-")
    assert [*Path("/sys/fs/cgroup").glob(f"*{cgroup}"), *Path("/sys/fs").glob(f"cgroup{cgroup}")] == []

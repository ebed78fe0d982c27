"""A fresh machine is given what is said and no more, and nothing of it is left behind (`scripts/fresh`)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs.mounts.table import mounts
from scripts.fresh import contained, machine, root
from tests.support.containers import has_static_busybox
from tests.support.mounted import CHECKOUT, SESSION, is_alive, processes_of_tests, until
from tests.support.patience import allowed

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has namespaces without a user's")


def stub(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A root file system with a shell and nothing else."""
    if not has_static_busybox():
        pytest.skip("no static busybox")
    for name in ("bin", "dev", "proc", "sys", "run"):
        (tmp_path / "bare" / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tmp_path / "bare/bin/busybox")
    return tmp_path / "bare"


def run_in(bare: Path, script: str) -> subprocess.CompletedProcess[str]:
    inside = [sys.executable, "-B", "-m", "scripts.fresh.contained", str(bare), "/"]
    command = [*inside, "/bin/busybox", "sh", "-c", script]
    limit = allowed(60)
    return subprocess.run(
        contained.words(command), cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=limit
    )


@needs_root
def test_what_runs_in_a_fresh_root_finds_its_kernels_devices_and_nothing_else_of_the_machine(
    bare: Path,
) -> None:
    said = run_in(bare, "cd /; for name in * dev/* dev/net/*; do echo $name; done; [ -w /dev/fuse ]")
    assert (said.returncode, said.stderr) == (0, "")
    devices = [*contained.NODES, *contained.LINKS, "fuse", "pts", "shm", "net", "net/tun", "loop-control"]
    devices += [f"loop{number}" for number in range(contained.LOOPS)]
    top = {"bin", "dev", "proc", "run", "sys"}
    assert set(said.stdout.split()) == top | {f"dev/{name}" for name in devices}


@needs_root
def test_its_exit_code_is_the_commands_and_its_orphans_are_reaped(bare: Path) -> None:
    script = "(busybox sleep 0 & ); busybox sleep 0.3; grep -s State: /proc/[0-9]*/status; exit 7"
    said = run_in(bare, script.replace("grep", "busybox grep").replace("busybox", "/bin/busybox"))
    assert said.returncode == 7, said
    assert "Z (zombie)" not in said.stdout
    assert run_in(bare, "kill -TERM $$").returncode == 128 + signal.SIGTERM


@needs_root
def test_a_fresh_root_has_user_namespaces(bare: Path) -> None:
    said = run_in(bare, "/bin/busybox unshare -r /bin/busybox id -u")
    assert (said.returncode, said.stdout) == (0, "0\n"), said


@needs_root
def test_nothing_outlives_who_has_started_it(tmp_path: Path) -> None:
    before = set(processes_of_tests())
    script = f"mount -t tmpfs none {tmp_path}; (sleep 1000 & ); echo up; sleep 1000"
    starting = f"import subprocess; subprocess.run({contained.words(['sh', '-c', script])})"
    name, _, value = SESSION.partition("=")
    with subprocess.Popen(
        [sys.executable, "-c", starting], stdout=subprocess.PIPE, env={**os.environ, name: value}
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        assert len(set(processes_of_tests()) - before) >= 4
        starter.kill()
    until(lambda: not [pid for pid in set(processes_of_tests()) - before if is_alive(pid)], "all have ended")
    assert not any(mount.mountpoint == tmp_path for mount in mounts())


TARGETS = """
echo "http://mirror.test/debian/ $own main"
echo "http://mirror.test/debian/ $own main"
echo "http://mirror.test/debian/ $own-updates main"
echo "http://mirror.test/security/ $own-security main contrib"
echo "http://other.test/ nodistro main"
"""


def test_the_machines_own_sources_are_those_of_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Path("/etc/os-release").read_text()
    own = next(line[17:] for line in release.splitlines() if line.startswith("VERSION_CODENAME="))
    stub(tmp_path / "apt-get", f"own={own}{TARGETS}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.apt_sources("trixie") == [
        "deb http://mirror.test/debian/ trixie main",
        "deb http://mirror.test/debian/ trixie-updates main",
        "deb http://mirror.test/security/ trixie-security main contrib",
    ]


def test_apt_goes_the_way_that_it_goes_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ['Acquire::http::Proxy "http://p.test:1";', 'APT::Architecture "amd64";', 'Acquire::Retries "3";']
    stub(tmp_path / "apt-config", "\n".join(f"echo '{line}'" for line in lines))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.apt_options() == [lines[0], lines[2]]


def test_clients_are_told_of_proxies_and_certificates_and_of_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    certificates = tmp_path / "ca.pem"
    certificates.touch()
    told = {
        "https_proxy": "http://p.test:1",
        "NO_PROXY": "a",
        "PIP_CERT": str(certificates),
        "PIP_RETRIES": "9",
    }
    for name, value in {**told, "HOME": "/root", "IMGFS_STORE": "/s", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    assert machine.client_environment() == told
    assert machine.named_paths(told) == {"PIP_CERT": certificates}


def test_what_a_killed_run_has_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "imgfs-fresh-left" / "root").mkdir(parents=True)
    with root.scratch() as place, root.scratch() as other:
        assert {place, other} == set(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_first_runs_the_first_test_of_each_module(tmp_path: Path) -> None:
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text("def test_1(): pass\ndef test_2(): assert False\n")
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.support.first_only",
        ".",
    ]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    said = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "2 passed, 2 deselected" in said.stdout


BUILDING = """
import sys
sys.path += [{site!r}]
from setuptools import build_meta
build_meta.get_requires_for_build_wheel()
"""


def test_where_pyfuse3_cannot_be_compiled_installing_names_the_packages(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "tests", "build")
    shutil.copytree(CHECKOUT, tmp_path / "source", ignore=ignored)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (tmp_path / "bin").mkdir()
    said = subprocess.run(
        [
            tmp_path / "venv/bin/python",
            "-c",
            BUILDING.format(site=str(Path(pytest.__file__).parent.parent)),
        ],
        cwd=tmp_path / "source",
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode != 0
    last = said.stderr.strip().splitlines()[-1]
    assert last.startswith("imgfs: pyfuse3 is compiled while imgfs is installed")
    assert "a C compiler, pkg-config, libfuse 3 (fuse3.pc)" in last
    assert "apt-get install gcc libc6-dev libfuse3-dev pkg-config python3-dev" in last
    assert "Traceback" not in said.stderr

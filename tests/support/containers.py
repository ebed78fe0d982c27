"""Containers for tests: images with a static busybox and a few files, fixtures to run them, and a podman.

    pytestmark = containers.marks
    layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman

has a test module use the fixtures.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from imgfs.mounts.table import mounts
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, Ran, Stored, gzipped, until, write_image

COMMANDS = "sh cat chmod chown echo env false grep hostname id ls pwd rm sleep sort stat touch true tty"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"
GROUP = b"root:x:0:\nadm:x:4:root\nweb:x:34:\nextra:x:44:web\n"
LIMITS = "--ulimit=nofile=1000:1000", "--ulimit=nproc=1000:1000"  # where podman may not raise its own
PODMAN = "--rm", "--runtime=runc", "--network=none", *LIMITS


def has_static_busybox() -> bool:
    """Return whether the machine's busybox runs where there are no libraries."""
    found = shutil.which("busybox")
    if found is None:
        return False
    return subprocess.run(["ldd", found], capture_output=True, check=False).returncode != 0


marks = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
    pytest.mark.skipif(not has_static_busybox(), reason="there is no static busybox"),
]


@functools.cache
def busybox_layer() -> Stored:
    """Return a layer with a shell, two users and little else."""
    program = Path(shutil.which("busybox") or "/nowhere").read_bytes()
    members = [
        tar.directory("", mode=0o755),
        tar.directory("bin"),
        tar.file("bin/busybox", program, mode=0o755),
        *(tar.symlink(f"bin/{name}", "busybox") for name in COMMANDS.split()),
        tar.file("bin/plain", b"no program"),
        tar.file("bin/script", b"#!/nowhere\n", mode=0o755),
        tar.directory("etc"),
        tar.file("etc/passwd", PASSWD),
        tar.file("etc/group", GROUP),
        tar.directory("root", mode=0o700),
        tar.directory("tmp", mode=0o1777),
        tar.directory("srv", uid=33, gid=34, mode=0o750),
        tar.file("srv/file", b"of the image", uid=33, gid=34, mode=0o600),
    ]
    return gzipped(tar.archive(*members))


def busybox(layout: Path, tag: str = "test", **config: Any) -> str:
    """Return an image of that layer; its reference. `config` is the runtime part of its config."""
    fields: Mapping[str, Any] = {"Env": ["PATH=/bin"], **config}
    return write_image(layout, [busybox_layer()], {"config": fields}, tag)


SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def installed(name: str) -> bool:
    return shutil.which(name) is not None or shutil.which(name, path=SBIN) is not None


RUNTIMES = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("crun", "runc")
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layout") / "layout"


@pytest.fixture(scope="module")
def image(layout: Path) -> str:
    return busybox(layout, "plain", Cmd=["sh"])


@pytest.fixture
def run(module_imgfs: Imgfs) -> Iterator[Imgfs]:
    """The command; whatever a test did with it, nothing of its containers is left."""
    yield module_imgfs
    until(lambda: traces(module_imgfs) == [], f"nothing is left: {traces(module_imgfs)}")


def traces(imgfs: Imgfs) -> list[str]:
    """Return what is left of containers: directories, mounts, cgroups, scratches that nobody has named."""
    left = [str(path) for path in (imgfs.store / "containers").glob("*")]
    left += [str(path) for path in (imgfs.store / "scratch").glob(".mount-*")]
    left += [str(one.mountpoint) for one in mounts() if one.mountpoint.is_relative_to(imgfs.store)]
    return left + [str(path) for path in Path("/sys/fs/cgroup").glob("*/imgfs-*") if _is_empty(path)]


def _is_empty(cgroup: Path) -> bool:
    """Return whether nobody is in a cgroup; other tests' containers run beside this one's."""
    with contextlib.suppress(OSError):  # it is being removed
        return (cgroup / "cgroup.procs").read_text() == ""
    return False


def shell(imgfs: Imgfs, image: str, script: str, *options: str | Path, **more: Any) -> Ran:
    return imgfs.run("run", *options, image, "sh", "-c", script, **more)


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.readline().decode().strip()


def first_pid(imgfs: Imgfs, name: str) -> int:
    """The pid of a container's first process, which may run before the runtime has written that down."""
    path = imgfs.store / "containers" / name / "pid"
    until(lambda: path.exists() and path.read_text().isdecimal(), f"{path} is written")
    return int(path.read_text())


needs_podman = pytest.mark.skipif(
    not (installed("podman") and installed("runc")), reason="podman is not installed"
)


@functools.cache
def podman_is_5() -> bool:
    """Return whether podman is 5 or later. Where it differs from podman 4, imgfs is as podman 4 is."""
    words = ["podman", "version", "--format", "{{.Client.Version}}"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return int(said.partition(".")[0]) >= 5


def as_podman(ran: Ran, code_by_5: int | None = None) -> tuple[int, str]:
    """Return what podman's exit code and output have to be if imgfs's are these.

    `code_by_5` is podman 5's code where it differs; without a terminal that sets no TERM.
    """
    if not podman_is_5():
        return ran.code, ran.text
    return ran.code if code_by_5 is None else code_by_5, ran.text.replace("TERM=xterm\n", "")


@pytest.fixture(scope="module")
def podman() -> Iterator[Sequence[str]]:
    """The words that begin a podman command with a storage of its own, whose paths podman wants short."""
    with tempfile.TemporaryDirectory(prefix="podman-") as top:
        places = (f"--root={top}/root", f"--runroot={top}/run", f"--tmpdir={top}/tmp")
        quiet = ("env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1")
        yield (*quiet, "podman", *places, "--storage-driver=vfs", "--cgroup-manager=cgroupfs")

"""Images for other platforms: looked at with a warning, and run only where something runs them."""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from imgfs.oci.descriptor import Platform
from tests.support import containers
from tests.support import tarmake as tar
from tests.support.containers import RUNTIMES, busybox_layer
from tests.support.mounted import Imgfs, gzipped, write_image

pytestmark = containers.marks
layout, run = containers.layout, containers.run

HERE = Platform.host()
OTHER = "s390x" if HERE.architecture != "s390x" else "arm64"


def image_for(layout: Path, architecture: str, os_name: str = "linux") -> str:
    config = {"architecture": architecture, "os": os_name, "config": {"Env": ["PATH=/bin"], "Cmd": ["true"]}}
    return write_image(layout, [busybox_layer()], config, f"{os_name}-{architecture}")


def test_a_look_at_another_platforms_image_has_a_warning(run: Imgfs, layout: Path) -> None:
    image = image_for(layout, OTHER)
    warning = f"imgfs: warning: the image is for linux/{OTHER}, and this machine is {HERE}\n"
    for words in (("ls", image, "/srv"), ("cat", image, "/srv/file"), ("inspect", image)):
        ran = run.run(*words)
        assert (ran.code, ran.err) == (0, warning)
    at = run.mountpoint()
    ran = run.run("mount", image, at)
    run.watch(at)
    assert (ran.code, ran.err) == (0, warning)
    run.umount(at)
    assert run.run("ls", "--platform", f"linux/{OTHER}", image, "/srv").err == ""


def test_an_image_that_has_not_the_platform_asked_for_has_a_warning(run: Imgfs, layout: Path) -> None:
    ran = run.run("ls", "--platform", "linux/riscv64", image_for(layout, HERE.architecture), "/srv")
    assert (ran.code, ran.text) == (0, "file\n")
    assert f"the image is for linux/{HERE.architecture}, not for linux/riscv64 as asked" in ran.err


@pytest.mark.parametrize("asked", [[], ["--platform", f"linux/{OTHER}"]])
def test_what_nothing_here_runs_is_not_run(run: Imgfs, layout: Path, asked: list[str]) -> None:
    image = image_for(layout, OTHER)
    said = run.run("run", *asked, image).complaint(126)
    assert f"the image is for linux/{OTHER}, and this machine is {HERE}" in said
    assert "qemu-user" in said
    assert "binfmt_misc" in said
    said = run.run("run", image_for(layout, HERE.architecture, "windows")).complaint(126)
    assert f"the image is for windows/{HERE.architecture}" in said
    assert "qemu" not in said


def test_what_is_not_what_was_asked_for_runs_with_a_warning(run: Imgfs, layout: Path) -> None:
    ran = run.run("run", "--platform", f"linux/{OTHER}", image_for(layout, HERE.architecture), "id", "-u")
    assert (ran.code, ran.text) == (0, "0\n")
    assert f"not for linux/{OTHER} as asked" in ran.err


@pytest.mark.skipif(HERE.architecture != "amd64", reason="386 is what amd64 runs besides")
def test_what_the_machine_runs_besides_has_no_warning(run: Imgfs, layout: Path) -> None:
    assert run.ok("run", image_for(layout, "386"), "id", "-u") == "0\n"


HELLO = b"hello from arm64\n"
QEMU = "/usr/bin/qemu-aarch64-static"
MAPPED = """
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 77
printf '%s' "$1" >/proc/sys/fs/binfmt_misc/register
shift
exec "$@"
"""


def arm64_program() -> bytes:
    """A static program for arm64 that writes HELLO and ends with 7 (Arm ARM, A64; elf(5))."""

    def mov(register: int, value: int) -> int:
        return 0xD2800000 | value << 5 | register

    svc, where = 0xD4000001, 4 * 7  # bytes from the second instruction to the text
    adr = 0x10000001 | (where >> 2) << 5  # x1: the text
    code = [mov(0, 1), adr, mov(2, len(HELLO)), mov(8, 64), svc, mov(0, 7), mov(8, 93), svc]  # write, exit
    body = struct.pack("<8I", *code) + HELLO
    base, headers = 0x400000, 64 + 56
    size = headers + len(body)
    ident = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, base + headers, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return ident + head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + body


def in_user_namespace(*words: str) -> Sequence[str]:
    """A command in a user namespace with all ids, which has a binfmt_misc of its own (Linux 6.7)."""
    code = (
        "import os, subprocess, sys, time\n"
        "words = ['unshare', '-Um', 'sh', '-c', 'read go; exec \"$@\"', 'sh', *sys.argv[1:]]\n"
        "child = subprocess.Popen(words, stdin=subprocess.PIPE)\n"
        "ns = lambda pid: os.readlink(f'/proc/{pid}/ns/user')\n"
        "while ns(child.pid) == ns('self'): time.sleep(0.01)\n"
        "for name in ('uid_map', 'gid_map'):\n"
        "    open(f'/proc/{child.pid}/{name}', 'w').write('0 0 65536')\n"
        "child.communicate(b'go\\n')\n"
        "sys.exit(child.returncode)\n"
    )
    return (sys.executable, "-c", code, *words)


@pytest.mark.skipif(HERE.architecture != "amd64", reason="an emulator of arm64 for amd64")
@pytest.mark.skipif(not Path(QEMU).exists(), reason="qemu-user-static is not installed")
@pytest.mark.parametrize("flags", ["F", "OC", ""])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_foreign_program_runs_by_qemu(run: Imgfs, layout: Path, runtime: str, flags: str) -> None:
    layer = gzipped(tar.archive(tar.directory("bin"), tar.file("bin/hello", arm64_program(), mode=0o755)))
    config = {"architecture": "arm64", "os": "linux", "config": {"Cmd": ["/bin/hello"]}}
    image = write_image(layout, [layer], config, "hello")
    magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    handler = f":imgfs-arm64:M::{magic}::{QEMU}:{flags}"
    words = run.command("run", "--network=none", "--runtime", runtime, "--platform=linux/arm64", image)
    ran = run.program(*in_user_namespace("sh", "-c", MAPPED, "sh", handler, *words))
    assert (ran.code, ran.out) == (7, HELLO), ran


def test_a_handler_of_binfmt_misc_is_taken_for_granted(run: Imgfs, layout: Path) -> None:
    """In a user namespace of the test's own, which has a binfmt_misc of its own (Linux 6.7)."""
    magic = r"\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16"
    script = (
        "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc || exit 77\n"
        f"printf '%s' ':imgfs:M::{magic}::{shutil.which('true')}:F' > /proc/sys/fs/binfmt_misc/register\n"
        "grep -q . /proc/sys/fs/binfmt_misc/imgfs || exit 77\n"
        'exec "$@"\n'
    )
    image = image_for(layout, "s390x")
    command = run.command("run", image, "id", "-u")
    assert "binfmt_misc" in run.program("unshare", "-Urm", *command).err
    ran = run.program("unshare", "-Urm", "sh", "-c", script, "sh", *command)
    assert (ran.code == 77, "the image is for" in ran.err) == (False, False), ran

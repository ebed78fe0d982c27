"""Devices that files of this machine's describe (CDI): in a container as podman has them there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import containers
from tests.support.containers import (
    PODMAN,
    RUNTIMES,
    busybox,
    installed,
    needs_podman,
    shell,
)
from tests.support.mounted import Imgfs

pytestmark = containers.marks
layout, image, run, podman = containers.layout, containers.image, containers.run, containers.podman

ZERO = {"path": "/dev/gizmo", "hostPath": "/dev/zero", "permissions": "rw"}
LOOK = (
    "id; env | grep GIZMO; stat -c '%F %u %g %a' /dev/gizmo*; cat /opt/told; "
    "grep -o '/opt/told .*ro,' /proc/mounts"
)


def described(top: Path, devices: dict[str, Any], **edits: Any) -> Path:
    """A directory with a file of those devices; the hook's files are beside it."""
    place = top / "cdi"
    place.mkdir(parents=True)
    listed = [{"name": name, "containerEdits": device} for name, device in devices.items()]
    file = {"cdiVersion": "0.5.0", "kind": "acme.com/gizmo", "containerEdits": edits, "devices": listed}
    (place / "acme.json").write_text(json.dumps(file))
    (top / "told").write_text("told\n")
    return place


def gizmos(top: Path) -> Path:
    told = {"hostPath": f"{top}/told", "containerPath": "/opt/told", "options": ["ro", "bind"]}
    writes = {
        "hookName": "createContainer",
        "path": "/bin/sh",
        "args": ["sh", "-c", f'cat >/dev/null; echo "$A" >>{top}/ran'],
    }
    other = {
        "path": "/dev/gizmo2",
        "type": "c",
        "major": 1,
        "minor": 3,
        "fileMode": 0o600,
        "uid": 5,
        "gid": 6,
    }
    one = {
        "env": ["GIZMO=one"],
        "deviceNodes": [ZERO],
        "mounts": [told],
        "hooks": [{**writes, "env": ["A=hook"]}],
    }
    return described(top, {"one": one, "two": {"deviceNodes": [other]}}, env=["GIZMO=file", "GIZMOS=all"])


def with_cdi(top: Path, *words: str) -> Sequence[str]:
    """A command that finds the files in `top` at /etc/cdi: for podman has no other place."""
    layers = f"upperdir=/mnt/upper,workdir=/mnt/work,lowerdir={top}:/etc"  # podman has its locks in /etc
    mount = f"mount -t tmpfs none /mnt; mkdir /mnt/upper /mnt/work; mount -t overlay -o {layers} none /etc"
    return ("unshare", "-m", "sh", "-ec", f'{mount}; umount -l /mnt; exec "$@"', "sh", *words)


@needs_podman
@pytest.mark.parametrize(
    "options",
    [
        ["--device", "acme.com/gizmo=one", "-e", "GIZMO=mine"],
        ["--device", "acme.com/gizmo=two", "--device", "acme.com/gizmo=one", "-u", "33:34"],
        ["--device=acme.com/gizmo=one", "-v", "/etc/hostname:/opt/told", "--read-only"],
        ["--device=acme.com/gizmo=three", "--device=acme.com/gizmo=one"],
        ["--device=acme.com/gizmo=lost"],
    ],
)
def test_a_described_device_is_had_as_with_podman(
    run: Imgfs, podman: Sequence[str], layout: Path, tmp_path: Path, options: list[str]
) -> None:
    gizmos(tmp_path)
    image = busybox(layout, "cdi", Cmd=["sh"])
    pulled = run.program(*podman, "pull", "-q", image).text.strip()
    ran = tmp_path / "ran"
    theirs = run.program(*with_cdi(tmp_path, *podman, "run", *PODMAN, *options, pulled, "sh", "-c", LOOK))
    hooked = ran.read_text() if ran.exists() else None
    ran.unlink(missing_ok=True)
    for runtime in ("crun", "runc"):
        words = run.command("run", "--runtime", runtime, "--network=none", *options, image, "sh", "-c", LOOK)
        ours = run.program(*with_cdi(tmp_path, *words))
        assert (ours.code, ours.text) == (theirs.code, theirs.text), (ours, theirs)
        assert (ran.read_text() if ran.exists() else None) == hooked
        ran.unlink(missing_ok=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_has_described_devices_too(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    place = gizmos(nobody.directory / runtime)
    place.parent.chmod(0o777)
    script = "env | grep GIZMO; busybox head -c 3 /dev/gizmo | busybox wc -c; cat /opt/told; id -G"
    options = ("--runtime", runtime, "--cdi-spec-dir", place, "--device", "acme.com/gizmo=one")
    ran = shell(nobody, image, script, *options)
    assert (ran.code, ran.text.split(), ran.err) == (0, ["GIZMO=one", "GIZMOS=all", "3", "told", "0"], "")
    assert (place.parent / "ran").read_text() == "hook\n"


def test_a_gpu_without_a_description_is_one_line(run: Imgfs, image: str, tmp_path: Path) -> None:
    place = gizmos(tmp_path)
    said = run.run("run", "--cdi-spec-dir", place, "--gpus", "all", image, "true").complaint(126)
    assert said == (
        "setting up CDI devices: unresolvable CDI devices nvidia.com/gpu=all "
        "(known: acme.com/gizmo=one, acme.com/gizmo=two)"
    )
    assert "names no GPUs" in run.run("run", "--gpus", "a b", image, "true").err


@pytest.mark.skipif(not installed("runc"), reason="runc is not installed")
def test_a_bundle_has_described_devices(run: Imgfs, image: str, tmp_path: Path) -> None:
    gpu = {"deviceNodes": [ZERO], "env": ["GPU=0"], "additionalGids": [44]}
    place, box = described(tmp_path, {"0": gpu}), tmp_path / "box"
    file = json.loads((place / "acme.json").read_text())
    (place / "acme.json").write_text(json.dumps({**file, "kind": "nvidia.com/gpu"}))
    look = "echo $GPU; id -G; stat -c %F /dev/gizmo"
    run.ok("bundle", "--cdi-spec-dir", place, "--gpus", "0", image, box, "sh", "-c", look)
    try:
        ran = run.program("runc", "run", "-b", box, "cdi-bundle")
        assert (ran.code, ran.text) == (0, "0\n0 4 44\ncharacter special file\n"), ran
    finally:
        run.ok("umount", box / "rootfs")

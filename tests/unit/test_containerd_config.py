"""containerd's configuration with imgfs: merged into what is there, the same the second time, and undone."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from imgfs import manual
from imgfs.cli.snapshotter_install import ADDRESS, ROOT
from imgfs.engines.node.containerd_config import NodeSetup, with_imgfs
from imgfs.engines.node.toml_edit import undone
from imgfs.errors import UsageError
from tests.support.mounted import Imgfs
from tests.support.patience import allowed

SETUP = NodeSetup("/run/s.sock", "/var/r", "linux/amd64", by_runtime_class=False, version=3)
CRI = "io.containerd.grpc.v1.cri"
IMAGES, RUNTIME, TRANSFER = (
    f"io.containerd.{name}" for name in ("cri.v1.images", "cri.v1.runtime", "transfer.v1.local")
)
RUNC = """version = {version}
[plugins."{cri}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{cri}".containerd.runtimes.runc.options]
SystemdCgroup = true
"""


def test_an_empty_configuration_has_a_version_and_both_snapshotters() -> None:
    found = tomllib.loads(with_imgfs("", SETUP, "f"))
    assert found["version"] == 3
    assert found["proxy_plugins"]["imgfs"] == {
        "type": "snapshot",
        "address": "/run/s.sock",
        "capabilities": ["remap-ids"],
        "exports": {"enable_remote_snapshot_annotations": "true", "root": "/var/r"},
    }
    assert found["plugins"][IMAGES] == {"snapshotter": "imgfs"}
    unpacking = found["plugins"][TRANSFER]["unpack_config"]
    assert [one["snapshotter"] for one in unpacking] == ["imgfs", "overlayfs"]


def test_who_lists_snapshotters_has_imgfs_added() -> None:
    text = f"""version = 4
[[plugins.'{TRANSFER}'.unpack_config]]
platform = "linux/amd64"
snapshotter = "native"
"""
    unpacking = tomllib.loads(with_imgfs(text, SETUP, "f"))["plugins"][TRANSFER]["unpack_config"]
    assert [one["snapshotter"] for one in unpacking] == ["native", "imgfs"]


def test_version_2_has_labels_switched_on_and_no_capabilities() -> None:
    text = f'version = 2\n[plugins."{CRI}".containerd]\nsnapshotter = "overlayfs"\n'
    found = tomllib.loads(with_imgfs(text, SETUP, "f"))
    wanted = {"snapshotter": "imgfs", "disable_snapshot_annotations": False}
    assert found["plugins"][CRI]["containerd"] == wanted
    assert found["proxy_plugins"]["imgfs"] == {"type": "snapshot", "address": "/run/s.sock"}


@pytest.mark.parametrize(("version", "cri"), [(2, CRI), (3, RUNTIME)])
def test_a_runtime_class_leaves_the_others_alone_and_makes_cgroups_as_runc_does(
    version: int, cri: str
) -> None:
    text = RUNC.format(version=version, cri=cri)
    found = tomllib.loads(with_imgfs(text, replace(SETUP, by_runtime_class=True), "f"))
    runtimes = found["plugins"][cri]["containerd"]["runtimes"]
    assert runtimes["imgfs"] == {**runtimes["runc"], "snapshotter": "imgfs"}
    assert runtimes["imgfs"]["options"] == {"SystemdCgroup": True}
    assert "snapshotter" not in found["plugins"][cri]["containerd"]
    if version == 3:
        platforms = found["plugins"][IMAGES]["runtime_platforms"]
        assert platforms == {"imgfs": {"snapshotter": "imgfs"}}


def test_the_manual_shows_what_is_installed() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", manual.text("engines"), flags=re.DOTALL)
    shown = {found.get("version"): found for found in map(tomllib.loads, blocks)}
    setup = replace(SETUP, address=ADDRESS, root=ROOT)
    for version in (2, 3):
        assert shown[version] == tomllib.loads(with_imgfs("", replace(setup, version=version), "f"))


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_the_second_time_changes_nothing_and_all_is_undone(version: int, by_class: bool) -> None:
    text = RUNC.format(version=version, cri=CRI if version == 2 else RUNTIME)
    setup = replace(SETUP, by_runtime_class=by_class)
    once = with_imgfs(text, setup, "f")
    assert with_imgfs(once, setup, "f") == once
    assert undone(once) == text
    other = replace(setup, by_runtime_class=not by_class)
    assert with_imgfs(once, other, "f") == with_imgfs(text, other, "f")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('root = "/x"\n', "f: has no version, so it is of version 1"),
        ("version = 9\n", "f: version 9; imgfs knows 2, 3, 4"),
        ('version = "2"\n', "f: version 2; imgfs knows"),
        ("version = 2\nproxy_plugins = 5\n", "f: proxy_plugins.imgfs is no table"),
    ],
)
def test_what_imgfs_does_not_know_is_left_alone(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        with_imgfs(text, SETUP, "f")


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("containerd") is None, reason="no containerd")
def test_containerd_reads_its_own_configuration_with_imgfs_in_it(imgfs: Imgfs, tmp_path: Path) -> None:
    def containerd(*words: str | Path) -> str:
        ran = subprocess.run(["containerd", *words], capture_output=True, check=True, timeout=allowed(60))
        return ran.stdout.decode()

    config, service = tmp_path / "config.toml", tmp_path / "a.service"
    config.write_text(containerd("config", "default"))
    config.chmod(0o640)
    before = config.read_text()
    words = "--containerd", config, "--unit", service
    here = *words, "--store", "/var/lib/imgfs-store"
    shown = imgfs.ok("snapshotter", "install", "--dry-run", *here)
    assert '+snapshotter = "imgfs"' in shown
    assert (config.read_text(), service.exists()) == (before, False)
    assert "systemctl enable --now imgfs-snapshotter.service" in imgfs.ok("snapshotter", "install", *here)
    assert imgfs.ok("snapshotter", "install", *here) == "nothing to change\n"
    found = tomllib.loads(containerd("--config", config, "config", "dump"))
    assert found["plugins"][CRI]["containerd"]["snapshotter"] == "imgfs"
    assert found["proxy_plugins"]["imgfs"]["address"] == "/run/imgfs/snapshotter.sock"
    assert (config.stat().st_mode & 0o777, (tmp_path / "config.toml.before-imgfs").read_text()) == (
        0o640,
        before,
    )
    assert "handler: imgfs" in imgfs.ok("snapshotter", "install", "--runtime-class", *here)
    assert "ExecStart=" in service.read_text()
    assert " snapshotter --store /var/lib/imgfs-store\n" in service.read_text()
    other = imgfs.run("snapshotter", "install", "--dry-run", *words, "--store", "/dev/shm/store")
    assert other.err.startswith(
        "imgfs: warning: the store /dev/shm/store is not on the disk of /var/lib/imgfs/"
    )
    by_class = imgfs.run(
        "snapshotter", "install", "--dry-run", "--runtime-class", *words, "--store", "/dev/shm/store"
    )
    assert "is not on the disk of /var/lib/containerd," in by_class.err
    imgfs.ok("snapshotter", "uninstall", *words)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["config.toml"]
    assert config.read_text() == before
    service.write_text("[Service]\n")
    assert "not of imgfs" in imgfs.run("snapshotter", "install", *here).complaint(2)

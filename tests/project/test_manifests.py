"""The manifests for Kubernetes that the manual shows: they agree with themselves and with our commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from imgfs import manual
from imgfs.cli.parser import parse
from imgfs.engines.csi.services import DRIVER
from tests.support.patience import allowed

BLOCKS = re.findall(r"```yaml\n(.*?)```", manual.text("kubernetes"), flags=re.DOTALL)
SHOWN: list[dict[str, Any]] = [one for block in BLOCKS for one in yaml.safe_load_all(block)]
DAEMONS = {one["metadata"]["name"]: one["spec"] for one in SHOWN if one["kind"] == "DaemonSet"}
VERSIONS = {
    "DaemonSet": "apps/v1",
    "Pod": "v1",
    "CSIDriver": "storage.k8s.io/v1",
    "RuntimeClass": "node.k8s.io/v1",
}


def pods() -> list[dict[str, Any]]:
    return [
        *(one["spec"] for one in SHOWN if one["kind"] == "Pod"),
        *(daemon["template"]["spec"] for daemon in DAEMONS.values()),
    ]


def test_each_object_is_of_a_kind_and_has_a_name() -> None:
    assert {one["kind"]: one["apiVersion"] for one in SHOWN} == VERSIONS
    assert all(one["metadata"]["name"] for one in SHOWN)


@pytest.mark.parametrize("daemon", DAEMONS.values(), ids=DAEMONS)
def test_a_daemon_set_selects_its_own_pods(daemon: dict[str, Any]) -> None:
    assert daemon["selector"]["matchLabels"] == daemon["template"]["metadata"]["labels"]


def test_what_is_mounted_is_a_volume_of_the_pod() -> None:
    for pod in pods():
        containers = [*pod.get("initContainers", []), *pod["containers"]]
        mounted = {mount["name"] for one in containers for mount in one.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_names_are_those_that_imgfs_has() -> None:
    classes = {one["metadata"]["name"] for one in SHOWN if one["kind"] == "RuntimeClass"}
    assert {pod["runtimeClassName"] for pod in pods() if "runtimeClassName" in pod} == classes == {"imgfs"}
    drivers = {one["metadata"]["name"] for one in SHOWN if one["kind"] == "CSIDriver"}
    asked = {
        volume["csi"]["driver"] for pod in pods() for volume in pod.get("volumes", []) if "csi" in volume
    }
    assert asked == drivers == {DRIVER}


def test_the_csi_driver_is_started_where_kubelet_finds_it() -> None:
    pod = DAEMONS["imgfs-csi"]["template"]["spec"]
    (driver,) = pod["containers"]
    words = [*driver["command"], *driver["args"]]
    options = parse(words[1:])
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    at = {mount["name"]: mount["mountPath"] for mount in driver["volumeMounts"]}
    assert options.endpoint == f"unix://{at['plugin']}/csi.sock"
    assert paths["plugin"].endswith(f"/{DRIVER}")
    assert options.register == at["registration"]
    assert all(paths[name] == at[name] for name in ("plugin", "registration"))  # kubelet is told the path
    assert (options.root, options.store) == (at["run"], at["store"])
    shared = [mount for mount in driver["volumeMounts"] if mount.get("mountPropagation") == "Bidirectional"]
    assert all(
        paths[mount["name"]] == mount["mountPath"] for mount in shared
    )  # a path means the same on the node


SCRIPT = DAEMONS["imgfs-snapshotter"]["template"]["spec"]["initContainers"][0]["args"][0]
NSENTER = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
echo "$*" >>"$LOG"
case "$*" in *"snapshotter install"*) echo "$SAID" ;; esac
"""


def test_the_script_asks_for_what_imgfs_understands() -> None:
    (words,) = re.findall(r" imgfs (snapshotter install.*)\)", SCRIPT)
    assert parse(words.split()).runtime_class


@pytest.mark.parametrize(
    ("said", "restarted"),
    [
        ("nothing to change", []),
        ("wrote /etc/systemd/system/imgfs-snapshotter.service", ["imgfs-snapshotter.service"]),
        (
            "wrote /etc/containerd/config.toml\nwrote /etc/systemd/system/imgfs-snapshotter.service",
            ["imgfs-snapshotter.service", "containerd.service"],
        ),
    ],
)
def test_only_what_has_changed_is_restarted(tmp_path: Path, said: str, restarted: list[str]) -> None:
    for name in ("image/imgfs/0.1", "host", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "image/imgfs/0.1/pyvenv.cfg").write_text("")
    nsenter = tmp_path / "bin/nsenter"
    nsenter.write_text(NSENTER)
    nsenter.chmod(0o755)
    script = SCRIPT.replace("/host/opt/", f"{tmp_path}/host/").replace(
        "cp -a /opt/", f"cp -a {tmp_path}/image/"
    )
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    environment = {"PATH": path, "LOG": str(tmp_path / "log"), "SAID": said}
    for _ in range(2):  # a pod that is started again finds imgfs there
        subprocess.run(["sh", "-euc", script], env=environment, check=True, timeout=allowed(20))
    assert (tmp_path / "host/imgfs/0.1/pyvenv.cfg").exists()
    asked = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[-1] for line in asked if " restart " in line] == restarted * 2
    assert asked.count("systemctl start imgfs-snapshotter.service") == 2

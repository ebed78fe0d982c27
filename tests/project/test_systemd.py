"""The systemd units that the manual shows: systemd finds nothing wrong with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs import manual
from imgfs.engines.node.unit import CRI, CSI, SNAPSHOTTER, ServerUnits
from tests.support.mounted import Imgfs
from tests.support.patience import allowed

SHOWN = manual.text("mounting") + manual.text("engines") + manual.text("kubernetes")
UNITS = re.findall(r"```ini\n# (\S+)\n(.*?)```", SHOWN, flags=re.DOTALL)

COMMAND = Path(sys.executable).with_name("imgfs")

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def test_there_are_units_of_each_kind() -> None:
    assert {Path(path).suffix for path, _ in UNITS} == {".mount", ".automount", ".service", ".socket"}


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_finds_nothing_wrong_with_the_manuals_units(tmp_path: Path, kind: str) -> None:
    written = []
    for path, text in UNITS:
        if f"/{kind}/" in path:
            written.append(tmp_path / Path(path).name)
            written[-1].write_text(text.replace("/usr/local/bin/imgfs", str(COMMAND)))
    assert written
    verified = verify(kind, written, tmp_path)
    assert (verified.returncode, complaints(verified, written)) == (0, [])


@pytest.mark.parametrize(
    ("server", "command", "address"),
    [
        (SNAPSHOTTER, "imgfs snapshotter", "/run/imgfs/snapshotter.sock"),
        (CRI, "imgfs cri", "/run/imgfs/cri.sock"),
        (CSI, "imgfs csi --register /var/lib/kubelet/plugins_registry", "/run/imgfs/csi.sock"),
    ],
    ids=lambda value: value.name if isinstance(value, ServerUnits) else None,
)
def test_the_manuals_units_are_those_that_are_installed(
    imgfs: Imgfs, tmp_path: Path, server: ServerUnits, command: str, address: str
) -> None:
    shown = {Path(path).name: server.mark + text for path, text in UNITS}
    service, socket = server.units
    assert shown[service] == server.service_unit(f"/usr/local/bin/{command}".split())
    assert shown[socket] == server.socket_unit(address)
    action, config = command.split()[1], ("--containerd", tmp_path / "c.toml")
    place = "--unit", tmp_path / service, *(config if server is SNAPSHOTTER else ())
    words = *place, "--store", "/var/lib/imgfs-store"
    assert "+ExecStart=" in imgfs.ok(action, "install", "--dry-run", *words)
    assert files_in(tmp_path) == []
    assert f"systemctl enable --now {service}" in imgfs.ok(action, "install", *words)
    written = [tmp_path / service, tmp_path / socket]
    assert set(map(str, written)) <= set(map(str, files_in(tmp_path)))
    assert complaints(verify("system", written, tmp_path), written) == []
    assert imgfs.ok(action, "install", *words) == "nothing to change\n"
    assert f"systemctl stop {socket} {service}" in imgfs.ok(action, "uninstall", *place)
    assert files_in(tmp_path) == []
    (tmp_path / socket).write_text("[Socket]\n")
    assert "not of imgfs" in imgfs.run(action, "install", *words).complaint(2)
    assert imgfs.ok(action, "uninstall", *place) == "nothing to change\n"


def test_the_snapshotter_reads_the_credentials_that_are_kept_where_it_was_said(
    imgfs: Imgfs, tmp_path: Path
) -> None:
    place = "/run/a b/100%/auth.json"
    imgfs.ok("cri", "install", "--unit", tmp_path / "imgfs-cri.service", "--auth-file", place)
    (drop_in,) = (tmp_path / "imgfs-snapshotter.service.d").iterdir()
    assert 'Environment="REGISTRY_AUTH_FILE=/run/a b/100%%/auth.json"\n' in drop_in.read_text()
    assert '"--auth-file"' not in (tmp_path / "imgfs-cri.service").read_text()
    snapshotter = tmp_path / SNAPSHOTTER.units[0]
    snapshotter.write_text(SNAPSHOTTER.service_unit([str(COMMAND), "snapshotter"]))
    units = [snapshotter, drop_in, *tmp_path.glob("imgfs-cri.*")]
    assert complaints(verify("system", units[:1], tmp_path), units) == []


def files_in(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def test_the_unit_runs_what_has_written_it_and_not_another_in_the_path(tmp_path: Path) -> None:
    other = tmp_path / "bin" / "imgfs"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    config = ["--containerd", str(tmp_path / "c.toml"), "--unit", str(tmp_path / SNAPSHOTTER.units[0])]
    ran = subprocess.run(
        [COMMAND, "snapshotter", "install", "--dry-run", *config],
        env={**os.environ, "PATH": f"{other.parent}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
        text=True,
        timeout=allowed(60),
    )
    assert f"+ExecStart={COMMAND} snapshotter\n" in ran.stdout


@pytest.mark.parametrize("place", ["/run/a b/s", "/run/100%/s", "/run/$HOME/s", '/run/"/s'])
def test_systemd_reads_a_path_as_it_was_given(tmp_path: Path, place: str) -> None:
    path, listening = (tmp_path / name for name in SNAPSHOTTER.units)
    path.write_text(SNAPSHOTTER.service_unit([str(COMMAND), "snapshotter", "--address", place]))
    listening.write_text(SNAPSHOTTER.socket_unit(place))
    assert complaints(verify("system", [path, listening], tmp_path), [path, listening]) == []


def test_systemd_would_find_something_wrong(tmp_path: Path) -> None:
    unit = tmp_path / "imgfs-tools.service"
    unit.write_text("[Service]\nType=forkin\nExecStart=/usr/local/bin/no-such-imgfs mount\nExecStrop=x\n")
    assert complaints(verify("system", [unit], tmp_path), [unit])


def verify(kind: str, units: list[Path], home: Path) -> subprocess.CompletedProcess[str]:
    """Have systemd read units."""
    return subprocess.run(
        ["systemd-analyze", "verify", f"--{kind}", "--man=no", *units],
        env={"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PATH": "/usr/bin:/bin"},
        text=True,
        capture_output=True,
        check=False,
        timeout=allowed(60),
    )


def complaints(verified: subprocess.CompletedProcess[str], units: list[Path]) -> list[str]:
    """What is said of these units; of the machine's own there may be something to say, too."""
    names = [unit.name for unit in units]
    return [line for line in verified.stderr.splitlines() if any(name in line for name in names)]

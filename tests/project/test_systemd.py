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
from imgfs.engines.node.unit import MARK, NAME, SOCKET, socket_unit, unit
from tests.support.patience import allowed

SHOWN = manual.text("mounting") + manual.text("engines")
UNITS = re.findall(r"```ini\n# (\S+)\n(.*?)```", SHOWN, flags=re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def test_there_are_units_of_each_kind() -> None:
    assert {Path(path).suffix for path, _ in UNITS} == {".mount", ".automount", ".service", ".socket"}


@pytest.mark.parametrize("kind", ["system", "user"])
def test_systemd_finds_nothing_wrong_with_the_manuals_units(tmp_path: Path, kind: str) -> None:
    command = Path(sys.executable).with_name("imgfs")
    written = []
    for path, text in UNITS:
        if f"/{kind}/" in path:
            written.append(tmp_path / Path(path).name)
            written[-1].write_text(text.replace("/usr/local/bin/imgfs", str(command)))
    assert written
    verified = verify(kind, written, tmp_path)
    assert (verified.returncode, complaints(verified, written)) == (0, [])


def test_the_snapshotters_units_are_those_that_are_installed() -> None:
    shown = {Path(path).name: MARK + text for path, text in UNITS}
    assert shown[NAME] == unit(["/usr/local/bin/imgfs", "snapshotter"])
    assert shown[SOCKET] == socket_unit("/run/imgfs/snapshotter.sock")


def test_the_unit_runs_what_has_written_it_and_not_another_in_the_path(tmp_path: Path) -> None:
    other = tmp_path / "bin" / "imgfs"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    command = Path(sys.executable).with_name("imgfs")
    config = ["--containerd", str(tmp_path / "c.toml"), "--unit", str(tmp_path / NAME)]
    ran = subprocess.run(
        [command, "snapshotter", "install", "--dry-run", *config],
        env={**os.environ, "PATH": f"{other.parent}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
        text=True,
        timeout=allowed(60),
    )
    assert f"+ExecStart={command} snapshotter\n" in ran.stdout


@pytest.mark.parametrize("place", ["/run/a b/s", "/run/100%/s", "/run/$HOME/s", '/run/"/s'])
def test_systemd_reads_a_path_as_it_was_given(tmp_path: Path, place: str) -> None:
    command = Path(sys.executable).with_name("imgfs")
    path = tmp_path / NAME
    path.write_text(unit([str(command), "snapshotter", "--address", place]))
    listening = tmp_path / SOCKET
    listening.write_text(socket_unit(place))
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

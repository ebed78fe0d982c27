"""The systemd units that the manual shows: systemd finds nothing wrong with them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs import manual
from tests.support.patience import allowed

UNITS = re.findall(r"```ini\n# (\S+)\n(.*?)```", manual.text("mounting"), flags=re.DOTALL)

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def test_there_are_units_of_each_kind() -> None:
    assert {Path(path).suffix for path, _ in UNITS} == {".mount", ".automount", ".service"}


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

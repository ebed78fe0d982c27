"""The quick tests are many, and need neither /dev/fuse nor programs: `scripts/test --quick`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import quick
from tests.support.mounted import CHECKOUT
from tests.support.patience import allowed

LEAST = 1_500

MODULE = """
import subprocess, sys
import pytest
@pytest.fixture(scope="module")
def started(): subprocess.run([{program}, *{arguments}], check=True)
def test_that_starts(started): pass
@pytest.mark.parts
def test_that_is_marked(): pass
"""


def pytest_in(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", *options]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        words,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=allowed(120),
    )


def test_there_are_many_and_they_are_what_the_script_runs() -> None:
    script = (CHECKOUT / "scripts" / "test").read_text()
    (given,) = re.findall(r"set -- (-p tests\.support\.quick .*) \"\$@\"", script)
    assert {Path(word).name for word in given.split() if word.startswith("tests/")} == quick.FOLDERS
    said = pytest_in(CHECKOUT, "--collect-only", "-qq", *given.split())
    assert said.returncode == 0, said.stdout[-2000:]
    counts = [int(line.rpartition(": ")[2]) for line in said.stdout.splitlines() if ".py: " in line]
    assert sum(counts) > LEAST


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [("'true'", [], 0), ("sys.executable", ["-c", ""], 0), ("'umoci'", ["--version"], 1)],
)
def test_a_test_is_quick_only_if_it_and_its_fixtures_start_no_program(
    tmp_path: Path, program: str, arguments: Sequence[str], code: int
) -> None:
    (tmp_path / "unit").mkdir()
    (tmp_path / "unit/test_started.py").write_text(MODULE.format(program=program, arguments=arguments))
    options = ("-o", "timeout=60", "-p", "tests.support.quick")
    said = pytest_in(tmp_path, *options, ".")
    assert said.returncode == code, said.stdout
    assert ("test_that_starts starts umoci" in said.stdout) == bool(code)
    assert "1 deselected" in said.stdout


@pytest.mark.parametrize(
    ("event", "arguments", "what"),
    [
        ("open", ("/dev/fuse", "r+", 2), "opens /dev/fuse"),
        ("open", (3, "r", 0), ""),
        ("subprocess.Popen", ("/usr/bin/umoci", ["umoci"], None, None), "starts umoci"),
        ("subprocess.Popen", (None, [b"/bin/tar", b"x"], None, None), ""),
        ("subprocess.Popen", (None, [sys.executable, "-m", "imgfs", "mount"], None, None), "starts imgfs"),
        ("subprocess.Popen", (None, "docker-registry", None, None), "starts docker-registry"),
        ("os.listdir", ("/",), ""),
    ],
)
def test_what_no_quick_test_does(event: str, arguments: Sequence[object], what: str) -> None:
    assert quick.trespass(event, arguments) == what

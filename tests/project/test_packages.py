"""What a machine needs is what scripts/packages names: that is held against the programs that are started."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounted import CHECKOUT

SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
GROUPS = {"run", "build", "demo", "test", "bench"}
# Who starts what: the groups of packages it may count on.
STARTERS = {
    "imgfs": {"run", "build"},
    "tests": {"run", "build", "demo", "test"},
    "scripts/lab": {"run", "build", "demo", "test", "bench"},
    "scripts/proving": {"run", "build", "demo", "test"},
    "scripts/fresh": {"run", "build", "demo", "test"},
    "scripts/benchmark": {"run", "build", "demo", "bench"},
}
ALTERNATIVES = {"runc", "tini", "docker-init", "cc"}  # of crun, catatonit and gcc: taken where they are
OPTIONAL = {  # where it is missing, that is one line, or another answer
    "bsdtar",  # packs layers, beside GNU tar
    "containerd",  # asked for its version by snapshotter install
    "go",  # builds containerd 2.x for the bench
    "gpg",  # for policies with signedBy
}
ABSENT = {"no-such-tool", "docker-credential-"}  # started so that there is none
OTHER = {"apt-get", "apt-config", "imgfs", "mount.fuse.imgfs"}  # what installs the rest, and what that is
STARTS = {"run", "Popen", "check_output", "check_call"}  # with a list; Imgfs.run takes imgfs's own words
LOOKS = {"which", "installed", "program"}  # with a word
ASSIGNED = {"words", "command", "tool"}

IMPORT_ALL = """
import importlib, pkgutil, imgfs, scripts
for package in (imgfs, scripts):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
"""


def test_every_module_can_be_imported_by_itself() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORT_ALL], cwd=CHECKOUT, check=True, timeout=120)


def listed() -> list[tuple[str, str, list[str]]]:
    """The list's lines: group, package, checks."""
    lines = (CHECKOUT / "scripts" / "packages").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [(group, package, checks) for group, package, *checks in rows]


def programs_of(groups: set[str]) -> set[str]:
    """The programs that the packages of some groups are said to bring."""
    checks = [check for group, _, checks in listed() if group in groups for check in checks]
    return {check.rpartition(":")[2].rpartition("/")[2] for check in checks}


@functools.cache
def essential_packages() -> set[str]:
    words = ["dpkg-query", "--show", "--showformat", "${Essential} ${binary:Package}\n"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return {line.split()[1].partition(":")[0] for line in said.splitlines() if line.startswith("yes ")}


@functools.cache
def own_commands() -> set[str]:
    """The commands of imgfs itself, which tests start in the same way, less those that are programs, too."""
    words = [sys.executable, "-m", "imgfs", "--help"]
    said = subprocess.run(words, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^  (\w+) ", said, re.MULTILINE)) - {"mount", "umount", "cat", "ls", "diff"}


@functools.cache
def essential_programs() -> set[str]:
    """The programs in the packages that every Debian has, and the shell, a link that dash makes."""
    words = ["dpkg-query", "--listfiles", *essential_packages()]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return {"sh"} | {line.rpartition("/")[2] for line in said.splitlines() if "bin/" in line}


def started_by(directory: Path) -> Iterator[tuple[str, str]]:
    """The programs that the modules below a directory start or look for, and where."""
    for path in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            for program in _started(node):
                yield program, f"{path.relative_to(CHECKOUT)}:{getattr(node, 'lineno', 0)}"


def _started(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_]) if name in STARTS:
            yield from _first_word(getattr(first, "elts", []))
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=words) if name in LOOKS:
            yield from _first_word(words)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.lower() == "script":
            yield from _shell_words(value)
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.lower() in ASSIGNED:
            yield from _first_word(getattr(value, "elts", []))
        case _:
            pass


def _first_word(words: list[ast.expr]) -> Iterator[str]:
    """The program that a command line starts, and those of the script that it gives a shell."""
    match words:
        case [ast.Constant(value=str(program)), *more] if re.fullmatch(r"[a-z][\w.+-]*", program):
            yield program
            if program in {"sh", "bash"} or "sh" in [getattr(word, "value", None) for word in more]:
                for word in more:
                    yield from _shell_words(word)
        case _:
            pass


def _shell_words(script: ast.expr) -> Iterator[str]:
    """The words of a script that stand where a command does and are programs here."""
    for part in ast.walk(script):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            for word in re.findall(r"(?:^|[;&|(`]|\bexec|\bthen|\bdo)\s*([a-z][\w.+-]+)(?=\s|$)", part.value):
                if shutil.which(word, path=SBIN):
                    yield word


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not Debian")
@pytest.mark.parametrize("place", STARTERS)
def test_every_program_that_is_started_is_in_a_package_that_install_names(place: str) -> None:
    known = programs_of(STARTERS[place]) | ALTERNATIVES | OPTIONAL | ABSENT | OTHER
    found = {name: at for name, at in started_by(CHECKOUT / place) if name not in own_commands()}
    assert {name: at for name, at in found.items() if name not in known | essential_programs()} == {}


def test_the_scan_sees_what_tests_start() -> None:
    found = dict(started_by(CHECKOUT / "tests"))
    assert {"mkfs.ext4", "unshare", "skopeo", "umoci", "flatc", "zstd", "openssl"} <= set(found)


def test_the_list_of_packages_is_well_formed() -> None:
    rows = listed()
    assert {group for group, _, _ in rows} == GROUPS
    assert all(checks for _, _, checks in rows)
    named = [(group, package) for group, package, _ in rows]
    assert len(named) == len(set(named))


def test_the_readme_names_what_a_user_installs() -> None:
    readme = (CHECKOUT / "README.md").read_text()
    start = "\n".join(
        line.partition("#")[0] for line in readme.splitlines() if line.startswith("apt-get install")
    )
    named = set(start.split()) - {"apt-get", "install"}
    assert named == {package for group, package, _ in listed() if group in {"run", "build", "demo"}}

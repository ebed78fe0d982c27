"""The quick tests, `scripts/test --quick`: no kernel mount, no imgfs started, no program of a Debian package.

Which they are follows from the folder, marks and fixtures of a test. In such a run one that starts a program
fails, and says which: it lacks a mark.

Loaded as a plugin, it selects them: `pytest -p tests.support.quick`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

FOLDERS = frozenset({"unit", "formats"})
MARKS = ("kernel", "parts", "drivers")
COMMANDS = frozenset({"imgfs", "module_imgfs", "nobody"})  # fixtures: imgfs as its user starts it
# Of packages that are Essential in Debian: they are on every machine.
ESSENTIAL = frozenset(
    {"sh", "bash", "tar", "gzip", "cp", "sleep", "true", "false", "cat", "env", "rm", "unshare"}
)

_held: list[str] = []  # the quick test that runs


def is_quick(item: pytest.Item) -> bool:
    """Return True if a test is a quick one."""
    fixtures = COMMANDS.intersection(getattr(item, "fixturenames", ()))
    marked = any(item.get_closest_marker(name) for name in MARKS)
    return item.path.parent.name in FOLDERS and not fixtures and not marked


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the quick tests."""
    config.hook.pytest_deselected(items=[item for item in items if not is_quick(item)])
    items[:] = filter(is_quick, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Have a test fail that is a quick one by its marks and is none by what it or its fixtures do."""
    _held.append(item.nodeid)
    try:
        return (yield)
    finally:
        _held.pop()


def trespass(event: str, arguments: Sequence[object]) -> str:
    """Return what an event of Python's audit table does that no quick test may do; empty if it may."""
    if event == "open" and arguments[0] == "/dev/fuse":
        return "opens /dev/fuse"
    if event != "subprocess.Popen":
        return ""
    executable, words = arguments[:2]
    given = [words] if isinstance(words, str | bytes | os.PathLike) else list(words)  # type: ignore[call-overload]
    command = [os.fsdecode(word) for word in given]
    program = Path(os.fsdecode(executable) if executable else command[0]).name  # type: ignore[arg-type]
    if "imgfs" in command[1:3] or program == "imgfs":
        return "starts imgfs"
    known = program in ESSENTIAL or program == Path(sys.executable).name
    return "" if known else f"starts {program}"


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _held and (what := trespass(event, arguments)):
        raise AssertionError(f"{_held[-1]} {what}: mark it `parts` or `kernel` (tests/support/quick.py)")


sys.addaudithook(_audit)

"""The parser of the command line: what it says of a mistyped line, how it wraps, and what it imports."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from typing import Any

import pytest

from imgfs.cli.inspect import _history
from imgfs.cli.parser import COMMANDS, describe, parse

# Modules in sys.modules once a command line has been carried out, and how many there are today. A module that
# every start imports is felt in every start: what raises a cap has to be worth it.
_CAPS = {
    "--help": 110,  # 94
    "mount --help": 115,  # 103
    "store path": 235,  # 219
    "version": 300,  # 279
}
_COUNT = """\
import sys
from imgfs.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print(len(sys.modules), *(name for name in sys.modules if name.startswith("imgfs")), file=sys.stderr)
"""


def modules_after(line: str) -> tuple[int, list[str]]:
    """Return how many modules are there after `imgfs LINE`, and the names of those that are imgfs's."""
    code = _COUNT.format(words=line.split())
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *ours = ran.stderr.split()
    return int(count), ours


def error_of(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(line.split())
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("line", _CAPS)
def test_a_command_imports_no_more_than_it_needs(line: str) -> None:
    count, ours = modules_after(line)
    assert count <= _CAPS[line], ours


def test_help_imports_no_command() -> None:
    _, ours = modules_after("--help")
    commands = {f"imgfs.cli.{command.module}" for command in COMMANDS.values()}
    assert not commands & set(ours)


def test_the_table_of_commands_says_what_the_commands_say() -> None:
    (actions,) = (
        action for action in describe(COMMANDS)._actions if isinstance(action, argparse._SubParsersAction)
    )
    said = {choice.dest: choice.help for choice in actions._choices_actions}
    assert said == {name: command.summary for name, command in COMMANDS.items()}


@pytest.mark.parametrize(
    ("line", "usage", "hint"),
    [
        ("mont debian /mnt", "imgfs", "did you mean mount?"),
        ("index psuh debian", "imgfs index", "did you mean push?"),
        ("mount --drivr fuse debian /mnt", "imgfs mount", "did you mean --driver?"),
        ("mount --driver=kernl debian /mnt", "imgfs mount", "did you mean kernel?"),
        ("store prune --kep 5G", "imgfs store prune", "did you mean --keep?"),
        ("ls --nonsense debian", "imgfs ls", "unrecognized arguments: --nonsense\n"),
        ("zzz", "imgfs", "there is no command 'zzz' (see: imgfs --help)"),
    ],
)
def test_a_mistyped_line_prints_the_usage_of_its_command_and_what_may_be_meant(
    line: str, usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(line, capsys)
    assert re.match(rf"usage: {usage} \[", said)
    assert hint in said


@pytest.mark.parametrize(
    "line", ["mount --plat linux/arm64 debian /mnt", "pull --qui debian", "index push --rep debian"]
)
def test_options_are_not_abbreviated(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments" in error_of(line, capsys)


@pytest.mark.parametrize("columns", [60, 200])
def test_help_wraps_at_the_width_of_the_terminal_and_leaves_examples_as_typed(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    (actions,) = (
        action
        for action in describe({"mount": COMMANDS["mount"]})._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    command = actions.choices["mount"]
    said = command.format_help()
    examples = re.findall(r"^ +(?:imgfs|mount) .*", command.description, re.MULTILINE)
    assert examples
    assert all(example in said for example in examples)
    first = command.description.split("\n\n")[0].split("\n")
    text = " ".join(first)
    wrapped = said.partition("\n\n")[2].partition("\n\n")[0]
    assert " ".join(wrapped.split()) == " ".join(text.split())
    assert max(map(len, wrapped.splitlines())) <= columns
    assert len(wrapped.splitlines()) >= len(text) // columns


@pytest.mark.parametrize("name", ["mount", "ls", "copy", "login", "diff", "run"])
def test_how_to_connect_is_a_group_at_the_end_of_the_help(name: str) -> None:
    (actions,) = (
        action
        for action in describe({name: COMMANDS[name]})._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    said = actions.choices[name].format_help()
    before, title, after = said.partition("\nconnection to the registry:\n")
    assert title
    assert all(option in after for option in ("--plain-http", "--tls-ca", "--insecure", "--read-timeout"))
    assert "--insecure" not in before.partition("\n\n")[2]
    assert "\n\n" not in after.strip()


def test_the_history_of_an_image_has_the_numbers_of_the_layers_that_its_steps_made() -> None:
    steps: list[dict[str, Any]] = [
        {"created_by": "ADD rootfs.tar\n /"},
        {"created_by": "ENV A=1", "empty_layer": True},
        {"comment": "imported"},
        {},
    ]
    assert list(_history(steps)) == [
        "   1  ADD rootfs.tar /",
        "   -  ENV A=1",
        "   2  imported",
        "   3  not said",
    ]

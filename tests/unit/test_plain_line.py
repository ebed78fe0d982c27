"""Plain lines of commands: argparse, with the same description, reads them alike."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from imgfs.cli import parser
from imgfs.cli.commands import COMMANDS
from imgfs.cli.plain_line import REMAINDER, SUPPRESS, parse, parse_plain

VALUES = [
    "debian",
    "a=b",
    "1",
    "3",
    "",
    "/etc",
    "10s",
    "true",
    "/a:/b",
    "512m",
    "80:80",
    "TERM",
    "x y",
    "-",
    "-1",
    "--",
]
LINES = 60  # of each command
NEVER = (
    "cp",
    "cri",
    "csi",
    "find",
    "snapshotter",
)  # words behind several others; `!`; options beside actions


@pytest.fixture(autouse=True)
def no_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IMGFS_ETC", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


def leaves(
    command: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """The commands, and the actions of those that have some, by their words."""
    below = [one for one in command._actions if isinstance(one, argparse._SubParsersAction)]
    for actions in below:
        for name, each in actions.choices.items():
            yield from leaves(each, (*path, name))
    if not below:
        yield path, command


def line_of(command: argparse.ArgumentParser, dice: random.Random) -> list[str]:
    """Some options and words, most of them right."""
    options = [one for one in command._actions if one.option_strings]
    words: list[str] = []
    for one in dice.sample(options, dice.choice([0, 0, 1, 2, 3]) if len(options) > 3 else 0):
        words.append(dice.choice(one.option_strings))
        if one.nargs != 0 or dice.random() < 0.02:
            value = dice.choice([*map(str, one.choices or ())] or VALUES)
            words = [*words[:-1], f"{words[-1]}={value}"] if dice.random() < 0.3 else [*words, value]
    needed = sum(1 for one in command._actions if not one.option_strings and one.nargs in (None, "+"))
    places = [dice.choice(VALUES[:7]) for _ in range(max(0, needed + dice.choice([0, 0, 0, 1, 2, -1])))]
    at = dice.choice([0, len(words), dice.randrange(len(words) + 1)])
    return [*words[:at], *places, *words[at:]]


def read_by_argparse(line: Sequence[str]) -> dict[str, object] | None:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return comparable(parser.parse(line))
        except SystemExit:
            return None


def comparable(options: object) -> dict[str, object]:
    """What was read, but for functions that are made by it, and for how long ago something is."""
    found = dict(vars(options))
    for name, value in found.items():
        if callable(value):
            found[name] = getattr(value, "__qualname__", repr(value)) if name == "run" else "a function"
        elif name == "since" and value:
            found[name] = "a time"
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_plain_line_means_what_argparse_reads_in_it(name: str) -> None:
    top = parser.describe({name: COMMANDS[name]})
    dice, plain = random.Random(name), 0  # the same lines each time
    for path, command in leaves(top, ()):
        for _ in range(LINES):
            line = [*path, *line_of(command, dice)]
            found = parse_plain(line)
            if found is not None:
                plain += 1
                assert comparable(found) == read_by_argparse(line), line
    assert plain > LINES / 10 or name in NEVER


def test_the_words_that_are_argparses_are_those_of_this_python() -> None:
    assert (REMAINDER, SUPPRESS) == (argparse.REMAINDER, argparse.SUPPRESS)


@pytest.mark.parametrize(
    "line",
    [
        "status",
        "status --json --metrics /mnt",
        "status --jsn /mnt",
        "ls",
        "ls --driver nonsense debian",
        "mount debian /mnt /mnt",
        "mount --limit-rate fast debian /mnt",
        "store",
        "store path x",
    ],
)
def test_a_wrong_line_is_refused_in_argparses_words(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = []

    def carry_out(read: Callable[[Sequence[str]], argparse.Namespace]) -> None:
        options = read(line.split())
        options.run(options)

    for read in (parse, parser.parse):
        with pytest.raises(SystemExit) as ended:
            carry_out(read)
        assert ended.value.code == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith("usage: imgfs")


def test_a_configuration_file_is_read_by_argparse(tmp_path: Path) -> None:
    assert parse_plain(["ls", "debian"]).platform is None
    file = Path(os.environ["XDG_CONFIG_HOME"]) / "imgfs/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("[ls]\nplatform = 'linux/arm64'\n")
    assert parse_plain(["ls", "debian"]) is None
    assert parse(["ls", "debian"]).platform == "linux/arm64"


def test_a_plain_line_does_not_load_argparse(tmp_path: Path) -> None:
    code = "import sys; from imgfs.cli import main; main(sys.argv[1:]); print('argparse' in sys.modules)"
    for line in (["version"], ["store", "path", "--store", str(tmp_path)], ["ps", "--json"]):
        ran = subprocess.check_output([sys.executable, "-c", code, *line], text=True)
        assert ran.splitlines()[-1] == "False"

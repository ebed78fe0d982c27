"""The parser of the command line: what it says of a mistyped line, how it wraps, and what it imports."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli import parser
from imgfs.cli.commands import COMMANDS, HEADINGS, Command
from imgfs.cli.inspect import _history
from imgfs.cli.parser import describe, parse
from tests.support import tarmake as tar
from tests.support.mounted import CHECKOUT, plain, write_image
from tests.support.pythons import MORE_MODULES

# Modules in sys.modules once a command line has been carried out, and how many there are today. A module that
# every start imports is felt in every start: what raises a cap has to be worth it.
_CAPS = {
    "--help": 79,  # 73
    "mount --help": 116,  # 108
    "store path": 88,  # 78
    "version": 73,  # 62
    "ps": 112,  # 87, and 101 where there are mounts
    "status /": 108,  # 97
}
# commands of every day; dataclasses loads what reads Python's source, and takes longer than all that is shown
_LOADS_NOT = {"logging", "sqlite3", "subprocess", "urllib3", "requests", "dataclasses", "locale"}
_DAEMON_CAP = 265  # of a mount's daemon before it knows its image: 255
_CONTAINER_CAP = 250  # of `imgfs run` before it tells its daemon what to mount: 241
_TWICE = 6  # modules that `imgfs run` and its daemon load each by itself: 3
_COUNT = """\
import sys
from imgfs.cli import main
try:
    main({words!r})
except SystemExit:
    pass
print(len(sys.modules), *sys.modules, file=sys.stderr)
"""


def modules_after(line: str) -> tuple[int, list[str]]:
    """Return how many modules are there after `imgfs LINE` in an empty store, and their names."""
    code = _COUNT.format(words=line.split())
    with tempfile.TemporaryDirectory() as above:
        environment = os.environ | {"IMGFS_STORE": f"{above}/store"}
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
    count, *ours = ran.stderr.splitlines()[-1].split()
    return int(count), ours


def error_of(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(line.split())
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("line", _CAPS)
def test_a_command_imports_no_more_than_it_needs(line: str) -> None:
    count, ours = modules_after(line)
    assert count <= _CAPS[line] + MORE_MODULES, ours


@pytest.mark.parametrize("line", sorted(_CAPS.keys() - {"mount --help"}))
def test_a_command_of_every_day_logs_nothing_and_asks_no_registry(line: str) -> None:
    _, loaded = modules_after(line)
    assert not _LOADS_NOT & set(loaded)


@pytest.mark.parametrize(
    ("command", "cap"), [("mount {} /nowhere", 200), ("ls {}", 225), ("inspect {}", 190)]
)
def test_a_command_imports_nothing_that_prepares_an_image_which_is_here(
    command: str, cap: int, tmp_path: Path
) -> None:
    image = write_image(tmp_path / "layout", [plain(tar.archive(tar.file("f", b"x")))])
    assert modules_after(f"ls --store {tmp_path / 'store'} {image}")
    count, ours = modules_after(f"{command.format(image)} --store {tmp_path / 'store'}")
    assert count <= cap + MORE_MODULES, ours
    assert not {"imgfs.image.prepare", "imgfs.image.discover", "imgfs.registry.client"} & set(ours)
    if command.startswith("mount"):  # a plain line is read without it, by all that a mount takes
        assert "argparse" not in ours


@pytest.mark.parametrize("line", ["--help", "help", "store path", "store ls", "ps", "scratch ls", "version"])
def test_what_draws_on_terminals_is_not_loaded_without_one(line: str) -> None:
    _, loaded = modules_after(line)
    assert not [name for name in loaded if name.startswith("rich") or name == "imgfs.cli.terminal"]


def test_a_parser_that_was_made_ahead_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration file changes it: a second command must not begin with what the first was told."""
    made: list[str] = []

    def counted(commands: Mapping[str, Command]) -> parser.Parser:
        made.extend(commands)
        return describe(commands)

    monkeypatch.setattr(parser, "describe", counted)
    parser.describe_ahead("mount")
    for _ in range(2):
        assert parse(["mount", "image", "/mnt"]).mountpoint == "/mnt"
    assert made == ["mount", "mount"]  # ahead, and for the second


def test_what_a_served_mount_takes_is_loaded_before_it_is_asked_for(tmp_path: Path) -> None:
    """What a forked process loads by itself takes time, and memory of its own. Nothing listens there."""
    code = """\
import sys
from imgfs.cli import serve
serve.load()
before = set(sys.modules)
assert serve._carry_out(["mount", "--store", sys.argv[1], "127.0.0.1:1/app", sys.argv[2]]) == 1
print(*set(sys.modules) - before)
"""
    (tmp_path / "mnt").mkdir()
    words = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "mnt")]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "no answer: Connection refused" in ran.stderr
    assert ran.stdout.split() == []


@pytest.mark.parametrize("line", ["--help", "version"])
def test_output_that_cannot_be_written_is_one_line_and_an_exit_code(line: str) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "imgfs", line], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (ran.returncode, ran.stderr) == (1, "imgfs: standard output: No space left on device\n")


def test_what_a_container_and_its_daemon_take_is_loaded_once() -> None:
    """Both go on from one process: what each would load by itself costs the processor twice."""
    code = """\
import importlib, sys
import imgfs.cli.run
from imgfs.mount import daemon, loading
for name in (*loading.BY_BOTH, *loading.BY_BOTH_FOR_SCRATCHES):
    importlib.import_module(name)
before = set(sys.modules)
if sys.argv[1] == "daemon":
    for _ in loading.load_in_steps(writable=True, by_kernel=True):
        pass
else:
    import imgfs.cli.container, imgfs.cli.container_options, imgfs.cli.container_request, imgfs.cli.parser
    import imgfs.cli.container_run
print(*set(sys.modules) - before)
"""
    daemons, callers = (
        set(subprocess.check_output([sys.executable, "-c", code, which], text=True).split())
        for which in ("daemon", "caller")
    )
    assert len(daemons & callers) <= _TWICE, sorted(daemons & callers)


def test_what_a_container_takes_in_its_mounted_image_is_not_loaded_before_that() -> None:
    """A start waits for what is loaded before the daemon is told what to mount; not for the rest."""
    code = """\
import sys
import imgfs.cli.container, imgfs.cli.container_options, imgfs.cli.container_request
print(*sys.modules)
"""
    before = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    later = {"imgfs.cli.container_run", "imgfs.runtime.spec", "imgfs.runtime.oci_runtime"}
    daemons = {"imgfs.overlay.scratch_opened", "imgfs.overlay.overlay", "tempfile"}
    others = {"argparse", "subprocess", "socket", "imgfs.cli.container_actions", "imgfs.runtime.pasta"}
    assert not (later | daemons | others) & before
    assert len(before) <= _CONTAINER_CAP + MORE_MODULES


def test_a_daemon_loads_what_fetches_and_scratches_only_where_there_is_some() -> None:
    code = """\
import sys
from imgfs.mount import daemon, loading
def show(*names):
    print(len(sys.modules), *(sum(f"{name}.".startswith(n) for name in sys.modules) for n in names))
for writable, by_kernel in ((False, False), (False, True), (True, True)):
    for _ in loading.load_in_steps(writable=writable, by_kernel=by_kernel):
        pass
    show("imgfs.overlay.", "trio.", "pyfuse3.", "ssl.", "urllib3.", "requests.", "email.", "subprocess.",
         "imgfs.layer.codec.")
loading.load_what_fetches(http=True)
show("trio.", "urllib3.")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare, by_kernel, with_scratch, with_all = (
        list(map(int, line.split())) for line in ran.stdout.splitlines()
    )
    assert bare[0] < by_kernel[0] <= _DAEMON_CAP + MORE_MODULES
    assert bare[1] == by_kernel[1] == 0
    assert with_scratch[1] > 5
    assert bare[2:] == by_kernel[2:] == with_scratch[2:] == [0] * 8
    assert min(with_all[1:]) > 10


@pytest.mark.parametrize("line", ["ls", "cp", "find", "run", "bundle"])
def test_options_that_are_taken_and_not_shown_are_not_in_the_help(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([line, "--help"])
    said = capsys.readouterr().out
    assert "SUPPRESS" not in said
    assert "--pid " not in said
    assert not {"mount", "pull"} & set(vars(parse(["run", "-m", "1g", "image"])))


def test_a_daemon_loads_what_writes_by_fuse_last_where_the_kernel_is_to_mount() -> None:
    code = """\
import sys
from imgfs.mount import loading
for _ in loading.load_in_steps(writable=True, by_kernel=True):
    print("imgfs.kernel.erofs_image" in sys.modules, "imgfs.fuse.writable" in sys.modules)
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert said[0] == "True False"
    assert said[-1] == "True True"


SCRIPTS = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
_INTERRUPTED_WHILE_LOADING = """\
import os, runpy, signal, sys
from importlib import import_module

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test may be run with it ignored
sys.meta_path.insert(0, Interrupts())
_, wanted, start, *sys.argv[1:] = sys.argv
module, _, function = start.partition(":")
if function:
    sys.exit(getattr(import_module(module), function)())
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("loaded", ["imgfs.cli", "imgfs.cli.output", "imgfs.cli.plain_line"])
@pytest.mark.parametrize("start", ["imgfs", SCRIPTS["imgfs"]])
def test_ctrl_c_while_a_command_is_loaded_shows_no_traceback(loaded: str, start: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_WHILE_LOADING, loaded, start, "version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (130, "")
    assert ran.stderr in ("", "imgfs: interrupted\n")


@pytest.mark.parametrize("name", ["mount.fuse.imgfs", "umount.fuse.imgfs"])
def test_ctrl_c_while_a_helper_of_mount_is_loaded_shows_no_traceback(name: str) -> None:
    test_ctrl_c_while_a_command_is_loaded_shows_no_traceback("imgfs.cli.fstab", SCRIPTS[name])


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


def test_the_help_lists_each_command_once_under_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = capsys.readouterr().out
    assert len(COMMANDS) == sum(map(len, HEADINGS.values()))
    for heading, commands in HEADINGS.items():
        (section,) = re.findall(rf"^{heading}:\n((?:  .*\n)+)", said, re.MULTILINE)
        assert re.findall(r"^  (\w\S*)", section, re.MULTILINE) == [*commands]
    assert "COMMAND ..." in said.splitlines()[0]
    assert not re.search(r"^positional arguments:", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "usage", "hint"),
    [
        ("", "imgfs", "imgfs: error: name a command (see: imgfs --help)\n"),
        ("mont debian /mnt", "imgfs", "did you mean mount?"),
        ("index psuh debian", "imgfs index", "did you mean push?"),
        ("mount --drivr fuse debian /mnt", "imgfs mount", "did you mean --driver?"),
        ("mount --driver=kernl debian /mnt", "imgfs mount", "did you mean kernel?"),
        ("store prune --kep 5G", "imgfs store prune", "did you mean --keep?"),
        ("ls --nonsense debian", "imgfs ls", "unrecognized arguments: --nonsense\n"),
        ("zzz", "imgfs", "there is no command 'zzz' (see: imgfs --help)"),
        ("bundle --network hst debian box", "imgfs bundle", "did you mean host?"),
        ("bundle debian", "imgfs bundle", "required: DIR\n"),
        ("images", "imgfs", "there is no command 'images'; it is called store ls (see: imgfs --help)"),
        ("--store x ls debian", "imgfs", "imgfs COMMAND --store …"),
        ("login -p geheim reg.io", "imgfs login", "argument --password/-p: every user can read it there"),
        ("ls -lx debian", "imgfs ls", " -x\n"),
    ],
)
def test_a_mistyped_line_prints_the_usage_of_its_command_and_what_may_be_meant(
    line: str, usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of(line, capsys)
    assert re.match(rf"usage: {usage} \[", said)
    assert hint in said
    assert len(said.splitlines()) == 2  # the usage hides no message
    assert "geheim" not in said


@pytest.mark.parametrize(
    ("line", "option", "value"),
    [
        ("ls -la1A debian", "long", True),
        ("ls -lh debian", "human", True),
        ("du -sh debian /etc", "human", True),
        ("cp -rp debian /etc etc", "destination", "etc"),
        ("cp -a debian /etc etc", "destination", "etc"),
        ("tree -a debian", "image", "debian"),
        ("grep -R x debian", "recursive", True),
        ("run -h web debian", "hostname", "web"),
        ("run --net none debian", "network", "none"),
        ("run --pull never debian", "offline", True),
        ("run --pull=always debian", "offline", False),
    ],
)
def test_options_of_the_programs_that_people_know_are_understood(
    line: str, option: str, value: object
) -> None:
    assert getattr(parse(line.split()), option) == value


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser, and those of its commands and of their actions."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from every_parser(command)


def test_no_value_is_read_by_a_class_whose_name_the_error_would_show() -> None:
    """argparse says "invalid Network value" where the type of a value raises ValueError."""
    classes = [
        (parser.prog, action.dest)
        for parser in every_parser(describe(COMMANDS))
        for action in parser._actions
        if isinstance(action.type, type)
    ]
    assert classes == []


def test_every_command_and_each_of_its_actions_teaches_by_example() -> None:
    silent = [
        parser.prog
        for parser in every_parser(describe(COMMANDS))
        if not parser.prog.startswith("imgfs container ")  # podman's other names of commands
        and not re.search(
            rf"^  (?:.*[|;&] )?{parser.prog}\b", f"{parser.description}\n{parser.epilog}", re.MULTILINE
        )
    ]
    assert silent == []


def test_every_option_and_argument_says_what_it_is_for() -> None:
    silent = [
        (parser.prog, action.dest)
        for parser in every_parser(describe(COMMANDS))
        for action in parser._actions
        if not action.help and action.option_strings
    ]
    assert silent == []


@pytest.mark.parts
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("help scrach", "the manual has no topic 'scrach'; did you mean scratch?"),
        ("help zzz", "the manual has no topic 'zzz'; it has: installing, "),
        ("mount -o noexecc debian /mnt", "-o noexecc: FUSE has no such option; did you mean noexec?"),
        ("mount -o max_red=4 debian /mnt", "-o max_red=4: FUSE has no such option; did you mean max_read?"),
        (
            "mount -o platfrom=linux/arm64 debian /mnt",
            "-o platfrom=linux/arm64: FUSE has no such option; did you mean platform?",
        ),
        ("mount -o dev,zzz debian /mnt", "-o zzz: FUSE has no such option\n"),
        ("mount --record ../x debian /mnt", "'../x' is not a name for a profile"),
        ("mount --replay ../x debian /mnt", "'../x' is not a name for a profile"),
        ("mount /mnt debian:12", "the image comes before the directory: imgfs mount debian:12 /mnt\n"),
        ("mount tests debian:12", "the image comes before the directory: imgfs mount debian:12 tests\n"),
        ("mount --fill --offline debian /mnt", "--fill fetches everything, --offline nothing"),
    ],
)
def test_what_cannot_work_is_said_before_any_work(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGFS_STORE", str(tmp_path / "store"))
    ran = subprocess.run(
        [sys.executable, "-m", "imgfs", *line.split()],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"imgfs: {said}")
    assert not (tmp_path / "store/documents").exists() or not [*(tmp_path / "store/documents").iterdir()]


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


def test_what_may_be_left_out_is_never_said_to_be_missing() -> None:
    """argparse counts a list that may be empty among what is required, unless it has a default."""
    for each in every_parser(describe(COMMANDS)):
        for action in each._actions:
            assert not (action.nargs == "*" and action.required), f"{each.prog}: {action.dest}"

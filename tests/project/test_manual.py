"""The manual, `imgfs help`, and what is generated from the parsers: man pages, completions, the wheel."""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from imgfs import __version__, manual
from imgfs.cli.commands import COMMANDS, HEADINGS
from imgfs.cli.complete import matching
from imgfs.cli.pages import pages
from imgfs.cli.parser import describe, parse
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.mounted import CHECKOUT, Imgfs, plain, write_image

BOOK = Path(manual.__file__).parent


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return dict(pages())


def test_every_file_of_the_book_is_a_topic() -> None:
    assert {path.stem for path in BOOK.glob("*.md")} == set(manual.TOPICS)


@pytest.mark.parametrize("topic", manual.TOPICS)
def test_a_topic_has_a_title_and_text(topic: str) -> None:
    assert re.match(r"# \S", manual.text(topic))
    assert manual.title(topic)[0].isupper()
    assert len(manual.text(topic)) > 400


def read_terminal(fd: int) -> Iterator[bytes]:
    """What is written to a terminal until its last writer has closed it (EIO)."""
    with contextlib.suppress(OSError):
        while piece := os.read(fd, 65536):
            yield piece


def test_help_lists_the_topics(imgfs: Imgfs) -> None:
    shown = imgfs.run("help").text
    assert all(f"  {topic} " in shown and manual.title(topic) in shown for topic in manual.TOPICS)


def test_help_in_a_pipe_is_the_markdown_itself(imgfs: Imgfs) -> None:
    assert imgfs.run("help", "scratch").text == manual.text("scratch")


def test_help_on_a_terminal_is_rendered(imgfs: Imgfs) -> None:
    imgfs.environment |= {"PAGER": "cat", "TERM": "xterm"}
    ours, theirs = pty.openpty()
    process = imgfs.start("help", "scratch", stdout=theirs)
    os.close(theirs)
    shown = b"".join(read_terminal(ours))
    os.close(ours)
    assert process.wait() == 0
    assert b"The scratch" in shown
    assert b"# The scratch" not in shown


def test_an_unknown_topic_names_those_there_are(imgfs: Imgfs) -> None:
    complaint = imgfs.run("help", "scrach").complaint(2)
    assert "'scrach'" in complaint
    assert "scratch" in complaint


def test_the_readme_is_short_and_names_every_command() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert 8_000 <= len(text.encode()) <= 10_240
    named_elsewhere = {"container", "version"}  # podman's other names of commands, and what explains itself
    assert [
        name for name in COMMANDS.keys() - named_elsewhere if not re.search(rf"(?:imgfs |`|, ){name}\b", text)
    ] == []


def test_each_command_has_a_man_page(generated: dict[str, str]) -> None:
    for name in COMMANDS:
        page = generated[f"share/man/man1/imgfs-{name}.1"]
        assert page.startswith(f".TH IMGFS-{name.upper()} 1 ")
        assert rf"imgfs\-{name} \- " in page
    assert "share/man/man1/imgfs.1" in generated
    assert ".BR fuse.imgfs" in generated["share/man/man8/mount.fuse.imgfs.8"]


def test_the_first_man_page_lists_the_commands_under_their_headings(generated: dict[str, str]) -> None:
    page = generated["share/man/man1/imgfs.1"]
    for heading, commands in HEADINGS.items():
        (section,) = re.findall(rf"^\.SH {heading.upper()}\n(.*?)^\.SH ", page, re.DOTALL | re.MULTILINE)
        assert re.findall(r"^\\fB(.*)\\fR$", section, re.MULTILINE) == [*commands]


def every_parser(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands, and of their actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from every_parser(command)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options that a parser's help shows, but for --help."""
    shown = (action for action in parser._actions if action.help != argparse.SUPPRESS)
    return {option for action in shown for option in action.option_strings} - {"-h", "--help"}


def test_the_man_page_of_a_command_has_its_options_and_those_of_its_actions(
    generated: dict[str, str],
) -> None:
    missing = []
    for parser in every_parser(describe(COMMANDS)):
        command = parser.prog.split()[1]
        page = generated[f"share/man/man1/imgfs-{command}.1"].replace(r"\-", "-")
        missing += [(parser.prog, option) for option in options_of(parser) if option not in page]
    assert missing == []


@pytest.mark.parametrize("path", ["bash-completion/completions/imgfs", "zsh/site-functions/_imgfs"])
def test_completions_have_every_option(path: str, generated: dict[str, str]) -> None:
    words = set(re.findall(r"[\w-]+", generated[f"share/{path}"]))
    missing = [
        (parser.prog, option)
        for parser in every_parser(describe(COMMANDS))
        for option in options_of(parser)
        if option not in words
    ]
    assert missing == []


@pytest.mark.parametrize("path", ["zsh/site-functions/_imgfs", "fish/vendor_completions.d/imgfs.fish"])
def test_completions_say_what_commands_are_for_in_a_few_words(path: str, generated: dict[str, str]) -> None:
    script = generated[f"share/{path}"]
    assert all(command.summary.replace("'", "'\"'\"'") in script for command in COMMANDS.values())
    for heading, commands in HEADINGS.items():
        said = [f"{heading}: {command.summary}".replace("'", "'\"'\"'") for command in commands.values()]
        assert all(text in script for text in said)
    assert "Mounts IMAGE at MOUNTPOINT" not in script
    assert not re.search(r" -s \w\w", script)  # fish: an option of one minus and several letters is -o


def test_fish_completes_every_command_and_option(generated: dict[str, str]) -> None:
    script = generated["share/fish/vendor_completions.d/imgfs.fish"]
    lines = [line.split() for line in script.splitlines()]
    for parser in every_parser(describe(COMMANDS)):
        *_, name = parser.prog.split()
        about = [line for line in lines if any(name in word for word in line)]
        offered = {word for line in about for word in line}
        assert {option.lstrip("-") for option in options_of(parser)} <= offered, parser.prog


def test_man_pages_have_their_date_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in dict(pages())["share/man/man1/imgfs-mount.1"].splitlines()[0]


def complete(imgfs: Imgfs, script: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`, which it has split at colons."""
    line, words = (
        " ".join(words),
        tuple(part for word in words for part in re.split("(:)", word) if part or not word),
    )
    lines = f"""
source {script}
COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
$(complete -p imgfs | sed -E 's/.*-F ([^ ]+).*/\\1/') imgfs '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**imgfs.environment, "PATH": f"{Path(sys.executable).parent}:{imgfs.environment['PATH']}"}
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, env=environment, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_images_and_topics(
    imgfs: Imgfs, generated: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "completion"
    script.write_text(generated["share/bash-completion/completions/imgfs"])
    image = write_image(tmp_path / "layout", [])
    imgfs.run("ls", image)
    assert {"mount", "umount"} <= complete(imgfs, script, "imgfs", "")
    assert "--squash-owner" in complete(imgfs, script, "imgfs", "mount", "--sq")
    assert complete(imgfs, script, "imgfs", "help", "sc") == {"scratch"}
    assert imgfs.run("complete", "images").text.split() == [image]


NAMES = (
    "127.0.0.1:5000/debian:12",
    "127.0.0.1:5000/team/app:v1",
    "127.0.0.1:5000/team/app:v2",
    "docker.io/library/debian:12",
)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("127.0.0.1:5000/d", {"5000/debian:12"}),  # what is behind the last colon
        ("127.0.0.1:5000/debian:", {"12"}),
        ("docker.io/l", {"docker.io/library/debian:12"}),
        ("ap", {"127.0.0.1:5000/team/app:v1", "127.0.0.1:5000/team/app:v2"}),
        ("deb", {"127.0.0.1:5000/debian:12", "docker.io/library/debian:12"}),
        ("t", {"127.0.0.1:5000/team/app:v1", "127.0.0.1:5000/team/app:v2"}),
        ("debian:1", set()),  # bash would put it behind "debian:"
        ("5000", set()),
    ],
)
def test_images_are_completed_by_their_repositories_too_and_behind_a_colon(
    typed: str, offered: set[str], imgfs: Imgfs, generated: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "completion"
    script.write_text(generated["share/bash-completion/completions/imgfs"])
    for name in NAMES:
        Store(imgfs.store).put_resolution(name, Digest.of(b""), Digest.of(b""))
    assert complete(imgfs, script, "imgfs", "ls", typed) == offered
    assert complete(imgfs, script, "imgfs", "store", "rm", NAMES[0], typed) == offered


def test_what_is_typed_is_not_lost_where_several_are_offered() -> None:
    """A shell replaces it by what they have in common."""
    assert matching(NAMES, "deb") == [NAMES[0], NAMES[3]]
    assert matching(NAMES[:2], "debian") == [NAMES[0]]
    assert matching(["h.io/x/app:1", "h.io/y/app:1"], "app") == ["h.io/x/app:1", "h.io/y/app:1", "app"]
    assert matching(NAMES, "") == [*NAMES]


BUILD = """\
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def build(what: str, source: Path, into: Path) -> Path:
    """Build as `python -m build --no-isolation` does: by the backend's hook (PEP 517), in its folder."""
    command = [sys.executable, "-c", BUILD, f"build_{what}", str(into)]
    said = subprocess.run(command, check=True, cwd=source, capture_output=True, text=True).stdout
    return into / said.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdist")
    subprocess.run(["git", "clone", "-q", CHECKOUT, place / "source"], check=True)
    return build("sdist", place / "source", place)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built of the sdist, which so has all that this takes."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(["tar", "-xzf", sdist, "-C", place], check=True)
    (source,) = place.iterdir()
    return build("wheel", source, place)


def test_the_sdist_has_the_book_and_what_the_pages_are_made_of(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"imgfs/manual/{topic}.md" for topic in manual.TOPICS} <= names
    assert {
        "imgfs/cli/build.py",
        "imgfs/cli/pages.py",
        "imgfs/py.typed",
        "pyproject.toml",
        "README.md",
    } <= names


def test_the_wheel_has_every_module_the_book_the_pages_and_the_completions(
    wheel: Path, generated: dict[str, str]
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "imgfs").rglob("*.py")}
    assert sources - names == set()
    assert {"imgfs/py.typed", *(f"imgfs/manual/{topic}.md" for topic in manual.TOPICS)} <= names
    assert {f"imgfs/report/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert {f"imgfs-{__version__}.data/data/{path}" for path in generated} <= names


def test_an_installed_wheel_shows_the_book_and_has_its_pages_below_the_prefix(
    wheel: Path, generated: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    quiet = ["--disable-pip-version-check", "--no-warn-script-location", "--ignore-installed"]
    subprocess.run([*command, *quiet, "--prefix", tmp_path, wheel], check=True)
    assert [path for path in generated if not (tmp_path / path).is_file()] == []
    (library,) = tmp_path.glob("lib/python*/site-packages")
    shown = subprocess.run(
        [tmp_path / "bin" / "imgfs", "help", "scratch"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(library)},
    ).stdout
    assert shown == manual.text("scratch")


def test_what_contributing_says_is_where_it_says() -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", manual.text("contributing"))
    named = [name for name in named if not name.startswith(("tests/", "imgfs/"))]
    assert len(named) > 15
    assert [name for name in named if not (BOOK.parent / name).is_file()] == []


def commands_in(lines: Iterable[str]) -> Iterator[list[str]]:
    """The words of each `imgfs COMMAND …` in lines of shell; what stands behind two spaces is said of it."""
    for line in lines:
        shell = re.sub(r"^(\w+=\S+ )+", "", re.split(r" {2,}", line.strip())[0])
        words = shlex.shlex(shell, posix=True, punctuation_chars="|&;<>")
        words.commenters, words.whitespace_split = "#", True
        parts: list[list[str]] = [[]]
        for word in words:
            if set(word) <= set("|&;<>"):
                parts.append([])
            else:
                parts[-1].append(word)
        yield from (part[1:] for part in parts if part[:1] == ["imgfs"] and "COMMAND" not in part)


def examples_of(topic: str) -> list[list[str]]:
    """The commands that a topic shows as typed, or README, if it is that."""
    text = (CHECKOUT / "README.md").read_text() if topic == "README" else manual.text(topic)
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = (line.removeprefix("$ ") for block in blocks for line in block.splitlines())
    return [*commands_in(line for line in lines if re.match(r"(\w+=\S+ )*imgfs ", line))]


@pytest.mark.parametrize("topic", ["README", *manual.TOPICS])
def test_the_examples_of_the_book_are_command_lines(topic: str) -> None:
    assert all(callable(parse(words).run) for words in examples_of(topic))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_command_are_command_lines(name: str) -> None:
    for parser in every_parser(describe({name: COMMANDS[name]})):
        shown = f"{parser.description}\n{parser.epilog}".splitlines()
        examples = commands_in(line for line in shown if line.startswith("  imgfs "))
        assert all(callable(parse(words).run) for words in examples if "…" not in words)


def texts() -> Iterator[tuple[str, str]]:
    """What says how imgfs is used, by what it is: README, the topics, and the help of each command."""
    yield "README", (CHECKOUT / "README.md").read_text()
    yield from ((topic, manual.text(topic)) for topic in manual.TOPICS)
    for parser in every_parser(describe(COMMANDS)):
        said = (parser.description, parser.epilog, *(action.help for action in parser._actions))
        yield parser.prog, "\n".join(text for text in said if text)


def test_what_is_said_of_commands_in_passing_names_options_and_topics_that_exist() -> None:
    options = {
        parser.prog: {option for action in parser._actions for option in action.option_strings}
        for parser in every_parser(describe(COMMANDS))
    }
    wrong, seen = [], 0
    for place, text in texts():
        topics = re.findall(r"imgfs help ([a-z]+)", text)
        wrong += [(place, topic) for topic in topics if topic not in manual.TOPICS]
        for code in re.findall(r"`(imgfs [a-z][^`\n]*)`", text):
            words = code.split()
            known = options.get(" ".join(words[:3])) or options.get(" ".join(words[:2]), set())
            named = re.findall(r"(?<!\S)--[a-z][a-z-]+", code)
            seen += len(named)
            wrong += [(place, code) for name in named if not {name, f"--{name[5:]}"} & known]
    assert wrong == []
    assert seen > 25


LOWER = tar.archive(
    tar.directory("etc"),
    tar.file("etc/os-release", b"ID=debian\n"),
    tar.file("etc/passwd", b"root:x:0:0\n"),
    tar.directory("etc/apt"),
    tar.file("usr/bin/app", b"#!/bin/sh\n", mode=0o755),
    tar.file("usr/share/note", b"TODO: nothing\n"),
    tar.file("key", b"PRIVATE KEY\n"),
)
UPPER = tar.archive(tar.whiteout("key"), tar.file("usr/share/note", b"TODO: all\n"))
ELSEWHERE = ("catalog", "browse", "verify", "sbom", "mount")  # want a registry, a terminal, a signature, root


def test_the_examples_of_looking_do_what_they_say(imgfs: Imgfs, tmp_path: Path) -> None:
    old = write_image(tmp_path / "v1", [plain(LOWER)])
    new = write_image(tmp_path / "v2", [plain(LOWER), plain(UPPER)])
    names = {"debian:12": old, "debian": old, "app:v1": old, "app:v2": new}
    ran = 0
    for words in examples_of("looking"):
        if words[0] not in ELSEWHERE:
            meant = [
                re.sub(r"^(debian:12|debian|app:v[12])(?=$|:/)", lambda m: names[m[1]], word)
                for word in words
            ]
            done = imgfs.run(
                *(str(tmp_path / word) if word in ("apt", "app.html") else word for word in meant)
            )
            assert (done.code, done.err) == (int(words[0] == "diff"), ""), words
            ran += bool(done.out)
    assert ran > 15
    assert (tmp_path / "apt").is_dir()
    assert (tmp_path / "app.html").is_file()

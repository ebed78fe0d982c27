"""The manual, `imgfs help`, and what is generated from the parsers: man pages, completions, the wheel."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs import manual
from imgfs.cli.pages import pages
from imgfs.cli.parser import COMMANDS
from tests.support.mounted import CHECKOUT, Imgfs, write_image

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


def test_each_command_has_a_man_page(generated: dict[str, str]) -> None:
    for name in COMMANDS:
        page = generated[f"share/man/man1/imgfs-{name}.1"]
        assert page.startswith(f".TH IMGFS-{name.upper()} 1 ")
        assert rf"imgfs\-{name} \- " in page
    assert "share/man/man1/imgfs.1" in generated
    assert ".BR fuse.imgfs" in generated["share/man/man8/mount.fuse.imgfs.8"]


def test_man_pages_have_their_date_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert '"1970-01-02"' in dict(pages())["share/man/man1/imgfs-mount.1"].splitlines()[0]


def complete(imgfs: Imgfs, script: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    lines = f"""
source {script}
COMP_WORDS=({" ".join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE="${{COMP_WORDS[*]}}"; COMP_POINT=${{#COMP_LINE}}
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


def test_the_wheel_has_the_book_the_pages_and_the_completions(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", CHECKOUT, source], check=True)
    subprocess.run([*command, "-w", tmp_path, source], check=True, cwd=tmp_path, capture_output=True)
    (wheel,) = tmp_path.glob("imgfs-*.whl")
    names = "\n".join(zipfile.ZipFile(wheel).namelist())
    for wanted in ("imgfs/py.typed", "imgfs/manual/scratch.md", "man1/imgfs-mount.1", "completions/imgfs"):
        assert wanted in names


def test_what_contributing_says_is_where_it_says() -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", manual.text("contributing"))
    named = [name for name in named if not name.startswith(("tests/", "imgfs/"))]
    assert len(named) > 15
    assert [name for name in named if not (BOOK.parent / name).is_file()] == []

"""Texts of strangers: one line that prints, at a terminal, in an error and in a log."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.cli import main
from imgfs.loglines import LineFormatter
from imgfs.quoting import printable, printable_path
from imgfs.store.store import Store
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, write_image

EVIL = b"\x1b[31mred\n\x9b1m\x07\xe9"
QUOTED = "\\x1b[31mred\\n\\x9b1m\\x07\\xe9"


@given(st.binary(), st.binary())
def test_whatever_names_are_they_are_shown_as_lines_that_tell_them_apart(name: bytes, other: bytes) -> None:
    shown = printable_path(name)
    assert shown.isprintable()
    assert (shown == printable_path(other)) == (name == other)
    shown.encode("utf-8")


def test_what_prints_is_as_it_is() -> None:
    assert printable("plain ü 漢 \\") == "plain ü 漢 \\"
    assert printable(os.fsdecode(EVIL)) == QUOTED
    assert printable("\u202eright\u2028") == "\\U0000202eright\\U00002028"


def test_a_record_is_one_line_of_a_log() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)
    log.warning("%s: gone", "name\nERROR forged\x1b[2J")
    try:
        int("\x1b[2J")
    except ValueError:
        log.exception("failed")
    first, second, *rest = stream.getvalue().splitlines()
    assert first == "WARNING name\\nERROR forged\\x1b[2J: gone"
    assert second == "ERROR failed"
    assert rest[0].startswith("Traceback")
    assert rest[-1].endswith("[2J'")
    assert all(line.isprintable() for line in rest)


@pytest.fixture
def image(tmp_path: Path) -> str:
    layer = tar.archive(tar.directory("d"), tar.file(b"d/" + EVIL, b"1"))
    return write_image(tmp_path / "layout", [gzipped(layer)])


def test_a_pipe_gets_names_as_they_are(imgfs: Imgfs, image: str) -> None:
    ran = imgfs.run("ls", image, "/d")
    assert (ran.code, ran.out) == (0, EVIL + b"\n")


@pytest.mark.parametrize("words", [("ls",), ("ls", "-l"), ("ls", "-R")])
def test_a_terminal_gets_them_quoted(imgfs: Imgfs, image: str, words: tuple[str, ...]) -> None:
    imgfs.ok("pull", "--quiet", image)
    ours, theirs = pty.openpty()
    process = imgfs.start(*words, image, "/d", stdout=theirs)
    assert process.wait(60) == 0
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    os.close(ours)
    assert QUOTED in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "{image}", "/d/{evil}x"),
        ("cat", "{image}", "/{evil}"),
        ("mount", "{image}", "/nowhere/{evil}"),
        ("status", "/nowhere/{evil}"),
        ("umount", "/nowhere/{evil}"),
        ("ls", "oci:/nowhere/{evil}:v1"),
        ("ls", "app/{evil}"),
        ("scratch", "rm", "{evil}"),
        ("store", "rm", "{evil}"),
    ],
)
def test_an_error_is_one_line_that_prints(imgfs: Imgfs, image: str, words: tuple[str, ...]) -> None:
    evil = os.fsdecode(EVIL)
    ran = imgfs.run(*(word.format(image=image, evil=evil) for word in words))
    assert ran.code in (1, 2)
    (line,) = ran.err.splitlines()
    assert line.isprintable()


def test_what_is_wrong_with_the_command_line_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--\x1b[31m", "image"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"caf\xe9", b"\x1b[31m", b"a\nb"])
def test_a_layout_in_a_directory_of_any_name_works(imgfs: Imgfs, tmp_path: Path, name: bytes) -> None:
    image = write_image(tmp_path / os.fsdecode(name), [gzipped(tar.archive(tar.file("a", b"1")))])
    ran = imgfs.run("ls", image)
    assert (ran.code, ran.out, ran.err) == (0, b"a\n", "")
    assert imgfs.run("pull", "--quiet", image).out.startswith(b"oci:" + os.fsencode(tmp_path) + b"/" + name)
    assert json.loads(imgfs.ok("store", "ls", "--json"))["images"][0]["reference"] == image
    for words in (("inspect", image), ("store", "ls"), ("store", "check")):
        ran = imgfs.run(*words)
        assert (ran.code, ran.err) == (0, "")
        assert b"\x1b" not in ran.out


@pytest.mark.kernel
def test_it_is_mounted_as_well(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / os.fsdecode(b"caf\xe9"), [gzipped(tar.archive(tar.file("a", b"1")))])
    at = imgfs.mount(image, at=imgfs.mountpoint(os.fsdecode(b"m\xe9")))
    assert (at / "a").read_bytes() == b"1"
    assert b"\xe9" in imgfs.run("status", at).out or b"\\xe9" in imgfs.run("status", at).out
    imgfs.umount(at)


def test_a_store_in_a_directory_of_any_name_works(imgfs: Imgfs, tmp_path: Path, image: str) -> None:
    store = tmp_path / os.fsdecode(b"st\xe9")
    ran = imgfs.run("ls", "--store", str(store), image)
    assert (ran.code, ran.err) == (0, "")
    assert imgfs.run("store", "path", "--store", str(store)).out == os.fsencode(store) + b"\n"
    Store(store)

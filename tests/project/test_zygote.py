"""A command that the zygote forks is what `python -m imgfs` would be."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.mounted import Imgfs, gzipped, until, write_image
from tests.support.tarmake import archive, file
from tests.support.zygote import ForkedCommand, is_forked


@pytest.fixture
def image(tmp_path: Path) -> str:
    return write_image(tmp_path / "layout", [gzipped(archive(file("a", b"1" * 100_000)))])


def both(imgfs: Imgfs, *words: str) -> list[tuple[int, bytes, bytes]]:
    """What a command does in a real process, and in one that is forked."""
    found = []
    for kind in (subprocess.Popen[bytes], ForkedCommand):
        process = kind(
            imgfs.command(*words),
            env=imgfs.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = process.communicate(timeout=60)
        found.append((process.returncode, out, err))
    return found


@pytest.mark.parametrize("words", [("version",), ("ls", "-l", "IMAGE"), ("ls", "IMAGE", "/b"), ("mont",), ()])
def test_it_says_the_same_and_ends_alike(imgfs: Imgfs, image: str, words: tuple[str, ...]) -> None:
    real, forked = both(imgfs, *(image if word == "IMAGE" else word for word in words))
    assert forked == real


def test_it_has_its_own_variables_session_and_files(imgfs: Imgfs, image: str) -> None:
    imgfs.ok("ls", image)
    with open(os.devnull, "wb") as null:
        process = ForkedCommand(
            imgfs.command("cat", image, "a"),
            env=imgfs.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=null,
            start_new_session=True,
        )
        place = Path(f"/proc/{process.pid}")
        until(lambda: os.readlink(place / "fd/2") == os.devnull, "it has begun")
        until(lambda: f"IMGFS_STORE={imgfs.store}".encode() in variables(place), "it shows its variables")
        assert set(variables(place)) - {b""} == {
            os.fsencode(f"{name}={value}") for name, value in imgfs.environment.items()
        }
        assert os.getsid(process.pid) == process.pid  # it waits: 100,000 bytes do not fit in a pipe
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL


def variables(place: Path) -> list[bytes]:
    return (place / "environ").read_bytes().split(b"\0")


def test_what_starts_itself_anew_is_never_forked(imgfs: Imgfs) -> None:
    for command, forked in (("ls", True), ("serve", False)):
        words = imgfs.command(command)
        is_forked(words, imgfs.environment, {})  # a command's first process is a real one in any case
        assert is_forked(words, imgfs.environment, {}) == forked

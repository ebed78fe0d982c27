"""A file saved out of an image: all of it or nothing, and nothing in its way is replaced unasked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli.browser.opened import open_image
from imgfs.cli.parser import parse
from imgfs.image.extract import Extraction
from imgfs.image.files import Found, ImageFiles
from imgfs.image.save import save
from tests.support import tarmake as tar
from tests.support.mounted import CHECKOUT, NOBODY, plain, write_image

LAYER = tar.archive(
    tar.file("file", b"new", mode=0o640, mtime_ns=5_000_000_000),
    tar.symlink("link", "file"),
    tar.directory("tree", mode=0o555),
    tar.directory("tree/deep", mode=0o500),
    tar.file("tree/deep/file", b"x" * 100),
)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[ImageFiles]:
    name = write_image(tmp_path / "layout", [plain(LAYER)])
    with open_image(parse(["browse", "--store", str(tmp_path / "store"), name])) as image:
        yield image.files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.fixture
def users_place() -> Iterator[Path]:
    """A directory of a user's, which pytest's own, root's, could not hold."""
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, *NOBODY)
        yield Path(directory)


def found(files: ImageFiles, path: bytes) -> Found:
    one = files.at(path)
    assert one is not None
    return one


def save_quietly(files: ImageFiles, path: bytes, target: Path, *, replace: bool = False) -> None:
    warnings: list[str] = []
    save(files, found(files, path), target, warnings.append, replace=replace)
    assert warnings == []


def test_a_file_keeps_its_mode_and_time(files: ImageFiles, place: Path) -> None:
    save_quietly(files, b"/file", place / "saved")
    save_quietly(files, b"/link", place / "link")
    kept = (place / "saved").stat()
    assert ((place / "saved").read_bytes(), kept.st_mode & 0o777, kept.st_mtime) == (b"new", 0o640, 5)
    assert os.readlink(place / "link") == "file"
    assert sorted(os.listdir(place)) == ["link", "saved"]


@pytest.mark.parametrize("path", [b"/file", b"/link", b"/tree"])
def test_what_is_there_stays(path: bytes, files: ImageFiles, place: Path) -> None:
    (place / "mine").write_bytes(b"mine")
    os.symlink("nowhere", place / "dangling")
    for name in ("mine", "dangling"):
        with pytest.raises(FileExistsError, match="already exists"):
            save(files, found(files, path), place / name, print)
    assert (place / "mine").read_bytes() == b"mine"
    assert sorted(os.listdir(place)) == ["dangling", "mine"]


def test_a_file_is_replaced_on_request_and_a_directory_never(files: ImageFiles, place: Path) -> None:
    (place / "mine").write_bytes(b"mine")
    save_quietly(files, b"/file", place / "mine", replace=True)
    assert (place / "mine").read_bytes() == b"new"
    (place / "full").mkdir()
    for path in (b"/file", b"/tree"):
        with pytest.raises(OSError, match=r"directory|already"):
            save(files, found(files, path), place / "full", print, replace=True)
    assert sorted(os.listdir(place)) == ["full", "mine"]


def test_what_is_given_up_leaves_nothing(files: ImageFiles, place: Path) -> None:
    given_up: Future[None] = Future()
    given_up.set_result(None)
    with pytest.raises(InterruptedError):
        save(files.until(given_up), found(files, b"/tree"), place / "tree", print)
    assert os.listdir(place) == []


_AS_USER = """
import os
import sys
from pathlib import Path
from tests.unit.test_save import found
from imgfs.cli.browser.opened import open_image
from imgfs.cli.parser import parse
from imgfs.image.save import save
with open_image(parse(["browse", "--store", sys.argv[1] + "/s", sys.argv[2]])) as image:
    target = Path(sys.argv[1], "tree")
    save(image.files, found(image.files, b"/tree"), target, print)
    assert (target / "deep/file").stat().st_size == 100
    assert target.stat().st_mode & 0o777 == 0o555
    try:
        save(image.files, found(image.files, b"/tree"), target, print)
    except FileExistsError:
        assert sorted(os.listdir(sys.argv[1])) == ["layout", "s", "tree"]
"""


@pytest.mark.parts
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_user_saves_directories_that_are_read_only(users_place: Path) -> None:
    name = write_image(users_place / "layout", [plain(LAYER)])
    words = [sys.executable, "-c", _AS_USER, str(users_place), name]
    environment = {"PATH": os.environ["PATH"], "HOME": str(users_place), "PYTHONPATH": str(CHECKOUT)}
    account: dict[str, Any] = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": []}
    ran = subprocess.run(words, env=environment, cwd=users_place, capture_output=True, check=False, **account)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout == b""


class Meanwhile:
    """Files of an image; when the bytes of one are read, or what is in a directory, `act` is called."""

    def __init__(self, files: ImageFiles, act: Callable[[], None]) -> None:
        self._files = files
        self._act = act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def data(self, one: Found) -> Iterator[tuple[int, bytes]]:
        yield from self._files.data(one)
        self._act()

    def children(self, one: Found) -> Iterator[Found]:
        yield from self._files.children(one)
        self._act()


@pytest.mark.parametrize("path", [b"/file", b"/tree"])
def test_what_another_user_puts_in_the_place_of_a_file_gets_nothing_of_it(
    path: bytes, files: ImageFiles, place: Path, tmp_path: Path
) -> None:
    """The directory that is copied to is that user's."""
    precious, mine = tmp_path / "precious", place / "mine"
    precious.mkdir(mode=0o700)

    def exchange() -> None:
        if not mine.is_symlink():
            mine.rename(place / "away")
            mine.symlink_to(precious)

    before = precious.stat()
    Extraction(Meanwhile(files, exchange), print).write(found(files, path), place, b"mine")  # type: ignore[arg-type]
    after = precious.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (place / "away").stat().st_mode & 0o777 == found(files, path).node.mode & 0o777


def test_another_name_is_not_given_to_what_another_user_has_put_there(
    tmp_path: Path, files: ImageFiles, place: Path
) -> None:
    two = tar.archive(tar.directory("d"), tar.file("d/a", b"a"), tar.hardlink("d/b", "d/a"))
    name = write_image(tmp_path / "two", [plain(two)])

    def exchange() -> None:
        if (place / "d/a").exists():
            (place / "d/a").rename(place / "away")
            (place / "d/a").write_bytes(b"precious")

    with open_image(parse(["browse", "--store", str(tmp_path / "store"), name])) as image:
        extraction = Extraction(Meanwhile(image.files, exchange), print)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="moved while it was written"):
            extraction.write(found(image.files, b"/d"), place, b"d")
    assert sorted(os.listdir(place / "d")) == ["a"]

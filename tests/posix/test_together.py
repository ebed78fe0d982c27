"""Several processes at once, on files of their own and on the same ones: nothing is lost, and one wins."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.children import Child
from tests.support.posix_places import Place, anyone
from tests.support.posix_tree import TEXT, WIDE, large_body

pytestmark = posix.marks

HANDS = 4  # processes


def together(work: Callable[[int], object]) -> None:
    """Do `work(number)` in HANDS processes that begin at once; none may fail."""
    gate, opener = os.pipe()

    def begin(number: int) -> None:
        os.close(opener)
        os.read(gate, 1)  # ends when the last one has closed the other end
        work(number)

    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(Child(partial(begin, number))) for number in range(HANDS)]
        os.close(opener)
        assert [child.join() for child in children] == [0] * HANDS
    os.close(gate)


def winners(attempt: Callable[[Path], object], target: Path, path: Path) -> list[str]:
    """The numbers, in a file each in `path`, of those who could do `attempt` on `target`."""
    path.mkdir()

    def work(number: int) -> None:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            attempt(target)
            (path / str(number)).touch()

    together(work)
    return os.listdir(path)


@anyone
def test_each_writes_its_own_files(place: Place) -> None:
    def work(number: int) -> None:
        for count in range(50):
            Path(f"{number}-{count}").write_bytes(b"%d" % number * 1000)
            (place.tree / "bare" / f"{number}-{count}").write_bytes(b"%d" % count)

    together(work)
    assert len(os.listdir(".")) == len(os.listdir(place.tree / "bare")) == HANDS * 50
    assert all(path.read_bytes() == path.name[:1].encode() * 1000 for path in Path().iterdir())


@anyone
def test_all_write_to_parts_of_one_file(place: Place, large: Path) -> None:
    Path("f").touch()
    for path, before in ((Path("f"), b""), (large, large_body())):

        def work(number: int, path: Path = path) -> None:
            fd = os.open(path, os.O_RDWR)
            for block in range(number, 100, HANDS):
                os.pwrite(fd, b"%d" % number * 10_000, block * 10_000)

        together(work)
        expected = b"".join(b"%d" % (block % HANDS) * 10_000 for block in range(100))
        assert path.read_bytes() == expected + before[len(expected) :]


@anyone
def test_all_append_to_one_file_and_no_line_is_lost(place: Place) -> None:
    for path, before in ((Path("f"), b""), (place.tree / "text", TEXT)):

        def work(number: int, path: Path = path) -> None:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            for count in range(100):
                os.write(fd, b"%d-%03d\n" % (number, count) * 10)

        together(work)
        body = path.read_bytes()
        assert body.startswith(before)
        lines = Counter(body[len(before) :].splitlines())
        assert lines == {b"%d-%03d" % (number, count): 10 for number in range(HANDS) for count in range(100)}


@anyone
def test_one_of_all_creates(place: Place) -> None:
    attempts: dict[str, Callable[[Path], object]] = {
        "file": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
        "directory": os.mkdir,
        "link": lambda path: os.symlink("x", path),
        "hard-link": lambda path: os.link(place.tree / "small", path),
    }
    for name, attempt in attempts.items():
        assert len(winners(attempt, place.tree / "bare" / name, Path(name))) == 1


@anyone
def test_one_of_all_removes(place: Place) -> None:
    os.mkdir("made")
    attempts: list[tuple[Path, Callable[[Path], object]]] = [
        (place.tree / "small", os.unlink),
        (place.tree / "bare", os.rmdir),
        (place.at / "made", os.rmdir),
        (place.tree / "text", lambda path: os.rename(path, f"moved-{os.getpid()}")),
    ]
    for target, attempt in attempts:
        assert len(winners(attempt, target, Path(f"by-{target.name}"))) == 1


@anyone
def test_all_rename_onto_one_name_which_is_always_there(place: Place) -> None:
    target = place.tree / "small"

    def work(number: int) -> None:
        for count in range(50):
            Path(f"{number}").write_bytes(b"%d" % number * 100)
            os.rename(f"{number}", target)
            assert len(target.read_bytes()) == 100, count

    together(work)
    assert len(set(target.read_bytes())) == 1
    assert os.listdir(".") == []


@anyone
def test_all_change_one_file_of_the_image_for_the_first_time(place: Place, large: Path) -> None:
    changes: list[Callable[[], object]] = [
        lambda: os.chmod(large, 0o600),
        lambda: os.setxattr(large, "user.x", b"1"),
        lambda: os.pwrite(os.open(large, os.O_WRONLY), b"written", 2_000_000),
        lambda: os.link(large, "linked"),
    ]
    together(lambda number: changes[number]())
    body, info = large_body(), os.stat(large)
    assert large.read_bytes() == body[:2_000_000] + b"written" + body[2_000_007:]
    assert (info.st_mode, info.st_nlink, os.getxattr("linked", "user.x")) == (0o100600, 2, b"1")


@anyone
def test_all_read_while_one_changes(place: Place, large: Path) -> None:
    body = large_body()

    def work(number: int) -> None:
        if number == 0:
            os.chmod(large, 0o600)
            for name in WIDE:
                os.pwrite(os.open(place.tree / "wide" / name, os.O_WRONLY), name.encode(), 0)
            return
        assert large.read_bytes() == body
        assert sorted(os.listdir(place.tree / "wide")) == WIDE
        for name in WIDE:
            assert (place.tree / "wide" / name).read_bytes() == name.encode()

    together(work)


@anyone
def test_all_work_below_one_directory_while_it_is_moved(place: Place) -> None:
    names = [place.tree / "directory", place.tree / "moved"]

    def work(number: int) -> None:
        if number == 0:
            for count in range(40):
                os.rename(names[count % 2], names[(count + 1) % 2])
            return
        made = 0
        while made < 20:
            for top in names:
                with contextlib.suppress(FileNotFoundError):
                    os.close(os.open(top / f"sub/{number}-{made}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    made += 1

    together(work)
    found = [name for name in os.listdir(place.tree / "directory/sub") if "-" in name]
    assert len(found) >= (HANDS - 1) * 20

"""`imgfs mount --restart` of a scratch: what programs change is changed once, and nothing is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, until, write_image
from tests.support.restarted import RESTARTED, killed_again_and_again
from tests.support.storm import Changes, sight
from tests.support.storm_ranges import Ranges

pytestmark = pytest.mark.kernel

LAYER = gzipped(
    tar.archive(
        *(tar.directory(f"n{number}") for number in range(4)),
        *(tar.file(f"n{number}/n{number + 1}", b"%d" % number * 9000) for number in range(4)),
        *(tar.file(f"n{number}", random.Random(number).randbytes(300_000)) for number in range(4, 9)),
        tar.hardlink("n9", "n5"),
    )
)


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    imgfs.expected.append(RESTARTED)
    return write_image(imgfs.directory / "layout", [LAYER])


def changed(at: Path, seed: int, count: int) -> list[object]:
    return Changes(at, random.Random(seed)).make(count)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Imgfs, Path, Path]]:
    """A mount whose daemon may be killed, and one that is left alone."""
    imgfs = Imgfs(tmp_path_factory.mktemp("storm") / "imgfs", expected=[RESTARTED])
    image = write_image(imgfs.directory / "layout", [LAYER])
    try:
        twin = imgfs.mount(image, "--rw", at=imgfs.mountpoint("twin"))
        yield imgfs, imgfs.mount(image, "--restart", "--rw"), twin
        for at in (imgfs.mountpoint(), twin):
            imgfs.umount(at)
    finally:
        imgfs.close()


@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.floats(0.0, 0.3), min_size=1, max_size=3), st.integers(0, 10**6))
def test_changes_are_those_of_an_undisturbed_twin(
    twins: tuple[Imgfs, Path, Path], pauses: list[float], seed: int
) -> None:
    imgfs, at, twin = twins
    before = imgfs.status(at)["restarts"]
    rounds = 0
    with (
        ThreadPoolExecutor(1) as program,
        killed_again_and_again(imgfs, imgfs.pid(at), pauses) as killed,
    ):
        while len(killed) < len(pauses):
            making = program.submit(changed, at, seed + rounds, 200)
            assert changed(twin, seed + rounds, 200) == making.result()
            rounds += 1
    assert sight(at) == sight(twin)
    assert imgfs.status(at)["restarts"] == before + len(pauses)


def test_a_scratch_is_handed_over_while_it_is_changed_and_stays_locked(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(" ERROR .* scratch work is in use: mounted at ")
    at = imgfs.mount(image, "--restart", "--scratch", "work")
    with ThreadPoolExecutor(1) as program, open(at / "nameless", "w+b") as nameless:
        nameless.write(b"still open")
        (at / "nameless").unlink()
        making = program.submit(changed, at, 3, 400)
        for _ in range(3):
            pid = imgfs.pid(at)
            assert imgfs.ok("upgrade", at) == ""
            assert imgfs.pid(at) != pid
        os.kill(imgfs.pid(at), signal.SIGKILL)
        said = imgfs.run("mount", "--scratch", "work", image, imgfs.mountpoint("other")).complaint()
        assert said.startswith("scratch work is in use: mounted at ")
        nameless.seek(0)
        assert nameless.read() == b"still open"
        assert os.fstat(nameless.fileno()).st_nlink == 0
        outcomes = making.result()
    there = sight(at)
    imgfs.umount(at)
    twin = imgfs.mount(image, "--rw", at=imgfs.mountpoint("twin"))
    assert changed(twin, 3, 400) == outcomes
    assert sight(twin) == there
    imgfs.umount(twin)
    again = imgfs.mount(image, "--scratch", "work")
    assert sight(again) == there
    assert [os.listdir(kept) for kept in imgfs.store.rglob("work/imgfs")] == [[]]
    imgfs.umount(again)


def test_what_has_no_name_any_more_and_is_open_lives_on(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart", "--rw")
    (at / "made").mkdir(0o711)
    (at / "n0").chmod(0o711)
    (at / "link").symlink_to("n4")
    os.mkfifo(at / "fifo")
    opened = {name: os.open(at / name, os.O_PATH | os.O_NOFOLLOW) for name in ("made", "n0", "link", "fifo")}
    (at / "made").rmdir()
    shutil.rmtree(at / "n0")
    (at / "link").unlink()
    (at / "fifo").unlink()
    before = {name: seen(fd) for name, fd in opened.items()}
    assert before["n0"][:2] == (stat.S_IFDIR | 0o711, 0)
    (work,) = imgfs.store.rglob("work/imgfs")
    assert len(os.listdir(work)) == len(opened)
    os.kill(imgfs.pid(at), signal.SIGKILL)
    for name, fd in opened.items():
        if name != "link":
            os.chmod(f"/proc/self/fd/{fd}", 0o751)
            before[name] = stat.S_IFMT(before[name][0]) | 0o751, *before[name][1:]
        assert seen(fd) == before[name]
    assert os.readlink("", dir_fd=opened["link"]) == "n4"
    for fd in opened.values():
        os.close(fd)
    until(lambda: not os.listdir(work), "what is not open any more is gone")
    imgfs.umount(at)


def seen(fd: int) -> tuple[int, ...]:
    """What there is to see of an open file."""
    found = os.fstat(fd)
    return found.st_mode, found.st_nlink, found.st_ino, found.st_uid


def test_a_long_listing_goes_on_where_it_was(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart", "--rw")
    (at / "many").mkdir()
    names = {f"{number:0100}" for number in range(3000)}
    for name in names:
        (at / "many" / name).touch()
    seen = []
    with os.scandir(at / "many") as entries:
        for entry in entries:
            seen.append(entry.name)
            Path(entry.path).unlink()  # those before it go, so that positions would move
            if len(seen) in (200, 1500):
                os.kill(imgfs.pid(at), signal.SIGKILL)
    assert sorted(seen) == sorted(names)
    (at / "many").rmdir()
    imgfs.umount(at)


def test_ranges_of_a_file_hold_what_was_written_to_them(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart", "--rw")
    pauses, chance, number = [0.1, 0.2], random.Random(5), 0
    with killed_again_and_again(imgfs, imgfs.pid(at), pauses) as killed:
        while len(killed) < len(pauses):
            number += 1
            assert Ranges(at / f"ranges{number}", chance).make(40)
    imgfs.umount(at)


def test_a_database_lives_on(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--restart", "--rw")
    pauses = [0.2, 0.1, 0.3]
    base = sqlite3.connect(at / "base", timeout=60)
    base.execute("create table t(i integer primary key, b blob)")
    count = 0
    with killed_again_and_again(imgfs, imgfs.pid(at), pauses) as killed:
        while len(killed) < len(pauses):
            with base:
                base.execute("insert into t values(?, ?)", (count, bytes(count % 9000)))
            count += 1
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    assert base.execute("select count(*) from t where length(b) = i % 9000").fetchone() == (count,)
    base.close()
    imgfs.umount(at)


def test_an_ordinary_users_scratch_goes_on(nobody: Imgfs) -> None:
    nobody.expected.append(RESTARTED)
    image = write_image(nobody.directory / "layout", [LAYER])
    at = nobody.mount(image, "--restart", "--rw")
    write = "for n in $(seq 60); do echo $n >> $0/n1/n2; mv $0/n1/n2 $0/n1/x; mv $0/n1/x $0/n1/n2; done"
    with ThreadPoolExecutor(1) as program:
        writing = program.submit(nobody.program, "sh", "-e", "-c", write, at)
        for _ in range(2):
            os.kill(nobody.pid(at), signal.SIGKILL)
        assert writing.result() == (0, b"", "")
    lines = nobody.program("cat", at / "n1/n2").out
    assert lines == b"1" * 9000 + b"".join(b"%d\n" % number for number in range(1, 61))
    nobody.umount(at)

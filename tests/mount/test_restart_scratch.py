"""`imgfs mount --restart` of a scratch: what programs change is changed once, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, processes_of_tests, until, write_image
from tests.support.restarted import RESTARTED, killed_again_and_again
from tests.support.storm import Changes, sight

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


@pytest.mark.parametrize("options", [("--rw",), ("--rw", "--write-through")])
def test_changes_are_those_of_an_undisturbed_twin(imgfs: Imgfs, image: str, options: tuple[str, ...]) -> None:
    twin = imgfs.mount(image, "--rw", at=imgfs.mountpoint("twin"))
    at = imgfs.mount(image, "--restart", *options)
    pauses = [random.Random(5).uniform(0.02, 0.3) for _ in range(5)]
    seed, count, rounds = 11, 300, 0
    with ThreadPoolExecutor(1) as program, killed_again_and_again(imgfs, imgfs.pid(at), pauses) as killed:
        while len(killed) < len(pauses) or rounds < 3:
            rounds += 1
            making = program.submit(changed, at, seed + rounds, count)
            assert changed(twin, seed + rounds, count) == making.result()
    assert sight(at) == sight(twin)
    assert imgfs.status(at)["restarts"] == len(pauses)
    imgfs.umount(at)
    imgfs.umount(twin)
    until(lambda: not processes_of_tests(imgfs.store), "the holder has ended")


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

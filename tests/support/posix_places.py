"""Where POSIX is asked for: a plain directory, which proves the test, and writable mounts, by root and users.

    place, pytestmark = posix.place, posix.marks

    @anyone
    def test_a_new_file_is_empty(place: Place) -> None:
        (place.at / "f").touch()
        assert os.stat(place.at / "f").st_size == 0

The body runs in a process of its own, as `place.account`, in the empty directory `place.at`, with umask 022.
Beside that is `place.tree`, the files of `posix_tree`: on a mount they are the image's. `large` as a second
parameter puts `place.tree / "large"` there too. The kinds of place:

    plain, plain-user    a directory on the machine's own disk, by root, by an ordinary user
    mount, mount-user    root's mount of the image, by root, by an ordinary user who owns the files in it
    kernel               the same mounted by the kernel's own file systems, by root
    own-mount            an ordinary user's own mount, where everything in the image is theirs
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pytest

from tests.support import tarmake as tar
from tests.support.children import Child
from tests.support.mounted import CHECKOUT, NOBODY, Account, Imgfs, gzipped, write_image
from tests.support.posix_tree import as_members, lay_out

ROOT = Account(0, 0)
Where = Literal["plain", "mount", "kernel", "plain-user", "mount-user", "own-mount"]
EVERYWHERE: tuple[Where, ...] = get_args(Where)
_CLOCK_REALTIME_COARSE = 5  # linux/time.h
_MOUNTS: tuple[tuple[Where, ...], ...] = (("mount", "mount-user"), ("kernel",), ("own-mount",))
_TREES = {False: 50, True: 5}  # of each kind of place in an image, without and with `large`
_SKIPPED = b"\0"  # begins the report of a child that skipped its test

marks = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users"),
]


class Case(NamedTuple):
    """A kind of place, and whether the tree there has `large`."""

    where: Where
    large: bool

    @property
    def account(self) -> Account:
        """Who runs a test there."""
        return ROOT if self.where in ("plain", "mount", "kernel") else NOBODY


@dataclass(frozen=True)
class Place:
    """Where a test runs, who it is, and what it can count on there."""

    at: Path
    tree: Path
    where: Where
    account: Account

    @property
    def is_plain(self) -> bool:
        """Whether this is not imgfs, but the file system that it is measured by."""
        return self.where.startswith("plain")


@dataclass
class Grounds:
    """The places of a worker's tests: a directory, and mounts, made when a test asks for one.

    An image has many trees, and each test gets one that no other has had; once all are taken it is mounted
    again.
    """

    directory: Path
    _free: dict[Case, list[Path]] = field(default_factory=dict)
    _images: dict[tuple[Where, ...], tuple[Imgfs, str]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def place(self, case: Case) -> Place:
        """Return a place for one test, with the tree in it."""
        if case.where.startswith("plain"):
            above = self.directory / f"{case.where}-{next(self._numbers)}"
            lay_out(above, case.account, case.large)
        else:
            if not self._free.get(case):
                self._mount(next(kinds for kinds in _MOUNTS if case.where in kinds))
            above = self._free[case].pop(0)
        return Place(above / "new", above / "tree", case.where, case.account)

    def close(self) -> None:
        """Take the mounts down; fails if their daemons have anything to complain of."""
        with contextlib.ExitStack() as stack:
            for imgfs, _ in self._images.values():
                stack.callback(imgfs.close)

    def _mount(self, wheres: tuple[Where, ...]) -> None:
        own, driver = wheres == ("own-mount",), "kernel" if wheres == ("kernel",) else "fuse"
        if own and _trouble_of_users():
            pytest.skip(f"an ordinary user cannot run the command: {_trouble_of_users()}")
        names = {Case(where, large): _names(where, large) for where in wheres for large in _TREES}
        if wheres not in self._images:
            imgfs = Imgfs(self.directory / wheres[0], user=NOBODY if own else None, driver=driver)
            self._images[wheres] = imgfs, _write_image(imgfs, names)
        imgfs, image = self._images[wheres]
        # suid, dev: what set-id programs and devices do is tested too
        at = imgfs.mount(image, "--rw", "-o", "suid,dev", at=imgfs.mountpoint(f"mnt-{next(self._numbers)}"))
        for case in names:
            self._free.setdefault(case, []).extend(at / name for name in names[case])


@pytest.fixture(scope="package")
def grounds() -> Iterator[Grounds]:
    """Where all tests of a worker run: below a directory that every user can get to."""
    with tempfile.TemporaryDirectory(prefix=f"imgfs-test-{os.getpid()}-") as directory:
        os.chmod(directory, 0o755)
        made = Grounds(Path(directory))
        yield made
        made.close()


@pytest.fixture
def place(request: pytest.FixtureRequest, grounds: Grounds) -> Place:
    """Where this test runs."""
    return grounds.place(Case(request.param, "large" in request.fixturenames))


@pytest.fixture
def large(place: Place) -> Path:
    """The tree's file of several MiB; asking for it has it put there."""
    return place.tree / "large"


def at(*wheres: Where) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a test run at some kinds of places, each in a process of its own."""

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(place: Place, **fixtures: Any) -> None:
            in_child(functools.partial(_settle, place, functools.partial(body, place, **fixtures)))

        decorated: Callable[..., None] = pytest.mark.parametrize("place", wheres, indirect=True)(test)
        return decorated

    return decorate


anyone = at(*EVERYWHERE)
not_by_overlayfs = at(*(where for where in EVERYWHERE if where != "kernel"))  # README, Limits: it cannot
only_root = at("plain", "mount", "kernel")
only_users = at("plain-user", "mount-user", "own-mount")


def in_child(work: Callable[[], object]) -> None:
    """Do `work` in a forked process; it fails or skips the test as it would have here."""
    reading, writing = os.pipe()
    with Child(functools.partial(_report, writing, work)) as child, open(reading, "rb") as report:
        os.close(writing)
        told = report.read()
        code = child.join()
    if told.startswith(_SKIPPED):
        pytest.skip(told.removeprefix(_SKIPPED).decode())
    if code or told:
        pytest.fail(told.decode(errors="replace") or f"ended with {code}", pytrace=False)


def become(account: Account) -> None:
    """Be somebody else from now on, in this process."""
    os.setgroups([])
    os.setgid(account.gid)
    os.setuid(account.uid)


def by(account: Account, work: Callable[[], object]) -> None:
    """Do `work` in a process of somebody else's; it fails or skips the test as it would have here."""

    def other() -> None:
        become(account)
        work()

    in_child(other)


def tick() -> None:
    """Wait for the clock that files are stamped with to pass what one may have been stamped with by now.

    It moves every few milliseconds; files that were looked at are stamped by the exact clock (Linux 6.13).
    """
    now = time.time_ns()
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= now:
        time.sleep(0.001)


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The block must end in an OSError with one of these numbers."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  (the number is looked at below)
        yield
    names = [os.strerror(number) for number in numbers]
    assert caught.value.errno in numbers, f"{caught.value}, not {' or '.join(names)}"


def _settle(place: Place, body: Callable[[], object]) -> None:
    if place.account != ROOT:
        become(place.account)
    os.umask(0o022)
    place.at.mkdir()
    os.chdir(place.at)
    body()


def _report(writing: int, work: Callable[[], object]) -> None:
    told = b""
    try:
        work()
    except pytest.skip.Exception as skipped:
        told = _SKIPPED + str(skipped).encode()
    except BaseException:  # noqa: BLE001  (the traceback is what the test fails with)
        told = traceback.format_exc().encode()
    os.write(writing, told[:60_000])


def _names(where: Where, large: bool) -> list[str]:
    """Return the directories of an image that have a tree for a test at such a place each."""
    return [f"{where}-{'large' if large else 'small'}-{number}" for number in range(_TREES[large])]


def _write_image(imgfs: Imgfs, names: Mapping[Case, Iterable[str]]) -> str:
    members = (
        member
        for case in names
        for name in names[case]
        for member in as_members(name, ROOT if case.where == "own-mount" else case.account, case.large)
    )
    return write_image(imgfs.directory / "layout", [gzipped(tar.archive(*members))])


@functools.cache
def _trouble_of_users() -> str:
    """Why an ordinary user cannot run this Python or read this checkout; empty if they can."""
    words, environment = [sys.executable, "-m", "imgfs", "version"], {"PYTHONPATH": str(CHECKOUT)}
    who: dict[str, Any] = {"user": NOBODY.uid, "group": NOBODY.gid, "extra_groups": [], "cwd": "/"}
    done = subprocess.run(words, env=environment, capture_output=True, check=False, **who)
    return os.fsdecode(done.stderr) if done.returncode else ""

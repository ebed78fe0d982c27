"""Locks between processes: whole files, ranges, and those of open files; through copy-up too."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.support import posix_places as posix
from tests.support.children import Child
from tests.support.posix_calls import F_RDLCK, F_UNLCK, F_WRLCK, lock_kind, pack_lock
from tests.support.posix_places import Place, anyone, fails

pytestmark = posix.marks

BUSY = (errno.EAGAIN, errno.EACCES)


def elsewhere(work: Callable[[], object]) -> None:
    """Do `work` in another process; it must not fail."""
    with Child(work) as child:
        assert child.join() == 0


def files(place: Place) -> list[Path]:
    """A new file and one of the image."""
    Path("f").write_bytes(b"f" * 100)
    return [place.at / "f", place.tree / "text"]


def is_locked(path: Path, flags: int = os.O_RDWR) -> bool:
    """Whether somebody else has it: flock(2)."""
    fd = os.open(path, flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


@anyone
def test_a_whole_file_is_one_holders(place: Place) -> None:
    for path in files(place):
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)

        def other(path: Path = path) -> None:
            assert is_locked(path)

        elsewhere(other)
        assert is_locked(path), "by another descriptor of this process too"
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert not is_locked(path)


@anyone
def test_a_shared_lock_is_shared_and_keeps_writers_out(place: Place) -> None:
    for path in files(place):
        first, second = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
        fcntl.flock(first, fcntl.LOCK_SH)
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert is_locked(path)
        os.close(first)
        os.close(second)
        assert not is_locked(path)


@anyone
def test_a_lock_taken_before_the_file_is_changed_holds_after(place: Place) -> None:
    path = place.tree / "text"
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with path.open("ab") as file:
        file.write(b"changed")
    os.chmod(path, 0o600)
    os.rename(path, place.tree / "moved")
    assert is_locked(place.tree / "moved")
    assert is_locked(place.tree / "moved", os.O_RDONLY)


@anyone
def test_names_of_one_file_share_its_locks(place: Place) -> None:
    fd = os.open(place.tree / "linked-a", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert is_locked(place.tree / "linked-b")
    assert not is_locked(place.tree / "small")


@anyone
def test_a_lock_ends_with_its_process(place: Place) -> None:
    for path in files(place):
        ready, tell = os.pipe()

        def holder(path: Path = path, tell: int = tell) -> None:
            fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
            os.write(tell, b"!")
            os.read(os.pipe()[0], 1)

        with Child(holder) as child:
            assert os.read(ready, 1) == b"!"
            assert is_locked(path)
            child.kill()
            assert not is_locked(path)


@anyone
def test_who_waits_for_a_lock_gets_it(place: Place) -> None:
    for path in files(place):
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        done, tell = os.pipe()

        def waiter(path: Path = path, tell: int = tell) -> None:
            fcntl.flock(os.open(path, os.O_RDWR), fcntl.LOCK_EX)
            path.write_bytes(b"after the lock")
            os.write(tell, b"!")

        with Child(waiter) as child:
            assert path.read_bytes() != b"after the lock"
            fcntl.flock(fd, fcntl.LOCK_UN)
            assert os.read(done, 1) == b"!"
            assert child.join() == 0
        assert path.read_bytes() == b"after the lock"


@anyone
def test_ranges_are_locked_apart(place: Place) -> None:
    for path in files(place):
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 0)

        def other(path: Path = path) -> None:
            mine = os.open(path, os.O_RDWR)
            fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10)
            with fails(*BUSY):
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            with fails(*BUSY):
                fcntl.lockf(mine, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 9)

        elsewhere(other)
        fcntl.lockf(fd, fcntl.LOCK_UN, 5, 5)

        def later(path: Path = path) -> None:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 5)

        elsewhere(later)


@anyone
def test_who_holds_a_range_is_told(place: Place) -> None:
    for path in files(place):
        fd, parent = os.open(path, os.O_RDWR), os.getpid()
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)

        def other(path: Path = path, parent: int = parent) -> None:
            mine = os.open(path, os.O_RDWR)
            found = fcntl.fcntl(mine, fcntl.F_GETLK, pack_lock(F_WRLCK))
            assert lock_kind(found) == F_WRLCK
            assert found[8:28] == pack_lock(F_WRLCK, 20, 10)[8:24] + parent.to_bytes(4, "little")
            free = fcntl.fcntl(mine, fcntl.F_GETLK, pack_lock(F_WRLCK, 0, 20))
            assert lock_kind(free) == F_UNLCK

        elsewhere(other)


@anyone
def test_ranges_held_crosswise_are_a_deadlock(place: Place) -> None:
    for path in files(place):
        fd, (ready, tell) = os.open(path, os.O_RDWR), os.pipe()
        fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)

        def other(path: Path = path, tell: int = tell) -> None:
            mine = os.open(path, os.O_RDWR)
            fcntl.lockf(mine, fcntl.LOCK_EX, 1, 1)
            os.write(tell, b"!")
            fcntl.lockf(mine, fcntl.LOCK_EX, 1, 0)

        with Child(other) as child:
            os.read(ready, 1)
            while True:  # until the other waits, this would wait itself
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
                except BlockingIOError:
                    if _waits(child.pid):
                        break
            with fails(errno.EDEADLK):
                fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1)
            fcntl.lockf(fd, fcntl.LOCK_UN)
            assert child.join() == 0
        os.close(fd)


@anyone
def test_closing_any_descriptor_drops_the_processes_ranges(place: Place) -> None:
    for path in files(place):
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.close(os.open(path, os.O_RDONLY))

        def other(path: Path = path) -> None:
            fcntl.lockf(os.open(path, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)

        elsewhere(other)


@anyone
def test_locks_of_open_files_hold_within_one_process_and_through_a_fork(place: Place) -> None:
    for path in files(place):
        first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
        fcntl.fcntl(first, fcntl.F_OFD_SETLK, pack_lock(F_WRLCK, 0, 10))
        with fails(*BUSY):
            fcntl.fcntl(second, fcntl.F_OFD_SETLK, pack_lock(F_RDLCK, 5, 1))
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, pack_lock(F_WRLCK, 10, 10))
        elsewhere(partial(fcntl.fcntl, first, fcntl.F_OFD_SETLK, pack_lock(F_WRLCK, 0, 10)))
        os.close(os.open(path, os.O_RDONLY))
        with fails(*BUSY):
            fcntl.fcntl(second, fcntl.F_OFD_SETLK, pack_lock(F_RDLCK, 5, 1))
        os.close(first)
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, pack_lock(F_RDLCK, 5, 1))


@anyone
def test_a_lock_needs_a_descriptor_that_may_do_what_it_is_for(place: Place) -> None:
    reader, writer = os.open(place.tree / "text", os.O_RDONLY), os.open(place.tree / "text", os.O_WRONLY)
    with fails(errno.EBADF):
        fcntl.lockf(reader, fcntl.LOCK_EX)
    with fails(errno.EBADF):
        fcntl.lockf(writer, fcntl.LOCK_SH)


def _waits(pid: int) -> bool:
    """Whether a process waits for a lock of another: `->` in /proc/locks."""
    return any(f" {pid} " in line and "->" in line for line in Path("/proc/locks").read_text().splitlines())

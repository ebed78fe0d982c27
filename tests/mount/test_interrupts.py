"""Programs that wait for a registry which does not answer, and get a signal: they end at once, alone."""

from __future__ import annotations

import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.children import Child
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Wire, plain, serve, until
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="evicts what root's kernel has cached"),
]

AT_ONCE = min(allowed(3), 20)  # seconds in which what was signalled ends
HANGS = "60"  # seconds for which a read waits for the registry
INTERRUPTED = 7  # exit code of a program whose own handler has been run
_CHANCE = random.Random(7)
BODY, OTHER = _CHANCE.randbytes(700_000), _CHANCE.randbytes(300_000)
LAYER = tar.archive(tar.file("file", BODY), tar.file("other", OTHER))


@pytest.fixture
def wire(imgfs: Imgfs) -> Iterator[Wire]:
    """The line to the registry; what its readers were told is in the log."""
    with FaultServer() as server, Wire(server.host) as wire:
        imgfs.environment["IMAGE"] = serve(server, "app", "v1", [plain(LAYER)], wire.host)
        yield wire


def mounted(imgfs: Imgfs, wire: Wire, *options: str) -> Path:
    """The image, of which nothing is here, and whose registry has gone silent."""
    image = imgfs.environment["IMAGE"]
    at = imgfs.mount(image, "--read-timeout", HANGS, "--insecure", *options)
    wire.stall()
    imgfs.evict(image)
    return at


@contextmanager
def waiting(work: Callable[[], object]) -> Iterator[Child]:
    """A program that does `work` and waits; SIGINT it handles, and asks for its calls to be begun anew."""

    def program() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.siginterrupt(signal.SIGINT, False)
        try:
            work()
        except KeyboardInterrupt:
            os._exit(INTERRUPTED)

    with Child(program) as child:
        time.sleep(0.5)  # it reaches the kernel: nobody else can tell
        assert child.is_running()
        yield child


@contextmanager
def killed_in_the_end(words: Sequence[str | Path]) -> Iterator[subprocess.Popen[bytes]]:
    """A program, for where there are many: to fork what runs the tests is dear (`children`)."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


def ends(child: Child, number: int) -> int:
    """Signal a program; its exit code, which must come at once."""
    began = time.monotonic()
    os.kill(child.pid, number)
    code = child.join()
    assert time.monotonic() - began < AT_ONCE
    return code


def open_to_write(at: Path) -> None:
    os.close(os.open(at / "file", os.O_RDWR))


def cut(at: Path) -> None:
    os.truncate(at / "file", 400_000)


def read_past_cache(at: Path) -> None:
    file = os.open(at / "file", os.O_RDONLY | os.O_DIRECT)
    os.preadv(file, [mmap.mmap(-1, mmap.PAGESIZE)], 0)


@pytest.mark.drivers("fuse", "kernel")
def test_a_reader_that_is_killed_ends_at_once_and_the_others_go_on(imgfs: Imgfs, wire: Wire) -> None:
    at = mounted(imgfs, wire)
    with ExitStack() as stack:
        leader = stack.enter_context(waiting((at / "file").read_bytes))
        followers = [stack.enter_context(Child(lambda: check(at / "file", BODY))) for _ in range(3)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            assert ends(leader if number == signal.SIGTERM else followers.pop(), number) == -number
        wire.cut()
        wire.mend()
        assert [child.join() for child in followers] == [0, 0]


def check(path: Path, body: bytes) -> None:
    assert path.read_bytes() == body


@pytest.mark.drivers("fuse", "kernel")
def test_forty_readers_are_killed_at_once_and_as_many_can_come_after_them(imgfs: Imgfs, wire: Wire) -> None:
    at = mounted(imgfs, wire)
    for _ in range(2):  # more in all than may wait at once
        with ExitStack() as stack:
            readers = [stack.enter_context(killed_in_the_end(["cat", at / "file"])) for _ in range(40)]
            time.sleep(1)
            assert {reader.poll() for reader in readers} == {None}
            began = time.monotonic()
            for reader in readers:
                reader.kill()
            assert {reader.wait() for reader in readers} == {-signal.SIGKILL}
            assert time.monotonic() - began < AT_ONCE
    wire.cut()
    wire.mend()
    check(at / "file", BODY)


@pytest.mark.parametrize("work", [open_to_write, cut, read_past_cache])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_call_that_waits_ends_with_its_caller(
    imgfs: Imgfs, wire: Wire, work: Callable[[Path], None], number: int
) -> None:
    at = mounted(imgfs, wire, "--rw")
    with waiting(lambda: work(at)) as child:
        assert ends(child, number) == (INTERRUPTED if number == signal.SIGINT else -number)
    wire.cut()
    wire.mend()
    assert os.stat(at / "file").st_size == len(BODY)
    check(at / "file", BODY)
    with (at / "file").open("r+b") as file:
        file.write(b"changed")
    check(at / "file", b"changed" + BODY[7:])


@pytest.mark.drivers("kernel")
@pytest.mark.parametrize("work", [open_to_write, cut])
def test_a_copy_up_by_the_kernel_ends_with_who_is_killed(
    imgfs: Imgfs, wire: Wire, work: Callable[[Path], None]
) -> None:
    at = mounted(imgfs, wire, "--rw")
    with waiting(lambda: work(at)) as child:
        assert ends(child, signal.SIGKILL) == -signal.SIGKILL
    wire.cut()
    wire.mend()
    check(at / "file", BODY)
    work(at)


@pytest.mark.parametrize("work", [open_to_write, cut])
def test_an_interrupted_copy_up_leaves_nothing_and_does_not_fail_who_waits_for_it_too(
    imgfs: Imgfs, wire: Wire, tmp_path: Path, work: Callable[[Path], None]
) -> None:
    at = mounted(imgfs, wire, "--scratch", f"{tmp_path}/scratch/")
    upper = tmp_path / "scratch/upper/file"
    with waiting(lambda: work(at)) as leader:
        assert upper.exists()
        with waiting(lambda: open_to_write(at)) as follower:
            assert ends(leader, signal.SIGKILL) == -signal.SIGKILL
            assert ends(follower, signal.SIGINT) == INTERRUPTED
    with waiting(lambda: work(at)) as alone:
        ends(alone, signal.SIGINT)
    until(lambda: not upper.exists(), "the copy-up is taken back")
    with waiting(lambda: work(at)) as leader, waiting(lambda: open_to_write(at)) as follower:
        ends(leader, signal.SIGINT)
        wire.cut()
        wire.mend()
        assert follower.join() == 0
    check(at / "file", BODY)
    assert "trusted.overlay.metacopy" not in os.listxattr(upper)


def test_a_mount_ends_soon_while_a_copy_up_that_was_interrupted_had_waited(imgfs: Imgfs, wire: Wire) -> None:
    at = mounted(imgfs, wire, "--rw")
    with waiting(lambda: open_to_write(at)) as child:
        ends(child, signal.SIGKILL)
    began = time.monotonic()
    imgfs.umount(at)
    assert time.monotonic() - began < 5 * AT_ONCE


@pytest.mark.drivers("kernel")
def test_a_signal_that_a_program_handles_makes_no_read_fail_by_the_kernel(imgfs: Imgfs, wire: Wire) -> None:
    """EROFS makes EIO of a request that is interrupted, and a page fault SIGBUS."""
    at = mounted(imgfs, wire)

    def work() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        check(at / "file", BODY)
        with (at / "other").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as body:
            assert body[:] == OTHER

    with waiting(work) as child:
        wire.cut()
        wire.mend()
        assert child.join() == 0

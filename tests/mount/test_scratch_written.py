"""What is written to a scratch by FUSE: kept or said to be lost, seen at once, and what goes with it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.children import Child
from tests.support.mounted import Account, Imgfs, caches_kept, drop_caches, gzipped, until, write_image
from tests.support.patience import allowed
from tests.support.posix_places import by, fails

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts small disks, and is several users"),
]

ROOM = 24 << 20  # bytes of the disk under the scratch
SIZE = 700_000  # of each file: no multiple of what the disk counts in
LATEST = 64 << 20  # bytes after which a writer must have heard that nothing is written any more
STRANGER = Account(70_000, 70_000)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)  # linux/capability.h, VFS_CAP_REVISION_2


@cache
def large_body() -> bytes:
    return bytes(range(256)) * (ROOM // 256)


@cache
def image_layer() -> bytes:
    return tar.archive(
        tar.directory("./", mode=0o777),
        tar.file("large", large_body()),
        tar.file("small", b"small"),
        tar.file("setid", b"set-id", mode=0o6777),
        tar.file("empty", b"", mode=0o6777),
    )


Mount = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def mount(imgfs: Imgfs, disk: Path) -> Mount:
    """Mounts the image, with one scratch on the small disk."""
    image = write_image(imgfs.directory / "layout", [gzipped(image_layer())])
    return lambda *more: imgfs.mount(image, "--rw", "--scratch", f"{disk}/scratch/", "-o", "suid", *more)


@pytest.fixture
def at(imgfs: Imgfs, tmp_path: Path, open_path: Path) -> Iterator[Path]:
    """The image, mounted where everybody gets to, with a scratch that has room."""
    image = write_image(imgfs.directory / "layout", [gzipped(image_layer())])
    (open_path / "mnt").mkdir()
    mountpoint = imgfs.mount(
        image, "--rw", "--scratch", f"{tmp_path}/scratch/", "-o", "suid", at=open_path / "mnt"
    )
    yield mountpoint
    imgfs.umount(mountpoint)


def keep(path: Path, *, sync: bool) -> bool:
    """Write a file; whether that is said to have gone well."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        try:
            left = memoryview(bytes([path.name.encode()[-1]]) * SIZE)
            while left:
                left = left[os.write(fd, left) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        assert error.errno == errno.ENOSPC, error  # noqa: PT017  (not every file fails)
        return False
    return True


# -- a full disk


@pytest.mark.parametrize("sync", [True, False], ids=["fsync", "close"])
@pytest.mark.parametrize("options", [(), ("--write-through",)], ids=["gathered", "through"])
def test_what_has_no_room_is_said_to_be_lost_and_all_else_is_there_after_a_remount(
    imgfs: Imgfs, disk: Path, mount: Mount, options: tuple[str, ...], sync: bool
) -> None:
    at = mount(*options)
    kept = [name for name in map("f{}".format, range(45)) if keep(at / name, sync=sync)]
    assert 20 < len(kept) < 45
    imgfs.umount(at)
    shutil.rmtree(disk / "scratch/work", ignore_errors=True)
    for name in set(map("f{}".format, range(45))).difference(kept):
        (disk / "scratch/upper" / name).unlink(missing_ok=True)
    at = mount(*options)
    for name in kept:
        assert (at / name).read_bytes() == name[-1].encode() * SIZE
    imgfs.umount(at)


@pytest.fixture
def quota(tmp_path: Path) -> Iterator[Path]:
    """A directory that may take ROOM bytes of a larger disk, whoever writes."""
    if "\tbtrfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no btrfs, whose quotas hold for root, too")
    (tmp_path / "image").touch()
    os.truncate(tmp_path / "image", 512 << 20)
    (tmp_path / "quota").mkdir()
    subprocess.run(["mkfs.btrfs", "-q", tmp_path / "image"], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", tmp_path / "image", tmp_path / "quota"], check=True)
    limited = tmp_path / "quota/limited"
    for words in (
        ("quota", "enable", limited.parent),
        ("subvolume", "create", limited),
        ("qgroup", "limit", str(ROOM), limited),
    ):
        subprocess.run(["btrfs", *words], check=True, capture_output=True)
    yield limited
    subprocess.run(["umount", "-l", tmp_path / "quota"], check=True)


def append(path: Path, more: int) -> int:
    """Write to the end of a file; the errno of the first call that fails, 0 if none does."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while more > 0:
            more -= os.write(fd, b"y" * min(more, 100_001))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.close(fd)
        return error.errno or 0
    try:
        os.close(fd)
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("kind", ["disk", "quota"])
@pytest.mark.parametrize("options", [(), ("--write-through",)], ids=["gathered", "through"])
def test_what_was_appended_and_is_lost_leaves_no_zeros(
    imgfs: Imgfs, request: pytest.FixtureRequest, kind: str, options: tuple[str, ...]
) -> None:
    """The kernel has counted it, and would go on behind it."""
    place: Path = request.getfixturevalue(kind)
    image = write_image(imgfs.directory / "layout", [gzipped(image_layer())])
    at = imgfs.mount(image, "--rw", "--scratch", f"{place}/scratch/", *options)
    (at / "log").write_bytes(b"x" * 3_000_000)
    (at / "room").write_bytes(bytes(1_000_000))
    there = append(at / "log", ROOM)
    assert there == (errno.EDQUOT if (kind, options) == ("quota", ("--write-through",)) else errno.ENOSPC)
    true = place / "scratch/upper/log"
    until(lambda: (at / "log").stat().st_size == true.stat().st_size, "the size is that of what was written")
    assert 3_000_000 < true.stat().st_size < 3_000_000 + ROOM
    (at / "room").unlink()
    until(lambda: append(at / "log", 1000) == 0, "there is room for more")
    drop_caches()
    body = (at / "log").read_bytes()
    assert body == b"x" * 3_000_000 + b"y" * (len(body) - 3_000_000)
    imgfs.umount(at)


def test_who_writes_on_and_on_hears_of_it(imgfs: Imgfs, mount: Mount) -> None:
    at = mount()
    fd, written = os.open(at / "endless", os.O_CREAT | os.O_WRONLY), 0
    with fails(errno.ENOSPC):
        while written < ROOM + 2 * LATEST:
            written += os.write(fd, bytes(1 << 17))
    with fails(errno.ENOSPC):
        os.close(fd)
    assert written < ROOM + LATEST
    os.unlink(at / "endless")
    assert keep(at / "again", sync=True)
    imgfs.umount(at)


def test_what_is_written_to_memory_and_has_no_room_is_said_to_be_lost(imgfs: Imgfs, mount: Mount) -> None:
    at = mount()
    fd = os.open(at / "mapped", os.O_CREAT | os.O_RDWR)
    os.ftruncate(fd, ROOM + (4 << 20))
    with mmap.mmap(fd, 0) as body:
        body[:] = bytes([1]) * len(body)
        with fails(errno.ENOSPC):
            body.flush()
    os.close(fd)
    os.unlink(at / "mapped")
    imgfs.umount(at)


@pytest.mark.parametrize("size", [None, ROOM - 5], ids=["open", "truncate"])
def test_a_copy_up_that_has_no_room_is_undone(
    imgfs: Imgfs, disk: Path, mount: Mount, size: int | None
) -> None:
    at = mount()
    assert keep(at / "f0", sync=True)
    before = os.stat(at / "large")
    for _ in range(2):
        with fails(errno.ENOSPC):
            os.close(os.open(at / "large", os.O_RDWR)) if size is None else os.truncate(at / "large", size)
    assert not (disk / "scratch/upper/large").exists()
    after = os.stat(at / "large")
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        len(large_body()),
        before.st_mtime_ns,
    )
    drop_caches()
    assert (at / "large").read_bytes() == large_body()
    os.unlink(at / "f0")
    imgfs.umount(at)


def test_a_copy_up_that_shows_something_new_is_not_undone(imgfs: Imgfs, disk: Path, mount: Mount) -> None:
    at = mount()
    assert keep(at / "f0", sync=True)
    os.chmod(at / "large", 0o600)
    with fails(errno.ENOSPC):
        os.close(os.open(at / "large", os.O_RDWR))
    drop_caches()
    assert stat.S_IMODE(os.stat(at / "large").st_mode) == 0o600
    imgfs.expected.append("some files have been left without their data, as metacopy: .*No space left")
    imgfs.umount(at)
    assert (disk / "scratch/upper/large").exists()


def test_offsets_that_the_disk_cannot_have_are_refused(at: Path, tmp_path: Path) -> None:
    with (tmp_path / "probe").open("wb") as probe:
        try:
            probe.truncate(1 << 62)
        except OSError:
            pass
        else:
            pytest.skip("this disk has files of any size")
    fd = os.open(at / "far", os.O_CREAT | os.O_WRONLY)
    os.pwrite(fd, b"far", 1 << 62)
    with fails(errno.EFBIG):
        os.fsync(fd)
    with fails(errno.EFBIG):
        os.ftruncate(fd, 1 << 62)
    os.close(fd)


# -- set-id bits and capabilities


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def cut_by_opening(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def write(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"w")


def write_past_cache(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    os.writev(fd, [mmap.mmap(-1, mmap.PAGESIZE)])
    os.close(fd)


@pytest.mark.parametrize("work", [cut_by_opening, write, write_past_cache, lambda path: os.truncate(path, 1)])
def test_what_others_change_loses_its_set_id_bits(at: Path, work: Callable[[Path], None]) -> None:
    (at / "new").write_bytes(b"new")
    os.chmod(at / "new", 0o6777)
    for name in ("setid", "empty", "new"):
        assert mode_of(at / name) == 0o6777
        by(STRANGER, lambda path=at / name: work(path))  # type: ignore[misc]
        assert mode_of(at / name) == 0o777
        drop_caches()
        assert mode_of(at / name) == 0o777


def test_root_keeps_them_and_a_group_that_may_not_execute_too(at: Path) -> None:
    for work in (write, cut_by_opening):
        work(at / "setid")
        assert mode_of(at / "setid") == 0o6777
    os.chmod(at / "setid", 0o2767)
    for work in (write, cut_by_opening):
        by(STRANGER, lambda work=work: work(at / "setid"))  # type: ignore[misc]
        assert mode_of(at / "setid") == 0o2767


@pytest.mark.parametrize("work", [cut_by_opening, write, write_past_cache])
def test_whoever_changes_a_file_takes_its_capabilities(at: Path, work: Callable[[Path], None]) -> None:
    for name in ("small", "setid"):
        os.setxattr(at / name, "security.capability", CAPABILITY)
        work(at / name)
        assert "security.capability" not in os.listxattr(at / name)
        os.setxattr(at / name, "security.capability", CAPABILITY)
        work(at / name)
        with fails(errno.ENODATA):
            os.getxattr(at / name, "security.capability")


def test_opening_to_write_takes_no_capabilities(at: Path) -> None:
    os.setxattr(at / "large", "security.capability", CAPABILITY)
    os.close(os.open(at / "large", os.O_RDWR))
    assert os.getxattr(at / "large", "security.capability") == CAPABILITY


# -- times


def test_the_time_of_change_moves_only_when_something_is_changed(at: Path) -> None:
    def seen(name: str) -> int:
        return os.stat(at / name).st_ctime_ns

    def write_and_set_time() -> None:
        with (at / "new").open("ab") as file:
            file.write(b"more")
            file.flush()
            os.utime(file.fileno(), ns=(1, 2))

    changes: list[tuple[str, Callable[[], object]]] = [
        ("new", lambda: (at / "new").write_bytes(b"new")),
        ("new", write_and_set_time),
        ("new", lambda: os.chmod(at / "new", 0o600)),
        ("new", lambda: os.link(at / "new", at / "linked")),
        ("small", lambda: (at / "small").write_bytes(b"changed")),
        ("large", lambda: write(at / "large")),
        ("setid", lambda: os.chmod(at / "setid", 0o755)),
    ]
    for name, change in changes:
        change()
        told = seen(name)
        for _ in range(2):
            drop_caches()
            assert seen(name) == told, change


# -- direct writes


class Asynchronous:
    """Writes that are under way while their caller goes on (io_submit(2))."""

    _SETUP, _GETEVENTS, _SUBMIT = 206, 208, 209  # x86-64

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._context = ctypes.c_ulong()
        assert self._call(self._SETUP, 8, ctypes.byref(self._context)) == 0

    def write(self, fd: int, body: mmap.mmap, meanwhile: Callable[[], object]) -> None:
        """Write a page at the beginning of a file."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(body))
        block = ctypes.create_string_buffer(
            struct.pack("<QIIHhIQQqQII", 0, 0, 0, 1, 0, fd, address, len(body), 0, 0, 0, 0)  # IOCB_CMD_PWRITE
        )
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        assert self._call(self._SUBMIT, self._context, 1, pointers) == 1
        meanwhile()
        event = ctypes.create_string_buffer(32)
        assert self._call(self._GETEVENTS, self._context, 1, 1, event, None) == 1
        assert struct.unpack_from("<q", event, 16)[0] == len(body)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of system calls")
@pytest.mark.parametrize("options", [(), ("--write-through",)], ids=["gathered", "through"])
def test_what_has_been_written_past_the_cache_is_what_is_read(
    imgfs: Imgfs, mount: Mount, options: tuple[str, ...]
) -> None:
    at = mount(*options)
    path, writes = at / "direct", Asynchronous()
    path.write_bytes(bytes(mmap.PAGESIZE))
    body = mmap.mmap(-1, mmap.PAGESIZE)

    def read_for_ever() -> None:
        with path.open("rb", buffering=0) as file:
            while True:
                os.pread(file.fileno(), mmap.PAGESIZE, 0)

    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    with path.open("rb", buffering=0) as reader, Child(read_for_ever):
        for number in range(1, 400):
            body[:] = bytes([number % 256]) * mmap.PAGESIZE
            writes.write(fd, body, lambda: os.pread(reader.fileno(), 100, 0))
            assert os.pread(reader.fileno(), 100, 0) == body[:100], number
    os.close(fd)
    imgfs.umount(at)


# -- what the kernel keeps of it


@pytest.mark.parametrize("options", [(), ("--write-through",)], ids=["gathered", "through"])
def test_what_was_written_is_read_back_without_the_daemon(
    imgfs: Imgfs, mount: Mount, options: tuple[str, ...]
) -> None:
    at = mount(*options)
    body = os.urandom(64 * mmap.PAGESIZE)  # of a page that is written in part the rest is asked for
    with caches_kept(), (at / "new").open("wb+", buffering=0) as file:
        file.write(body)
        os.fsync(file.fileno())
        os.fstat(file.fileno())  # with a time that has moved
        os.kill(pid := imgfs.pid(at), signal.SIGSTOP)
        reading = ThreadPoolExecutor(1)
        try:
            assert reading.submit(os.pread, file.fileno(), len(body), 0).result(allowed(10)) == body
        finally:
            os.kill(pid, signal.SIGCONT)
            reading.shutdown()
    imgfs.umount(at)

"""A mounted image, asked everything that programs ask of a file system, through the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pytest

from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.mounted import (
    NOBODY,
    Imgfs,
    drop_caches,
    errno_of,
    gzipped,
    gzipped_in_members,
    is_alive,
    mount_flags,
    plain,
    resident,
    until,
    write_image,
    zstd,
)
from tests.support.posix_places import by
from tests.support.posix_tree import ACL, SHARED, SOMEBODY
from tests.support.umoci_oracle import Seen, differences, reader, undated, unpack, walk_directory, walk_tree

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.drivers("fuse", "kernel"),
    pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and capabilities need root"),
]

T = 1_600_000_000_123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
HUGE = (4 << 30) + 12_345
LONG = b"n" * 255
NOISE = random.Random(1).randbytes(3 << 20)
SMALL = b"0123456789" * 1000
MANY = 20_000


def lowest() -> bytes:
    return tar.archive(
        tar.directory("./", mtime_ns=T),
        tar.directory("kinds", mode=0o1777, mtime_ns=T, xattrs={b"user.directory": b"\0\xff"}),
        tar.device("kinds/null", "c", 1, 3, mode=0o666),
        tar.device("kinds/disk", "b", 259, 70000),
        tar.fifo("kinds/pipe", mode=0o620),
        tar.symlink("kinds/dangling", "no/where", uid=6, gid=7, mtime_ns=T + 3),
        tar.symlink("kinds/far", "../" * 300 + "x" * 200, mtime_ns=T),
        tar.file("kinds/setuid", b"s", mode=0o6755, uid=70000, gid=70001, mtime_ns=T + 2),
        tar.file("kinds/empty", mtime_ns=-1_500_000_000),
        tar.directory("xattrs", mtime_ns=T),
        tar.file(
            "xattrs/file",
            b"x",
            xattrs={b"user.one": b"1", b"user.long": b"l" * 300, b"user.empty-not": b"\0"},
        ),
        tar.file("xattrs/shared", b"s", mode=0o660, xattrs={ACL + b"access": SHARED}),
        tar.file("xattrs/capable", b"c", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
        tar.directory("names", mtime_ns=T),
        tar.file(b"names/\xff\xfe \n", b"no text"),
        tar.file(b"names/" + LONG, b"long"),
        tar.directory("links", mtime_ns=T),
        tar.file("links/a", b"linked", mtime_ns=T),
        tar.hardlink("links/b", "links/a"),
        tar.hardlink("links/c", "links/b"),
        tar.directory("data", mtime_ns=T),
        tar.file("data/noise", NOISE, mtime_ns=T),
        tar.file("data/small", SMALL, mtime_ns=T),
        tar.directory("gone", mtime_ns=T),
        tar.file("gone/file", b"g"),
        tar.directory("opaque", mtime_ns=T),
        tar.file("opaque/lower", b"l"),
        tar.file("whited", b"w"),
    )


def middle() -> bytes:
    pieces = [(4096, b"a" * 512), (100_000, b"b" * 70), (300_000, b"c" * 5)]
    return tar.archive(
        tar.directory("sparse", mtime_ns=T),
        *(tar.sparse_pax(version, f"sparse/{version}", 400_000, pieces) for version in ("0.0", "0.1", "1.0")),
        tar.whiteout("whited"),
        tar.whiteout("gone"),
        tar.opaque("opaque"),
        tar.file("opaque/upper", b"u"),
        tar.hardlink("links/d", "links/a"),
        tar.whiteout("links/c"),
    )


def highest() -> bytes:
    return tar.archive(
        tar.directory("many", mtime_ns=T),
        *(tar.file(f"many/{number:06}", b"", mtime_ns=T + number) for number in range(MANY)),
    )


def odd() -> bytes:
    """What umoci would write to the disk in full, or not at all."""
    return tar.archive(
        tar.directory("odd", mtime_ns=T),
        tar.sparse_old("odd/old", 9000, [(512, b"a" * 512), (5000, b"b" * 70)]),
        tar.sparse_old("odd/hole", 1 << 20, [(1 << 20, b"")]),
    )


class Mounted(NamedTuple):
    """The torture image, mounted."""

    at: Path
    layers: list[bytes]
    image: str
    imgfs: Imgfs


@pytest.fixture(scope="module")
def torture(module_imgfs: Imgfs) -> Iterator[Mounted]:
    layers = [lowest(), middle(), highest(), odd()]
    stored = [gzipped(layers[0]), gzipped_in_members(layers[1]), zstd(layers[2], 1 << 20), plain(layers[3])]
    image = write_image(module_imgfs.directory / "layout", stored)
    at = module_imgfs.mount(image)
    yield Mounted(at, layers, image, module_imgfs)
    module_imgfs.umount(at)


def tree_of(torture: Mounted) -> Tree:
    digest = torture.imgfs.status(torture.at)["digest"]
    path = Store(torture.imgfs.store).tree(Digest.parse(digest))
    assert path is not None
    return Tree(path)


# -- the whole of it -----------------------------------------------------------------------------------------


def test_the_kernel_shows_the_merged_tree(torture: Mounted) -> None:
    with tree_of(torture) as tree:
        expected = walk_tree(tree, reader(torture.layers))
    assert len(expected) > MANY
    assert differences(expected, walk_directory(torture.at)) == []


@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
@pytest.mark.parts
def test_the_kernel_shows_what_umoci_unpacks(imgfs: Imgfs, torture: Mounted, tmp_path: Path) -> None:
    expected = walk_directory(unpack(tmp_path, torture.layers[:2]))
    image = write_image(tmp_path / "two", [plain(layer) for layer in torture.layers[:2]])
    actual = walk_directory(imgfs.mount(image))
    assert differences(expected, actual, ignoring_mtime=undated(actual)) == []


def test_what_upper_layers_hide_is_gone(torture: Mounted) -> None:
    assert sorted(os.listdir(torture.at / "opaque")) == ["upper"]
    assert not {"gone", "whited"} & set(os.listdir(torture.at))
    assert not any(name.startswith(".wh.") for _, _, names in os.walk(torture.at) for name in names)


def test_inode_numbers_survive_a_remount(imgfs: Imgfs, torture: Mounted) -> None:
    def inodes(at: Path) -> dict[str, int]:
        paths = [top for top in at.rglob("*") if "many" not in top.parts]
        return {str(path.relative_to(at)): path.lstat().st_ino for path in paths}

    again = imgfs.mount(torture.image)
    assert inodes(again) == inodes(torture.at)
    imgfs.umount(again)


# -- attributes ----------------------------------------------------------------------------------------------


def test_hard_links_share_an_inode_and_count_across_layers(torture: Mounted) -> None:
    found = [os.lstat(torture.at / "links" / name) for name in "abd"]
    assert {(one.st_ino, one.st_nlink) for one in found} == {(found[0].st_ino, 3)}
    assert not (torture.at / "links/c").exists()


def test_devices_and_fifos_have_their_numbers_and_modes(torture: Mounted) -> None:
    kinds = torture.at / "kinds"
    null, disk, pipe = (os.lstat(kinds / name) for name in ("null", "disk", "pipe"))
    assert (stat.S_ISCHR(null.st_mode), null.st_rdev) == (True, os.makedev(1, 3))
    assert (stat.S_ISBLK(disk.st_mode), disk.st_rdev) == (True, os.makedev(259, 70000))
    assert pipe.st_mode == stat.S_IFIFO | 0o620


def test_times_have_nanoseconds_also_before_1970(torture: Mounted) -> None:
    assert os.lstat(torture.at / "kinds/setuid").st_mtime_ns == T + 2
    empty = os.lstat(torture.at / "kinds/empty")
    assert (empty.st_mtime_ns, empty.st_ctime_ns, empty.st_atime_ns) == (-1_500_000_000,) * 3


def test_owners_and_setuid_bits_are_the_images(torture: Mounted) -> None:
    found = os.lstat(torture.at / "kinds/setuid")
    assert (found.st_mode, found.st_uid, found.st_gid) == (stat.S_IFREG | 0o6755, 70000, 70001)


def test_names_are_bytes_of_up_to_255(torture: Mounted) -> None:
    names = os.listdir(os.fsencode(torture.at / "names"))
    assert sorted(names) == [LONG, b"\xff\xfe \n"]
    assert Path(os.fsdecode(os.fsencode(torture.at / "names") + b"/\xff\xfe \n")).read_bytes() == b"no text"
    assert (torture.at / "names" / os.fsdecode(LONG)).read_bytes() == b"long"


def test_long_targets_are_whole(torture: Mounted) -> None:
    assert os.readlink(torture.at / "kinds/far") == "../" * 300 + "x" * 200
    assert errno_of(lambda: os.readlink(torture.at / "data/small")) == errno.EINVAL


def test_acls_are_shown_and_obeyed(torture: Mounted) -> None:
    path = torture.at / "xattrs/shared"
    assert os.getxattr(path, ACL + b"access") == SHARED
    directory = os.open(path.parent, os.O_PATH)  # the one above is root's alone

    def read() -> None:
        os.close(os.open(path.name, os.O_RDONLY, dir_fd=directory))

    def refused() -> None:
        assert errno_of(read) == errno.EACCES

    by(SOMEBODY, read)
    by(NOBODY, refused)
    os.close(directory)


def test_extended_attributes(torture: Mounted) -> None:
    path = torture.at / "xattrs/file"
    assert sorted(os.listxattr(path)) == ["user.empty-not", "user.long", "user.one"]
    assert os.getxattr(path, "user.long") == b"l" * 300
    assert os.getxattr(torture.at / "xattrs/capable", "security.capability") == CAPABILITY
    assert errno_of(lambda: os.getxattr(path, "user.none")) == errno.ENODATA
    assert errno_of(lambda: os.getxattr(torture.at / "data", "user.none")) == errno.ENODATA
    assert os.listxattr(torture.at / "data/small") == []


def test_extended_attributes_say_their_size_and_when_a_buffer_is_short(torture: Mounted) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(torture.at / "xattrs/file")
    assert libc.getxattr(path, b"user.long", None, 0) == 300
    assert libc.getxattr(path, b"user.long", ctypes.create_string_buffer(10), 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    names = len(b"user.one\0user.long\0user.empty-not\0")
    assert libc.listxattr(path, None, 0) == names
    assert libc.listxattr(path, ctypes.create_string_buffer(4), 4) == -1
    assert ctypes.get_errno() == errno.ERANGE


def test_nothing_is_listed_that_the_image_has_not(torture: Mounted) -> None:
    assert os.listxattr(torture.at) == []


@pytest.mark.drivers("fuse")
def test_the_status_attribute_is_the_roots_and_not_listed(torture: Mounted) -> None:
    assert os.getxattr(torture.at, "user.imgfs.status").startswith(b"{")
    assert os.listxattr(torture.at) == []
    assert errno_of(lambda: os.getxattr(torture.at / "data", "user.imgfs.status")) == errno.ENODATA


@pytest.mark.drivers("fuse")
@pytest.mark.skipif(os.geteuid() != 0, reason="as an ordinary user, the root of a namespace does not see it")
def test_no_container_is_told_the_status(torture: Mounted) -> None:
    """It names the store, the mountpoint and the registries of the machine."""
    asking = "import os, sys; os.getxattr(sys.argv[1], 'user.imgfs.status')"
    words = sys.executable, "-c", asking, torture.at
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=False)
    assert ask(words).stderr == ""
    assert "[Errno 61] No data available: " in ask(["unshare", "--pid", "--fork", *words]).stderr


def test_statfs_shows_a_full_file_system_of_the_images_size(torture: Mounted) -> None:
    found = os.statvfs(torture.at)
    assert (found.f_bfree, found.f_bavail, found.f_namemax) == (0, 0, 255)
    assert found.f_blocks * found.f_frsize > len(NOISE)
    assert found.f_flag & os.ST_RDONLY


@pytest.mark.drivers("fuse")
def test_by_fuse_statfs_counts_the_images_files(torture: Mounted) -> None:
    found = os.statvfs(torture.at)
    assert (found.f_files > MANY, found.f_ffree) == (True, 0)


# -- lookups -------------------------------------------------------------------------------------------------


def test_failed_lookups_say_why(torture: Mounted) -> None:
    at = torture.at
    for _ in range(2):  # the second time from the kernel's memory
        assert errno_of(lambda: os.lstat(at / "nothing")) == errno.ENOENT
    assert errno_of(lambda: os.lstat(at / "data/small/below")) == errno.ENOTDIR
    assert errno_of(lambda: os.lstat(at / ("n" * 256))) == errno.ENAMETOOLONG
    assert errno_of(lambda: os.stat(at / "kinds/dangling")) == errno.ENOENT
    assert errno_of(lambda: os.listdir(at / "data/small")) == errno.ENOTDIR


def test_access_is_the_modes_but_never_for_writing(torture: Mounted) -> None:
    small = torture.at / "data/small"
    assert os.access(small, os.R_OK)
    assert not os.access(small, os.W_OK)
    assert not os.access(small, os.X_OK)
    assert os.access(torture.at / "kinds/setuid", os.X_OK)


@pytest.mark.parametrize(
    "call",
    [
        lambda at: os.open(at / "data/small", os.O_WRONLY),
        lambda at: os.open(at / "data/small", os.O_RDWR),
        lambda at: os.open(at / "data/small", os.O_RDONLY | os.O_TRUNC),
        lambda at: os.open(at / "data/new", os.O_WRONLY | os.O_CREAT),
        lambda at: os.mkdir(at / "new"),
        lambda at: os.rmdir(at / "opaque"),
        lambda at: os.unlink(at / "data/small"),
        lambda at: os.rename(at / "data/small", at / "new"),
        lambda at: os.link(at / "data/small", at / "new"),
        lambda at: os.symlink("x", at / "new"),
        lambda at: os.mknod(at / "new", stat.S_IFIFO | 0o600),
        lambda at: os.chmod(at / "data/small", 0o600),
        lambda at: os.chown(at / "data/small", 1, 1),
        lambda at: os.truncate(at / "data/small", 1),
        lambda at: os.utime(at / "data/small"),
        lambda at: os.setxattr(at / "data/small", "user.x", b"1"),
        lambda at: os.removexattr(at / "xattrs/file", "user.one"),
    ],
    ids=[
        *("open-w", "open-rw", "open-trunc", "create", "mkdir", "rmdir", "unlink", "rename", "link"),
        *("symlink", "mknod", "chmod", "chown", "truncate", "utime", "setxattr", "removexattr"),
    ],
)
def test_every_kind_of_write_is_refused(torture: Mounted, call: Callable[[Path], object]) -> None:
    assert errno_of(lambda: call(torture.at)) == errno.EROFS


# -- directories ---------------------------------------------------------------------------------------------


class _Dirent(ctypes.Structure):
    """struct dirent64 of glibc on 64-bit machines (readdir(3))."""

    _fields_ = [
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    ]


class Listing:
    """opendir(3) and its kin."""

    def __init__(self, path: Path) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.opendir.restype = ctypes.c_void_p
        self._c.readdir.restype = ctypes.POINTER(_Dirent)
        self._c.telldir.restype = ctypes.c_long
        for name in ("readdir", "telldir", "rewinddir", "closedir"):
            getattr(self._c, name).argtypes = [ctypes.c_void_p]
        self._c.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
        self._stream = self._c.opendir(os.fsencode(path))
        assert self._stream

    def next(self) -> tuple[bytes, int, int] | None:
        """Name, inode number and type of the next entry."""
        found = self._c.readdir(self._stream)
        return (found.contents.name, found.contents.ino, found.contents.type) if found else None

    def rest(self) -> list[tuple[bytes, int, int]]:
        return list(iter(self.next, None))  # None ends it

    def tell(self) -> int:
        return int(self._c.telldir(self._stream))

    def seek(self, position: int) -> None:
        self._c.seekdir(self._stream, position)

    def rewind(self) -> None:
        self._c.rewinddir(self._stream)

    def close(self) -> None:
        self._c.closedir(self._stream)


@contextlib.contextmanager
def listing(path: Path) -> Iterator[Listing]:
    found = Listing(path)
    try:
        yield found
    finally:
        found.close()


def test_a_listing_begins_with_the_dots(torture: Mounted) -> None:
    with listing(torture.at / "kinds") as entries:
        first = entries.next(), entries.next()
    assert [entry and (entry[0], entry[2]) for entry in first] == [(b".", 4), (b"..", 4)]  # 4: DT_DIR
    assert first[0] is not None
    assert first[0][1] == os.stat(torture.at / "kinds").st_ino


def test_a_listing_gives_the_inode_and_kind_that_stat_gives(torture: Mounted) -> None:
    with listing(torture.at / "kinds") as entries:
        found = {name: (ino, kind) for name, ino, kind in entries.rest()[2:]}
    for name, (ino, kind) in found.items():
        seen = os.lstat(os.path.join(os.fsencode(torture.at / "kinds"), name))
        assert (ino, kind) == (seen.st_ino, stat.S_IFMT(seen.st_mode) >> 12), name


def test_a_directory_of_20000_entries_is_listed_whole_and_once(torture: Mounted) -> None:
    drop_caches()
    names = os.listdir(torture.at / "many")
    assert sorted(names) == [f"{number:06}" for number in range(MANY)]


def test_telldir_seekdir_and_rewinddir(torture: Mounted) -> None:
    with listing(torture.at / "many") as entries:
        everything = entries.rest()
        entries.rewind()
        assert entries.rest() == everything
        entries.rewind()
        places = [entries.tell()]
        for _ in everything:
            entries.next()
            places.append(entries.tell())
        for number in (0, 1, 2, 7, 19_999, 1024, 12_345, 3, MANY + 2):
            entries.seek(places[number])
            assert entries.next() == (everything[number] if number < len(everything) else None)
        entries.seek(places[15_000])
        assert entries.rest() == everything[15_000:]


def _list(path: Path) -> str:
    names = "\n".join(os.listdir(path))
    return hashlib.sha256(names.encode()).hexdigest()


def test_processes_list_one_directory_at_the_same_time(torture: Mounted) -> None:
    drop_caches()
    with get_context("spawn").Pool(4) as pool:
        found = pool.map_async(_list, [torture.at / "many"] * 8, 1).get(60)
    assert len(set(found)) == 1


# -- reading -------------------------------------------------------------------------------------------------


def test_any_range_of_a_file_is_its_bytes(torture: Mounted) -> None:
    chance = random.Random(2)
    fd = os.open(torture.at / "data/noise", os.O_RDONLY)
    try:
        for _ in range(200):
            offset, length = (
                chance.randrange(len(NOISE) + 5000),
                chance.choice((1, 511, 4097, 131_073, 700_001)),
            )
            assert os.pread(fd, length, offset) == NOISE[offset : offset + length]
        assert os.pread(fd, 100, len(NOISE)) == b""
        assert os.pread(fd, 100, 1 << 40) == b""
        assert os.pread(fd, 100, len(NOISE) - 1) == NOISE[-1:]
    finally:
        os.close(fd)


def test_a_file_can_be_mapped(torture: Mounted) -> None:
    drop_caches()
    with (
        open(torture.at / "data/noise", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view,
    ):
        assert view[1_000_003:1_000_103] == NOISE[1_000_003:1_000_103]
        assert hashlib.sha256(view).digest() == hashlib.sha256(NOISE).digest()


@pytest.mark.drivers("fuse")
def test_by_fuse_a_file_can_be_read_past_the_page_cache(torture: Mounted) -> None:
    fd = os.open(torture.at / "data/noise", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 1 << 20) as aligned:
            assert os.preadv(fd, [aligned], 4096) == 1 << 20
            assert aligned[:] == NOISE[4096 : 4096 + (1 << 20)]
    finally:
        os.close(fd)


def test_empty_files_are_empty(torture: Mounted) -> None:
    assert (torture.at / "kinds/empty").read_bytes() == b""


def test_pages_of_a_file_stay_cached_when_it_is_opened_again(torture: Mounted) -> None:
    path = torture.at / "data/noise"

    def cost() -> int:
        before = bytes_served(torture)
        assert path.read_bytes() == NOISE
        return bytes_served(torture) - before

    # Not always the second time: others may have the machine drop its caches.
    until(lambda: cost() == 0, "reading it again costs nothing")


def bytes_served(it: Mounted) -> int:
    return int(it.imgfs.status(it.at)["bytes_served"])


def test_a_sparse_file_of_over_4_gib_reads_at_its_end(imgfs: Imgfs, tmp_path: Path) -> None:
    layer = tar.archive(tar.sparse_old("huge", HUGE, [(HUGE - 4096, b"z" * 4096)]))
    at = imgfs.mount(write_image(tmp_path / "layout", [gzipped(layer)]))
    assert os.stat(at / "huge").st_size == HUGE
    with open(at / "huge", "rb") as file:
        file.seek(HUGE - 4097)
        assert file.read() == b"\0" + b"z" * 4096
        file.seek(1 << 32)
        assert file.read(10) == bytes(10)
    assert os.statvfs(at).f_blocks * os.statvfs(at).f_frsize > HUGE
    imgfs.umount(at)


@pytest.mark.drivers("fuse")
def test_by_fuse_holes_take_no_blocks_and_are_told(torture: Mounted) -> None:
    with open(torture.at / "sparse/1.0", "rb") as file:
        ends = [os.lseek(file.fileno(), 0, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)]
        assert ends == [4096, 0]
        assert os.lseek(file.fileno(), 4100, os.SEEK_HOLE) == 4096 + 512
        assert errno_of(lambda: os.lseek(file.fileno(), 400_000, os.SEEK_DATA)) == errno.ENXIO
    assert os.stat(torture.at / "odd/hole").st_blocks == 0
    assert os.stat(torture.at / "sparse/1.0").st_blocks < 400_000 // 512


def test_sparse_files_of_every_kind_have_zeros_in_their_holes(torture: Mounted) -> None:
    body = bytearray(400_000)
    body[4096:4608], body[100_000:100_070], body[300_000:300_005] = b"a" * 512, b"b" * 70, b"c" * 5
    for version in ("0.0", "0.1", "1.0"):
        assert (torture.at / "sparse" / version).read_bytes() == body, version
    old = bytearray(9000)
    old[512:1024], old[5000:5070] = b"a" * 512, b"b" * 70
    assert (torture.at / "odd/old").read_bytes() == old
    assert (torture.at / "odd/hole").read_bytes() == bytes(1 << 20)


def _read_and_compare(path: Path, seed: int) -> int:
    chance = random.Random(seed)
    wrong = 0
    with open(path, "rb", buffering=0) as file:
        for _ in range(60):
            offset, length = chance.randrange(len(NOISE)), chance.randrange(1, 200_000)
            wrong += os.pread(file.fileno(), length, offset) != NOISE[offset : offset + length]
    return wrong


def test_threads_and_processes_read_at_the_same_time(torture: Mounted) -> None:
    torture.imgfs.evict(torture.image)
    path = torture.at / "data/noise"
    with ThreadPoolExecutor(8) as threads, get_context("spawn").Pool(2) as processes:
        apart = processes.starmap_async(_read_and_compare, [(path, seed) for seed in range(10, 14)], 1)
        here = list(threads.map(functools.partial(_read_and_compare, path), range(8)))
        assert (here, apart.get(60)) == ([0] * 8, [0] * 4)


def test_a_small_buffer_reads_a_whole_file(torture: Mounted) -> None:
    drop_caches()
    with open(torture.at / "data/small", "rb", buffering=0) as file:
        assert b"".join(iter(lambda: file.read(37), b"")) == SMALL


def test_all_of_it_is_right_under_memory_pressure_and_memory_stays_flat(torture: Mounted) -> None:
    def everything() -> dict[bytes, Seen]:
        with os.scandir(torture.at / "many") as many:
            assert sum(item.stat().st_mtime_ns - T for item in many) == MANY * (MANY - 1) // 2
        places = ("kinds", "xattrs", "names", "links", "data", "sparse", "odd")
        return {
            path + b"/" + os.fsencode(place): seen
            for place in places
            for path, seen in walk_directory(torture.at / place).items()
        }

    pid = torture.imgfs.pid(torture.at)
    expected = everything()
    before = resident(pid)
    stop = threading.Event()

    def press() -> None:
        while not stop.wait(0.05):
            drop_caches("2")

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        for _ in range(3):
            assert differences(expected, everything()) == []
    finally:
        stop.set()
        pressing.join()
    assert resident(pid) < before + (8 << 20)
    assert resident(pid) < 100 << 20


# -- other programs ------------------------------------------------------------------------------------------


def test_cp_copies_everything_and_every_attribute(torture: Mounted, imgfs: Imgfs, tmp_path: Path) -> None:
    names = ("kinds", "odd", "sparse", "links", "xattrs", "names")
    done = imgfs.program("cp", "-a", *(torture.at / name for name in names), tmp_path)
    assert (done.code, done.err) == (0, "")
    for name in names:
        assert differences(walk_directory(torture.at / name), walk_directory(tmp_path / name)) == []


def test_two_mounts_of_one_image_and_two_images_of_one_layer_share_the_store(
    imgfs: Imgfs, tmp_path: Path
) -> None:
    shared, own = (tar.archive(tar.file(name, NOISE)) for name in ("shared", "own"))
    one = write_image(tmp_path / "layout", [gzipped(shared)], tag="one")
    two = write_image(tmp_path / "layout", [gzipped(shared), gzipped(own)], tag="two")
    at = [imgfs.mount(image, at=imgfs.mountpoint(f"m{n}")) for n, image in enumerate((one, one, two))]
    assert {(path / "shared").read_bytes() for path in at} == {NOISE}
    assert len(list(imgfs.store.glob("layers/sha256/*"))) == 2
    imgfs.evict(two)
    assert (at[2] / "shared").read_bytes() == NOISE  # fetched by one daemon,
    fetched = [imgfs.status(path)["layers"][0] for path in at]
    assert [layer["spans_present"] for layer in fetched] == [fetched[0]["spans"]] * 3  # there for all
    drop_caches()
    assert (at[0] / "shared").read_bytes() == NOISE
    assert [imgfs.status(path)["layers"][0]["bytes_fetched"] > 0 for path in at] == [False, False, True]
    for path in at:
        imgfs.umount(path)


def test_mounts_are_nosuid_nodev_and_read_only_unless_asked_otherwise(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [plain(tar.archive(tar.device("null", "c", 1, 3, mode=0o666)))])
    at = imgfs.mount(image)
    assert {"nosuid", "nodev", "ro"} <= mount_flags(at)
    assert errno_of(lambda: os.open(at / "null", os.O_RDONLY)) == errno.EACCES
    imgfs.umount(at)
    at = imgfs.mount(image, "-o", "suid,dev")
    assert not {"nosuid", "nodev"} & mount_flags(at)
    assert (at / "null").read_bytes() == b""
    imgfs.umount(at)


def test_an_image_without_layers_is_an_empty_directory(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", []))
    assert os.listdir(at) == []
    assert stat.S_IMODE(os.stat(at).st_mode) == 0o755
    imgfs.umount(at)


def test_a_mount_outlives_the_shell_that_made_it(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [plain(tar.archive(tar.file("a", b"1")))])
    at = imgfs.mountpoint()
    shell = imgfs.program(
        "sh", "-c", f"'{sys.executable}' -m imgfs mount {image} {at}", start_new_session=True
    )
    assert (shell.code, shell.err) == (0, "")
    pid = imgfs.watch(at)
    assert os.getsid(pid) == pid
    assert (at / "a").read_bytes() == b"1"
    imgfs.umount(at)
    assert not is_alive(pid)

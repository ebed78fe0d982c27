"""A scratch in a directory that is named: whose it is, what may be in the way, and who is at work on it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from imgfs.errors import MountError, StoreError
from imgfs.overlay import scratch_dir
from imgfs.overlay.scratch import Scratch
from imgfs.overlay.scratch_dir import (
    ENDING,
    ScratchBase,
    is_at_work,
    opened_scratch_directory,
    read_base,
    write_base,
)
from imgfs.overlay.scratches import volatile_scratch
from tests.mount.test_scratch_trouble import filesystem
from tests.support import tarmake as tar
from tests.support.mounted import NOBODY, Imgfs, gzipped, mount_of, until, write_image

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts other file systems")
BASE = ScratchBase("registry.example.com/app:v1", f"sha256:{'a' * 64}", 3)
LAYER = tar.archive(tar.directory("./", mode=0o755, mtime_ns=1), tar.file("a", b"a"))


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    (tmp_path / "scratch").mkdir(mode=0o700)
    return Scratch(tmp_path / "scratch", str(tmp_path / "scratch"))


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def name_again(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


# -- nothing in it is followed or written over


@pytest.mark.parametrize("put", [link, name_again, fifo])
@pytest.mark.parametrize("name", ["lock", "scratch.json"])
def test_what_stands_for_a_file_of_ours_is_refused_and_left(
    scratch: Scratch, tmp_path: Path, name: str, put: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "precious").write_text("precious")
    put(scratch.directory / name, tmp_path / "precious")
    with pytest.raises(StoreError, match=f"scratch/{name}: "):
        (scratch.reset if name == "lock" else scratch.base)()
    assert (tmp_path / "precious").read_text() == "precious"
    assert scratch.holder() is None


@pytest.mark.parametrize("name", ["upper", "work"])
def test_directories_are_not_followed(scratch: Scratch, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (scratch.directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=f"scratch/{name}: a symbolic link, which is not followed"):
        scratch.reset()
    assert (tmp_path / "elsewhere").is_dir()


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770])
def test_a_directory_that_others_may_write_to_is_refused(scratch: Scratch, mode: int) -> None:
    os.chown(scratch.directory, 0, NOBODY.gid)
    scratch.directory.chmod(mode)
    with pytest.raises(StoreError, match="other users may write to it"), scratch.locked(""):
        pass


@needs_root
def test_another_users_directory_is_refused(scratch: Scratch) -> None:
    os.chown(scratch.directory, *NOBODY)
    for use in (scratch.base, scratch.reset):
        with pytest.raises(StoreError, match="belongs to uid 65534, not to you"):
            use()
    assert os.listdir(scratch.directory) == []


@needs_root
def test_a_directory_of_ones_own_in_one_of_everybodys_will_do(scratch: Scratch, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with scratch.locked("used"):
        assert scratch.holder() == "used"


@needs_root
@pytest.mark.kernel
@pytest.mark.drivers("fuse", "kernel")
def test_a_mount_overwrites_nothing(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    imgfs.expected.append(" ERROR ")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/lock").symlink_to(tmp_path / "precious")
    said = imgfs.run("mount", "--scratch", f"{tmp_path}/scratch", image, imgfs.mountpoint()).complaint()
    assert said == f"{tmp_path}/scratch/lock: a symbolic link, which is not followed"
    assert mount_of(imgfs.mountpoint()) is None
    assert (tmp_path / "precious").read_text() == "precious"


# -- the description


def test_the_description_is_written_once(scratch: Scratch) -> None:
    path = scratch.directory / "scratch.json"
    with opened_scratch_directory(scratch.directory) as fd:
        write_base(scratch.directory, fd, BASE)
        written = path.stat()
        write_base(scratch.directory, fd, BASE)
    assert read_base(scratch.directory) == BASE
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert os.listdir(scratch.directory) == ["scratch.json"]


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b"\xff", b'{"reference": 1, "digest": 2}'])
def test_a_damaged_description_is_named(scratch: Scratch, body: bytes) -> None:
    (scratch.directory / "scratch.json").write_bytes(body)
    with pytest.raises(StoreError, match=r"scratch\.json: damaged"):
        scratch.base()


# -- the lock


def test_who_comes_while_a_mount_ends_waits_for_it(scratch: Scratch) -> None:
    with scratch.locked(f"mounted at {scratch.directory}/none (pid 1)") as say:
        say(ENDING)
        got = []

        def use() -> None:
            with scratch.locked("next"):
                got.append(scratch.holder())

        thread = threading.Thread(target=use)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(20)
    assert got == ["next"]


def test_who_comes_while_it_is_at_work_is_told_by_what(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch_dir, "_UNSEEN", 0.2)
    for use in ("being reset", "mounted at / (pid 7)", "mounted at /nowhere (pid 7)"):
        with (
            scratch.locked(use),
            pytest.raises(MountError, match=rf"is in use: {use[:10]}"),
            scratch.locked("next"),
        ):
            pass


@pytest.mark.parametrize(
    ("said", "seen"),
    [("mounted at / (pid 1)", True), ("mounted at /no/where (pid 1)", False), ("being removed", True)],
)
def test_a_mount_is_at_work_as_long_as_it_is_mounted(said: str, seen: bool) -> None:
    assert is_at_work(said) == seen


def test_a_scratch_for_one_mount_is_not_swept_before_it_is_mounted(tmp_path: Path) -> None:
    made = volatile_scratch(tmp_path)
    volatile_scratch(tmp_path)
    assert made.directory.is_dir()
    left = Scratch(tmp_path / "scratch/.mount-0123", "", volatile=True)
    left.upper.mkdir(parents=True)
    held = Scratch(tmp_path / "scratch/.mount-4567", "", volatile=True)
    held.upper.mkdir(parents=True)
    with held.locked("mounted"):
        volatile_scratch(tmp_path)
        assert held.upper.is_dir()
    assert not left.directory.exists()
    volatile_scratch(tmp_path)
    assert not held.directory.exists()


@needs_root
@pytest.mark.kernel
@pytest.mark.drivers("fuse", "kernel")
def test_after_umount_the_next_mount_has_the_scratch_at_once(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    for number in range(3):
        at = imgfs.mount(image, "--scratch", f"{tmp_path}/scratch")
        (at / f"n{number}").write_bytes(b"n")
        subprocess.run(["umount", at], check=True)
        imgfs.gone(at)
    at = imgfs.mount(image, "--scratch", f"{tmp_path}/scratch")
    assert sorted(os.listdir(at)) == ["a", "n0", "n1", "n2"]
    imgfs.umount(at)


# -- full


def fill(at: Path) -> None:
    """Write until nothing fits any more."""
    for name, size in (("large", 1 << 16), ("small", 1 << 12), ("tiny", 1)):
        with suppress(OSError), open(at / name, "wb", buffering=0) as file:
            for _ in range(1000):
                file.write(bytes(size))


def touched(path: Path) -> bool:
    """Make a file, if there is an inode for it."""
    with suppress(OSError):
        path.touch()
    return path.exists()


@contextmanager
def disk(directory: Path, *options: str) -> Iterator[Path]:
    """A small ext4 of its own, mounted."""
    image = directory / "disk"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", *options, image], check=True)
    (directory / "disk-mount").mkdir()
    subprocess.run(["mount", "-o", "loop", image, directory / "disk-mount"], check=True)
    try:
        yield directory / "disk-mount"
    finally:
        words = ["umount", str(directory / "disk-mount")]
        until(lambda: subprocess.run(words, check=False).returncode == 0, "the disk is not in use any more")


@needs_root
@pytest.mark.kernel
@pytest.mark.drivers("fuse", "kernel")
def test_on_ext4_a_full_scratch_can_be_emptied_and_a_read_only_one_is_looked_at(
    imgfs: Imgfs, tmp_path: Path
) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    imgfs.expected += ["some files have been left without their data", "Read-only file system"]
    with disk(tmp_path) as place:
        scratch = str(place / "scratch")
        at = imgfs.mount(image, "--write-through", "--scratch", scratch)
        fill(at)
        imgfs.umount(at)
        at = imgfs.mount(image, "--write-through", "--scratch", scratch)
        (at / "large").unlink()
        until(lambda: os.statvfs(place).f_bavail, "the kernel has forgotten the file, and so has the daemon")
        (at / "new").write_bytes(b"fits")
        imgfs.umount(at)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        said = imgfs.run("mount", "--scratch", scratch, image, at).complaint()
        assert said == f"{scratch}/lock: Read-only file system"
        assert mount_of(at) is None
        assert "A /new" in imgfs.ok("diff", scratch).splitlines()
        imgfs.ok("commit", scratch, f"oci:{tmp_path}/new:v1")


@needs_root
@pytest.mark.kernel
@pytest.mark.drivers("fuse", "kernel")
def test_without_an_inode_left_it_is_emptied_by_fuse(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    imgfs.expected += ["No space left"]
    with disk(tmp_path, "-N", "40") as place:
        scratch = str(place / "scratch")
        at = imgfs.mount(image, "--scratch", scratch)
        with suppress(OSError):
            for number in range(100):
                (at / f"f{number}").touch()
        imgfs.umount(at)
        with suppress(OSError):
            for number in range(100):
                (place / f"other{number}").touch()
        assert os.statvfs(place).f_ffree == 0
        if imgfs.driver == "kernel":
            said = imgfs.run("mount", "--scratch", scratch, image, at).complaint()
            assert said.endswith("overlayfs begins with files of its own: empty it by --driver fuse")
            assert mount_of(at) is None
        imgfs.driver = "fuse"
        at = imgfs.mount(image, "--scratch", scratch)
        (at / "f0").unlink()
        until(lambda: touched(at / "new"), "the kernel has forgotten the file, and its inode is free")
        imgfs.umount(at)


@pytest.mark.kernel
def test_numbers_and_times_of_files_are_the_same_in_the_next_mount(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    at = imgfs.mount(image, "--driver", "fuse", "--scratch", f"{tmp_path}/scratch/")
    for number in range(20):
        with (at / f"new{number}").open("wb") as file:
            file.write(b"new")  # is with the kernel still, with its time
            file.flush()
            time.sleep(0.005)
    (at / "a").chmod(0o700)
    seen = [numbered(path) for path in sorted(at.iterdir())]
    imgfs.umount(at)
    for changed in (0, 1):
        at = imgfs.mount(image, "--driver", "fuse", "--scratch", f"{tmp_path}/scratch/")
        again = [numbered(path) for path in sorted(at.iterdir())]
        assert sum(a != b for a, b in zip(seen, again, strict=True)) == changed
        (at / "new7").chmod(0o700)
        imgfs.umount(at)
    (tmp_path / "scratch/ctimes").write_bytes(b"cut off")
    at = imgfs.mount(image, "--driver", "fuse", "--scratch", f"{tmp_path}/scratch/")
    assert (at / "new1").read_bytes() == b"new"
    imgfs.umount(at)


def numbered(path: Path) -> tuple[str, int, int, int]:
    found = path.lstat()
    return path.name, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


@needs_root
@pytest.mark.kernel
@pytest.mark.drivers("fuse", "kernel")
def test_a_full_scratch_can_be_mounted_and_emptied(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(imgfs.directory / "layout", [gzipped(LAYER)])
    imgfs.expected.append("some files have been left without their data")
    with filesystem("tmpfs", tmp_path / "tmpfs", "-o", "size=512k") as place:
        scratch = str(place / "scratch")
        at = imgfs.mount(image, "--write-through", "--scratch", scratch)
        fill(at)
        imgfs.umount(at)
        assert os.statvfs(place).f_bavail == 0
        assert imgfs.ok("diff", scratch).splitlines()[-1] == "A /tiny"
        at = imgfs.mount(image, "--write-through", "--scratch", scratch)
        (at / "large").unlink()
        until(lambda: os.statvfs(place).f_bavail, "the kernel has forgotten the file, and so has the daemon")
        (at / "new").write_bytes(b"fits")
        imgfs.umount(at)
        at = imgfs.mount(image, "--scratch", scratch)
        assert (at / "new").read_bytes() == b"fits"
        fill(at)
        imgfs.umount(at)
        imgfs.ok("commit", scratch, f"oci:{tmp_path}/new:v1")
        imgfs.ok("scratch", "reset", scratch)
        imgfs.ok("scratch", "rm", scratch)
        assert os.listdir(place) == []

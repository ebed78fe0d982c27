"""Scratches where they cannot be, or cannot grow; ordinary users' own; asked for by mount(8)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

from imgfs.cli.fstab import mount_arguments
from tests.mount.test_trouble import loop_device
from tests.support import tarmake as tar
from tests.support.mounted import NOBODY, Imgfs, Ran, errno_of, gzipped, mount_of, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts other file systems"),
]


@cache
def image_layer() -> bytes:
    return tar.archive(
        tar.directory("./", mode=0o755, mtime_ns=1),
        tar.file("a", b"a", uid=7, gid=8, mode=0o4750),
        tar.file("large", bytes(range(256)) * 8192),
        tar.directory("d", mode=0o500),
        tar.file("d/closed", b"closed", mode=0),
    )


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(image_layer())])


@pytest.fixture
def own_image(nobody: Imgfs) -> str:
    return write_image(nobody.directory / "layout", [gzipped(image_layer())])


@contextmanager
def filesystem(kind: str, at: Path, *options: str) -> Iterator[Path]:
    """Another file system, mounted at a new directory."""
    at.mkdir()
    subprocess.run(["mount", "-t", kind, *options, kind, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


def refused(imgfs: Imgfs, image: str, scratch: Path) -> str:
    """What a mount with that scratch is refused with."""
    imgfs.expected.append(" ERROR ")  # the daemon's log tells it, too
    at = imgfs.mountpoint()
    ran = imgfs.run("mount", "--scratch", str(scratch), image, at)
    assert mount_of(at) is None
    return ran.complaint()


def test_a_file_system_without_extended_attributes_is_said_to_be_one(
    imgfs: Imgfs, image: str, tmp_path: Path
) -> None:
    with filesystem("ramfs", tmp_path / "ramfs") as place:
        said = refused(imgfs, image, place / "scratch")
        assert said.endswith(": its file system keeps no extended attributes, which a scratch needs")
        assert said.startswith(f"{place}/scratch/")


def test_a_full_file_system_refuses_the_scratch(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    with filesystem("tmpfs", tmp_path / "tmpfs", "-o", "size=64k,nr_inodes=3") as place:
        (place / "file").touch()
        (place / "other").touch()
        said = refused(imgfs, image, place / "scratch")
        assert said == f"{place}/scratch: No space left on device"


def test_a_file_system_that_gets_full_refuses_changes_and_stays(
    imgfs: Imgfs, image: str, tmp_path: Path
) -> None:
    with filesystem("tmpfs", tmp_path / "tmpfs", "-o", "size=256k") as place:
        imgfs.expected.append("some files have been left without their data, as metacopy: .*No space left")
        at = imgfs.mount(image, "--write-through", "--scratch", str(place / "scratch"))
        with pytest.raises(OSError, match="No space left"):
            os.close(os.open(at / "large", os.O_WRONLY))
        with pytest.raises(OSError, match="No space left"):
            (at / "new").write_bytes(bytes(1 << 20))
        (at / "new").unlink()
        assert (at / "large").read_bytes() == bytes(range(256)) * 8192
        assert imgfs.ok("diff", at).splitlines() == ["C /"]
        (at / "small").write_bytes(b"small")
        imgfs.umount(at)
        assert (place / "scratch/upper/small").read_bytes() == b"small"


def test_a_disk_that_becomes_read_only_is_read_on(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    """As ext4 does once it has met an error, by default on Debian (ext4(5), errors=remount-ro)."""
    disk, place = tmp_path / "disk", tmp_path / "place"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", disk], check=True)
    with loop_device(disk) as device, ExitStack() as stack:
        words = ["mount", "-t", "ext4", "-o", "errors=remount-ro", str(device), str(place)]
        subprocess.run(words, check=True)
        stack.callback(lambda: subprocess.run(["umount", "-l", place], check=True))
        at = imgfs.mount(image, "--rw", "--scratch", f"{place}/scratch/")
        (at / "new").write_bytes(b"kept")
        (at / "a").write_bytes(b"changed")
        os.sync()
        subprocess.run(["mount", "-o", "remount,abort", place], check=True)
        with (at / "new").open("rb") as held:
            changes: list[Callable[[], object]] = [
                lambda: (at / "new").open("r+b"),
                lambda: os.truncate(at / "new", 1),
                lambda: (at / "a").write_bytes(b""),
                lambda: (at / "more").touch(),
                lambda: (at / "new").unlink(),
                lambda: (at / "large").open("r+b"),
            ]
            for change in changes:
                assert errno_of(change) == errno.EROFS
            assert (held.read(), (at / "a").read_bytes()) == (b"kept", b"changed")
        assert (at / "large").read_bytes() == bytes(range(256)) * 8192
        assert sorted(os.listdir(at)) == ["a", "d", "large", "new"]
        imgfs.umount(at)


@pytest.mark.parametrize("spoilt", ["", "upper", "work", "lock"])
def test_what_is_in_the_way_is_named(imgfs: Imgfs, image: str, tmp_path: Path, spoilt: str) -> None:
    if spoilt == "lock":
        (tmp_path / "scratch/lock").mkdir(parents=True)
        assert refused(imgfs, image, tmp_path / "scratch") == f"{tmp_path}/scratch/lock: Is a directory"
    elif spoilt:
        (tmp_path / "scratch").mkdir()
        (tmp_path / "scratch" / spoilt).touch()
        assert refused(imgfs, image, tmp_path / "scratch") == f"{tmp_path}/scratch/{spoilt}: Not a directory"
    else:
        (tmp_path / "scratch").touch()
        assert refused(imgfs, image, tmp_path / "scratch") == f"{tmp_path}/scratch: Not a directory"


def test_a_read_only_place_is_named(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    with filesystem("tmpfs", tmp_path / "tmpfs", "-o", "ro") as place:
        assert refused(imgfs, image, place / "scratch") == f"{place}/scratch: Read-only file system"


CHANGING = "scratch work: its files change while they are read: try again"


def test_ls_and_diff_bear_a_mount_that_is_at_work(imgfs: Imgfs, image: str) -> None:
    at, done = imgfs.mount(image, "--scratch", "work"), threading.Event()

    def churn() -> None:
        while not done.is_set():
            for number in range(20):
                (at / f"new{number}").write_bytes(b"x" * number)
            (at / "a").write_bytes(os.urandom(number))
            for number in range(20):
                (at / f"new{number}").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for words in (["scratch", "ls"], ["diff", "--stat", "work"], ["diff", str(at)]) * 3:
            ran = imgfs.run(*words)
            assert ran.code == 0 or ran.complaint(2) == CHANGING
    finally:
        done.set()
        thread.join()
    assert "C /a" in imgfs.ok("diff", "work")


def test_looking_does_not_keep_a_mount_from_the_scratch(imgfs: Imgfs, image: str) -> None:
    at, done = imgfs.mount(image, "--scratch", "work"), threading.Event()
    imgfs.umount(at)

    def look() -> None:
        from imgfs.cli import main

        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            while not done.is_set():
                main(["scratch", "ls", "--store", str(imgfs.store)])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(3):
            imgfs.umount(imgfs.mount(image, "--scratch", "work"))
    finally:
        done.set()
        thread.join()


# -- ordinary users


def as_nobody(nobody: Imgfs, script: str, at: Path) -> Ran:
    return nobody.program("sh", "-ec", f"cd {at}; {script}")


def test_to_a_user_everything_in_the_scratch_is_theirs(nobody: Imgfs, own_image: str) -> None:
    at = nobody.mount(own_image, "--scratch", "work")
    ran = as_nobody(
        nobody,
        "cat a; chmod u+w d; cat d/closed 2>&1 || true; echo new >d/new; stat -c%u:%g:%a a d d/new",
        at,
    )
    assert (ran.code, ran.err) == (0, "")
    assert ran.text.splitlines()[-3:] == [
        f"{NOBODY.uid}:{NOBODY.gid}:4750",
        "65534:65534:700",
        "65534:65534:644",
    ]
    ran = nobody.program("sh", "-c", f"chown 5 {at}/a")
    assert ran.code == 1
    nobody.umount(at)
    listed = json.loads(nobody.ok("diff", "--json", "work"))
    assert [(one["path"], one["change"]) for one in listed] == [("/d", "changed"), ("/d/new", "added")]
    [one] = json.loads(nobody.ok("scratch", "ls", "--json"))
    assert one["name"] == "work"
    nobody.ok("scratch", "rm", "work")


def test_a_user_is_told_what_may_not_be_written(nobody: Imgfs, own_image: str, open_path: Path) -> None:
    nobody.expected.append(" ERROR ")
    (open_path / "closed").mkdir(mode=0o700)
    (open_path / "shown").mkdir(mode=0o755)
    (open_path / "shown/upper").mkdir()
    at = nobody.mountpoint()
    for place, named in (("closed/in", "closed/in"), ("shown", "shown/lock"), ("new", "new")):
        said = nobody.run("mount", "--scratch", f"{open_path}/{place}", own_image, at).complaint()
        assert said == f"{open_path}/{named}: Permission denied"
    for words, code in ((["diff"], 2), (["scratch", "rm"], 1), (["scratch", "reset"], 1)):
        said = nobody.run(*words, f"{open_path}/closed/in").complaint(code)
        assert said == f"{open_path}/closed/in/upper: Permission denied"


# -- mount(8)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ("rw", []),
        ("defaults,rw", []),
        ("scratch", ["--rw"]),
        ("scratch=work", ["--scratch=work"]),
        ("scratch=/var/scratch/app,rw", ["--scratch=/var/scratch/app"]),
        ("scratch=", ["--scratch="]),  # which is no name, and said to be none
        ("upto_layer=2", ["--upto-layer=2"]),
        ("upto_layer=sha256:0123456789abcdef,scratch", ["--upto-layer=sha256:0123456789abcdef", "--rw"]),
        ("write_through,scratch=work", ["--write-through", "--scratch=work"]),
    ],
)
def test_fstab_asks_for_a_scratch_by_that_word(options: str, ours: list[str]) -> None:
    assert mount_arguments(["app:1", "/mnt", "-o", options]) == ["mount", *ours, "--", "app:1", "/mnt"]

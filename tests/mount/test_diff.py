"""`imgfs diff`: what a scratch changes, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Wire, gzipped, plain, serve, write_image

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and changes owners")

T = 1_600_000_000_123_456_789
LARGE = bytes(range(256)) * 4096
LAYER = tar.archive(
    tar.directory("./", mtime_ns=T),
    tar.file("file", b"file", mtime_ns=T + 1, xattrs={b"user.a": b"1"}),
    tar.file("large", LARGE, mtime_ns=T + 2),
    tar.symlink("symlink", "file", mtime_ns=T + 3),
    tar.fifo("fifo"),
    tar.directory("d", mtime_ns=T + 4),
    tar.file("d/f", b"in d", mtime_ns=T + 5),
    tar.file("d/g", b"in d", mtime_ns=T + 6),
    tar.directory("d/deep", mtime_ns=T + 7),
    tar.file("d/deep/h", b"deep", mtime_ns=T + 8),
    tar.directory("empty", mtime_ns=T + 9),
    tar.file("link1", b"linked", mtime_ns=T + 10),
    tar.hardlink("link2", "link1"),
    tar.hardlink("d/link3", "link1"),
)


@pytest.fixture
def at(imgfs: Imgfs) -> Path:
    return imgfs.mount(write_image(imgfs.directory / "layout", [gzipped(LAYER)]), "--rw")


def diff(imgfs: Imgfs, at: Path) -> list[str]:
    """The lines of `imgfs diff`; without the root's own: most changes change it."""
    return [line for line in imgfs.ok("diff", at).splitlines() if line != "C /"]


def diff_json(imgfs: Imgfs, at: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(imgfs.ok("diff", "--json", at))
    return found


def test_nothing_is_changed_by_looking(imgfs: Imgfs, at: Path) -> None:
    for path in at.rglob("*"):
        if path.is_file():
            path.read_bytes()
    assert imgfs.ok("diff", at) == ""
    assert diff_json(imgfs, at) == []
    assert imgfs.ok("diff", "--stat", at) == "0 added, 0 changed, 0 deleted; 0 B in new and changed files\n"


def test_added_changed_and_deleted_in_the_order_of_paths(imgfs: Imgfs, at: Path) -> None:
    (at / "new").write_bytes(b"new")
    (at / "newdir/deep").mkdir(parents=True)
    (at / "file").write_bytes(b"longer than before")
    (at / "d/f").unlink()
    shutil.rmtree(at / "d/deep")
    assert imgfs.ok("diff", at).splitlines() == [
        "C /", "C /d", "D /d/deep", "D /d/f", "C /file", "A /new", "A /newdir", "A /newdir/deep",
    ]  # fmt: skip


def test_json_says_kinds_and_sizes(imgfs: Imgfs, at: Path) -> None:
    (at / "file").write_bytes(b"longer")
    (at / "large").unlink()
    (at / "new").symlink_to("x")
    (at / "d/deep/h").unlink()
    fields = ("path", "change", "kind", "size", "size_before")
    assert [tuple(one[field] for field in fields) for one in diff_json(imgfs, at)] == [
        ("/", "changed", "directory", None, None),
        ("/d/deep", "changed", "directory", None, None),
        ("/d/deep/h", "deleted", "file", None, 4),
        ("/file", "changed", "file", 6, 4),
        ("/large", "deleted", "file", None, len(LARGE)),
        ("/new", "added", "symlink", None, None),
    ]


def test_stat_counts_growth(imgfs: Imgfs, at: Path) -> None:
    (at / "new").write_bytes(bytes(2000))
    os.truncate(at / "large", 48_576)
    (at / "d/f").unlink()
    (at / "newdir").mkdir()
    assert imgfs.ok("diff", "--stat", at).splitlines() == [
        "D      -4 B  /d/f",
        "C     -1 MB  /large",
        "A     +2 kB  /new",
        "2 added, 3 changed, 1 deleted; 50.6 kB in new and changed files",
    ]


def test_what_was_copied_up_but_is_as_it_was_is_no_change(imgfs: Imgfs, at: Path) -> None:
    found = (at / "file").stat()
    (at / "file").chmod(0o600)
    (at / "file").chmod(stat.S_IMODE(found.st_mode))
    os.setxattr(at / "file", "user.b", b"2")
    os.removexattr(at / "file", "user.b")
    (at / "large").write_bytes(LARGE)
    os.utime(at / "large", ns=(0, T + 2))
    os.utime(at / "d/f", ns=(5, T + 5))
    (at / "d/g").open("r+b").close()
    os.utime(at / "link2", ns=(0, T + 10))
    (at / "empty/passing").touch()
    (at / "empty/passing").unlink()
    os.utime(at / "empty", ns=(0, T + 9))
    assert imgfs.ok("diff", at) == ""


def test_every_attribute_counts(imgfs: Imgfs, at: Path) -> None:
    (at / "file").chmod(0o600)
    os.utime(at / "large", ns=(0, T + 3))
    os.utime(at / "symlink", ns=(0, 1), follow_symlinks=False)
    os.setxattr(at / "d/f", "user.b", b"2")
    os.utime(at / "d/deep", ns=(0, 0))
    body = at / "d/g"
    body.write_bytes(b"IN D")  # of one size, and
    os.utime(body, ns=(0, T + 6))  # of one time
    assert diff(imgfs, at) == ["C /d/deep", "C /d/f", "C /d/g", "C /file", "C /large", "C /symlink"]


@needs_root
def test_owners_count_and_devices(imgfs: Imgfs, at: Path) -> None:
    os.chown(at / "file", 5, -1)
    os.lchown(at / "symlink", -1, 6)
    os.mknod(at / "device", stat.S_IFCHR | 0o600, os.makedev(5, 77))
    os.mknod(at / "block", stat.S_IFBLK | 0o600, os.makedev(7, 9))
    kinds = {one["path"]: one["kind"] for one in diff_json(imgfs, at)}
    assert kinds == {
        "/": "directory", "/block": "block device", "/device": "character device",
        "/file": "file", "/symlink": "symlink",
    }  # fmt: skip


def test_a_kind_replaced_by_another_is_one_change(imgfs: Imgfs, at: Path) -> None:
    (at / "file").unlink()
    (at / "file").mkdir()
    (at / "file/in").touch()
    shutil.rmtree(at / "d")
    (at / "d").write_bytes(b"a file now")
    (at / "fifo").unlink()
    (at / "fifo").symlink_to("file")
    assert diff(imgfs, at) == ["C /d", "C /fifo", "C /file", "A /file/in"]
    assert [one["kind"] for one in diff_json(imgfs, at)][1:] == ["file", "symlink", "directory", "file"]


def test_a_directory_made_anew_shows_what_it_lost(imgfs: Imgfs, at: Path) -> None:
    shutil.rmtree(at / "d")
    (at / "d").mkdir()
    (at / "d/f").write_bytes(b"in d")
    os.utime(at / "d/f", ns=(0, T + 5))
    assert diff(imgfs, at) == ["C /d", "D /d/deep", "D /d/g", "D /d/link3"]


def test_a_rename_is_a_deletion_and_an_addition(imgfs: Imgfs, at: Path) -> None:
    (at / "file").rename(at / "moved")
    (at / "d").rename(at / "empty/d")
    assert diff(imgfs, at) == [
        "D /d", "C /empty", "A /empty/d", "A /empty/d/deep", "A /empty/d/deep/h", "A /empty/d/f",
        "A /empty/d/g", "A /empty/d/link3", "D /file", "C /link1", "C /link2", "A /moved",
    ]  # fmt: skip


def test_a_rename_there_and_back_is_none(imgfs: Imgfs, at: Path) -> None:
    for name in ("file", "d", "symlink"):
        (at / name).rename(at / "empty/moved")
        (at / "empty/moved").rename(at / name)
    for name, time in (("", T), ("empty", T + 9)):
        os.utime(at / name, ns=(0, time))
    assert imgfs.ok("diff", at) == ""


def test_a_change_of_a_file_is_one_of_all_its_names(imgfs: Imgfs, at: Path) -> None:
    (at / "link1").write_bytes(b"changed")
    assert diff(imgfs, at) == ["C /d/link3", "C /link1", "C /link2"]
    (at / "link2").unlink()
    assert diff(imgfs, at) == ["C /d/link3", "C /link1", "D /link2"]


def test_a_lost_name_is_all_that_changes(imgfs: Imgfs, at: Path) -> None:
    (at / "link2").unlink()
    assert diff(imgfs, at) == ["D /link2"]


def test_names_are_one_line_each_and_json_has_them_whole(imgfs: Imgfs, at: Path) -> None:
    names = [
        b"a\nD ",
        b"back\\slash",
        b"\x1b[31mred",
        "ü".encode(),
        b"\xfe\xff",
        "\u202eright".encode(),
        b"\\xfe\\xff",
    ]
    for name in names:
        open(os.path.join(os.fsencode(at), name), "wb").close()
    assert diff(imgfs, at) == [
        "A /\\x1b[31mred",
        "A /\\\\xfe\\\\xff",
        "A /a\\nD ",
        "A /back\\\\slash",
        "A /ü",
        "A /\\U0000202eright",
        "A /\\xfe\\xff",
    ]
    told = [one for one in diff_json(imgfs, at) if one["change"] == "added"]
    paths = [
        base64.b64decode(one["path_base64"]) if "path_base64" in one else one["path"].encode() for one in told
    ]
    assert paths == [b"/" + name for name in sorted(names)]


def test_what_is_still_in_the_kernel_s_cache_is_seen(imgfs: Imgfs, at: Path) -> None:
    with (at / "new").open("wb") as new, (at / "large").open("r+b") as large:
        new.write(bytes(300_000))
        new.flush()
        large.seek(500_000)
        large.write(b"changed")
        large.flush()
        found = {one["path"]: one["size"] for one in diff_json(imgfs, at)}
    assert found == {"/": None, "/large": len(LARGE), "/new": 300_000}


def test_a_file_that_is_open_without_a_name_is_none(imgfs: Imgfs, at: Path) -> None:
    with (at / "new").open("wb"), (at / "file").open("r+b"):
        (at / "new").unlink()
        (at / "file").unlink()
        assert diff(imgfs, at) == ["D /file"]


@needs_root
def test_neither_a_chmod_nor_its_diff_fetches_a_file(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire:
        noise = os.urandom(4 << 20)
        image = serve(server, "app", "v1", [plain(tar.archive(tar.file("noise", noise)))], wire.host)
        at = imgfs.mount(image, "--scratch", "work")
        imgfs.evict(image)
        before = wire.received
        (at / "noise").chmod(0o600)
        os.setxattr(at / "noise", "user.new", b"1")
        (at / "noise").rename(at / "moved")
        (at / "moved").rename(at / "noise")
        assert diff(imgfs, at) == ["C /noise"]
        assert wire.received - before < 20_000
        imgfs.umount(at)
        before = wire.received
        assert diff(imgfs, Path("work")) == ["C /noise"]
        assert wire.received - before < 20_000


def test_a_scratch_is_shown_although_its_registry_has_gone(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire:
        image = serve(server, "app", "v1", [gzipped(LAYER)], wire.host)
        at = imgfs.mount(image, "--scratch", "work")
        (at / "file").write_bytes(b"changed")
        wire.cut()
        assert diff(imgfs, at) == ["C /file"]
        imgfs.umount(at)
        assert diff(imgfs, Path("work")) == ["C /file"]


def test_a_scratch_is_shown_although_its_tag_has_moved_on(imgfs: Imgfs) -> None:
    with FaultServer() as server:
        image = serve(server, "app", "v1", [gzipped(LAYER)])
        at = imgfs.mount(image, "--scratch", "work")
        (at / "file").unlink()
        imgfs.umount(at)
        serve(server, "app", "v1", [gzipped(tar.archive(tar.file("other", b"")))])
        assert diff(imgfs, Path("work")) == ["D /file"]

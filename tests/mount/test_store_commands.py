"""imgfs store limit, prune and check, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random

import pytest

from imgfs.cli.format import size
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.mounted import Imgfs, drop_caches, gzipped, write_image


@cache
def file_body() -> bytes:
    return Random(1).randbytes(3_000_000)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and owns what others do not")


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    """An image that is in the store, whole, and mounted nowhere."""
    tar = tarmake.archive(tarmake.file("noise", file_body()))
    name = write_image(imgfs.directory / "image", [gzipped(tar)])
    imgfs.ok("ls", name)
    return name


def layers(imgfs: Imgfs) -> list[Path]:
    return sorted(imgfs.store.glob("layers/*/*/flat"))


def taken(imgfs: Imgfs) -> int:
    return sum(path.stat().st_blocks * 512 for path in layers(imgfs))


def test_the_limit_is_shown_set_and_removed(imgfs: Imgfs, image: str) -> None:
    kept = size(Store(imgfs.store).kept())
    shown = f"3 MB taken by layers, {kept} by indexes and trees"
    assert imgfs.ok("store", "limit") == f"limit none, {shown}\n"
    assert imgfs.ok("store", "limit", "1.5G") == f"limit 1.5 GB, {shown}, 0 B freed\n"
    assert json.loads(imgfs.ok("store", "limit", "--json")) == {
        "limit": 1_500_000_000,
        "taken": taken(imgfs),
        "kept": Store(imgfs.store).kept(),
        "freed": 0,
    }
    assert imgfs.ok("store", "limit", "97%").startswith("limit 97% of the disk, 3 MB taken by layers, ")
    assert json.loads(imgfs.ok("store", "limit", "--json"))["disk_percent"] == 97
    for share in ("0%", "100%", "x%"):
        assert "is not a share of the disk" in imgfs.run("store", "limit", share).err
    assert imgfs.ok("store", "limit", "none").startswith("limit none, ")
    assert Store(imgfs.store).limit.read() is None


def test_what_is_above_a_new_limit_goes_at_once(imgfs: Imgfs, image: str) -> None:
    more = [Random(number).randbytes(9_000_000) for number in range(8)]
    tars = [tarmake.archive(tarmake.file(f"more{number}", body)) for number, body in enumerate(more)]
    name = write_image(imgfs.directory / "more", [gzipped(tar) for tar in tars])
    imgfs.ok("ls", name)
    freed = imgfs.ok("store", "limit", "64M")
    assert (
        taken(imgfs)
        < 64_000_000
        < 75_000_000
        < taken(imgfs) + json.loads(imgfs.ok("store", "limit", "64M", "--json"))["freed"] + 30_500_000
    )  # an eighth is free, and indexes and trees have their part: three of the eight layers go, not more
    assert freed.startswith("limit 64 MB, ")
    assert "0 B freed" not in freed


@pytest.mark.parametrize("size", ["", "x", "63M", "-1", "nan", "inf", "1e400", "12Q"])
def test_what_is_no_limit_is_refused(imgfs: Imgfs, size: str) -> None:
    ran = imgfs.run("store", "limit", size)
    assert ran.code == 2
    assert "SIZE|SHARE|none" in ran.err or "expected one argument" in ran.err or "unrecognized" in ran.err


def test_prune_shows_what_goes_and_says_how_much(imgfs: Imgfs, image: str) -> None:
    before = taken(imgfs)
    shown = imgfs.ok("store", "prune", "--dry-run").splitlines()
    assert shown[0].split() == ["DIGEST", "ON", "DISK", "LAST", "USED", "IMAGES"]
    assert shown[1].split()[0] == "layer"
    assert shown[1].endswith(image)
    assert shown[-1] == "3 MB would be freed"
    assert taken(imgfs) == before
    assert imgfs.ok("store", "prune", "--older-than", "1") == "0 B freed\n"
    assert imgfs.ok("store", "prune", "--keep", "4M") == "0 B freed\n"
    assert imgfs.ok("store", "prune").splitlines()[-1] == "3 MB freed"
    assert taken(imgfs) == 0
    assert imgfs.ok("store", "prune") == "0 B freed\n"
    assert imgfs.run("cat", image, "/noise").out == file_body()


def test_prune_all_takes_indexes_and_trees_too(imgfs: Imgfs, image: str) -> None:
    found = json.loads(imgfs.ok("store", "prune", "--all", "--json"))
    assert [len(found["layers"]), len(found["trees"]), found["dry_run"]] == [1, 1, False]
    assert found["layers"][0]["images"] == [image]
    assert found["freed"] == sum(one["disk"] for one in (*found["layers"], *found["trees"]))
    assert list(imgfs.store.glob("layers/*/*/index")) == list(imgfs.store.glob("trees/*/*")) == []
    assert image in imgfs.ok("store", "ls")
    assert imgfs.run("cat", image, "/noise").out == file_body()


def test_prune_all_takes_the_logs_of_daemons_that_have_ended(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    (log,) = imgfs.store.glob("logs/*")
    old = imgfs.store / "logs/0123456789ab-1-1.log"
    old.write_bytes(b"x" * 5_000)
    assert imgfs.ok("store", "prune", "--older-than", "1", "--all") == "0 B freed\n"
    os.utime(old, (1, 1))
    os.utime(log, (1, 1))
    assert imgfs.ok("store", "prune") == "0 B freed\n"
    assert old.exists()
    said = imgfs.ok("store", "prune", "--older-than", "1", "--all")
    assert (log.exists(), old.exists()) == (True, False), said
    assert said.startswith("logs  1 file ")
    imgfs.umount(at)
    os.utime(log, (1, 1))
    found = json.loads(imgfs.ok("store", "prune", "--older-than", "1", "--all", "--json"))
    assert [one["name"] for one in found["logs"]] == [log.name]
    assert not log.exists()


def test_prune_leaves_a_mount_alone_and_with_force_does_not_hurt_it(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    assert imgfs.ok("store", "prune") == "0 B freed\n"
    assert "in use" in imgfs.ok("store", "prune", "--force")
    assert (at / "noise").read_bytes() == file_body()
    imgfs.umount(at)


def test_check_says_what_is_wrong_and_repairs_it(imgfs: Imgfs, image: str) -> None:
    assert imgfs.ok("store", "check") == f"{imgfs.store}: everything is what it was\n"
    (flat,) = layers(imgfs)
    with flat.open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"what was never there")
    ran = imgfs.run("store", "check")
    assert (ran.code, ran.err) == (1, "")
    where = flat.relative_to(imgfs.store)
    line = f"{where}: cached bytes: 3 of 3 spans not what their digests say"
    assert ran.text == f"{line}: wrong\n"
    assert json.loads(imgfs.run("store", "check", "--json").text)["found"][0]["state"] == "wrong"
    assert imgfs.ok("store", "check", "--repair") == f"{line}: removed\n"
    assert imgfs.ok("store", "check") == f"{imgfs.store}: everything is what it was\n"
    assert imgfs.run("cat", image, "/noise").out == file_body()


def test_check_tells_doubt_from_damage(imgfs: Imgfs) -> None:
    tar = tarmake.archive(tarmake.file("noise", Random(2).randbytes(9_000_000)))
    name = write_image(imgfs.directory / "large", [gzipped(tar)])
    imgfs.ok("ls", name)
    (layer,) = Store(imgfs.store).layers()
    layer.forget([0])
    said = imgfs.ok("store", "check")
    assert "spans of which nothing here can tell: unknown" in said
    assert imgfs.ok("store", "check", "--repair") == said
    assert imgfs.run("store", "check", "--strict").code == 1
    assert ": removed" in imgfs.ok("store", "check", "--strict", "--repair")
    assert imgfs.ok("store", "check") == f"{imgfs.store}: everything is what it was\n"


# -- a store that cannot be written to -----------------------------------------------------------------------


@contextmanager
def read_only_store(imgfs: Imgfs) -> Iterator[None]:
    """Have the store on a file system that is read-only by now."""
    subprocess.run(["mount", "--bind", imgfs.store, imgfs.store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", imgfs.store], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", imgfs.store], check=True)


@pytest.fixture
def read_only(imgfs: Imgfs, image: str) -> Iterator[None]:
    del image  # is written first
    with read_only_store(imgfs):
        yield


@needs_root
@pytest.mark.usefixtures("read_only")
def test_a_store_that_is_read_only_is_one_line(imgfs: Imgfs, image: str) -> None:
    commands = (
        ("mount", image, imgfs.mountpoint()),
        ("ls", image),
        ("store", "prune"),
        ("store", "limit", "1G"),
        ("store", "check", "--repair"),
    )
    for words in commands:
        ran = imgfs.run(*words)
        said = ran.complaint()
        assert said.startswith(f"{imgfs.store}: Read-only file system: a store here can be listed only"), (
            words
        )
        assert "--store DIR" in said, words
    assert imgfs.ok("store", "path") == f"{imgfs.store}\n"


@needs_root
def test_a_store_that_is_read_only_is_listed_as_before(imgfs: Imgfs, image: str) -> None:
    """Nothing that lists a store writes to it, not where it was cached either."""
    imgfs.umount(imgfs.mount(image))
    imgfs.ok("volume", "create", "kept")
    commands = (
        ("store", "ls"),
        ("store", "ls", "--json"),
        ("store", "limit"),
        ("scratch", "ls"),
        ("volume", "ls"),
        ("container", "ls", "-a"),
        ("complete", "images"),
        ("complete", "volumes"),
    )
    before = [imgfs.ok(*words) for words in commands]
    assert "100 %" in before[0]
    assert image in before[6]
    with read_only_store(imgfs):
        assert [imgfs.ok(*words) for words in commands] == before
    assert not (imgfs.directory / "none").exists()
    assert "LAYER" in imgfs.ok("store", "ls", "--store", imgfs.directory / "none")
    assert not (imgfs.directory / "none").exists()


@needs_root
def test_a_store_of_another_user_is_one_line(nobody: Imgfs) -> None:
    nobody.store.mkdir(mode=0o700)
    image = write_image(nobody.directory / "image", [gzipped(tarmake.archive(tarmake.file("a", b"a")))])
    for words in (
        ("ls", image),
        ("store", "ls"),
        ("store", "prune"),
        ("store", "limit", "1G"),
        ("store", "check"),
    ):
        said = nobody.run(*words).complaint()
        assert said.startswith(f"{nobody.store}: Permission denied: "), words
        assert "--store DIR" in said, words


@needs_root
def test_a_mount_whose_store_is_taken_away_reads_on(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    imgfs.store.rename(imgfs.store.with_name("elsewhere"))
    drop_caches()
    assert (at / "noise").read_bytes() == file_body()
    imgfs.store.with_name("elsewhere").rename(imgfs.store)
    imgfs.umount(at)


@pytest.fixture
def small_disk(imgfs: Imgfs) -> Iterator[Path]:
    """A file system of 16 MB for the store alone."""
    imgfs.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", imgfs.store], check=True)
    yield imgfs.store
    imgfs.close()
    subprocess.run(["umount", "-l", imgfs.store], check=True)


@needs_root
def test_a_disk_that_is_full_can_be_pruned_and_the_mount_reads_on(imgfs: Imgfs, small_disk: Path) -> None:
    imgfs.expected.append("ERROR imgfs.fuse.errors: EIO: .*No space left on device")
    names = []
    for name in ("old", "mounted"):
        body = Random(name).randbytes(4_000_000)
        tar = tarmake.archive(tarmake.file(name, body))
        names.append(write_image(imgfs.directory / name, [gzipped(tar)]))
        imgfs.ok("ls", names[-1])
    at = imgfs.mount(names[1])
    imgfs.evict(names[1])
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        fill(filler)
    with pytest.raises(OSError, match="Input/output error"):
        (at / "mounted").read_bytes()
    assert "No space left on device" in imgfs.run("store", "limit", "1G").complaint()
    assert imgfs.ok("store", "prune").splitlines()[-1].endswith(" MB freed")
    assert (at / "mounted").read_bytes() == Random("mounted").randbytes(4_000_000)
    filler.unlink()
    imgfs.umount(at)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass

"""`imgfs mount --rw` and `--scratch`, and `imgfs scratch ls|rm|reset`, as their users meet them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, is_alive, mount_of, until, write_image
from tests.support.patience import allowed

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]
REFUSED = r" ERROR imgfs\.daemonize: "  # the daemon's log tells, too, why it does not mount

ROOT_TIME = 1_500_000_000_123_456_789
LAYERS = [
    gzipped(tar.archive(tar.directory("./", mtime_ns=ROOT_TIME), tar.file("a", b"first"))),
    gzipped(tar.archive(tar.file("a", b"second"), tar.file("b", b"b"))),
    gzipped(tar.archive(tar.whiteout("b"), tar.file("c", b"c"))),
]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", LAYERS)


def other_image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(tar.archive(tar.file("o", b"")))], tag="other")


def scratches(imgfs: Imgfs) -> list[str]:
    """What is in the store's directory of scratches, volatile ones too."""
    return sorted(path.name for path in imgfs.store.glob("scratch/*"))


def crash(imgfs: Imgfs, mountpoint: Path) -> None:
    """Kill the daemon."""
    pid = imgfs.pid(mountpoint)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), "the daemon is dead")
    subprocess.run(["umount", "-l", mountpoint], check=True)
    imgfs.gone(mountpoint)


# -- a scratch that goes with its mount


def test_what_is_changed_without_a_name_goes_with_the_mount(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--rw")
    (at / "a").write_bytes(b"changed")
    (at / "new").touch()
    assert len(scratches(imgfs)) == 1
    assert imgfs.ok("scratch", "ls").splitlines()[1:] == []
    imgfs.umount(at)
    assert scratches(imgfs) == []
    imgfs.mount(image, "--rw", at=at)
    assert (at / "a").read_bytes() == b"second"
    assert not (at / "new").exists()


def test_what_a_killed_mount_has_left_goes_with_the_next(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--rw")
    (at / "new").touch()
    crash(imgfs, at)
    assert len(left := scratches(imgfs)) == 1
    at = imgfs.mount(image, "--rw")
    assert not (at / "new").exists()
    assert len(scratches(imgfs)) == 1
    assert scratches(imgfs) != left


def test_two_mounts_at_once_have_changes_of_their_own(imgfs: Imgfs, image: str) -> None:
    imgfs.ok("ls", image)
    places = [imgfs.mountpoint(f"mnt{number}") for number in range(4)]
    starting = [imgfs.start("mount", "--rw", image, at) for at in places]
    for at, process in zip(places, starting, strict=True):
        out, err = process.communicate(timeout=allowed(60))
        assert (process.returncode, out, err) == (0, b"", b"")
        imgfs.watch(at)
        (at / "mine").write_text(at.name)
    assert [(at / "mine").read_text() for at in places] == [at.name for at in places]
    for at in places:
        imgfs.umount(at)
    assert scratches(imgfs) == []


def test_a_mount_without_a_scratch_is_read_only(imgfs: Imgfs, image: str) -> None:
    refused = imgfs.run("mount", "-o", "rw", image, imgfs.mountpoint()).complaint(2)
    assert refused.startswith("-o rw: an image never changes; --rw or --scratch")
    at = imgfs.mount(image)
    with pytest.raises(OSError, match="Read-only"):
        (at / "new").touch()
    assert imgfs.status(at)["scratch"] is None
    said = imgfs.run("diff", at).complaint(2)
    assert said == f"{at}: mounted read-only: there are no changes (imgfs mount --rw)"


# -- a scratch that is kept


def test_a_name_keeps_changes(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--scratch", "work")
    (at / "a").write_bytes(b"changed")
    status = imgfs.status(at)
    kept = imgfs.store / "scratch/work"
    assert status["scratch"] == {"directory": str(kept), "name": "work", "kept": True}
    assert "work" in imgfs.ok("status", at)
    imgfs.umount(at)
    imgfs.mount(image, "--rw", "--scratch", "work", at=at)
    assert (at / "a").read_bytes() == b"changed"
    assert (at.stat().st_mode & 0o777, (kept / "upper/a").read_bytes()) == (0o755, b"changed")


def test_a_directory_keeps_changes(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    at = imgfs.mount(image, "--scratch", f"{tmp_path}/deep/down/here")
    (at / "new").write_bytes(b"new")
    assert imgfs.ok("diff", at) == imgfs.ok("diff", f"{tmp_path}/deep/down/here")
    imgfs.umount(at)
    assert (tmp_path / "deep/down/here/upper/new").read_bytes() == b"new"
    assert scratches(imgfs) == []
    assert imgfs.ok("scratch", "rm", f"{tmp_path}/deep/down/here") == ""
    assert os.listdir(tmp_path / "deep/down") == []


def test_a_relative_directory_and_layout_mean_the_same_from_everywhere(
    imgfs: Imgfs, image: str, tmp_path: Path
) -> None:
    at = imgfs.mountpoint()
    ran = imgfs.run("mount", "--scratch", "./here", "oci:layout:test", at, cwd=imgfs.directory)
    assert (ran.code, ran.err) == (0, "")
    imgfs.watch(at)
    (at / "new").touch()
    assert "A /new\n" in imgfs.ok("diff", at, cwd="/")
    imgfs.umount(at)
    assert "A /new\n" in imgfs.ok("diff", imgfs.directory / "here", cwd="/")


def test_one_mount_at_a_time_may_change_a_scratch(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(REFUSED)
    at = imgfs.mount(image, "--scratch", "work")
    second = imgfs.mountpoint("second")
    said = imgfs.run("mount", "--scratch", "work", image, second).complaint()
    assert said == f"scratch work is in use: mounted at {at} (pid {imgfs.pid(at)})"
    assert mount_of(second) is None
    (at / "new").touch()  # the first is not disturbed
    for words in (["rm", "work"], ["reset", "work"]):
        said = imgfs.run("scratch", *words).complaint()
        assert said == f"scratch work is in use: mounted at {at} (pid {imgfs.pid(at)})"
    assert (at / "new").exists()
    [listed] = json.loads(imgfs.ok("scratch", "ls", "--json"))
    assert listed["in_use"] == f"mounted at {at} (pid {imgfs.pid(at)})"
    crash(imgfs, at)
    imgfs.mount(image, "--scratch", "work", at=second)
    assert (second / "new").exists()


def test_a_scratch_belongs_to_its_image(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(REFUSED)
    other, at = other_image(imgfs), imgfs.mount(image, "--scratch", "work")
    (at / "new").touch()
    imgfs.umount(at)
    said = imgfs.run("mount", "--scratch", "work", other, at).complaint()
    assert said.startswith(f"scratch work was made on {image}, sha256:")
    assert said.endswith(": mount that, or begin anew with: imgfs scratch reset work")
    said = imgfs.run("mount", "--scratch", "work", "--upto-layer", "2", image, at).complaint()
    assert said.startswith(f"scratch work was made on {image}, sha256:")
    assert imgfs.ok("scratch", "reset", "work") == ""
    imgfs.mount(other, "--scratch", "work", at=at)
    assert os.listdir(at) == ["o"]


def test_a_bad_name_is_exit_code_2(imgfs: Imgfs, image: str) -> None:
    for name in ("", "..", ".mount-1", "-x", "a\nb", "ü", "x" * 129):
        said = imgfs.run("mount", f"--scratch={name}", image, imgfs.mountpoint()).complaint(2)
        assert (
            said == f"{name!r} is not a name for a scratch (letters, digits, '_', '.', '-'), nor a directory"
        )
    assert imgfs.run("scratch", "rm", name).complaint(2) == said


# -- ls, rm, reset


def test_ls_shows_names_sizes_and_images(imgfs: Imgfs, image: str) -> None:
    assert imgfs.ok("scratch", "ls").split() == ["SCRATCH", "ON", "DISK", "IMAGE", "IN", "USE"]
    assert json.loads(imgfs.ok("scratch", "ls", "--json")) == []
    at = imgfs.mount(image, "--scratch", "work")
    (at / "large").write_bytes(bytes(range(256)) * 4096)
    imgfs.umount(at)
    imgfs.mount(image, "--scratch", "another", at=at)
    imgfs.umount(at)
    lines = imgfs.ok("scratch", "ls").splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["another", "work"]
    assert lines[1].split() == ["work", "1.05", "MB", image, "-"]
    one = json.loads(imgfs.ok("scratch", "ls", "--json"))[1]
    assert one["digest"].startswith("sha256:")
    du = subprocess.check_output(["du", "-s", "--block-size=1", imgfs.store / "scratch/work/upper"])
    assert one["disk"] == int(du.split()[0]) >= 1 << 20
    assert one | {"digest": "", "disk": 0} == {
        "name": "work",
        "directory": str(imgfs.store / "scratch/work"),
        "image": image,
        "digest": "",
        "disk": 0,
        "in_use": None,
        "damaged": False,
    }


def test_rm_removes_and_reset_empties(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--scratch", "work")
    (at / "new").mkdir(mode=0)
    (at / "a").unlink()
    imgfs.umount(at)
    assert imgfs.ok("scratch", "reset", "work") == ""
    assert imgfs.ok("diff", "work") == ""
    imgfs.mount(image, "--scratch", "work", at=at)
    assert sorted(os.listdir(at)) == ["a", "c"]
    assert (at.stat().st_mode & 0o777, at.stat().st_mtime_ns) == (0o755, ROOT_TIME)
    imgfs.umount(at)
    assert imgfs.ok("scratch", "rm", "work") == ""
    assert scratches(imgfs) == []
    for words in (["scratch", "rm"], ["scratch", "reset"]):
        said = imgfs.run(*words, "work").complaint(2)
        assert said == "work: no such scratch (see: imgfs scratch ls)"
    assert imgfs.run("diff", "work").complaint(2) == "work: no mount and no scratch (see: imgfs scratch ls)"
    said = imgfs.run("commit", "work", f"{image}2").complaint(2)
    assert said == "work: no mount and no scratch (see: imgfs scratch ls)"
    said = imgfs.run("diff", image).complaint(2)
    hint = "to compare two images, name both"
    assert said == f"{image}: no mount and no scratch; {hint} (see: imgfs scratch ls)"
    (imgfs.directory / "there/upper").mkdir(parents=True)
    said = imgfs.run("diff", "there", cwd=imgfs.directory).complaint(2)
    assert said == "there: no mount and no scratch; a directory is ./there (see: imgfs scratch ls)"


def test_of_several_names_nothing_is_removed_if_one_is_not_there_or_in_use(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--scratch", "first")
    imgfs.umount(at)
    imgfs.mount(image, "--scratch", "third", at=at)
    imgfs.run("scratch", "rm", "first", "third").complaint()
    assert (imgfs.store / "scratch/first/upper").exists()
    imgfs.umount(at)
    imgfs.ok("scratch", "rm", "third")
    imgfs.run("scratch", "rm", "first", "second").complaint(2)
    assert scratches(imgfs) == ["first"]
    imgfs.ok("scratch", "rm", "first", "first")
    assert scratches(imgfs) == []


def test_a_damaged_description_is_named_and_hides_no_other(imgfs: Imgfs, image: str) -> None:
    imgfs.expected.append(REFUSED)
    for name in ("good", "bad"):
        imgfs.umount(imgfs.mount(image, "--scratch", name))
    path = imgfs.store / "scratch/bad/scratch.json"
    for text in ("", '{"reference":"x","digest":"sha256:0","layers":1}', "\xff"):
        path.write_text(text, encoding="latin-1")
        said = f"{path}: damaged; remove it to take the scratch up anew"
        assert imgfs.run("mount", "--scratch", "bad", image, imgfs.mountpoint()).complaint() == said
    assert imgfs.run("diff", "bad").complaint(2) == said
    listed = imgfs.ok("scratch", "ls")
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["bad", "good"]
    assert "damaged" in listed
    path.unlink()
    imgfs.umount(imgfs.mount(image, "--scratch", "bad"))
    path.write_text("{")
    assert imgfs.ok("scratch", "rm", "bad") == ""
    assert scratches(imgfs) == ["good"]

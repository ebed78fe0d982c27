"""The image is mounted on the directory that was checked, wherever its path leads by then."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.cli import fstab, main
from imgfs.cli.fstab import flags_after, remount
from imgfs.errors import MountError
from imgfs.mounts import table
from imgfs.mounts.table import imgfs_mount_at, mounts
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import Imgfs, gzipped, mount_of, serve, until, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.drivers("fuse", "kernel"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts where others can exchange directories"),
]
LAYER = tar.archive(tar.file("a", b"a"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def to_link(path: Path, precious: Path) -> None:
    path.rmdir()
    path.symlink_to(precious)


def to_directory(path: Path, precious: Path) -> None:
    path.rename(path.with_name("away"))
    precious.rename(path)


def above(path: Path, precious: Path) -> None:
    path.parent.rename(path.parent.with_name("away"))
    path.parent.symlink_to(precious.parent)
    precious.rename(precious.with_name(path.name))


@pytest.mark.parametrize("exchange", [to_link, to_directory, above])
@pytest.mark.parametrize("scratch", [[], ["--rw"]])
def test_a_directory_that_is_exchanged_is_not_mounted_on(
    imgfs: Imgfs,
    server: FaultServer,
    tmp_path: Path,
    exchange: Callable[[Path, Path], None],
    scratch: list[str],
) -> None:
    image = serve(server, "app", "v1", [gzipped(LAYER)])
    precious, path = tmp_path / "system/precious", tmp_path / "theirs/mnt"
    for place in (precious, path):
        place.mkdir(parents=True)
    imgfs.expected += (r"leads to another directory",)
    server.inject(Fault(meanwhile=lambda: exchange(path, precious)), on="/manifests/")
    ran = imgfs.run("mount", "--plain-http", *scratch, image, path)
    said = f"imgfs: {path}: leads to another directory than a moment ago: nothing is mounted"
    assert (ran.code, ran.err.splitlines()[-1]) == (1, said)
    assert [mount for mount in mounts() if mount.mountpoint.is_relative_to(tmp_path)] == []


@pytest.mark.parametrize("scratch", [[], ["--rw"]])
def test_a_link_to_a_directory_is_mounted_on_and_unmounted_by_a_signal(
    imgfs: Imgfs, tmp_path: Path, scratch: list[str]
) -> None:
    """Root's FUSE mount is on an open directory, so that it is not libfuse that unmounts it."""
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    (tmp_path / "link").symlink_to(imgfs.mountpoint("real"))
    for end in (lambda pid: os.kill(pid, 15), lambda _: imgfs.ok("umount", tmp_path / "link")):
        at = imgfs.mount(image, *scratch, at=tmp_path / "link")
        assert (imgfs.directory / "real/a").read_text() == "a"
        end(imgfs.pid(at))
        until(lambda: mount_of(imgfs.directory / "real") is None, "it is unmounted")
        imgfs.gone(at)


@dataclass(frozen=True)
class TheirDirectory:
    """An image mounted at a `path` in another user's directory, and at a `precious` one of the system."""

    image: str
    path: Path
    precious: Path
    aside: Path

    def exchange(self) -> None:
        """Put a link to the system's directory in the place of theirs."""
        self.path.parent.rename(self.aside)
        self.path.parent.symlink_to(self.precious.parent)


@pytest.fixture
def theirs(imgfs: Imgfs, tmp_path: Path) -> Iterator[TheirDirectory]:
    """Both mounts; the directory is theirs again in the end."""
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    found = TheirDirectory(image, tmp_path / "theirs/mnt", tmp_path / "system/mnt", tmp_path / "away")
    for place in (found.precious, found.path):
        place.mkdir(parents=True)
        imgfs.mount(image, at=place)
    yield found
    found.path.parent.unlink()
    found.aside.rename(found.path.parent)
    for place in (found.precious, found.path):
        imgfs.umount(place)


@pytest.mark.parametrize("words", [[], ["--lazy"]])
def test_what_a_path_leads_to_once_its_daemon_was_asked_is_not_unmounted(
    theirs: TheirDirectory,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Another user, whose directory it is, has put a link there meanwhile."""
    real = table.imgfs_mount_at

    def exchanged(at: Path) -> table.Mount:
        found = real(at)
        theirs.exchange()
        return found

    monkeypatch.setattr(table, "imgfs_mount_at", exchanged)
    assert main(["umount", *words, str(theirs.path)]) == 1
    assert str(theirs.path) in capfd.readouterr().err
    assert (theirs.precious / "a").read_text() == "a"


def test_what_a_path_leads_to_by_then_is_not_mounted_with_other_flags(
    theirs: TheirDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = imgfs_mount_at(theirs.precious).flags
    assert remount([theirs.image, str(theirs.path), "-o", "remount,noexec"])
    assert "noexec" in imgfs_mount_at(theirs.path).flags

    def exchanged(*given: Iterable[str]) -> set[str]:
        theirs.exchange()
        return flags_after(*given)

    monkeypatch.setattr(fstab, "flags_after", exchanged)
    with pytest.raises(MountError, match="symbolic links"):
        remount([theirs.image, str(theirs.path), "-o", "remount,noexec"])
    assert imgfs_mount_at(theirs.precious).flags == shown


def test_a_daemon_does_not_hold_the_directory_below_its_mount(imgfs: Imgfs, tmp_path: Path) -> None:
    """The file system that the directory is on could not be unmounted after a lazy unmount."""
    at = imgfs.mount(write_image(tmp_path / "layout", [gzipped(LAYER)]))
    open_files = [os.readlink(file) for file in Path(f"/proc/{imgfs.pid(at)}/fd").iterdir()]
    assert str(at) not in open_files
    imgfs.umount(at)

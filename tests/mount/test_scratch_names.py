"""Names and attributes that mean something in a layer or to overlayfs, as users of a scratch set them.

Only what a layer has is a whiteout by its name, and only what who serves the scratch has set is a mark.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from imgfs.overlay.interchange import is_of_fuse_overlayfs
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, write_image

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts by the kernel's own file systems"),
]

LAYER = tar.archive(
    tar.directory("./", mode=0o755, mtime_ns=1),
    tar.directory("etc", mode=0o755),
    tar.file("etc/passwd", b"root:x:0:0"),
    tar.file("etc/group", b"root:x:0:"),
    tar.directory("secret", mode=0o700),
    tar.file("secret/key", b"secret", mode=0o600),
)
KEPT = ["etc/.wh.passwd", "etc/.wh..wh..opq", "secret/.wh..opq", ".wh.etc"]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", [gzipped(LAYER)])


def tree(at: Path) -> dict[str, bytes]:
    """All files below a directory, by their paths."""
    found = (Path(top, name) for top, _, names in os.walk(at) for name in names)
    return {str(path.relative_to(at)): path.read_bytes() for path in found}


def mount(imgfs: Imgfs, image: str, driver: str) -> Path:
    """The scratch `work` by one of the drivers."""
    imgfs.driver = driver
    return imgfs.mount(image, "--scratch", "work")


def make_by_overlayfs(imgfs: Imgfs, image: str) -> dict[str, bytes]:
    """A scratch in which a user of overlayfs has made files with names of whiteouts; what it shows."""
    at = mount(imgfs, image, "kernel")
    for name in KEPT:
        (at / name).write_bytes(b"kept")
    seen = tree(at)
    imgfs.umount(at)
    assert set(seen) == {"etc/passwd", "etc/group", "secret/key", *KEPT}
    return seen


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_files_with_the_names_of_whiteouts_stay_files(imgfs: Imgfs, image: str, driver: str) -> None:
    seen = make_by_overlayfs(imgfs, image)
    for _ in range(2):
        at = mount(imgfs, image, driver)
        assert tree(at) == seen
        imgfs.umount(at)
    at = mount(imgfs, image, driver)
    (at / "etc/.wh.passwd").rename(at / "etc/moved")
    (at / ".wh.etc").unlink()
    imgfs.umount(at)
    at = mount(imgfs, image, driver)
    assert (at / "etc/moved").read_bytes() == b"kept"
    assert sorted(os.listdir(at)) == ["etc", "secret"]
    imgfs.umount(at)


def test_by_fuse_such_a_name_is_refused(imgfs: Imgfs, image: str) -> None:
    at = mount(imgfs, image, "fuse")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        (at / "etc/.wh.passwd").touch()
    imgfs.umount(at)


def test_diff_shows_them_and_commit_refuses_them(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    make_by_overlayfs(imgfs, image)
    shown = imgfs.ok("diff", "work").splitlines()
    assert {f"A /{name}" for name in KEPT} <= set(shown)
    assert not [line for line in shown if line.startswith("D ")]
    said = imgfs.run("commit", "work", f"oci:{tmp_path}/new:v1").complaint()
    assert said.startswith("/.wh.etc: no layer can hold a file of this name")
    assert not list((tmp_path / "new").glob("blobs/sha256/*"))
    assert not list(imgfs.store.glob(".commit-*"))


def test_commit_names_what_no_layer_holds(imgfs: Imgfs, image: str, tmp_path: Path) -> None:
    """Users of overlayfs set attributes that in another upper directory are overlayfs's own."""
    at = mount(imgfs, image, "kernel")
    os.setxattr(at / "etc/passwd", "user.overlay.opaque", b"y")
    os.setxattr(at / "etc/group", "user.kept", b"1")
    (at / "new").touch()
    os.setxattr(at / "new", "user.containers.override_stat", b"0:0:04777")
    os.mknod(at / "socket", stat.S_IFSOCK | 0o600)
    imgfs.umount(at)
    ran = imgfs.run("commit", "work", f"oci:{tmp_path}/new:v1")
    assert ran.code == 0
    what = "not in the new image, as no layer holds it"
    assert [line for line in ran.err.splitlines() if "warning" in line] == [
        f"imgfs: warning: {what}: /etc/passwd: user.overlay.opaque",
        f"imgfs: warning: {what}: /new: user.containers.override_stat",
        f"imgfs: warning: {what}: /socket: a socket",
    ]
    imgfs.driver = "fuse"
    made = imgfs.mount(f"oci:{tmp_path}/new:v1")
    assert os.listxattr(made / "etc/group") == ["user.kept"]
    imgfs.umount(made)


@pytest.mark.parametrize(
    ("mode", "is_theirs"), [(0o700, True), (0o755, True), (0, False)], ids=["user", "umask", "overlayfs"]
)
def test_who_has_written_is_told_by_the_work_directory(tmp_path: Path, mode: int, is_theirs: bool) -> None:
    assert not is_of_fuse_overlayfs(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(mode)
    assert is_of_fuse_overlayfs(tmp_path) == is_theirs


def test_what_fuse_overlayfs_has_left_after_overlayfs_is_found(imgfs: Imgfs, image: str) -> None:
    """Where it may make devices, a file says that a directory is opaque, with a device beside it."""
    at = mount(imgfs, image, "kernel")
    imgfs.umount(at)
    upper = imgfs.store / "scratch/work/upper"
    (upper / "etc").mkdir(exist_ok=True)
    (upper / "etc/.wh..wh..opq").touch(0o700)
    os.mknod(upper / "etc/.wh..opq", stat.S_IFCHR | 0o700, 0)
    at = mount(imgfs, image, "fuse")
    assert os.listdir(at / "etc") == []
    imgfs.umount(at)


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
@pytest.mark.parametrize("first", ["fuse", "kernel"])
def test_no_user_sets_a_mark(imgfs: Imgfs, image: str, first: str, driver: str) -> None:
    at = mount(imgfs, image, first)
    (at / "etc/new").write_bytes(b"new")
    marks = {"opaque": b"y", "redirect": b"/secret", "metacopy": b"", "imgfs.origin": b"6", "origin": b"x"}
    names = {
        f"{space}.overlay.{mark}": value for space in ("user", "trusted") for mark, value in marks.items()
    }
    names |= {"user.fuseoverlayfs.opaque": b"y", "user.containers.override_stat": b"0:0:04777"}
    for path in (at, at / "etc", at / "etc/new", at / "etc/passwd"):
        for name, value in names.items():
            with suppress(OSError):
                os.setxattr(path, name, value)
    before = tree(at), [os.stat(at / path)[:5] for path in ("", "etc", "etc/new", "etc/passwd")]
    imgfs.umount(at)
    for _ in range(2):
        at = mount(imgfs, image, driver)
        now = tree(at), [os.stat(at / path)[:5] for path in ("", "etc", "etc/new", "etc/passwd")]
        assert now[0] == before[0]
        assert [found[0] for found in now[1]] == [found[0] for found in before[1]]
        assert [found[4] for found in now[1]] == [found[4] for found in before[1]]
        imgfs.umount(at)


@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_no_image_sets_a_mark(imgfs: Imgfs, driver: str) -> None:
    """Copied up, an image's attributes that are called as marks are would hide what is in a directory."""
    marks = {b"user.overlay.opaque": b"y", b"user.fuseoverlayfs.opaque": b"y"}
    marks |= {b"user.containers.override_stat": b"0:0:04777"}
    if driver == "fuse":  # the kernel driver refuses an image with these: test_overlay_xattrs_of_images
        marks |= {b"trusted.overlay.opaque": b"y"}
    layer = tar.archive(
        tar.directory("./", mode=0o755, xattrs=marks),
        tar.directory("d", mode=0o755, xattrs=marks),
        tar.file("d/f", b"f", xattrs={**marks, b"user.kept": b"1"}),
    )
    image = write_image(imgfs.directory / "marked", [gzipped(layer)])
    at = mount(imgfs, image, driver)
    os.chmod(at, 0o711)
    os.chmod(at / "d", 0o711)
    os.chmod(at / "d/f", 0o600)
    imgfs.umount(at)
    at = mount(imgfs, image, "fuse")
    assert tree(at) == {"d/f": b"f"}
    assert [stat.S_IMODE(os.stat(at / path).st_mode) for path in ("", "d", "d/f")] == [0o711, 0o711, 0o600]
    assert os.getxattr(at / "d/f", "user.kept") == b"1"
    imgfs.umount(at)

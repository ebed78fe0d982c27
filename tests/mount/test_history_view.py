"""What a mount says of its files by itself: virtual attributes, and the trees of earlier layers."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, drop_caches, errno_of, gzipped, serve, sha256, write_image

pytestmark = pytest.mark.kernel

NOISE = os.urandom(300_000)
LAYERS = [
    gzipped(tar.archive(tar.directory("d", mode=0o750), tar.file("d/a", b"first"), tar.file("gone", b"x"))),
    gzipped(tar.archive(tar.file("d/a", b"second"), tar.whiteout("gone"), tar.file("noise", NOISE))),
    gzipped(tar.archive(tar.file("new", b"", xattrs={b"user.imgfs.step": b"mine"}), tar.symlink("l", "d/a"))),
]
HISTORY = [
    {"created_by": "ADD rootfs /"},
    {"created_by": "ENV A=1", "empty_layer": True},
    {"created_by": "RUN change"},
]


@pytest.fixture
def image(imgfs: Imgfs) -> str:
    return write_image(imgfs.directory / "layout", LAYERS, {"history": HISTORY})


def said(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, f"user.imgfs.{name}", follow_symlinks=False).decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Every file below `top` but the history: kind, mode, owner, time, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(top):
        names[:] = [name for name in names if name != ".imgfs"]
        for name in [*names, *files]:
            path = Path(directory, name)
            what = path.lstat()
            body = path.read_bytes() if stat.S_ISREG(what.st_mode) else os.fsencode(name)
            body = os.fsencode(path.readlink()) if path.is_symlink() else body
            found[str(path.relative_to(top))] = (what.st_mode, what.st_uid, what.st_mtime_ns, body)
    return found


def test_a_file_says_which_layer_and_step_brought_it(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    digests = [layer.descriptor()["digest"] for layer in LAYERS]
    shown = {name: (said(at / name, "layer"), said(at / name, "step")) for name in ("d", "d/a", "noise")}
    assert shown == {
        "d": (f"1 {digests[0]}", "ADD rootfs /"),
        "d/a": (f"2 {digests[1]}", "RUN change"),
        "noise": (f"2 {digests[1]}", "RUN change"),
    }
    assert said(at / "new", "step") == "mine"  # the layer's own word
    assert [os.listxattr(at / name) for name in ("d", "noise", "new")] == [[], [], ["user.imgfs.step"]]
    assert [said(at / name, "digest") for name in ("noise", "new", "d")] == [sha256(NOISE), sha256(b""), None]
    assert [said(at / "d", name) for name in ("here", "nonsense", "")] == [None] * 3
    imgfs.umount(at)


def test_what_is_here_is_counted_and_a_digest_is_fetched_once(imgfs: Imgfs) -> None:
    with FaultServer() as server:
        image = serve(server, "app", "v1", LAYERS)
        at = imgfs.mount(image, "--index", "none")
        imgfs.evict(image)
        before = len(server.seen("/blobs/", "GET"))
        assert (said(at / "noise", "here"), said(at / "new", "here")) == ("0", "0")
        assert len(server.seen("/blobs/", "GET")) == before
        assert said(at / "noise", "digest") == sha256(NOISE)
        assert said(at / "noise", "here") == str(len(NOISE))
        after = len(server.seen("/blobs/", "GET"))
        assert after > before
        drop_caches()
        imgfs.evict(image)
        assert said(at / "noise", "digest") == sha256(NOISE)
        assert len(server.seen("/blobs/", "GET")) == after
        imgfs.umount(at)


def test_what_a_scratch_has_changed_comes_from_no_layer(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--rw")
    (at / "d/a").write_bytes(b"mine")
    (at / "own").write_bytes(b"")
    assert [said(at / name, "step") for name in ("d/a", "own", "noise")] == [None, None, "RUN change"]
    imgfs.umount(at)


def test_each_layer_has_the_tree_that_it_left(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "-o", "history")
    assert sorted(os.listdir(at)) == [".imgfs", "d", "l", "new", "noise"]
    states = at / ".imgfs/layers"
    assert sorted(os.listdir(states)) == ["1", "2", "3"]
    for number in (1, 2, 3):
        other = imgfs.mount(image, "--upto-layer", str(number), at=imgfs.mountpoint(f"upto{number}"))
        assert listing(states / str(number)) == listing(other)
        imgfs.umount(other)
    assert listing(states / "3") == listing(at)
    assert [said(states / f"{number}/d/a", "layer") for number in (1, 3)] == [
        f"{layer} {LAYERS[layer - 1].descriptor()['digest']}" for layer in (1, 2)
    ]
    inos = [path.stat().st_ino for path in (at, at / ".imgfs", states, *states.iterdir(), at / "d")]
    assert len(set(inos)) == len(inos)
    assert (at / ".imgfs").stat().st_nlink == 3
    for name in ("0", "4", "01", "-1", "x", "99999999"):
        assert errno_of((states / name).stat) == errno.ENOENT
    assert errno_of(lambda: (states / "1/d/a").write_bytes(b"")) == errno.EROFS
    assert errno_of((at / ".imgfs/other").stat) == errno.ENOENT
    imgfs.umount(at)


def test_where_there_is_no_history_one_line_says_why(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mountpoint()
    words = ("mount", "-o", "history")
    assert imgfs.run(*words, "--rw", image, at).complaint(2) == (
        "-o history: of an image alone, not with --rw or --scratch"
    )
    if os.geteuid() == 0:
        said = imgfs.run(*words, "--driver", "kernel", image, at).complaint(1)
        assert said == "-o history is for FUSE"
    own = write_image(imgfs.directory / "own", [gzipped(tar.archive(tar.file(".imgfs", b"")))])
    assert imgfs.run(*words, own, at).complaint(1) == "-o history: the image itself has a file /.imgfs"
    imgfs.expected.append(" ERROR ")

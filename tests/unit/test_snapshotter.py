"""imgfs's snapshotter asked directly: codes, rows and directories, without an image or a containerd."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from imgfs.engines.liveness import is_answering
from imgfs.engines.refusal import Refusal
from imgfs.engines.snapshotter.directories import SnapshotDirectories
from imgfs.engines.snapshotter.image_mounts import ImageMounts
from imgfs.engines.snapshotter.labels import offered_layer
from imgfs.engines.snapshotter.messages import CommitRequest, NamedRequest, PrepareRequest
from imgfs.engines.snapshotter.reserve import Reserve
from imgfs.engines.snapshotter.rows import ImageChain, Snapshot, SnapshotKind, SnapshotRows, SnapshotUsage
from imgfs.engines.snapshotter.snapshotter import Snapshotter
from imgfs.errors import RegistryError, StoreError
from imgfs.oci.policy import Policy
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.mounted import NO_LIMIT, Imgfs, gzipped, until, write_image
from tests.support.snapshots import (
    ACTIVE,
    ALREADY_EXISTS,
    COMMITTED,
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    VIEW,
    Info,
    Snapshots,
    mounted,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the snapshotter is root's")


class Served:
    """A snapshotter in a process, with all that it keeps below a directory."""

    def __init__(self, imgfs: Imgfs, place: Path) -> None:
        self.imgfs = imgfs
        self.root = place / "root"
        self.socket = place / "s"
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Begin to serve, and wait until systemd would be told."""
        told = self.socket.with_name("notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(told))
            systemd.settimeout(60)
            self.imgfs.environment["NOTIFY_SOCKET"] = str(told)
            words = "--root", self.root, "--address", self.socket, *NO_LIMIT
            self.process = self.imgfs.start("snapshotter", *words, stderr=subprocess.DEVNULL)
            assert systemd.recv(100) == b"READY=1"
        told.unlink()
        return self.process

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal."""
        self.process.send_signal(number)
        self.process.wait(60)


@contextmanager
def served_by(imgfs: Imgfs) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        served = Served(imgfs, Path(short))
        try:
            yield served
        finally:
            served.end()


@pytest.fixture(scope="module")
def served(module_imgfs: Imgfs) -> Iterator[Served]:
    with served_by(module_imgfs) as made:
        yield made


@pytest.fixture
def asked(served: Served) -> Iterator[Snapshots]:
    """What asks it; nothing is left of an earlier test."""
    asking = Snapshots(served.socket)
    while left := asking.all():
        parents = {one.parent for one in left}
        for one in left:
            if one.name not in parents:
                asking.remove(one.name)
    yield asking
    asking.close()


def refused(call: Callable[[], object]) -> str | None:
    """The code of gRPC that a call is refused with."""
    with pytest.raises(RegistryError) as raised:
        call()
    return raised.value.code


def layer(asked: Snapshots, name: str, parent: str = "") -> None:
    asked.prepare(f"{name}-key", parent)
    asked.commit(name, f"{name}-key")


def test_the_socket_and_the_directories_are_roots_alone(served: Served, asked: Snapshots) -> None:
    asked.prepare("a", "")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (served.socket, served.root)}
    assert modes == {"s": 0o600, "root": 0o700}
    assert {stat.S_IMODE((served.root / name).stat().st_mode) for name in ("mnt", "snapshots")} == {0o700}


def test_a_name_is_taken_once_and_a_parent_has_to_be_a_layer(asked: Snapshots) -> None:
    layer(asked, "base")
    asked.prepare("a", "base")
    assert refused(lambda: asked.prepare("a", "")) == ALREADY_EXISTS
    assert refused(lambda: asked.view("base", "")) == ALREADY_EXISTS
    assert refused(lambda: asked.prepare("b", "none")) == NOT_FOUND
    assert refused(lambda: asked.prepare("b", "a")) == INVALID_ARGUMENT
    for nameless in (
        lambda: asked.prepare("", ""),
        lambda: asked.view("", ""),
        lambda: asked.commit("", "a"),
    ):
        assert refused(nameless) == INVALID_ARGUMENT
    assert [one.name for one in asked.all()] == ["a", "base"]
    assert [one.name for one in asked.all("kind==committed", "name~=^b")] == ["base"]


def test_only_what_is_active_is_committed_and_its_labels_are_replaced(asked: Snapshots) -> None:
    asked.prepare("a", "", {"old": "1"})
    asked.view("v", "")
    assert refused(lambda: asked.commit("x", "none")) == NOT_FOUND
    assert refused(lambda: asked.commit("x", "v")) == FAILED_PRECONDITION
    assert refused(lambda: asked.commit("v", "a")) == ALREADY_EXISTS
    asked.commit("x", "a", {"new": "2"})
    assert asked.stat("x") == Info("x", "", COMMITTED, {"new": "2"})
    for missing in (lambda: asked.stat("a"), lambda: asked.mounts("a"), lambda: asked.usage("a")):
        assert refused(missing) == NOT_FOUND
    assert refused(lambda: asked.mounts("x")) == FAILED_PRECONDITION


def test_a_parent_stays_and_what_is_removed_leaves_no_directory(served: Served, asked: Snapshots) -> None:
    layer(asked, "base")
    asked.view("v", "base")
    assert asked.stat("v").kind == VIEW
    assert refused(lambda: asked.remove("base")) == FAILED_PRECONDITION
    assert refused(lambda: asked.remove("none")) == NOT_FOUND
    for name in ("v", "base"):
        asked.remove(name)
    until(lambda: not list((served.root / "snapshots").iterdir()), "what was removed is gone")
    (served.root / "snapshots" / "12345").mkdir()
    asked.clean_up()
    assert list((served.root / "snapshots").iterdir()) == []


def test_labels_are_changed_one_by_one_or_all(asked: Snapshots) -> None:
    asked.prepare("a", "", {"one": "1", "two": "2", "none": ""})
    assert asked.stat("a").labels == {"one": "1", "two": "2"}
    assert asked.update("a", {"two": "3", "four": "4"}, "labels.two").labels == {"one": "1", "two": "3"}
    assert asked.update("a", {}, "labels.one").labels == {"two": "3"}
    assert asked.update("a", {"x": "y"}, "labels").labels == {"x": "y"}
    assert asked.update("a", {"z": "y"}).labels == {"z": "y"}
    assert refused(lambda: asked.update("a", {}, "parent")) == INVALID_ARGUMENT
    assert refused(lambda: asked.update("b", {})) == NOT_FOUND
    assert asked.stat("a") == Info("a", "", ACTIVE, {"z": "y"})


def test_layers_are_mounted_as_overlayfs_has_them(asked: Snapshots, tmp_path: Path) -> None:
    (bind,) = asked.prepare("a", "")
    assert (bind.type, bind.options) == ("bind", ("rw", "rbind"))
    with mounted(bind, tmp_path / "m") as place:
        (place / "name").write_bytes(b"lower")
        place.chmod(0o750)
        os.chown(place, 7, 8)
    asked.commit("lower", "a")
    (view,) = asked.view("v", "lower")
    assert (view.type, view.source, view.options) == ("bind", bind.source, ("ro", "rbind"))
    (upper,) = asked.prepare("b", "lower")
    assert asked.mounts("b") == [upper]
    with mounted(upper, tmp_path / "m") as place:
        assert (place / "name").read_bytes() == b"lower"
        assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_uid) == (0o750, 7)
        (place / "name").write_bytes(b"upper")
    asked.commit("upper", "b")
    (both,) = asked.view("w", "upper")
    assert both.type == "overlay"
    assert not [option for option in both.options if option.startswith("upperdir=")]
    with mounted(both, tmp_path / "m") as place:
        assert (place / "name").read_bytes() == b"upper"
    assert asked.usage("upper")[1] == 2  # its root, and one file
    assert asked.usage("w") == (0, 0)


def test_a_user_namespaces_root_owns_what_it_may_write_to(asked: Snapshots) -> None:
    uids, gids = "containerd.io/snapshot/uidmapping", "containerd.io/snapshot/gidmapping"
    maps = {uids: "0:70000:9", gids: "0:80000:9"}
    layer(asked, "base")
    (words,) = asked.prepare("a", "base", maps)
    assert words.options[:2] == ("uidmap=0:70000:9", "gidmap=0:80000:9")
    (upper,) = (option.partition("=")[2] for option in words.options if option.startswith("upperdir="))
    assert (os.stat(upper).st_uid, os.stat(upper).st_gid) == (70000, 80000)
    for wrong in ("0:1", "5:70000:9", "a:b:c"):
        bad = {**maps, uids: wrong}
        assert refused(lambda bad=bad: asked.prepare("b", "base", bad)) == INVALID_ARGUMENT  # type: ignore[misc]


@pytest.mark.parametrize("is_rootless", [False, True])
def test_in_a_user_namespace_overlayfs_keeps_what_it_needs_in_attributes_of_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_rootless: bool
) -> None:
    monkeypatch.setattr("imgfs.syscalls.is_in_user_namespace", lambda: is_rootless)
    rows, store = SnapshotRows(tmp_path / "rows"), Store(tmp_path / "store")
    directories, mounts = SnapshotDirectories(tmp_path / "snapshots"), ImageMounts(tmp_path / "mnt", [])
    made = Snapshotter(rows, directories, mounts, store, Reserve(tmp_path / "reserve"))
    made.prepare(PrepareRequest("imgfs", "key", "", {}))
    made.commit(CommitRequest("imgfs", "base", "key", {}, ""))
    (words,) = made.prepare(PrepareRequest("imgfs", "made", "base", {}))
    assert (words.type, "userxattr" in words.options) == ("overlay", is_rootless)
    rows.close()


def test_a_new_upper_directory_has_the_owner_and_the_mode_of_the_root_below(tmp_path: Path) -> None:
    """overlayfs shows those of the upper directory: else not even root of the container could write there."""
    directories, below = SnapshotDirectories(tmp_path / "snapshots"), tmp_path / "below"
    below.mkdir()
    os.chown(below, 7, 8)
    below.chmod(0o1770)
    for number, (lower, owner, wanted) in enumerate(
        [
            (below, None, (7, 8, 0o1770)),
            (below, (70000, 80000), (70000, 80000, 0o1770)),
            (None, (70000, 80000), (70000, 80000, 0o755)),
            (None, None, (0, 0, 0o755)),
        ]
    ):
        made = Snapshot(number, "key", "", SnapshotKind.ACTIVE, 0, 0, {}, SnapshotUsage(), None, "imgfs")
        directories.make(made, lower, owner)
        found = directories.upper(made).stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == wanted


def fill(file: Path) -> None:
    """Write as much as there is room for."""
    with file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


@pytest.mark.kernel
def test_what_frees_a_full_disk_is_written_down_on_it(tmp_path: Path) -> None:
    """kubelet removes images, and containerd snapshots, when there is no room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", disk], check=True)
    try:
        rows, reserve = SnapshotRows(disk / "rows"), Reserve(disk / "reserve")
        directories, mounts = SnapshotDirectories(disk / "snapshots"), ImageMounts(disk / "mnt", [])
        made = Snapshotter(rows, directories, mounts, Store(tmp_path / "store"), reserve)
        keys = [f"key {number}" for number in range(12)]
        for key in keys:
            made.prepare(PrepareRequest("imgfs", key, "", {"label": "x" * 4000}))
        with pytest.raises(OSError, match="No space"):
            fill(disk / "filler")
        with pytest.raises(StoreError, match="full"):
            made.prepare(PrepareRequest("imgfs", "one more", "", {"label": "x" * 4000}))
        for key in keys:
            made.remove(NamedRequest("imgfs", key))
        assert list(rows.all()) == []
        (disk / "filler").unlink()
        made.clean_up()
        assert (disk / "reserve").stat().st_blocks * 512 >= 1 << 20
        rows.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_directories_of_any_depth_are_counted_and_removed(tmp_path: Path) -> None:
    """A container makes them: deeper than a path is long, Python calls, and than files may be open."""
    directories, limits = SnapshotDirectories(tmp_path), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    snapshot = Snapshot(7, "key", "", SnapshotKind.ACTIVE, 0, 0, {}, SnapshotUsage(), None, "imgfs")
    directories.make(snapshot, None, None)
    deepest = os.open(directories.upper(snapshot), os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d" * 10, dir_fd=deepest)
            below = os.open("d" * 10, os.O_RDONLY, dir_fd=deepest)
            os.close(deepest)
            deepest = below
        assert directories.usage(snapshot).inodes == 1501
        directories.set_aside(lambda _: False)
        directories.remove_aside()
        assert os.listdir(tmp_path) == []
    finally:
        os.close(deepest)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_all_is_there_after_a_kill_and_a_second_process_is_refused(imgfs: Imgfs) -> None:
    with served_by(imgfs) as served:
        asked = Snapshots(served.socket)
        for number in range(120):  # more than a message of a list has
            asked.prepare(f"key {number:03}", "", {"n": str(number)})
        before = asked.all()
        said = imgfs.run("snapshotter", "--root", served.root, "--address", f"{served.socket}2").complaint()
        assert said == f"{served.root}: another process of imgfs uses it"
        served.end(signal.SIGKILL)
        left = served.root / "mnt" / f"sha256-{'0' * 64}"  # as of an image that was removed just before
        left.mkdir()
        served.start()
        assert (asked.all(), len(before)) == (before, 120)
        until(lambda: not left.exists(), "what no row needs is gone")
        asked.close()


def test_rows_of_a_newer_imgfs_are_left_alone(tmp_path: Path) -> None:
    SnapshotRows(tmp_path / "a").close()
    SnapshotRows(tmp_path / "a").close()
    with closing(sqlite3.connect(tmp_path / "a")) as db:
        db.execute("PRAGMA user_version=3")
    with pytest.raises(StoreError, match="a: of format 3, this imgfs knows 2"):
        SnapshotRows(tmp_path / "a")


OLD_ROWS = """
PRAGMA user_version=1;
CREATE TABLE snapshots (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
    parent TEXT NOT NULL, kind INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL,
    labels TEXT NOT NULL, size INTEGER NOT NULL DEFAULT 0, inodes INTEGER NOT NULL DEFAULT 0,
    image TEXT, manifest TEXT, depth INTEGER);
CREATE INDEX children ON snapshots (parent);
CREATE INDEX mounted ON snapshots (manifest, depth) WHERE manifest IS NOT NULL;
CREATE TABLE images (manifest TEXT, image TEXT, PRIMARY KEY (manifest, image));
INSERT INTO snapshots VALUES (7, 'base', '', 3, 1, 2, '{"a": "b"}', 4096, 1, NULL, NULL, NULL);
INSERT INTO snapshots VALUES (9, 'made', 'base', 2, 3, 4, '{}', 0, 0, NULL, NULL, NULL);
"""


def test_rows_from_before_plugins_were_told_apart_are_the_first_ones_that_asks(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "a")) as db:
        db.executescript(OLD_ROWS)
    rows = SnapshotRows(tmp_path / "a")
    rows.claim("imgfs-nydus")
    rows.claim("imgfs")
    assert [(row.id, row.name, row.labels) for row in rows.of_plugin("imgfs-nydus")] == [
        (7, "base", {"a": "b"}),
        (9, "made", {}),
    ]
    assert list(rows.of_plugin("imgfs")) == []
    rows.close()


def test_plugins_of_one_socket_see_and_name_only_their_own(served: Served, asked: Snapshots) -> None:
    """containerd has each remove what it does not know, and counts the names of each by itself."""
    other = Snapshots(served.socket, "imgfs-nydus")
    layer(asked, "base")
    asked.prepare("a", "base")
    layer(other, "base")
    assert [one.name for one in other.all()] == ["base"]
    assert refused(lambda: other.stat("a")) == NOT_FOUND
    assert refused(lambda: other.remove("a")) == NOT_FOUND
    other.remove("base")
    other.clean_up()
    assert [one.name for one in asked.all()] == ["a", "base"]
    (words,) = asked.mounts("a")
    upper = next(option for option in words.options if option.startswith("upperdir="))
    assert Path(upper.partition("=")[2]).is_dir()
    other.close()


def test_what_cannot_be_served_is_one_line(imgfs: Imgfs, nobody: Imgfs) -> None:
    assert "it has to be root" in nobody.run("snapshotter").complaint(2)
    assert "cannot be in this path" in imgfs.run("snapshotter", "--root", "/tmp/a:b").complaint(2)
    (imgfs.directory / "file").touch()
    said = imgfs.run("snapshotter", "--root", imgfs.directory / "file" / "root").complaint()
    assert said == f"{imgfs.directory}/file/root: Not a directory"


LABELS = {
    "containerd.io/snapshot.ref": "sha256:aa",
    "containerd.io/snapshot/cri.image-ref": "r.io/app:v1",
    "containerd.io/snapshot/cri.manifest-digest": "sha256:" + "0" * 64,
    "containerd.io/snapshot/cri.image-layers": "sha256:1,sha256:2",
}


def test_a_layer_is_offered_by_its_labels() -> None:
    found = offered_layer(LABELS)
    assert found is not None
    assert (found.target, found.image, found.is_topmost) == ("sha256:aa", "r.io/app:v1", False)
    last = offered_layer({**LABELS, "containerd.io/snapshot/cri.image-layers": "sha256:2"})
    assert last is not None
    assert last.is_topmost


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("value", ["", "no such: thing"])
def test_without_one_of_them_containerd_fetches_it(label: str, value: str) -> None:
    changed = offered_layer({**LABELS, label: value})
    has_any_text = label.endswith((".ref", "-layers")) and value
    assert (changed is not None) == bool(has_any_text)


def test_published_indexes_count_as_they_do_for_the_reference_that_was_pulled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "sha256:" + "0" * 64
    ran: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    mounts = ImageMounts(tmp_path / "mnt", ["--x"])
    for image, depth in (("r.io/app:v1", 2), (f"r.io/app@sha256:{'1' * 64}", 0)):
        with mounts.used(ImageChain(digest, depth, image)):
            pass
    with ImageMounts(tmp_path / "mnt", [], Policy.NONE).used(ImageChain(digest, 0, "r.io/app:v1")):
        pass
    assert [command[5:-1] for command in ran] == [
        ["--x", "--index", "any", "--upto-layer", "2", f"r.io/app:v1@{digest}"],
        ["--x", "--index", "auto", f"r.io/app@{digest}"],
        ["--index", "none", f"r.io/app:v1@{digest}"],
    ]


@pytest.mark.parametrize(
    ("code", "says"), [(-9, "its process was ended by SIGKILL"), (-99, "exit code -99"), (3, "exit code 3")]
)
def test_a_mount_that_ends_without_a_word_is_told_by_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, code))
    mounts = ImageMounts(tmp_path / "mnt", [])
    with (
        pytest.raises(Refusal, match=f"^imgfs cannot mount r.io/app:v1: {says}$"),
        mounts.used(ImageChain("sha256:" + "0" * 64, 0, "r.io/app:v1")),
    ):
        pass


def test_what_has_failed_before_it_was_asked_for_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that ended before its topmost layer leaves a failure that the next one must not hear of."""
    codes = iter([1, 0])
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, next(codes))
    )
    mounts, chain = ImageMounts(tmp_path / "mnt", []), ImageChain("sha256:" + "0" * 64, 0, "r.io/app:v1")
    ended = threading.Event()
    mounts.begin(chain, ended.set)
    assert ended.wait(60)
    with mounts.used(chain) as path:
        assert path.is_dir()
    assert next(codes, None) is None


@pytest.mark.kernel
@pytest.mark.parametrize("driver", ["fuse", "kernel"])
def test_a_mount_answers_until_it_is_stopped_or_dead(imgfs: Imgfs, tmp_path: Path, driver: str) -> None:
    image = write_image(tmp_path / "layout", [gzipped(tarmake.archive(tarmake.file("a", b"1")))])
    assert not is_answering(tmp_path)
    mountpoint = imgfs.mountpoint()
    imgfs.ok("mount", "--driver", driver, image, mountpoint)
    pid = imgfs.watch(mountpoint)
    assert is_answering(mountpoint)
    os.kill(pid, signal.SIGSTOP)
    assert not is_answering(mountpoint, 0.5)
    os.kill(pid, signal.SIGCONT)
    until(lambda: is_answering(mountpoint), "it answers again")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_answering(mountpoint), "it is dead")
    imgfs.umount(mountpoint)

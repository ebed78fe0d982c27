"""`imgfs commit`: an image out of what a scratch shows; it shows the same, to imgfs and to others."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import committed
from tests.support import tarmake as tar
from tests.support.committed import LAYERS, T, commit
from tests.support.docker_registry import docker_registry, needs_docker_registry
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import NOBODY, Imgfs, gzipped, serve, write_image
from tests.support.scratch_image import write_base
from tests.support.scratch_walk import wander
from tests.support.umoci_oracle import differences, unpack_layout, walk_directory

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and trusted xattrs need root")
needs_umoci = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")

image, at = committed.image, committed.at


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


# -- the same tree again


@needs_root
@needs_umoci
@pytest.mark.parts
@needs_docker_registry
@pytest.mark.parametrize(("codec", "seed", "changes"), [("gzip", 1, 100), ("zstd", 2, 50)])
def test_the_image_shows_what_the_scratch_did(
    imgfs: Imgfs, registry: str, tmp_path: Path, codec: str, seed: int, changes: int
) -> None:
    base = write_base(tmp_path / "base")
    at = imgfs.mount(base.reference, "--scratch", "work")
    wander(at, changes, seed)
    seen = walk_directory(at)
    layout, options = f"oci:{tmp_path}/made:new", ("--compression", codec)
    digest = commit(imgfs, at, layout, *options)
    imgfs.umount(at)
    assert commit(imgfs, "work", layout, *options) == digest
    assert imgfs.ok("push", layout, f"{registry}/pushed:{codec}").strip().endswith(f"@{digest}")
    assert commit(imgfs, "work", f"{registry}/committed:{codec}", *options) == digest
    for made in (layout, f"{registry}/pushed:{codec}"):
        imgfs.mount(made, at=at)
        assert differences(seen, walk_directory(at)) == []
        imgfs.umount(at)
    if codec == "gzip":  # umoci knows no zstd
        unpacked = unpack_layout(tmp_path / "made", "new", tmp_path / "bundle")
        assert differences(seen, walk_directory(unpacked)) == []


@needs_root
@pytest.mark.drivers("fuse")
def test_both_drivers_give_one_diff_and_one_digest_for_the_same_changes(imgfs: Imgfs, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    imgfs.environment["SOURCE_DATE_EPOCH"] = "1700000000"
    found = []
    for imgfs.driver in ("fuse", "kernel"):
        at = imgfs.mount(base.reference, "--scratch", imgfs.driver)
        wander(at, 120, 3)
        for path in sorted(at.rglob("*"), reverse=True):
            os.utime(path, ns=(T, T), follow_symlinks=False)
        os.utime(at, ns=(T, T))
        mounted = imgfs.ok("diff", at), commit(imgfs, at, f"oci:{tmp_path}/made:mounted")
        imgfs.umount(at)
        kept = imgfs.ok("diff", imgfs.driver), commit(imgfs, imgfs.driver, f"oci:{tmp_path}/made:kept")
        assert mounted == kept
        found.append(kept)
    assert found[0] == found[1]


@needs_root
def test_kinds_that_replace_each_other_come_out_so(imgfs: Imgfs, tmp_path: Path) -> None:
    files = [tar.file(name, b"file", mtime_ns=T) for name in ("d1/in", "d2/in", "d3/in", "f1", "f2", "f3")]
    at = imgfs.mount(write_image(tmp_path / "layout", [gzipped(tar.archive(*files))]), "--rw")
    for name in ("d1", "d2", "d3"):
        shutil.rmtree(at / name)
    for name in ("f1", "f2", "f3"):
        (at / name).unlink()
    (at / "d1").write_bytes(b"file")
    (at / "d2").symlink_to("f1")
    (at / "f1").mkdir()
    (at / "f1/new").touch()
    os.mkfifo(at / "f2")
    for name in ("d3", "f3"):
        os.mknod(at / name, stat.S_IFSOCK | 0o600)
    seen = walk_directory(at)
    for path in (b"d3", b"f3"):  # a layer cannot say sockets; what was there before is gone nevertheless
        del seen[path]
    ran = imgfs.run("commit", at, f"oci:{tmp_path}/layout:new")
    left_out = "imgfs: warning: not in the new image, as no layer holds it: /{}: a socket"
    assert (ran.code, ran.err.splitlines()) == (0, [left_out.format(name) for name in ("d3", "f3")])
    new = imgfs.mount(f"oci:{tmp_path}/layout:new", at=imgfs.mountpoint("new"))
    assert differences(seen, walk_directory(new)) == []


# -- where it goes


def test_only_what_is_new_is_sent(imgfs: Imgfs) -> None:
    with FaultServer() as server:
        image = serve(server, "app", "v1", LAYERS)
        at = imgfs.mount(image, "--rw")
        (at / "new").write_bytes(os.urandom(10_000))
        before = len(server.log)
        commit(imgfs, at, f"{server.host}/app:v2")
        sent = [one for one in server.log[before:] if one.method in ("POST", "PUT", "PATCH")]
        assert len([one for one in sent if one.method == "POST"]) == 2  # the layer and the config
        assert [one.path for one in sent if one.method == "PUT"][-1] == "/v2/app/manifests/v2"
        assert 10_000 < sum(len(one.body) for one in sent) < 20_000
        got = [one.path for one in server.log[before:] if one.method == "GET"]
        assert [path for path in got if "/blobs/sha256" in path] == []
        before = len(server.log)
        commit(imgfs, at, f"{server.host}/app:v3")
        assert [one.method for one in server.log[before:] if one.method not in ("HEAD", "GET")] == ["PUT"]
        imgfs.umount(at)


def test_an_ordinary_user_s_files_come_out_as_root_s(nobody: Imgfs) -> None:
    at = nobody.mount(write_image(nobody.directory / "layout", LAYERS), "--rw")
    script = "mkdir d; echo x >d/new; chmod 4755 d/new; ln -s x d/link; echo more >>c; mkfifo p"
    assert nobody.program("sh", "-ec", f"umask 022; cd {at}; {script}").code == 0
    commit(nobody, at, f"oci:{nobody.directory}/made:v1")
    lines = nobody.ok("ls", "-lR", f"oci:{nobody.directory}/made:v1").splitlines()
    found = {line.split()[-1]: line.split() for line in lines if line.startswith(tuple("-dlp"))}
    owners = {name: (fields[2], fields[3]) for name, fields in found.items()}
    assert owners == dict.fromkeys(("a", "b", "d", "new", "x", "p"), ("0", "0")) | {"c": ("1000", "0")}
    assert found["new"][0] == "-rwsr-xr-x"
    assert str(NOBODY.uid) not in {part for owner in owners.values() for part in owner}


def test_what_cannot_be_is_said_before_anything_is_done(imgfs: Imgfs, at: Path) -> None:
    for words, said in (
        (["work", "app:a b"], "'app:a b': 'a b' is not a tag"),
        (["work", "oci:"], "'oci:' names no directory; write oci:DIR or oci:DIR:TAG"),
        (["work", "new", "--change", "RUN x"], "RUN"),
        (["work", "new", "--change", ""], ""),
        (["work", "oci:new:v1", "--change", "ENV x"], "ENV"),
        (["none", "new"], "none: no mount and no scratch (see: imgfs scratch ls)"),
    ):
        assert said in imgfs.run("commit", *words).complaint(2)


def test_a_destination_that_fails_is_named_and_nothing_is_left(
    imgfs: Imgfs, at: Path, tmp_path: Path
) -> None:
    with FaultServer() as server:
        server.inject(Fault(status=403), on="/blobs/uploads/", times=5)
        assert server.host in imgfs.run("commit", at, f"{server.host}/app:v2").complaint()
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in imgfs.run("commit", at, f"oci:{tmp_path}/file:v2").complaint()
    assert [path.name for path in imgfs.store.glob(".commit-*")] == []
    commit(imgfs, at, f"oci:{tmp_path}/made:v1")
    assert [path.name for path in imgfs.store.glob(".commit-*")] == []


def test_endless_holes_are_refused_by_name_and_others_are_zeros(
    imgfs: Imgfs, at: Path, tmp_path: Path
) -> None:
    for name, size in (("endless", 2 << 40), ("hole", 4 << 20)):
        (at / name).touch()
        os.truncate(at / name, size)
    said = imgfs.run("commit", at, f"oci:{tmp_path}/made:v1").complaint()
    assert "endless: is 2199023255552 bytes long, nearly all of them holes" in said
    (at / "endless").unlink()
    commit(imgfs, at, f"oci:{tmp_path}/made:v1")


def test_a_read_only_mount_cannot_be_committed(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image)
    said = imgfs.run("commit", at, "oci:new:v1").complaint()
    assert said == f"{at}: mounted read-only: there are no changes (imgfs mount --rw)"

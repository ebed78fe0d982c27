"""podman with images out of a store of imgfs's: mounted, never pulled, run, built upon and removed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from imgfs.config import podman_images
from imgfs.engines.liveness import is_answering
from imgfs.engines.podman_store import PodmanStore
from imgfs.engines.podman_users import graph_roots, users_of
from imgfs.errors import NotFound
from imgfs.mounts.table import imgfs_mounts
from tests.support.containers import LIMITS, PODMAN
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.engines import needs_podman
from tests.support.mounted import Imgfs, Ran, gzipped, write_image
from tests.support.tarmake import archive, directory, file, symlink

pytestmark = [needs_podman, needs_docker_registry, pytest.mark.kernel, pytest.mark.parts]

BUSYBOX = Path("/bin/busybox")
LOWER = archive(
    *(directory(name) for name in ("bin", "dev", "etc", "proc", "sys")),
    file("bin/busybox", BUSYBOX.read_bytes() if BUSYBOX.exists() else b"", mode=0o755),
    *(symlink(f"bin/{name}", "busybox") for name in ("sh", "cat", "touch")),
    file("etc/name", b"lower"),
)
LAYERS = [gzipped(tar).blob for tar in (LOWER, archive(file("etc/name", b"upper")))]
HISTORY = [{"created_by": "first"}, {"created_by": "env", "empty_layer": True}, {"created_by": "second"}]
CONFIG = {
    "config": {"Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"]},
    "created": "2020-01-02T03:04:05Z",
    "history": HISTORY,
}


@dataclass
class Rig:
    """A store of imgfs's for podman, and a podman whose own storage is elsewhere."""

    imgfs: Imgfs
    place: Path
    image: str

    def podman(self, *words: str | Path, root: str = "root") -> Ran:
        """`podman WORDS…` with the store beside its own."""
        options = [f"--root={self.place}/{root}", f"--runroot={self.place}/run", f"--tmpdir={self.place}/tmp"]
        store = f"--storage-opt=additionalimagestore={self.place}/store"
        quiet = "env", "PODMAN_IGNORE_CGROUPSV1_WARNING=1", "podman"
        driver = "--storage-driver=overlay", "--cgroup-manager=cgroupfs"
        return self.imgfs.program(*quiet, *options, *driver, store, *words)

    def store(self, action: str, *words: str) -> Ran:
        """`imgfs podman ACTION`."""
        return self.imgfs.run("podman", action, "--root", self.place / "store", *words)


@pytest.fixture
def rig(imgfs: Imgfs, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podman-")))
        host = stack.enter_context(docker_registry(tmp_path / "registry"))
        push_image(host, "app", "v1", LAYERS, config=CONFIG)
        conf = tmp_path / "storage.conf"
        conf.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{place}/root"\nrunroot = "{place}/run"\n'
        )
        imgfs.environment["CONTAINERS_STORAGE_CONF"] = str(conf)
        yield Rig(imgfs, place, f"{host}/app:v1")
        for left in (one.mountpoint for one in imgfs_mounts() if one.mountpoint.is_relative_to(place)):
            imgfs.program("umount", "-l", left)


def test_an_image_is_run_built_upon_and_removed(rig: Rig, tmp_path: Path) -> None:
    assert rig.store("add", rig.image).text == f"{rig.image}\n"
    (mount,) = (one for one in imgfs_mounts() if one.mountpoint.is_relative_to(rig.place))
    rig.imgfs.watch(mount.mountpoint)
    assert {"nosuid", "nodev"}.isdisjoint(mount.flags)
    assert (
        rig.place / "store/overlay"
    ).stat().st_mode & 0o777 == 0o700  # so no other user runs what is there
    (shown,) = json.loads(rig.podman("images", "--format", "json").text)
    assert (shown["Names"], shown["ReadOnly"]) == ([rig.image], True)
    assert shown["CreatedAt"] == "2020-01-02T03:04:05Z"
    assert shown["Size"] > len(LOWER)

    ran = rig.podman("run", "--pull=never", *PODMAN, rig.image)
    assert (ran.code, ran.text) == (0, "upper"), ran
    ran = rig.podman("run", *PODMAN, rig.image, "sh", "-c", "touch /etc/new && cat /etc/name")
    assert (ran.code, ran.text) == (0, "upper"), ran
    (tmp_path / "Containerfile").write_text(
        f'FROM {rig.image}\nRUN ["touch", "/made"]\nCOPY Containerfile /\n'
    )
    words = "--isolation=chroot", "--network=host", *LIMITS, "-q", "-t", "localhost/derived"
    built = rig.podman("build", *words, "-f", tmp_path / "Containerfile", tmp_path)
    assert built.code == 0, built
    assert rig.podman("run", *PODMAN, "localhost/derived", "cat", "/made", "/etc/name").text == "upper"
    steps = rig.podman("history", "--format", "{{.CreatedBy}}", "localhost/derived").text.split("\n")
    assert [step for step in steps if step in ("first", "env", "second")] == ["second", "env", "first"]

    complaint = rig.store("rm", rig.image).complaint()
    assert f"{rig.image}: containers or images in {rig.place}/root stand upon it" in complaint
    rig.podman("rmi", "localhost/derived")
    made = rig.podman(
        "create", *PODMAN[1:], rig.image, root="other"
    ).text.strip()  # storage.conf names it not
    assert rig.podman("mount", made, root="other").code == 0
    assert "a container has it mounted (process " in rig.store("rm", rig.image).complaint()
    assert rig.podman("umount", made, root="other").code == 0
    other = "--podman-root", f"{rig.place}/other"
    assert f"images in {rig.place}/other stand upon it" in rig.store("rm", *other, rig.image).complaint()
    assert "is not a store of podman's" in rig.store(
        "rm", "--podman-root", str(tmp_path), rig.image
    ).complaint(2)
    assert rig.podman("rm", made, root="other").code == 0
    assert rig.store("add", rig.image).text == f"{rig.image}\n"  # it is there already
    (listed,) = json.loads(rig.store("ls", "--json").text)
    assert (listed["names"], listed["mounted"]) == ([rig.image], True)
    assert rig.store("rm", *other, listed["id"][:12]).code == 0
    rig.imgfs.gone(mount.mountpoint)
    assert [one for one in imgfs_mounts() if one.mountpoint.is_relative_to(rig.place)] == []
    assert rig.store("ls").text == ""
    assert json.loads(rig.podman("images", "--format", "json").text) == []
    assert [path.name for path in (rig.place / "store" / "overlay").iterdir()] == ["l"]
    assert "is not in" in rig.store("rm", rig.image).complaint()


def test_an_image_that_is_pulled_too_is_built_upon_by_its_own_layers(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text(
        f'FROM {rig.image}\nRUN ["touch", "/made"]\nCOPY Containerfile /\nRUN ["cat", "/etc/name"]\n'
    )
    words = (
        "--isolation=chroot",
        "--network=host",
        *LIMITS,
        "--layers",
        "-q",
        "-f",
        tmp_path / "Containerfile",
    )
    assert rig.store("add", rig.image).text == f"{rig.image}\n"
    (mount,) = (one for one in imgfs_mounts() if one.mountpoint.is_relative_to(rig.place))
    rig.imgfs.watch(mount.mountpoint)
    layers = []
    for before in ((), ("pull", "-q", "--tls-verify=false", rig.image), ("rmi", rig.image)):
        assert not before or rig.podman(*before).code == 0
        built = rig.podman("build", *words, tmp_path)
        assert built.code == 0, built
        (shown,) = json.loads(rig.podman("inspect", built.text.strip()).text)
        layers.append(len(shown["RootFS"]["Layers"]))
    assert layers == [4, 5, 4]  # three steps upon the merged layer, or upon the two of the registry
    assert rig.podman("rmi", "--all", "--force").code in (0, 125)  # 125: the image that is only read stays
    assert rig.store("rm", rig.image).text == f"{rig.image}\n"


def test_what_is_not_mounted_any_more_is_mounted_again(rig: Rig) -> None:
    rig.store("add", rig.image)
    (mount,) = (one for one in imgfs_mounts() if one.mountpoint.is_relative_to(rig.place))
    rig.imgfs.ok("umount", mount.mountpoint)
    assert rig.store("ls").text.endswith(f"  {rig.image}  (not mounted)\n")
    assert rig.store("add", rig.image).code == 0
    assert is_answering(mount.mountpoint)
    assert os.listdir(mount.mountpoint)
    assert rig.store("rm", rig.image).code == 0


def test_one_of_several_names_is_taken_away_and_the_image_stays(rig: Rig) -> None:
    host = rig.image.partition("/")[0]
    push_image(host, "app", "v2", LAYERS, config=CONFIG)
    other = f"{host}/app:v2"
    for image in (rig.image, other):
        assert rig.store("add", image).code == 0
    (mount,) = (one for one in imgfs_mounts() if one.mountpoint.is_relative_to(rig.place))
    rig.imgfs.watch(mount.mountpoint)
    assert rig.store("rm", rig.image).text == f"{rig.image}\n"
    assert rig.podman("run", "--pull=never", *PODMAN, other).text == "upper"
    assert "is not in" in rig.store("rm", rig.image).complaint()
    assert rig.store("rm", other).code == 0
    rig.imgfs.gone(mount.mountpoint)


def test_an_image_is_found_as_podman_finds_it(tmp_path: Path) -> None:
    """By its id, also with the algorithm, and by a name without the registry or the tag that are meant."""
    identity, names = "ab" * 32, ["docker.io/library/app:latest", "h.io/app:v1"]
    (tmp_path / "overlay-images").mkdir()
    listed = json.dumps([{"id": identity, "names": names, "layer": "l"}])
    (tmp_path / "overlay-images" / "images.json").write_text(listed)
    store = PodmanStore(tmp_path)
    for wanted in ("app", "app:latest", names[1], identity, identity[:12], f"sha256:{identity}"):
        assert store.find(wanted)["id"] == identity
    for wanted in ("app:v1", "h.io/app", identity[:11], "sha256:", "UPPER CASE"):
        with pytest.raises(NotFound):
            store.find(wanted)
    assert store.forget_name(store.find("app"), "app")
    assert store.find(identity)["names"] == names[1:]
    assert not store.forget_name(store.find(identity), names[1])


def test_the_store_is_roots(nobody: Imgfs, imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LOWER)])
    assert "copy it to one" in imgfs.run("podman", "add", "--root", tmp_path / "store", image).complaint(2)
    assert "podman unshare imgfs podman" in nobody.run("podman", "ls").complaint(2)
    unshared = {"_CONTAINERS_ROOTLESS_UID": "1000", "HOME": "/home/ann"}
    assert podman_images(unshared, 0) == Path("/home/ann/.local/share/imgfs/podman")
    assert podman_images({}, 0) == Path("/var/lib/imgfs/podman")
    (tmp_path / "overlay-images").mkdir()
    (tmp_path / "overlay-images" / "images.json").write_text("[")
    assert "not a list of podman's" in imgfs.run("podman", "ls", "--root", tmp_path).complaint()


def test_the_stores_of_engines_are_those_that_their_files_name(tmp_path: Path) -> None:
    crio = tmp_path / "crio.conf"
    assert graph_roots(crio)[-1] == Path("/var/lib/containers/storage")
    crio.write_text('[crio]\nroot = "/srv/crio"\n')
    (tmp_path / "crio.conf.d").mkdir()
    (tmp_path / "crio.conf.d/10-disk.conf").write_text(f'[crio]\nroot = "{tmp_path}"\n')
    (tmp_path / "crio.conf.d/20-bad.conf").write_text("[")
    os.mkfifo(tmp_path / "crio.conf.d/30-fifo.conf")
    assert graph_roots(crio)[-2:] == [Path("/srv/crio"), tmp_path]
    assert users_of("a" * 64, "no-link", crio=crio) is None
    (tmp_path / "overlay-layers").mkdir()
    (tmp_path / "overlay-layers/layers.json").write_text(json.dumps([{"id": "b", "parent": "a" * 64}]))
    assert users_of("a" * 64, "no-link", crio=crio) == f"containers or images in {tmp_path} stand upon it"

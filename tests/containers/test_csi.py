"""imgfs as a driver of CSI, asked as kubelet asks it: by gRPC, over its socket."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.errors import RegistryError
from imgfs.mounts.holders import holder_of
from imgfs.mounts.table import imgfs_mount_at, mount_at, mounts
from imgfs.transport.engine_socket import connect_engine
from imgfs.transport.grpc import GrpcChannel
from imgfs.transport.protobuf import ProtobufMessage, encode_map, encode_message
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image, push_index
from tests.support.mounted import Imgfs, errno_of, gzipped, until
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    needs_docker_registry,
    pytest.mark.skipif(os.geteuid() != 0, reason="kubelet's mounts are root's"),
    pytest.mark.timeout(240),
]

READ_ONLY, WRITER = 3, 1  # access modes: MULTI_NODE_READER_ONLY, SINGLE_NODE_WRITER
ANN = "ann:$2y$05$abcdefghijklmnopqrstuus.X1MqjFe9xYC1QzWPB4qZkYsG3oeHG\n"  # bcrypt of canary-old
NONE: Mapping[str, str] = {}


class Kubelet:
    """What kubelet asks of the driver at a socket. A refusal is a RegistryError."""

    def __init__(self, socket: Path) -> None:
        self._channel = GrpcChannel(
            lambda: connect_engine(socket, "containerd", "CONTAINERD_ADDRESS"), "csi", allowed(120)
        )

    def ask(self, method: str, body: bytes = b"", package: str = "csi.v1") -> ProtobufMessage:
        (answer,) = self._channel.call(f"{package}.{method}", body, {}, 1 << 20)
        return ProtobufMessage(answer, method)

    def publish(
        self,
        target: Path | str,
        context: Mapping[str, str],
        *,
        volume: str = "v",
        mode: int = READ_ONLY,
        read_only: bool = True,
        secret: str = "",
        block: bool = False,
        flags: Sequence[str] = (),
    ) -> None:
        access = encode_message((1, mode))
        how = encode_message(*((2, flag) for flag in flags))
        kind = bytes([0x0A if block else 0x12, len(how)]) + how  # `block` or `mount`, and be it empty
        body = encode_message((1, volume), (4, str(target)), (5, kind + encode_message((3, access))))
        body += encode_message((6, int(read_only)))
        body += encode_map(7, {".dockerconfigjson": secret} if secret else NONE) + encode_map(8, context)
        self.ask("Node/NodePublishVolume", body)

    def take_down(self, target: Path, volume: str = "v") -> None:
        self.ask("Node/NodeUnpublishVolume", encode_message((1, volume), (2, str(target))))

    def stats(self, target: Path, volume: str = "v") -> dict[int, tuple[int, int, int]]:
        answer = self.ask("Node/NodeGetVolumeStats", encode_message((1, volume), (2, str(target))))
        return {one.number(4): (one.number(1), one.number(2), one.number(3)) for one in answer.messages(1)}

    def close(self) -> None:
        self._channel.close()


class Node:
    """A node: its driver, and where pods' volumes are."""

    def __init__(self, imgfs: Imgfs, directory: Path) -> None:
        self.imgfs = imgfs
        self.root = directory / "csi"
        self.pods = directory / "pods"
        self.pods.mkdir()
        self.socket = directory / "csi.sock"
        self.short = tempfile.TemporaryDirectory(dir="/tmp")  # a socket's path has 107 bytes at most
        self.registry = Path(self.short.name) / "plugins_registry"
        self.process = self._start()
        self.kubelet = Kubelet(self.socket)

    def _start(self) -> subprocess.Popen[bytes]:
        words = (
            "--endpoint",
            f"unix://{self.socket}",
            "--root",
            self.root,
            "--node-id",
            "n1",
            "--register",
            self.registry,
        )
        log = (self.root.parent / "csi.log").open("ab")
        process = self.imgfs.start("csi", *words, stdout=log, stderr=log)
        log.close()
        last = self.registry / "image.csi.imgfs.io-reg.sock"
        until(lambda: last.exists() or process.poll() is not None, "the driver answers")
        assert process.poll() is None, self.log()
        return process

    def log(self) -> str:
        return (self.root.parent / "csi.log").read_text()

    def kill_and_start(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(allowed(30))
        self.kubelet.close()
        self.socket.unlink()
        next(self.registry.iterdir()).unlink()
        self.process = self._start()
        self.kubelet = Kubelet(self.socket)

    def shared(self) -> list[Path]:
        return [one.mountpoint for one in mounts() if one.mountpoint.is_relative_to(self.root)]

    def end(self) -> None:
        self.kubelet.close()
        self.process.terminate()
        assert self.process.wait(allowed(30)) == 0
        self.short.cleanup()


@pytest.fixture
def node(imgfs: Imgfs, tmp_path: Path) -> Iterator[Node]:
    made = Node(imgfs, tmp_path)
    yield made
    for one in reversed(mounts()):
        if one.mountpoint.is_relative_to(tmp_path):
            subprocess.run(["umount", "-l", one.mountpoint], check=True)
    made.end()
    assert "Traceback" not in made.log()


@contextmanager
def registry(directory: Path, htpasswd: str | None = None) -> Iterator[str]:
    """A registry with an image."""
    body = tar.archive(tar.directory("etc"), tar.file("etc/name", b"one"), tar.file("large", b"x" * 100_000))
    with docker_registry(directory / "registry") as host:
        push_image(host, "team/app", "v1", [gzipped(body).blob])
    with docker_registry(directory / "registry", htpasswd=htpasswd) as host:
        yield host


def test_volumes_that_are_read_share_a_mount_until_the_last_is_gone(node: Node, tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        pods = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.name": "p"}
        attributes = {"image": f"{host}/team/app:v1", **pods}
        targets = [node.pods / name for name in ("a", "b", "c")]
        with ThreadPoolExecutor() as kubelets:  # all at once, and one of them twice
            list(kubelets.map(lambda at: node.kubelet.publish(at, attributes), [*targets, targets[0]]))
        assert len(node.shared()) == 1
        for at in targets:
            assert (at / "etc/name").read_bytes() == b"one"
            assert errno_of(lambda at=at: (at / "new").touch()) == errno.EROFS  # type: ignore[misc]
            assert {"nosuid", "nodev", "ro"} <= set(mount_at(at).flags)  # type: ignore[union-attr]
        sizes = node.kubelet.stats(targets[0])
        assert all(0 <= figure < 1 << 62 for figures in sizes.values() for figure in figures)
        assert sizes[1][1] > 0
        node.kubelet.publish(targets[0], attributes)  # is there already
        with pytest.raises(RegistryError, match="another volume is published there"):
            node.kubelet.publish(targets[0], {"image": f"{host}/team/other:v1"})
        for at in targets[:2]:
            node.kubelet.take_down(at)
            assert not at.exists()
        assert node.imgfs.ok("store", "limit").startswith("limit 80% of the disk")  # nothing else bounds it
        node.imgfs.ok("store", "limit", "1G")
        node.kill_and_start()
        assert node.imgfs.ok("store", "limit").startswith("limit 1 GB, ")
        assert (targets[2] / "etc/name").read_bytes() == b"one"
        node.kubelet.take_down(targets[2], "another")
        assert (targets[2] / "etc/name").read_bytes() == b"one"
        node.kubelet.take_down(targets[2])
        node.kubelet.take_down(targets[2])
        assert node.shared() == []
        assert list((node.root / "volumes").iterdir()) == list((node.root / "mnt").iterdir()) == []


def test_what_is_no_mount_of_imgfs_is_not_taken_down(node: Node) -> None:
    at = node.pods / "theirs"
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", at], check=True)
    try:
        with pytest.raises(RegistryError, match="busy"):
            node.kubelet.take_down(at)
        assert mount_at(at)
    finally:
        subprocess.run(["umount", at], check=True)


def test_kubelet_learns_of_the_driver_by_its_own_socket(node: Node) -> None:
    asked = Kubelet(node.registry / "image.csi.imgfs.io-reg.sock")
    found = asked.ask("Registration/GetInfo", package="pluginregistration")
    assert [found.text(number) for number in (1, 2, 3)] == [
        "CSIPlugin",
        "image.csi.imgfs.io",
        str(node.socket),
    ]
    assert found.texts(4) == ["1.0.0"]
    said = encode_message((1, 0), (2, "no\nsuch"))
    asked.ask("Registration/NotifyRegistrationStatus", said, "pluginregistration")
    asked.close()
    assert "kubelet has not registered image.csi.imgfs.io: no\\nsuch\n" in node.log()


def test_a_volume_that_may_be_written_is_its_own(node: Node, tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        attributes = {"image": f"{host}/team/app:v1"}
        one, other = node.pods / "one", node.pods / "other"
        for at in (one, other):
            node.kubelet.publish(at, attributes, mode=WRITER, read_only=False, volume=at.name)
        (one / "etc/name").write_bytes(b"mine")
        assert (other / "etc/name").read_bytes() == b"one"
        assert node.kubelet.stats(one, "one")[1][0] > 0
        node.kubelet.take_down(one, "one")
        node.kubelet.publish(one, attributes, mode=WRITER, read_only=False, volume="one")
        assert (one / "etc/name").read_bytes() == b"one"  # what was written has gone with the volume
        for at in (one, other):
            node.kubelet.take_down(at, at.name)
            assert not at.exists()


@pytest.mark.parametrize("is_read_only", [True, False])
def test_a_volume_is_mounted_as_its_mount_options_say(node: Node, tmp_path: Path, is_read_only: bool) -> None:
    with registry(tmp_path) as host:
        at, attributes = node.pods / "a", {"image": f"{host}/team/app:v1"}
        how = (READ_ONLY if is_read_only else WRITER), is_read_only

        def publish(*flags: str, **more: str) -> None:
            node.kubelet.publish(at, {**attributes, **more}, mode=how[0], read_only=how[1], flags=flags)

        with pytest.raises(RegistryError, match="mount_flags: 'suid' is not known: there are noatime, "):
            publish("suid")
        assert not at.exists()
        publish("noexec", "noatime")
        mount = mount_at(at)
        assert mount
        assert {"noexec", "noatime", "nosuid", "nodev"} <= set(mount.flags)
        assert ("ro" in mount.flags) is is_read_only
        publish("noatime", "noexec")
        for flags, platform in ((("noexec",), ""), (("noexec", "noatime"), "linux/arm64")):
            with pytest.raises(RegistryError, match="another volume is published there") as refused:
                publish(*flags, **({"platform": platform} if platform else {}))
            assert refused.value.code == "6"  # ALREADY_EXISTS
        record = next((node.root / "volumes").iterdir())
        known = json.loads(record.read_text())
        record.write_text(json.dumps({key: value for key, value in known.items() if key != "how"}))
        publish()  # what an earlier version has written does not say how
        node.kubelet.take_down(at)
        if not is_read_only:
            publish("ro")
            assert errno_of((at / "new").touch) == errno.EROFS
            node.kubelet.take_down(at)


def test_each_platform_of_an_image_is_a_mount_of_its_own(node: Node, tmp_path: Path) -> None:
    """Also of one that is named by the digest of its index, which all platforms have in common."""
    with docker_registry(tmp_path / "registry") as host:
        manifests = []
        for name in ("amd64", "arm64"):
            layer = gzipped(tar.archive(tar.file("name", name.encode())))
            pushed = push_image(host, "team/app", None, [layer.blob], config={"architecture": name})
            platform = {"os": "linux", "architecture": name}
            manifests.append((pushed.manifest, {"platform": platform}))
        index = push_index(host, "team/app", "v1", manifests)
        for image in (f"{host}/team/app:v1", f"{host}/team/app@{index.digest}"):
            for name in ("amd64", "arm64"):
                at = node.pods / name
                node.kubelet.publish(at, {"image": image, "platform": f"linux/{name}"}, volume=name)
                assert (at / "name").read_text() == name
            for name in ("amd64", "arm64"):
                node.kubelet.take_down(node.pods / name, name)
            assert node.shared() == []


def test_a_mount_that_has_died_is_made_again(node: Node, tmp_path: Path) -> None:
    with registry(tmp_path) as host:
        at, attributes = node.pods / "a", {"image": f"{host}/team/app:v1"}
        node.kubelet.publish(at, attributes)
        (shared,) = node.shared()
        if holder := holder_of(imgfs_mount_at(shared)):  # else a successor of its daemon goes on
            os.kill(holder, signal.SIGKILL)
        os.kill(node.imgfs.pid(shared), signal.SIGKILL)
        until(lambda: errno_of(lambda: os.statvfs(at)) == errno.ENOTCONN, "the mount is dead")
        node.kubelet.publish(at, attributes)
        assert (at / "etc/name").read_bytes() == b"one"
        node.kubelet.take_down(at)
        assert node.shared() == []


def pushed_digest(directory: Path) -> str:
    """The digest of the one manifest in a registry's storage."""
    links = (directory / "registry").rglob("_manifests/revisions/sha256/*/link")
    return next(path.read_text() for path in links)


def test_each_secret_opens_what_it_opens(node: Node, tmp_path: Path) -> None:
    node.imgfs.ok("store", "limit", "none")  # else a full disk of this machine evicts what is to be here
    with registry(tmp_path, htpasswd=ANN) as host:
        pair = base64.b64encode(b"ann:canary-old").decode()
        secret = json.dumps({"auths": {host: {"auth": pair}}, "credsStore": "touch-" + "x" * 9})
        attributes = {"image": f"{host}/team/app:v1"}
        good, bad = node.pods / "good", node.pods / "bad"
        node.kubelet.publish(good, attributes, secret=secret, volume="good")
        assert (good / "etc/name").read_bytes() == b"one"
        with pytest.raises(
            RegistryError, match=r"no credentials for .* \(the pod can name some: nodePublishSecretRef\)"
        ):
            node.kubelet.publish(bad, attributes, volume="bad")
        wrong = secret.replace(pair, base64.b64encode(b"ann:wrong").decode())
        for read_only, mode in ((True, READ_ONLY), (False, WRITER)):
            with pytest.raises(RegistryError, match="401"):
                node.kubelet.publish(
                    bad, attributes, volume="bad", read_only=read_only, mode=mode, secret=wrong
                )
        by_digest = {"image": f"{host}/team/app@{pushed_digest(tmp_path)}"}
        with pytest.raises(RegistryError, match=r"401|no credentials"):
            node.kubelet.publish(bad, by_digest, volume="bad")
        with pytest.raises(RegistryError, match=r"401|no credentials"):
            node.kubelet.publish(bad, by_digest, volume="bad", read_only=False, mode=WRITER)
        kept = next((node.root / "secrets").glob(f"{node.shared()[0].name}.json"))
        assert kept.stat().st_mode & 0o777 == 0o600
        assert json.loads(kept.read_text()).keys() == {"auths"}  # no program that a pod names is run
        words = Path(f"/proc/{node.imgfs.pid(node.shared()[0])}/cmdline").read_text()
        assert not any(trace in node.log() + words for trace in ("canary", pair))
        assert not bad.exists()  # kubelet takes down only what was published
        assert (
            len(list((node.root / "volumes").iterdir())) == len(list((node.root / "secrets").iterdir())) == 1
        )
        node.kubelet.take_down(good, "good")
        assert list((node.root / "secrets").iterdir()) == []
    with pytest.raises(RegistryError, match=r"no answer|cannot be reached"):  # the registry is away
        node.kubelet.publish(bad, attributes, volume="bad")
    node.kubelet.publish(good, attributes, secret=secret, volume="good")
    assert (good / "etc/name").read_bytes() == b"one"
    for target, volume in ((good, "good"), (bad, "bad")):
        node.kubelet.take_down(target, volume)


def test_what_cannot_be_is_refused_with_a_reason(node: Node) -> None:
    at = node.pods / "a"
    for context, why in (
        (NONE, "'image' is missing"),
        ({"image": "oci:/etc"}, "'oci:/etc' is not in a registry"),
        ({"image": "docker-archive:/root/x.tar"}, "is not in a registry"),
        ({"image": "containerd:app"}, "is not in a registry"),
        ({"image": "h.io/UPPER"}, "h.io/UPPER"),
        ({"image": "h.io/app", "imgae": "x"}, "'imgae' is not known: there are image and platform"),
        ({"image": "h.io/app", "platform": "x/y/z/w"}, "x/y/z/w"),
    ):
        with pytest.raises(RegistryError, match=why):
            node.kubelet.publish(at, context)
    image = {"image": "h.io/app"}
    with pytest.raises(RegistryError, match="no block device"):
        node.kubelet.publish(at, image, block=True)
    for target in ("", "relative", "/a/../../b"):
        with pytest.raises(RegistryError, match="target_path"):
            node.kubelet.publish(target, image)
    for secret in ("rubbish", "[]", '{"auths": 1}', '{"credHelpers": {}}'):
        with pytest.raises(RegistryError, match="is not a JSON object with auths") as refused:
            node.kubelet.publish(at, image, secret=secret)
        assert secret not in str(refused.value)
    link = node.pods / "link"
    link.symlink_to(node.root)
    with pytest.raises(RegistryError, match="is a symbolic link"):
        node.kubelet.publish(link, image)
    assert link.is_symlink()
    with pytest.raises(RegistryError, match="not published there"):
        node.kubelet.stats(at)
    with pytest.raises(RegistryError, match="a request of CSI"):
        node.kubelet.ask("Node/NodePublishVolume", b"\xff\xff\xff")
    with pytest.raises(RegistryError, match=r"nimplemented|not found|12"):
        node.kubelet.ask("Node/NodeStageVolume")
    assert not at.exists()


def test_the_controller_makes_names_for_claims(node: Node) -> None:
    ask = node.kubelet.ask
    assert ask("Identity/GetPluginInfo").text(1) == "image.csi.imgfs.io"
    assert ask("Identity/Probe").message(1).number(1) == 1
    assert ask("Node/NodeGetInfo").text(1) == "n1"
    capability = encode_message((3, b"\x12\x00" + encode_message((3, encode_message((1, READ_ONLY))))))
    parameters = encode_map(4, {"image": "h.io/app"})
    request = encode_message((1, "pvc-1")) + capability + parameters
    for _ in range(2):
        volume = ask("Controller/CreateVolume", request).message(1)
        assert (volume.text(2), volume.map(3)) == ("pvc-1", {"image": "h.io/app"})
    with pytest.raises(RegistryError, match="is there, and otherwise"):
        ask(
            "Controller/CreateVolume",
            encode_message((1, "pvc-1")) + capability + encode_map(4, {"image": "h.io/b"}),
        )
    checked = encode_message((1, "pvc-1")) + capability
    assert ask("Controller/ValidateVolumeCapabilities", checked).has(1)
    ask("Controller/DeleteVolume", encode_message((1, "pvc-1")))
    with pytest.raises(RegistryError, match="does not exist"):
        ask("Controller/ValidateVolumeCapabilities", checked)

"""kubelet's requests for images on their way through imgfs: containerd gets all, and imgfs the passwords."""

from __future__ import annotations

import base64
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from imgfs.engines.cri import SERVICE, decode_pull
from imgfs.engines.image_disks import ImageDisks
from imgfs.engines.rpc import Forwarded, _listen
from imgfs.errors import RegistryError
from imgfs.registry.config.credentials import Credentials, find_credentials
from imgfs.store.disk_share import DiskUse
from imgfs.store.store import Store
from imgfs.transport.engine_socket import connect_engine
from imgfs.transport.grpc import GrpcChannel
from imgfs.transport.protobuf import ProtobufMessage, encode_message
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.engines import containerd, needs_containerd
from tests.support.mounted import Imgfs, gzipped, until
from tests.support.patience import allowed

PAIR = base64.b64encode(b"ann:secret").decode()
HASHES = {  # bcrypt
    "canary-old": "$2y$05$abcdefghijklmnopqrstuus.X1MqjFe9xYC1QzWPB4qZkYsG3oeHG",
    "canary-new": "$2y$05$abcdefghijklmnopqrstuuowm6bBkEOv9JLCXRSjDpE.zaEk/UHeq",
}
OLD, NEW = HASHES
NATIVE = '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "native"\n'


def pull_request(image: str, *auth: tuple[int, str]) -> bytes:
    return encode_message((1, encode_message((1, image))), (2, encode_message(*auth)))


@pytest.mark.parametrize(
    ("auth", "found"),
    [
        ([], None),
        ([(1, "ann"), (2, "secret")], Credentials("ann", "secret")),
        ([(3, PAIR)], Credentials("ann", "secret")),
        ([(1, "no"), (2, "no"), (3, PAIR)], Credentials("ann", "secret")),
        ([(3, "no base64")], None),
        ([(1, "ann")], None),
        ([(5, "refresh")], Credentials("", "refresh", identity_token=True)),
        ([(6, "access")], Credentials("", "access", registry_token=True)),
    ],
)
def test_credentials_of_a_pull(auth: list[tuple[int, str]], found: Credentials | None) -> None:
    assert decode_pull(pull_request("h.io/app", *auth)) == ("h.io/app", found)


def disk_usage(mountpoint: Path, used: int) -> bytes:
    """A FilesystemUsage of ten inodes, at time 1."""
    values = (encode_message((1, number)) for number in (used, 10))
    return encode_message(
        (1, 1), (2, encode_message((1, str(mountpoint)))), *zip((3, 4), values, strict=True)
    )


def told_disks(store: Store, *disks: bytes, containers: bool = False) -> list[tuple[str, int, int]]:
    """What kubelet is told of disks in containerd's answer: mountpoint, bytes and inodes."""
    lists = (1, 2) if containers else (1,)
    body = encode_message(*((field, disk) for field in lists for disk in disks))
    told = ProtobufMessage(ImageDisks(store).answer("ImageFsInfo", body), "answer")
    assert [told.bodies(field) for field in lists] == [told.bodies(1) for _ in lists]
    assert all(one.has(3) and one.has(4) for one in told.messages(1))  # kubelet panics without them
    return [
        (one.message(2).text(1), one.message(3).number(1), one.message(4).number(1))
        for one in told.messages(1)
    ]


def test_kubelet_is_told_of_the_fullest_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {str(tmp_path): 500, "/dev/shm": 300}  # of 1000
    monkeypatch.setattr("imgfs.engines.image_disks.disk_use", lambda path: DiskUse(1000, left[str(path)]))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        left[place] = 300
        here, there, gone = (disk_usage(path, 5) for path in (tmp_path, Path(place), tmp_path / "gone"))
        left[str(tmp_path / "gone")] = 1000
        near, far = Store(tmp_path), Store(Path(place))
        assert told_disks(near, here, here) == [(str(tmp_path), 10, 20)]
        assert told_disks(near, here, there) == [(place, 5, 10), (str(tmp_path), 5, 10)]
        assert told_disks(far, here, containers=True) == [(place, 0, 0), (str(tmp_path), 5, 10)]
        left[place] = 501
        assert told_disks(far, here) == [(str(tmp_path), 5, 10), (place, 0, 0)]
        assert told_disks(near, here, gone)[-1] == (str(tmp_path / "gone"), 5, 10)
    assert ImageDisks(near).answer("ImageFsInfo", b"") == b""
    assert ImageDisks(near).answer("ImageFsInfo", b"\xff") == b"\xff"
    assert ImageDisks(near).answer("ListImages", b"\xff") == b"\xff"


def test_what_kubelet_gives_up_containerd_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that nobody waits for does not go on; and what was kept for it does not count."""
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at most
    begun, ended, put_back = (threading.Event() for _ in range(3))

    def pull(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(ended.set)
        begun.set()
        ended.wait(allowed(60))
        return b""

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "PullImage": grpc.unary_unary_rpc_method_handler(pull)
    }
    handler = grpc.method_handlers_generic_handler(SERVICE, methods)
    with ThreadPoolExecutor() as threads, ExitStack() as stack:
        engine = grpc.server(threads, handlers=[handler])
        engine.add_insecure_port("unix:100%2520")
        engine.start()
        stack.callback(lambda: engine.stop(None).wait())
        forwarded = Forwarded(SERVICE, Path("100%20"), lambda *_: put_back.set, lambda _, answer: answer)
        server = _listen(Path("s%20"), [forwarded])
        stack.callback(lambda: server.stop(None).wait())
        channel = stack.enter_context(grpc.insecure_channel("unix:s%2520"))
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/PullImage")
        asked = ask.future(b"")
        assert begun.wait(allowed(60))
        asked.cancel()
        assert ended.wait(allowed(60))
        assert put_back.wait(allowed(60))


class Node:
    """A registry that wants a password, a containerd, and what stands before that."""

    def __init__(self, imgfs: Imgfs, place: Path) -> None:
        self.imgfs, self.place = imgfs, place
        self.socket, self.auth = place / "cri", place / "auth" / "auth.json"

    def serve(self, engine: Path) -> None:
        self.socket.unlink(missing_ok=True)
        words = ("--address", f"unix://{self.socket}", "--containerd", engine, "--auth-file", self.auth)
        with (self.place / "log").open("ab") as log:
            self.process = self.imgfs.start("cri", *words, stdout=log, stderr=log)
        until(self.socket.exists, "it listens")
        self.kubelet = GrpcChannel(
            lambda: connect_engine(self.socket, "containerd", "CONTAINERD_ADDRESS"), "CRI", allowed(60)
        )

    def end(self) -> None:
        self.kubelet.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(allowed(30)) == 0

    def ask(self, method: str, body: bytes = b"") -> ProtobufMessage:
        (answer,) = self.kubelet.call(f"runtime.v1.ImageService/{method}", body, {}, 1 << 20)
        return ProtobufMessage(answer, method)

    def allow(self, password: str) -> None:
        path = self.place / "registry" / "htpasswd"
        path.write_text(f"ann:{HASHES[password]}\n")
        later = path.stat().st_mtime + 10
        os.utime(path, (later, later))


@pytest.fixture
def node(imgfs: Imgfs) -> Iterator[tuple[Node, str]]:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, ExitStack() as stack:
        made = Node(imgfs, Path(short))
        directory = made.place / "registry"
        with docker_registry(directory) as host:
            push_image(host, "team/app", "v1", [gzipped(tar.archive(tar.file("name", b"one"))).blob])
        password = f"ann:{HASHES[OLD]}\n"
        host = stack.enter_context(docker_registry(directory, htpasswd=password))
        engine = stack.enter_context(containerd(made.place, NATIVE))
        made.serve(engine.socket)
        stack.callback(made.end)
        yield made, host


@pytest.mark.kernel
@pytest.mark.parts
@needs_containerd
@needs_docker_registry
def test_a_pull_leaves_its_password_to_mounts_and_the_next_its_own(node: tuple[Node, str]) -> None:
    made, host = node
    image = f"{host}/team/app:v1"
    made.imgfs.environment["REGISTRY_AUTH_FILE"] = str(made.auth)
    with pytest.raises(RegistryError, match=r"401|nauthorized|authorization"):  # containerd's own words
        made.ask("PullImage", pull_request(image))
    assert not made.auth.exists()
    wrong = pull_request(image, (1, "ann"), (2, "wrong"))
    with pytest.raises(RegistryError):
        made.ask("PullImage", wrong)
    assert find_credentials([made.auth], host, "team/app") is None
    assert made.ask("PullImage", pull_request(image, (1, "ann"), (2, OLD))).text(1).startswith("sha256:")
    listed = [name for one in made.ask("ListImages").messages(1) for name in one.texts(2)]
    assert image in listed
    (disk,) = made.ask("ImageFsInfo").messages(1)
    assert disk.message(2).text(1).startswith(str(made.place))
    assert disk.has(3)
    assert made.auth.stat().st_mode & 0o777 == 0o600
    with pytest.raises(RegistryError):
        made.ask("PullImage", wrong)
    assert find_credentials([made.auth], host, "team/app") == Credentials("ann", OLD)
    assert find_credentials([made.auth], host, "other/app") is None
    at = made.imgfs.mount(image)
    made.allow(NEW)
    pair = base64.b64encode(f"ann:{NEW}".encode()).decode()
    made.ask("PullImage", pull_request(image, (3, pair)))  # a rotated secret, as kubelet hands it over
    made.imgfs.evict(image)
    assert (at / "name").read_bytes() == b"one"
    made.imgfs.umount(at)
    assert json.loads(made.auth.read_text())["auths"].keys() == {f"{host}/team/app"}
    said = (made.place / "log").read_text()
    assert not any(secret in said for secret in (OLD, NEW, pair))
    with pytest.raises(RegistryError, match=r"unknown method|nimplemented"):
        made.ask("NoSuchMethod")
    with grpc.insecure_channel(f"unix:{made.socket}") as channel:  # without a deadline, as kubelet pulls
        asked: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/runtime.v1.ImageService/PullImage"
        )
        assert ProtobufMessage(asked(pull_request(image, (3, pair))), "pull").text(1).startswith("sha256:")

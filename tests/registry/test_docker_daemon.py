"""Images of a docker: exported once, and read in place; a podman that speaks its API, and one that lies."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from imgfs.errors import ImgfsError, IntegrityError, StoreError, Unavailable
from imgfs.image.resolve import resolve
from imgfs.maintenance.gc import remove_unreachable
from imgfs.oci.descriptor import Descriptor, Platform
from imgfs.oci.reference import EngineReference
from imgfs.store.store import Store
from imgfs.transport import docker_engine
from imgfs.transport.docker_daemon import DockerDaemonSource
from imgfs.transport.docker_engine import DockerEngine
from tests.support import tarmake
from tests.support.engines import needs_podman, podman_service
from tests.support.mounted import NOBODY, Imgfs, documents, gzipped, plain, write_documents, write_image, zstd

LOWER = tarmake.archive(tarmake.directory("etc"), tarmake.file("etc/name", b"lower"))


def saved(name: bytes, *, layout: bool = False) -> tuple[str, bytes]:
    """The id of an image, and what `docker save` writes of it: of old, or with a layout of two platforms."""
    layer = plain(tarmake.archive(tarmake.file("etc/name", name)))
    made = documents([plain(LOWER), layer])
    identity = hashlib.sha256(made.config).hexdigest()
    entry = {"Config": f"{identity}.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}
    files = {f"{identity}.json": made.config, "a/layer.tar": LOWER, "b/layer.tar": layer.blob}
    listed = [entry]
    if layout:
        with tempfile.TemporaryDirectory() as place:
            return _layout(Path(place), layer.blob)
    return f"sha256:{identity}", _tar({**files, "manifest.json": json.dumps(listed).encode()})


def _layout(place: Path, tar: bytes) -> tuple[str, bytes]:
    """What a docker exports that keeps images in containerd: the id is the digest of an index."""
    entries = []
    for architecture in ("amd64", "arm64"):
        made = documents([gzipped(tar)], {"architecture": architecture})
        write_documents(place, made.manifest, made.blobs)
        digest = f"sha256:{hashlib.sha256(made.manifest).hexdigest()}"
        platform = {"os": "linux", "architecture": architecture}
        mine = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest}
        entries.append({**mine, "size": len(made.manifest), "platform": platform})
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    (place / "index.json").unlink()
    write_documents(place, index, {}, "v1", mediaType=kind)
    files = {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return f"sha256:{hashlib.sha256(index).hexdigest()}", _tar(files)


def _tar(files: dict[str, bytes]) -> bytes:
    return tarmake.archive(*(tarmake.file(name, body) for name, body in files.items()))


class Docker:
    """A docker that has one image of any name; what it exports and says is a test's to change."""

    def __init__(self, path: Path) -> None:
        self.image, self.body = saved(b"one")
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[socket.socket], None]] = {}  # by the end of what is asked for
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._sock.close()

    @property
    def exports(self) -> int:
        return sum(target.endswith("/get") for target in self.asked)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._sock.accept()
                threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with closing(sock), suppress(OSError):
            target = sock.recv(65536).split()[1].decode()
            self.asked.append(target)
            for ending, answer in self.answers.items():
                if target.endswith(ending):
                    return answer(sock)
            if target == "/_ping":
                return send(sock, b"OK", "API-Version: 1.44\r\n")
            if target.endswith("/json"):
                return send(sock, json.dumps({"Id": self.image}).encode())
            return send(sock, self.body)


def send(sock: socket.socket, body: bytes, more: str = "", status: str = "200 OK") -> None:
    sock.sendall(f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class World:
    """A docker and a store."""

    def __init__(self, path: Path) -> None:
        self.docker = Docker(Path("s"))
        self.store = Store(path / "store")
        self.socket = f"unix://{Path('s').absolute()}"

    def source(self, name: str = "app:v1") -> DockerDaemonSource:
        engine = DockerEngine(["unix://s"])
        return DockerDaemonSource(EngineReference("docker-daemon", name), engine, lambda: self.store)

    def error(self, kind: type[ImgfsError]) -> str:
        with closing(self.source()) as source, pytest.raises(kind) as raised:
            source.resolve()
        assert list(self.store.root.glob("archives/*.tar")) == []
        assert "\n" not in str(raised.value)
        return str(raised.value)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at the most
    monkeypatch.setattr(docker_engine, "SECONDS", 1.0)
    monkeypatch.setattr(docker_engine, "_PREPARED", 1.0)
    made = World(tmp_path)
    with closing(made.docker):
        yield made


def test_an_image_is_exported_once_under_its_id(world: World) -> None:
    for name in ("app:v1", "other", "sha256:" + "a" * 64):
        with closing(world.source(name)) as source:
            found = source.resolve()
            assert [layer.size for layer in resolve(name, source, world.store, AMD64).manifest.layers] != []
            assert source.traffic().requests == 0
    assert world.docker.exports == 1
    assert world.docker.asked[:3] == [
        "/_ping",
        "/v1.44/images/docker.io/library/app:v1/json",
        f"/v1.44/images/{world.docker.image}/get",
    ]
    assert [str(image) for image in world.store.exports()] == [world.docker.image]
    assert str(found.digest) != world.docker.image  # which is that of the config


AMD64 = Platform("linux", "amd64")


def test_a_name_that_moves_leaves_what_is_mounted(world: World) -> None:
    with closing(world.source()) as source:
        layers = resolve("app", source, world.store, AMD64).manifest.layers
        tars = [b"".join(source.blob(layer)) for layer in layers]
    world.docker.image, world.docker.body = saved(b"two")
    with closing(world.source()) as source:  # as a daemon has it: it reads without having resolved
        assert [b"".join(source.blob(layer)) for layer in layers] == tars
        assert world.docker.exports == 1
        assert source.resolve() != layers[0]
    assert world.docker.exports == 2
    assert len(world.store.exports()) == 2


def test_an_export_is_reported(world: World) -> None:
    class Reporter:
        def __init__(self) -> None:
            self.told: list[tuple[str, int]] = []

        def layer_begins(self, layer: Descriptor) -> None:
            self.told.append((str(layer.digest), layer.size))

        def layer_advances(self, _layer: Descriptor, count: int) -> None:
            self.told.append(("", count))

        def layer_ends(self, _layer: Descriptor) -> None:
            self.told.append(("end", 0))

    said = json.dumps({"Id": world.docker.image, "Size": 99}).encode()
    world.docker.answers["/json"] = lambda sock: send(sock, said)
    for told in ([(world.docker.image, 99), ("", len(world.docker.body)), ("end", 0)], []):
        with closing(world.source()) as source:
            reporter = Reporter()
            source.export(reporter)
            assert reporter.told == told


def test_all_platforms_of_an_export_are_there(world: World) -> None:
    world.docker.image, world.docker.body = saved(b"one", layout=True)
    with closing(world.source()) as source:
        assert str(source.resolve().digest) == world.docker.image
        for architecture in ("amd64", "arm64"):
            resolved = resolve("app", source, world.store, Platform("linux", architecture))
            assert resolved.config.platform.architecture == architecture
            assert gzip.decompress(b"".join(source.blob(resolved.manifest.layers[0])))


def test_an_export_goes_with_its_image_and_when_it_is_wrong(world: World) -> None:
    with closing(world.source()) as source:
        resolved = resolve("docker-daemon:app:v1", source, world.store, AMD64)
    remove_unreachable(world.store, force=False)
    assert len(world.store.exports()) == 1
    with closing(world.source()) as source:
        assert b"".join(source.blob(resolved.manifest.layers[0])) == LOWER
        assert source.doubt(resolved.manifest.layers[0]) is False
    assert world.store.exports() == {}
    with closing(world.source()) as source:
        source.resolve()
    world.store.forget(next(world.store.resolutions()))
    remove_unreachable(world.store, force=False)
    assert list(world.store.root.glob("archives/*")) == []


def test_an_export_of_another_image_is_refused(world: World) -> None:
    world.docker.image = "sha256:" + "a" * 64
    assert "id of what was exported: expected sha256:aaa" in world.error(IntegrityError)


def test_an_export_larger_than_the_store_allows_is_refused(world: World) -> None:
    world.store.limit.put(1000)
    assert "takes too much of the store's limit" in world.error(StoreError)


def drips(head: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        sock.sendall(head)
        while True:
            sock.sendall(drop)
            threading.Event().wait(0.05)

    return answer


def sends(body: bytes) -> Callable[[socket.socket], None]:
    return lambda sock: sock.sendall(body)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("what", "answer", "says"),
    [
        ("/json", drips(OK + b"Content-Length: 99\r\n\r\n", b" "), "no answer: timed out"),
        ("/json", drips(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"), "timed out"),
        ("/json", drips(OK, b"a: b\r\n"), "timed out"),
        ("/json", drips(OK, b"a: " + b"b" * 60_000 + b"\r\n"), "the head of its answer is too long"),
        ("/json", sends(b"220 ftp\r\n"), "not in HTTP"),
        ("/json", sends(b""), "no answer"),
        ("/json", sends(OK + b"\r\n" + b" " * (9 << 20)), "more than 8388608 bytes"),
        ("/json", sends(OK + b"\r\n{"), "not JSON"),
        ("/json", sends(OK + b'\r\n{"Id": "sha256:../../x"}'), "is not a sha256 digest"),
        ("/json", sends(OK + b'\r\n["Id"]'), "expected an object"),
        ("/get", drips(OK + b"\r\n", b"\0"), "timed out"),
        ("/get", sends(OK + b"Content-Length: 4096\r\n\r\n" + bytes(1024)), "cut short"),
        ("/get", sends(OK + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n" + bytes(99)), "cut short"),
        ("/get", sends(OK + b"\r\n" + saved(b"one")[1][:2000]), "truncated"),
        ("/get", sends(OK + b"\r\n"), "sha256-"),
        ("/get", sends(OK + b"\r\n" + tarmake.archive(tarmake.file("a", b"b"))), "it has no manifest.json"),
        ("/json", lambda sock: send(sock, b'{"message":"n\\u001b"}', "", "404 N"), "404: n\\x1b"),
        ("/get", lambda sock: send(sock, b"[]", "", "500 Oh"), "500"),
        ("/json", lambda sock: send(sock, b"", "Location: http://h/\r\n", "301 Moved"), "301"),
    ],
)  # fmt: skip
def test_what_a_docker_does_wrong_is_said(
    world: World, what: str, answer: Callable[[socket.socket], None], says: str
) -> None:
    world.docker.answers[what] = answer
    assert says in world.error(ImgfsError)


def test_a_docker_that_says_no_version_is_asked_without_one(world: World) -> None:
    world.docker.answers["/_ping"] = lambda sock: send(sock, b"OK", "API-Version: 1/../x\r\n")
    with closing(world.source()) as source:
        source.resolve()
    assert world.docker.asked[1] == "/images/docker.io/library/app:v1/json"


def test_a_docker_that_is_gone_is_unavailable(world: World) -> None:
    world.docker.close()
    assert "connection refused: is docker running? $DOCKER_HOST names another socket" in world.error(
        Unavailable
    )


# -- by the command line -------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_an_image_is_mounted_and_looked_at(
    imgfs: Imgfs, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    imgfs.environment["DOCKER_HOST"] = world.socket
    world.docker.answers["/images/json"] = lambda sock: send(
        sock,
        json.dumps([{"RepoTags": ["app:v1", "app:v2"]}, {"RepoTags": None}, {"RepoTags": ["b:v1"]}]).encode(),
    )
    assert imgfs.ok("tags", "docker-daemon:app") == "app:v1\napp:v2\n"
    mountpoint = imgfs.mount("docker-daemon:app:v1")
    assert (mountpoint / "etc/name").read_bytes() == b"one"
    imgfs.umount(mountpoint)
    assert imgfs.ok("cat", "docker-daemon:app:v1:/etc/name") == "one"
    assert world.docker.exports == 1
    said = imgfs.run("copy", "docker-daemon:app", "docker-daemon:b").complaint(2)
    assert "imgfs reads docker-daemon: only" in said
    imgfs.environment["DOCKER_HOST"] = "tcp://127.0.0.1:2375"
    assert "asks a docker at unix:///PATH only" in imgfs.run("ls", "docker-daemon:app").complaint(2)


def test_who_may_not_ask_docker_is_told(nobody: Imgfs, world: World) -> None:
    world.docker.path.chmod(0o600)
    nobody.environment["DOCKER_HOST"] = world.socket
    assert nobody.user == NOBODY
    assert "permission denied" in nobody.run("ls", "docker-daemon:app").complaint()


@needs_podman
@pytest.mark.parts
def test_podman_speaks_dockers_api(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(
        tmp_path / "layout", [gzipped(LOWER), plain(tarmake.archive(tarmake.file("a", b"a")))]
    )
    packed = write_image(tmp_path / "zstd", [zstd(LOWER)])
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        store = f"containers-storage:[vfs@{short}/p+{short}/r]h.io/app:v1"
        subprocess.run(["skopeo", "copy", "--quiet", image, store], check=True, timeout=60)
        with podman_service(Path(short)) as path:
            imgfs.environment["DOCKER_HOST"] = f"unix://{path}"
            assert imgfs.ok("ls", "docker-daemon:h.io/app:v1").split() == ["a", "etc"]
            assert imgfs.run("diff", "docker-daemon:h.io/app:v1", image).code == 0
            assert imgfs.ok("tags", "docker-daemon:h.io/app") == "h.io/app:v1\n"
            store = store.replace("app", "zstd")
            subprocess.run(["skopeo", "copy", "--quiet", packed, store], check=True, timeout=60)
            assert imgfs.ok("cat", "docker-daemon:h.io/zstd:v1:/etc/name") == "lower"  # as an OCI layout
            said = imgfs.run("ls", "docker-daemon:h.io/none").complaint()
            assert "docker-daemon:h.io/none: " in said
            assert "404" in said
        assert len(list(imgfs.store.glob("archives/*.tar"))) == 2

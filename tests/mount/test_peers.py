"""Two stores: the second mount reads what the first has cached from there, and not from the registry."""

from __future__ import annotations

import gzip
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import pytest

from imgfs.listening import ListenAddress
from imgfs.peers.server import ServerCertificates
from tests.support import tarmake as tar
from tests.support.authority import Authority, needs_openssl
from tests.support.blobs import prose
from tests.support.docker_registry import free_port
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Stored, gzipped, plain, serve, sha256, until, zstd
from tests.support.patience import allowed
from tests.support.peer import peer
from tests.support.tocmake import chunked_layer, estargz_layer

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse")]

CHANCE = random.Random(8)


@cache
def image_files() -> dict[str, bytes]:
    return {
        "usr/share/prose": prose(3_000_000, 1),
        "usr/share/noise": CHANCE.randbytes(1_500_000),
        "opt/zstd": CHANCE.randbytes(700_000),
        "srv/plain": CHANCE.randbytes(600_000),
    }


@cache
def image_layers() -> list[Stored]:
    return [
        gzipped(
            tar.archive(
                *(tar.file(name, image_files()[name]) for name in ("usr/share/prose", "usr/share/noise"))
            )
        ),
        zstd(tar.archive(tar.file("opt/zstd", image_files()["opt/zstd"])), 300_000),
        plain(tar.archive(tar.file("srv/plain", image_files()["srv/plain"]))),
    ]


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Imgfs]:
    """Another machine."""
    with closing(Imgfs(tmp_path / "second")) as other:
        yield other


def published(imgfs: Imgfs, server: FaultServer) -> str:
    """An image whose indexes are published, and which the first store has."""
    image = serve(server, "app", "v1", image_layers())
    imgfs.ok("index", "push", image)
    return image


def contents(at: Path) -> dict[str, bytes]:
    return {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}


def layer_requests(server: FaultServer, layers: list[Stored]) -> int:
    """How many requests for bytes of the layers came in, since the log was emptied."""
    digests = [layer.descriptor()["digest"] for layer in layers]
    return sum(len(server.seen(f"/blobs/{digest}")) for digest in digests)


def from_peers(imgfs: Imgfs, at: Path) -> list[bool]:
    """Whether all that was fetched of each layer came from peers."""
    return [layer["from_peers"] == layer["fetched"] > 0 for layer in imgfs.status(at)["layers"]]


def test_a_second_machine_reads_all_layers_from_the_first(
    imgfs: Imgfs, second: Imgfs, server: FaultServer
) -> None:
    image = published(imgfs, server)
    server.log.clear()
    with peer(imgfs.store) as url:
        at = second.mount(image, "--peers", url)
        assert contents(at) == image_files()
        assert from_peers(second, at) == [True, True, True]
    assert layer_requests(server, image_layers()) == 0


@needs_openssl
def test_peers_of_a_cluster_show_certificates_and_are_named_in_hosts_toml(
    imgfs: Imgfs, second: Imgfs, server: FaultServer, tmp_path: Path
) -> None:
    """What the first machine has lost, the registry brings."""
    image = published(imgfs, server)
    authority = Authority(tmp_path / "ca")
    own, theirs = authority.issue("127.0.0.1"), authority.issue("node-2")
    with peer(imgfs.store, ListenAddress("127.0.0.1", 0), ServerCertificates(authority.file, *own)) as url:
        hosts = second.directory / f"etc/containerd/certs.d/{server.host}/hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(
            f'server = "http://{server.host}"\n[peer."{url}"]\n'
            f'ca = "{authority.file}"\nclient = [["{theirs[0]}", "{theirs[1]}"]]\n'
        )
        at = second.mount(image)
        assert (at / "opt/zstd").read_bytes() == image_files()["opt/zstd"]
        server.log.clear()
        imgfs.evict(image)
        assert contents(at) == image_files()
        assert from_peers(second, at) == [False, True, False]
        assert layer_requests(server, image_layers()[1:2]) == 0
        assert layer_requests(server, image_layers()) > 0
        assert f"peer {url}" in second.ok("status", at)
        assert "of it by peers" in second.ok("status", at)


@needs_openssl
def test_files_for_peers_may_be_named_from_here(
    imgfs: Imgfs, second: Imgfs, server: FaultServer, tmp_path: Path
) -> None:
    image = published(imgfs, server)
    authority = Authority(tmp_path / "ca")
    files = (authority.file, *authority.issue("127.0.0.1"))
    names = [os.path.relpath(file) for file in files]
    port = free_port()
    options = ("--peer-ca", names[0], "--peer-cert", names[1], "--peer-key", names[2])
    second.environment.update(zip(("IMGFS_PEER_CA", "IMGFS_PEER_CERT", "IMGFS_PEER_KEY"), names, strict=True))
    server.log.clear()
    with serving(imgfs, f"127.0.0.1:{port}", *options):
        at = second.mount(image, "--peers", f"https://127.0.0.1:{port}")
        assert contents(at) == image_files()
        assert from_peers(second, at) == [True, True, True]
    assert layer_requests(server, image_layers()) == 0


@contextmanager
def serving(imgfs: Imgfs, address: str = "", *more: str) -> Iterator[tuple[str, int]]:
    """`imgfs serve --peer`: where it answers, and its pid."""
    place = address or f"unix:{imgfs.directory}/peer"
    words = ("serve", "--socket", str(imgfs.directory / "serve"), "--peer", place, *more)
    log = imgfs.directory / "serve.log"
    with log.open("wb") as said:
        running = imgfs.start(*words, stdout=subprocess.DEVNULL, stderr=said)
    until(
        lambda: (imgfs.directory / "serve").exists() or running.poll() is not None, "the server to be ready"
    )
    assert running.poll() is None, log.read_text()
    yield place, running.pid
    running.terminate()
    running.wait(allowed(20))
    assert not (imgfs.directory / "peer").exists()


def child_of(pid: int) -> int | None:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else None


def test_what_is_not_published_comes_from_a_peer_and_once_evicted_comes_back_from_it(
    imgfs: Imgfs, second: Imgfs, server: FaultServer
) -> None:
    """The first machine's scan serves both."""
    image = serve(server, "app", "v1", image_layers())
    imgfs.umount(imgfs.mount(image))
    server.log.clear()
    with serving(imgfs) as (place, pid):
        second.environment["IMGFS_PEERS"] = place
        second.umount(second.mount(image, "--index", "none"))  # as containerd's snapshotter has it
        assert layer_requests(server, image_layers()) == 0
        second.evict(image)
        until(lambda: child_of(pid), "the process that answers peers")
        killed = child_of(pid)
        assert killed
        os.kill(killed, signal.SIGKILL)
        until(lambda: child_of(pid) not in (None, killed), "another one")
        server.log.clear()
        at = second.mount(image)
        assert contents(at) == image_files()
        assert from_peers(second, at) == [True, True, True]
    assert layer_requests(server, image_layers()) == 0


def test_peers_beyond_this_machine_need_certificates(imgfs: Imgfs) -> None:
    for words, complaint in (
        (["0.0.0.0:0"], "must show a certificate"),
        (["0.0.0.0:0", "--peer-ca", "/nowhere"], "belong together"),
        (["0.0.0.0:0", "--peer-ca", "/nowhere", "--peer-cert", "/nowhere"], "/nowhere: cannot be read"),
        (["7117/x"], "is not an address"),
    ):
        ran = imgfs.program(sys.executable, "-m", "imgfs", "serve", "--peer", *words)
        assert complaint in ran.complaint(2)


@pytest.mark.parametrize("kind", ["estargz", "zstd:chunked"])
def test_a_table_of_contents_has_digests_for_peers_itself(
    imgfs: Imgfs, second: Imgfs, server: FaultServer, kind: str
) -> None:
    body = tar.archive(*(tar.file(name, body) for name, body in image_files().items()))
    made = (estargz_layer if kind == "estargz" else chunked_layer)(body, chunk=1 << 18)
    flat = gzip.decompress(made.blob) if kind == "estargz" else body
    layer = Stored(made.blob, sha256(flat), made.layer.media_type, annotations=made.layer.annotations)
    image = serve(server, "app", "v1", [layer])
    first = imgfs.mount(image)
    assert contents(first) == image_files()
    with peer(imgfs.store) as url:
        at = second.mount(image, "--peers", url)
        server.log.clear()
        assert contents(at) == image_files()
        assert from_peers(second, at) == [True]
    assert layer_requests(server, [layer]) == 0

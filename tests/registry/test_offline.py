"""Images without their registry: what the store can stand in for, how long that takes, and what is said."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from imgfs.cli.format import ago
from imgfs.cli.fstab import mount_arguments
from imgfs.errors import Unavailable
from imgfs.image.resolve import resolve, resolve_earlier
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.oci.image import OCI_INDEX
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.store.store import Store
from imgfs.transport.connect import OfflineSource
from imgfs.transport.source import UNKNOWN_SIZE
from tests.support import tarmake as tar
from tests.support.docker_registry import docker_registry, needs_docker_registry, push_image
from tests.support.fake_source import FakeSource, add_image, add_index
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    Imgfs,
    Ran,
    Wire,
    drop_caches,
    errno_of,
    gzipped,
    plain,
    serve,
    until,
    write_image,
    zstd,
)
from tests.support.patience import allowed

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")
APP = parse_reference("registry.test/app:1")


@cache
def noise_body() -> bytes:
    return random.Random(5).randbytes(1 << 20)


@cache
def image_files() -> dict[str, bytes]:
    return {"first": b"first " * 1000, "padding": noise_body() * 6, "last": noise_body()}


@cache
def image_layer() -> bytes:
    return tar.archive(*(tar.file(name, body) for name, body in image_files().items()))


GONE = "(ERROR|WARNING) .*(refused|timed out|Connection reset|cut short|no answer|nothing arrived)"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="drops the kernel's caches")


# -- what the store knows ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def image_of(source: FakeSource, body: bytes) -> Descriptor:
    return add_image(source, [tar.archive(tar.file("file", body))])


def test_an_earlier_resolution_is_the_last_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(APP, RegistryReference)
    source = FakeSource()
    assert resolve_earlier(APP, store, AMD64) is None
    for moment, body in ((1e9, b"old"), (3e9, b"new"), (2e9, b"between")):
        image_of(source, body)
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        last = resolve(str(APP), source, store, AMD64)
    earlier = resolve_earlier(APP, store, AMD64)
    assert earlier
    assert earlier.resolved == last


def test_an_earlier_resolution_is_one_for_the_platform(store: Store) -> None:
    """A tag resolved later, for another platform, may mean an index whose other images are not here."""
    assert isinstance(APP, RegistryReference)
    source = FakeSource()
    first = add_index(source, image_of(source, b"old"))
    resolve(str(APP), source, store, AMD64)
    amd64, arm64 = image_of(source, b"new amd64"), image_of(source, b"new arm64")
    source.root = source.add(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [entry(amd64, AMD64), entry(arm64, ARM64)],
            }
        ).encode(),
        OCI_INDEX,
    )
    resolve(str(APP), source, store, ARM64)
    earlier, later = resolve_earlier(APP, store, AMD64), resolve_earlier(APP, store, ARM64)
    assert earlier
    assert later
    assert earlier.resolved.named == first.digest
    assert (later.resolved.named, later.resolved.digest) == (source.root.digest, arm64.digest)


def entry(descriptor: Descriptor, platform: Platform) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
        "platform": {"os": platform.os, "architecture": platform.architecture},
    }


def test_a_resolution_whose_documents_are_gone_does_not_count(store: Store) -> None:
    assert isinstance(APP, RegistryReference)
    source = FakeSource()
    image_of(source, b"body")
    resolved = resolve(str(APP), source, store, AMD64)
    store.remove_document(resolved.manifest.config.digest)
    assert resolve_earlier(APP, store, AMD64) is None


def test_looking_back_is_no_resolution(store: Store) -> None:
    assert isinstance(APP, RegistryReference)
    source = FakeSource()
    image_of(source, b"body")
    resolve(str(APP), source, store, AMD64)
    before = list(store.resolutions())
    assert resolve_earlier(APP, store, AMD64)
    assert list(store.resolutions()) == before


def test_the_resolutions_of_a_reference_are_its_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    for moment, (name, digest) in enumerate((("app:1", one), ("app:2", one), ("app:1", two)), 1):
        monkeypatch.setattr(time, "time", lambda moment=moment: float(moment))
        store.put_resolution(name, digest, digest)
    assert [(each.manifest, each.resolved) for each in store.resolved("app:1")] == [(two, 3.0), (one, 1.0)]
    assert store.resolved("app:3") == []


def test_an_offline_source_has_nothing_but_what_descriptors_carry() -> None:
    assert isinstance(APP, RegistryReference)
    source = OfflineSource(APP)
    digest = Digest.of(b"body")
    absent = Descriptor("", digest, 4)
    for ask in (
        source.resolve,
        lambda: source.document(absent),
        lambda: list(source.blob(absent)),
        lambda: source.tagged("2"),
    ):
        with pytest.raises(Unavailable, match=r"^offline: registry.test/app:1: .* not in the store"):
            ask()
    carried = Descriptor("", digest, 4, data=b"body")
    assert (source.document(carried), list(source.blob(carried, 1, 3))) == (b"body", [b"od"])
    assert source.referrers(digest) == []
    assert (tuple(source.traffic()), source.health()) == ((0, 0), [])
    pinned = RegistryReference("registry.test", "app", None, digest)
    assert OfflineSource(pinned).resolve() == Descriptor("", digest, UNKNOWN_SIZE)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0.5, "just now"),
        (1, "1 second ago"),
        (59.9, "59 seconds ago"),
        (60, "1 minute ago"),
        (3 * 3600 + 100, "3 hours ago"),
        (86400, "1 day ago"),
        (400 * 86400, "400 days ago"),
    ],
)
def test_an_age_is_said_in_its_largest_unit(seconds: float, text: str) -> None:
    assert ago(seconds) == text


# -- commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def wire(server: FaultServer) -> Iterator[Wire]:
    with Wire(server.host) as line:
        yield line


@pytest.fixture
def image(server: FaultServer, wire: Wire) -> str:
    return serve(server, "app", "v1", [zstd(image_layer(), 1 << 18)], wire.host)


def age(imgfs: Imgfs, seconds: float) -> None:
    """Make everything that was resolved older."""
    for path in imgfs.store.glob("references/*.json"):
        fields = json.loads(path.read_text())
        path.write_text(json.dumps({**fields, "resolved": fields["resolved"] - seconds}))


def mounted(imgfs: Imgfs, *arguments: str) -> tuple[Path, Ran]:
    """A mount that may have something to say."""
    at = imgfs.mountpoint()
    ran = imgfs.run("mount", *arguments, at)
    assert ran.code == 0, ran
    imgfs.watch(at)
    return at, ran


def test_offline_asks_nobody_and_says_how_old_its_answer_is(
    imgfs: Imgfs, server: FaultServer, image: str
) -> None:
    imgfs.ok("ls", image)
    age(imgfs, 3 * 3600 + 60)
    server.log.clear()
    for command in (["ls", "--offline", image], ["cat", "--offline", image, "first"]):
        ran = imgfs.run(*command)
        assert (ran.code, ran.err) == (0, f"imgfs: offline: using {image} as resolved 3 hours ago\n")
    assert ran.out == image_files()["first"]
    assert json.loads(imgfs.run("inspect", "--offline", "--json", image).out)["reference"] == image
    assert server.log == []


@pytest.mark.parametrize("how", ["cut", "stall"])
def test_a_registry_that_is_away_is_done_without_soon(imgfs: Imgfs, wire: Wire, image: str, how: str) -> None:
    imgfs.ok("ls", image)
    age(imgfs, 120)
    getattr(wire, how)()
    began = time.monotonic()
    ran = imgfs.run("ls", image)
    took = time.monotonic() - began
    assert (ran.code, ran.text.split()) == (0, sorted(image_files()))
    (line,) = ran.err.splitlines()
    assert line.startswith(f"imgfs: warning: its registry cannot be reached (http://{wire.host}/v2/app/")
    assert line.endswith(f"; using {image} as resolved 2 minutes ago")
    assert took < (6 if how == "cut" else 12)  # with patience it would be 8 and 30


def test_a_registry_that_asks_to_come_back_later_is_away(
    imgfs: Imgfs, server: FaultServer, image: str
) -> None:
    imgfs.ok("ls", image)
    server.inject(Fault(status=429, headers={"Retry-After": "3600"}, body=b""), method="HEAD", times=9)
    ran = imgfs.run("ls", image)
    assert (ran.code, ran.err.count("as resolved")) == (0, 1)


@pytest.mark.parametrize(("status", "says"), [(401, "credentials"), (403, "403"), (404, "no tag")])
def test_a_registry_that_refuses_is_not_away(
    imgfs: Imgfs, server: FaultServer, image: str, status: int, says: str
) -> None:
    imgfs.ok("ls", image)
    body = b'{"errors": [{"code": "DENIED", "message": "access denied"}]}'
    server.inject(Fault(status=status, body=body), on="/manifests/", times=9)
    assert says in imgfs.run("ls", image).complaint()


def test_what_was_never_resolved_is_one_line(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    said = imgfs.run("ls", "--offline", image).complaint()
    assert said.startswith(f"offline: {image}: what it names is not in the store")
    assert "imgfs pull" in said
    assert server.log == []


def test_what_is_not_whole_is_one_line(imgfs: Imgfs, wire: Wire, image: str) -> None:
    imgfs.ok("inspect", image)  # documents only
    age(imgfs, 60)
    ran = imgfs.run("ls", "--offline", image)
    assert (ran.code, len(ran.err.splitlines())) == (1, 2)
    assert ran.err.splitlines()[1].startswith(f"imgfs: offline: {image}: bytes 0-")
    wire.cut()
    began = time.monotonic()
    ran = imgfs.run("ls", image)
    assert ran.code == 1
    assert "not all of the image is in the store, and its registry cannot be reached" in ran.err
    assert time.monotonic() - began < allowed(12)


def test_a_command_about_the_registry_itself_does_not_look_back(imgfs: Imgfs, wire: Wire, image: str) -> None:
    imgfs.ok("ls", image)
    wire.cut()
    assert "refused" in imgfs.run("index", "ls", "--read-timeout", "1", image).complaint()


def test_a_layout_is_read_offline_as_ever(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [plain(image_layer())])
    assert imgfs.ok("cat", "--offline", image, "first").encode() == image_files()["first"]


def test_to_fill_offline_is_a_contradiction(imgfs: Imgfs, image: str) -> None:
    said = imgfs.run("mount", "--offline", "--fill", image, imgfs.mountpoint()).complaint(2)
    assert "--fill" in said


# -- mounts --------------------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_mount_of_what_is_all_in_the_store_never_asks_by_digest(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [gzipped(image_layer())])
    digest = json.loads(imgfs.ok("inspect", "--json", image))["digest"]
    pinned = f"{server.host}/app@{digest}"
    imgfs.ok("ls", pinned)
    server.log.clear()
    at = imgfs.mount(pinned)
    assert {path.name: path.read_bytes() for path in at.iterdir()} == image_files()
    imgfs.umount(at)
    assert server.log == []


@pytest.mark.kernel
def test_a_mount_of_what_is_all_in_the_store_asks_by_tag_for_one_head(
    imgfs: Imgfs, server: FaultServer
) -> None:
    image = serve(server, "app", "v1", [gzipped(image_layer())])
    imgfs.ok("ls", image)
    server.log.clear()
    at = imgfs.mount(image)
    assert {path.name: path.read_bytes() for path in at.iterdir()} == image_files()
    imgfs.umount(at)
    assert [(one.method, one.path) for one in server.log] == [("HEAD", "/v2/app/manifests/v1")]


@pytest.mark.kernel
def test_a_tag_that_has_moved_is_followed_again_once_its_registry_is_back(
    imgfs: Imgfs, server: FaultServer, wire: Wire
) -> None:
    for body in (b"old", b"new"):
        image = serve(server, "app", "v1", [gzipped(tar.archive(tar.file("version", body)))], wire.host)
        if body == b"old":
            assert imgfs.ok("cat", image, "version") == "old"
    wire.cut()
    at, _ = mounted(imgfs, image)
    assert (at / "version").read_bytes() == b"old"
    imgfs.umount(at)
    wire.mend()
    at = imgfs.mount(image)
    assert (at / "version").read_bytes() == b"new"
    imgfs.umount(at)


@pytest.mark.kernel
@needs_root
def test_a_partly_cached_image_is_mounted_offline_and_heals_when_its_registry_returns(
    imgfs: Imgfs, wire: Wire, image: str
) -> None:
    imgfs.expected.append(GONE)
    partly_cached(imgfs, image)
    wire.cut()
    at, ran = mounted(imgfs, image, "--read-timeout", "1")
    assert "cannot be reached" in ran.err
    assert (at / "first").read_bytes() == image_files()["first"]
    began = time.monotonic()
    assert errno_of(lambda: (at / "last").read_bytes()) == errno.EIO
    assert time.monotonic() - began < allowed(20)
    wire.mend()
    until(lambda: read(at / "last") == image_files()["last"], "it heals")
    imgfs.umount(at)
    assert any("EIO: /last: " in line and "refused" in line for line in imgfs.logged())


@pytest.mark.kernel
@needs_root
def test_a_mount_told_to_be_offline_never_asks(imgfs: Imgfs, server: FaultServer, image: str) -> None:
    imgfs.expected.append("ERROR .*EIO: /last: .*offline")
    partly_cached(imgfs, image)
    server.log.clear()
    at, _ = mounted(imgfs, "--offline", image)
    assert (at / "first").read_bytes() == image_files()["first"]
    for _ in range(2):
        assert errno_of(lambda: (at / "last").read_bytes()) == errno.EIO
    assert imgfs.status(at)["requests_fetched"] == 0
    imgfs.umount(at)
    assert server.log == []
    assert any("EIO: /last: " in line and f"offline: {image}" in line for line in imgfs.logged())


def partly_cached(imgfs: Imgfs, image: str) -> None:
    """Have the image's first file in the store, and not the last."""
    at = imgfs.mount(image, "--replay", "none")
    imgfs.evict(image)
    assert (at / "first").read_bytes() == image_files()["first"]
    imgfs.umount(at)
    drop_caches()


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def test_mount_8_can_be_told_to_be_offline() -> None:
    assert "--offline" in mount_arguments(["app:v1", "/mnt", "-o", "ro,offline"])


@pytest.mark.kernel
@pytest.mark.parts
@needs_docker_registry
def test_a_real_registry_that_has_been_stopped_is_done_without(imgfs: Imgfs, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as host:
        pushed = push_image(host, "team/app", "v1", [gzipped(image_layer()).blob])
        image = f"{host}/team/app:v1"
        imgfs.umount(imgfs.mount(image))
    at, ran = mounted(imgfs, image)
    assert ran.err.endswith(f"; using {image} as resolved just now\n") or "second" in ran.err
    assert imgfs.status(at)["digest"] == str(pushed.manifest.digest)
    assert {path.name: path.read_bytes() for path in at.iterdir()} == image_files()
    imgfs.umount(at)
    assert (
        imgfs.ok("cat", f"{host}/team/app@{pushed.manifest.digest}", "first").encode()
        == image_files()["first"]
    )

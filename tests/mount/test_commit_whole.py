"""A committed image, whole: what is written, what is refused, and that others can use it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imgfs.commit import BaseImage, Committed, Record, commit
from imgfs.errors import InvalidImage, StoreError, UsageError
from imgfs.layer.entry import Entry, Kind
from imgfs.layer.tar.writer import Member
from imgfs.oci.change import parse_change, truncate
from imgfs.oci.descriptor import Digest
from imgfs.oci.image import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST
from tests.support.mounted import Documents, Imgfs, documents, gzipped, write_documents
from tests.support.patience import allowed
from tests.support.tarmake import archive, directory, file
from tests.support.umoci_oracle import unpack_layout, walk_directory

RECORD = Record(datetime(2024, 5, 6, tzinfo=UTC), "imgfs commit", "me", "a message")
LOWER = gzipped(
    archive(directory("etc/"), file("etc/a", b"lower a"), file("etc/b", b"lower b"), file("gone", b"g"))
)
T = 1_600_000_000_123_456_789
MEMBERS: list[Member] = [
    (Entry(b".wh.gone", Kind.FILE, 0, 0, 0, 0, 0), ()),
    (Entry(b"etc", Kind.DIRECTORY, 0o750, 1, 2, 0, T), ()),
    (
        Entry(b"etc/a", Kind.FILE, 0o6711, 70000, 3_000_000_000, 7, T, xattrs={b"user.x": b"\0\xff"}),
        [b"upper", b" a"],
    ),
    (Entry("etc/ü".encode(), Kind.SYMLINK, 0o777, 0, 0, 0, T, b"a"), ()),
    (Entry(b"etc/z", Kind.HARDLINK, 0o6711, 70000, 3_000_000_000, 0, T, b"etc/a"), ()),
]


def base_of(made: Documents) -> BaseImage:
    return BaseImage(made.manifest, made.config)


def based() -> BaseImage:
    return base_of(documents([LOWER], {"architecture": "amd64", "os": "linux", "config": {"Env": ["A=1"]}}))


def docker_base() -> BaseImage:
    """The same image as Docker writes it."""
    fields = json.loads(based().manifest)
    fields["mediaType"] = DOCKER_MANIFEST
    fields["config"]["mediaType"] = DOCKER_CONFIG
    fields["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    return BaseImage(json.dumps(fields).encode(), based().config)


def blobs_of(base: BaseImage, made: Committed) -> dict[str, bytes]:
    """All that the new image needs, without its manifest."""
    layer = {str(made.layer.digest): made.layer_path.read_bytes()} if made.layer and made.layer_path else {}
    return {str(made.config_descriptor.digest): made.config, str(Digest.of(LOWER.blob)): LOWER.blob, **layer}


def put(layout: Path, base: BaseImage, made: Committed) -> str:
    """Put the new image into an OCI layout; its reference."""
    claims = {"mediaType": made.manifest_descriptor.media_type}
    return write_documents(layout, made.manifest, blobs_of(base, made), "new", **claims)


@pytest.mark.parametrize(("codec", "kind"), [("gzip", "tar+gzip"), ("zstd", "tar+zstd")])
def test_descriptors_are_those_of_what_was_made(tmp_path: Path, codec: str, kind: str) -> None:
    made = commit(MEMBERS, based(), tmp_path, record=RECORD, codec=codec)
    assert made.layer
    assert made.layer_path
    blob = made.layer_path.read_bytes()
    assert (made.layer.digest, made.layer.size) == (Digest.of(blob), len(blob))
    assert made.layer.media_type == f"application/vnd.oci.image.layer.v1.{kind}"
    assert list(tmp_path.iterdir()) == [made.layer_path]
    assert made.layer_path.name == made.layer.digest.hex
    assert (made.config_descriptor.digest, made.config_descriptor.size) == (
        Digest.of(made.config),
        len(made.config),
    )
    assert made.config_descriptor.media_type == OCI_CONFIG
    assert made.manifest_descriptor.digest == Digest.of(made.manifest)
    assert made.manifest_descriptor.size == len(made.manifest)
    assert made.manifest_descriptor.media_type == OCI_MANIFEST
    manifest = json.loads(made.manifest)
    assert manifest["layers"][:-1] == json.loads(based().manifest)["layers"]
    assert manifest["layers"][-1]["digest"] == str(made.layer.digest)
    assert manifest["config"]["digest"] == str(made.config_descriptor.digest)


def test_the_history_tells_of_the_commit(tmp_path: Path) -> None:
    made = commit(MEMBERS, based(), tmp_path, record=RECORD, changes=[parse_change("ENV B=$A")])
    config = json.loads(made.config)
    told = {"created_by": "imgfs commit", "author": "me", "comment": "a message"}
    assert config["history"] == [{}, {"created": "2024-05-06T00:00:00Z", **told}]
    assert config["config"]["Env"] == ["A=1", "B=1"]
    assert len(config["rootfs"]["diff_ids"]) == 2


def test_the_same_commit_makes_the_same_image(tmp_path: Path) -> None:
    places = [tmp_path / "1", tmp_path / "2"]
    for place in places:
        place.mkdir()
    one, other = (commit(MEMBERS, based(), place, record=RECORD) for place in places)
    assert one.manifest == other.manifest
    again = commit(MEMBERS, based(), places[0], record=RECORD)
    assert again == one
    assert len(list(places[0].iterdir())) == 1


def test_nothing_changed_makes_an_image_with_no_new_layer(tmp_path: Path) -> None:
    made = commit([], based(), tmp_path, record=RECORD)
    assert (made.layer, made.layer_path) == (None, None)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(made.manifest)["layers"] == json.loads(based().manifest)["layers"]
    config = json.loads(made.config)
    assert config["history"][-1]["empty_layer"] is True
    assert config["rootfs"] == json.loads(based().config)["rootfs"]


def test_a_docker_image_stays_one_unless_its_layer_is_zstd(tmp_path: Path) -> None:
    made = commit(MEMBERS, docker_base(), tmp_path, record=RECORD)
    assert made.manifest_descriptor.media_type == DOCKER_MANIFEST
    assert made.config_descriptor.media_type == DOCKER_CONFIG
    assert made.layer
    assert made.layer.media_type == "application/vnd.docker.image.rootfs.diff.tar.gzip"
    made = commit(MEMBERS, docker_base(), tmp_path, record=RECORD, codec="zstd")
    assert made.manifest_descriptor.media_type == OCI_MANIFEST
    assert made.config_descriptor.media_type == OCI_CONFIG
    assert json.loads(made.manifest)["layers"][0]["mediaType"].endswith("oci.image.layer.v1.tar+gzip")


def test_annotations_of_the_record_are_the_manifests(tmp_path: Path) -> None:
    record = Record(RECORD.created, annotations={"org.opencontainers.image.base.name": "reg/app:1"})
    made = commit([], based(), tmp_path, record=record)
    assert json.loads(made.manifest)["annotations"] == {"org.opencontainers.image.base.name": "reg/app:1"}


def untouchable() -> Iterator[Member]:
    """Members nobody may ask for."""
    raise AssertionError("a member was asked for")
    yield


@pytest.mark.parametrize(
    ("base", "more", "error", "said"),
    [
        (based(), {"changes": [parse_change("EXPOSE $PORT")]}, UsageError, "'' is not a port"),
        (based(), {"record": Record(RECORD.created, message="caf\udce9")}, UsageError, "not UTF-8"),
        (BaseImage(b"{}", based().config), {}, InvalidImage, "neither an image manifest"),
        (BaseImage(b'{"manifests": []}', based().config), {}, InvalidImage, "an index"),
        (BaseImage(based().manifest, b"{}"), {}, InvalidImage, "config.rootfs"),
        (BaseImage(based().manifest, b'{"rootfs": {}}'), {}, InvalidImage, "0 DiffIDs for 1 layers"),
    ],
)
def test_what_cannot_become_an_image_is_refused_before_the_members(
    tmp_path: Path, base: BaseImage, more: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        commit(untouchable(), base, tmp_path, **{"record": RECORD, **more})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'xz'"):
        commit(MEMBERS, based(), tmp_path, record=RECORD, codec="xz")
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def vanishing() -> Iterator[bytes]:
        yield b"x"
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.raises(OSError, match="Stale"):
        commit([MEMBERS[0], (MEMBERS[2][0], vanishing())], based(), tmp_path, record=RECORD)
    with pytest.raises(InvalidImage, match=r"^etc/a: has 1 bytes, 6 fewer"):
        commit([(MEMBERS[2][0], [b"x"])], based(), tmp_path, record=RECORD)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(StoreError, match=f"^{missing}: the layer cannot be written: No such file"):
        commit(MEMBERS, based(), missing, record=RECORD)


@pytest.mark.kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(10_000))
        member = (Entry(b"f", Kind.FILE, 0, 0, 0, len(noise), 0), [noise])
        with pytest.raises(StoreError, match="the layer cannot be written: No space left on device"):
            commit([member], based(), tmp_path, record=RECORD)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_imgfs_reads_the_image_back(tmp_path: Path, imgfs: Imgfs, codec: str) -> None:
    made = commit(MEMBERS, docker_base(), tmp_path, record=RECORD, codec=codec)
    reference = put(tmp_path / "layout", docker_base(), made)
    listed = imgfs.ok("ls", "-R", reference)
    assert "gone" not in listed
    assert "ü" in listed
    assert imgfs.ok("cat", reference, "etc/a") == "upper a"
    assert imgfs.ok("cat", reference, "etc/b") == "lower b"


def test_an_earlier_image_is_read_back_too(tmp_path: Path, imgfs: Imgfs) -> None:
    made = commit(MEMBERS, based(), tmp_path, record=RECORD)
    manifest, config = truncate(made.manifest, made.config, 1)
    blobs = {str(Digest.of(config)): config, **blobs_of(based(), made)}
    reference = write_documents(tmp_path / "layout", manifest, blobs, "earlier")
    assert imgfs.ok("cat", reference, "etc/a") == "lower a"
    assert imgfs.ok("cat", reference, "gone") == "g"


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="owners need root")
def test_umoci_unpacks_the_image(tmp_path: Path) -> None:
    made = commit(MEMBERS, based(), tmp_path, record=RECORD)
    put(tmp_path / "layout", based(), made)
    seen = walk_directory(unpack_layout(tmp_path / "layout", "new", tmp_path / "bundle"))
    assert seen.keys() == {b"", b"etc", b"etc/a", b"etc/b", b"etc/z", "etc/ü".encode()}
    assert (seen[b"etc"].mode, seen[b"etc"].uid, seen[b"etc"].mtime_ns) == (0o40750, 1, T)
    assert (seen[b"etc/a"].uid, seen[b"etc/a"].gid, seen[b"etc/a"].mode) == (70000, 3_000_000_000, 0o106711)
    assert seen[b"etc/a"].content == hashlib.sha256(b"upper a").digest()
    assert seen[b"etc/a"].xattrs == ((b"user.x", b"\0\xff"),)
    assert seen[b"etc/z"].group == b"etc/a"


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_skopeo_takes_the_image(tmp_path: Path, codec: str) -> None:
    changes = [parse_change(text) for text in ("CMD x", "EXPOSE 80", "LABEL a=b", "WORKDIR /etc", "USER 1:2")]
    made = commit(MEMBERS, based(), tmp_path, record=RECORD, changes=changes, codec=codec)
    reference = put(tmp_path / "layout", based(), made)

    def skopeo(*words: str | Path) -> str:
        command = ["skopeo", "--insecure-policy", *words]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=allowed(60))
        assert done.returncode == 0, done.stderr
        return done.stdout

    config = json.loads(skopeo("inspect", "--config", reference))
    assert config["config"]["Cmd"] == ["/bin/sh", "-c", "x"]
    assert config["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert (config["author"], config["history"][-1]["comment"]) == ("me", "a message")
    assert json.loads(skopeo("inspect", reference))["Labels"] == {"a": "b"}
    skopeo("copy", reference, f"dir:{tmp_path / 'copied'}")
    if codec == "gzip":  # schema 2 has no zstd, and skopeo does not pack anew for it
        skopeo("copy", "--format", "v2s2", reference, f"dir:{tmp_path / 'docker'}")

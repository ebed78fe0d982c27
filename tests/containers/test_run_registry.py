"""Containers of images in a registry: what is asked of it before one starts."""

from __future__ import annotations

import json
import os

import pytest

from tests.support import tarmake as tar
from tests.support.containers import busybox_layer, has_static_busybox
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import Imgfs, documents, gzipped
from tests.support.patience import allowed

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="as root, where both drivers are"),
    pytest.mark.skipif(not has_static_busybox(), reason="there is no static busybox"),
]


def publish(server: FaultServer, version: bytes) -> str:
    """An image that says what it is, in a file and in its config; its reference."""
    layer = gzipped(tar.archive(tar.file("version", version)))
    config = {"config": {"Env": ["PATH=/bin", f"VERSION={version.decode()}"]}}
    made = documents([busybox_layer(), layer], config)
    server.blobs.update(made.blobs)
    server.add_manifest("team/app", "v1", made.manifest)
    return f"{server.host}/team/app:v1"


def said(imgfs: Imgfs, image: str, *options: str) -> str:
    ran = imgfs.run("run", *options, image, "sh", "-c", "echo $(cat /version) $VERSION")
    assert ran.code == 0, ran
    return ran.out.decode().strip()


@pytest.mark.parametrize("options", [(), ("--driver=fuse",), ("--scratch=work",)])
def test_a_container_is_of_what_its_tag_means_now(
    imgfs: Imgfs, server: FaultServer, options: tuple[str, ...]
) -> None:
    image = publish(server, b"old")
    assert [said(imgfs, image, *options) for _ in range(2)] == ["old old", "old old"]
    publish(server, b"new")
    if "--scratch=work" in options:  # it lies on what it was made on
        imgfs.run("scratch", "reset", "work")
    assert [said(imgfs, image, *options) for _ in range(2)] == ["new new", "new new"]
    assert list((imgfs.store / "containers").glob("*")) == []


def test_an_image_that_is_here_costs_one_request_for_its_tag_and_none_for_a_digest(
    imgfs: Imgfs, server: FaultServer
) -> None:
    image = publish(server, b"here")
    assert said(imgfs, image) == "here here"
    said(imgfs, image)  # by now all that it reads is here, whichever way
    before = len(server.seen("/"))
    assert said(imgfs, image) == "here here"
    assert [seen.method for seen in server.seen("/")[before:]] == ["HEAD"]
    digest = json.loads(imgfs.run("inspect", "--json", image).out)["digest"]
    named = f"{image.rpartition(':')[0]}@{digest}"
    before = len(server.seen("/"))
    assert said(imgfs, named) == said(imgfs, image, "--offline") == "here here"
    assert server.seen("/")[before:] == []


def test_a_registry_that_is_away_is_said_so_and_its_tag_means_what_it_meant(
    imgfs: Imgfs, server: FaultServer
) -> None:
    image = publish(server, b"here")
    assert said(imgfs, image) == "here here"
    server.inject(Fault(status=503), times=100)
    ran = imgfs.run("run", image, "cat", "/version")
    assert (ran.code, ran.out) == (0, b"here")
    assert "its registry cannot be reached" in ran.err
    assert ran.err.count("\n") == 1


BARE_DEV = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec"


def test_where_there_is_no_fuse_it_ends_at_once_although_a_process_waits_to_ask_the_registry(
    imgfs: Imgfs, server: FaultServer
) -> None:
    image = publish(server, b"here")
    said(imgfs, image)
    words = imgfs.command("run", "--driver", "fuse", image, "sh", "-c", "true")
    ran = imgfs.program("unshare", "-m", "sh", "-c", f'{BARE_DEV} "$@"', "sh", *words, timeout=allowed(30))
    assert (ran.code, ran.text) == (125, "")
    assert ran.err.startswith("imgfs: /dev/fuse is missing: load the kernel's fuse module")
    assert list((imgfs.store / "containers").glob("*")) == []

"""Volumes with names: filled, shared, kept, and not removed while they are used."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path

import pytest

from imgfs.cli.pages import _completions
from imgfs.runtime.bundle import Bundle
from imgfs.runtime.named_volumes import NamedVolume
from tests.support import containers
from tests.support import tarmake as tar
from tests.support.containers import RUNTIMES, busybox, busybox_layer, shell, traces
from tests.support.mounted import Imgfs, gzipped, until, write_image

pytestmark = containers.marks
layout, image, run = containers.layout, containers.image, containers.run


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_volume_begins_with_the_images_files_and_is_kept(run: Imgfs, image: str, runtime: str) -> None:
    options = ("--runtime", runtime, "-v", "data:/srv")
    look = "cat /srv/file; stat -c ' %u:%g %a' /srv /srv/file; echo new >/srv/file; touch /srv/more"
    assert shell(run, image, look, *options).text.splitlines() == ["of the image 33:34 750", " 33:34 600"]
    again = shell(run, image, "cat /srv/file; rm /srv/file", *options)
    assert (again.code, again.text, again.err) == (0, "new\n", "")
    assert shell(run, image, "ls /srv", *options).text == "more\n"  # filled once only
    refused = shell(run, image, "touch /srv/x", "-v", "data:/srv:ro")
    assert "Read-only" in refused.err
    written = ("--mount", "type=volume,src=data,dst=/srv")
    flags = shell(run, image, "busybox grep ' /srv ' /proc/self/mountinfo", *written)
    assert {"nosuid", "nodev"} <= set(flags.text.split()[5].split(","))
    assert run.ok("volume", "ls", "-q") == "data\n"
    found = json.loads(run.ok("volume", "inspect", "data"))[0]
    assert Path(found["Mountpoint"], "more").exists()
    assert run.ok("volume", "rm", "data") == "data\n"
    assert run.ok("volume", "ls", "-q") == ""


def test_one_process_at_a_time_fills_a_volume(tmp_path: Path) -> None:
    """The first one's container may run by the time the second looks, and change paths while it copies."""
    (tmp_path / "image").mkdir()
    (tmp_path / "image/file").write_text("of the image")
    volume = NamedVolume.make(tmp_path, "data")
    with (volume.directory / "empty").open() as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second = threading.Thread(target=volume.fill, args=(tmp_path / "image",))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        (volume.directory / "empty").unlink()
    second.join(30)
    assert list(volume.data.iterdir()) == []


def test_a_volume_that_was_being_filled_when_its_process_was_killed_is_filled_anew(tmp_path: Path) -> None:
    """Half of the files are not taken for all of them; but what was put there by hand before stays alone."""
    image = tmp_path / "image"
    image.mkdir()
    (image / "first").write_text("of the image")
    half, by_hand = NamedVolume.make(tmp_path, "half"), NamedVolume.make(tmp_path, "by-hand")
    (half.directory / "empty").write_bytes(b"begun")
    for volume in (half, by_hand):
        (volume.data / "left").write_text("half")
        volume.fill(image)
        volume.fill(image)
    assert [path.name for path in half.data.iterdir()] == ["first"]
    assert [path.name for path in by_hand.data.iterdir()] == ["left"]


def test_however_deep_a_container_made_it_what_it_has_left_is_removed(tmp_path: Path) -> None:
    """Deeper than Python calls, and than a path is long."""
    volume = NamedVolume.make(tmp_path, "data")
    bundle = Bundle(tmp_path / "containers/box")
    bundle.directory.mkdir(parents=True)
    for place in (volume.data, bundle.directory):
        at = os.open(place, os.O_RDONLY)
        for _ in range(2500):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
    volume.remove(tmp_path)
    bundle.remove()
    assert not volume.directory.exists()
    assert not bundle.directory.exists()


def test_no_device_of_an_image_gets_into_a_volume(run: Imgfs, layout: Path) -> None:
    zero = tar.device("dev2/zero", "c", 1, 5, mode=0o666)
    layer = gzipped(tar.archive(tar.directory("dev2"), zero, tar.file("dev2/file", b"x")))
    image = write_image(layout, [busybox_layer(), layer], {"config": {"Env": ["PATH=/bin"]}}, "devices")
    assert shell(run, image, "ls /dev2", "-v", "devices:/dev2").text == "file\n"
    run.ok("volume", "rm", "devices")


def test_a_volume_costs_the_bytes_of_its_files_and_not_their_holes(run: Imgfs, layout: Path) -> None:
    """Read through, a file of a terabyte would keep the container from starting for an hour."""
    huge = tar.sparse_pax("1.0", "data/huge", 1 << 40, [(0, b"first"), (1 << 39, b"last")])
    layers = [busybox_layer(), gzipped(tar.archive(tar.directory("data"), huge))]
    image = write_image(layout, layers, {"config": {"Env": ["PATH=/bin"], "Volumes": {"/data": {}}}}, "huge")
    look = f"stat -c %s,%b /data/huge; head -c 5 /data/huge; dd if=/data/huge bs=4 count=1 skip={1 << 37}"
    size, _, rest = shell(run, image, look).text.partition(",")
    blocks, _, read = rest.partition("\n")
    assert (int(size), read) == (1 << 40, "firstlast")
    assert int(blocks) < 100


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_volume_without_a_name_goes_with_its_container(run: Imgfs, image: str, runtime: str) -> None:
    options = ("--runtime", runtime, "--read-only", "-v", "/srv", "--mount", "type=volume,dst=/new,ro")
    look = "cat /srv/file; touch /srv/x && echo written; touch /new/x; grep ' /srv ' /proc/self/mountinfo"
    ran = shell(run, image, look, *options)
    assert ran.text.startswith("of the imagewritten\n")
    assert {"nosuid", "nodev"} <= set(ran.text.splitlines()[-1].split()[5].split(","))
    assert "/new/x: Read-only" in ran.err
    assert shell(run, image, "ls /srv", *options).text == "file\n"
    assert run.ok("volume", "ls", "-q") == ""
    said = run.run("bundle", "-v", "/srv", image, run.directory / "box").complaint(2)
    assert said == "/srv: a bundle has no volumes; for a directory: DIR:DST"


def test_volumes_and_containers_complete(run: Imgfs, image: str) -> None:
    run.ok("volume", "create", "data", "more")
    assert run.ok("complete", "volumes") == "data\nmore\n"
    run.ok("volume", "rm", "data", "more")
    pages = dict(_completions())
    for path, ask in (
        (
            "share/bash-completion/completions/imgfs",
            '_imgfs_volumes() { compgen -W "$(imgfs complete volumes',
        ),
        ("share/zsh/site-functions/_imgfs", ":_imgfs_volumes"),
        ("share/fish/vendor_completions.d/imgfs.fish", "(imgfs complete volumes"),
    ):
        assert ask in pages[path]
        assert ask.replace("volumes", "containers") in pages[path]


def test_a_volume_in_use_is_not_removed(run: Imgfs, image: str) -> None:
    run.ok("run", "-d", "--name", "user", "-v", "used:/data", image, "sh", "-c", "sleep 900")
    try:
        assert run.run("volume", "rm", "used").complaint(2) == "volume used is being used by: user"
        assert run.ok("volume", "prune") == ""
        assert run.ok("ps", "-q", "--filter", "volume=used") != ""
        run.ok("stop", "-t", "0", "user")
        assert "being used by: user" in run.run("volume", "rm", "used").complaint(2)  # until it is removed
    finally:
        run.run("rm", "-f", "-t", "0", "user")
    assert run.ok("volume", "prune") == "used\n"


def test_volumes_are_made_and_named_as_with_podman(run: Imgfs, image: str) -> None:
    assert run.ok("volume", "create", "one") == "one\n"
    assert shell(run, image, "cat /srv/file", "-v", "one:/srv").text == "of the image"
    run.ok("volume", "rm", "one")
    assert run.run("volume", "rm", "nothing").complaint(1) == "no such volume: nothing"
    assert run.ok("volume", "rm", "-f", "nothing") == ""
    assert run.run("volume", "inspect", "nothing").complaint(125) == "no such volume: nothing"
    assert "not a name for a volume" in run.run("run", "-v", "a b:/x", image, "true").err
    assert "not a name for a volume" in run.run("volume", "rm", "..").complaint(1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_has_volumes_too(nobody: Imgfs, runtime: str) -> None:
    image = busybox(nobody.directory / "layout", Cmd=["sh"])
    options = ("--runtime", runtime, "-v", "mine:/srv")
    assert shell(nobody, image, "cat /srv/file; echo; touch /srv/x", *options).text == "of the image\n"
    assert shell(nobody, image, "ls /srv", *options).text == "file\nx\n"
    nobody.ok("volume", "rm", "mine")
    until(lambda: traces(nobody) == [], "nothing is left")

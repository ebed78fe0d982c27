"""What containerd has removed goes from the store, unless others use it."""

from __future__ import annotations

import fcntl
from pathlib import Path

from imgfs.engines.snapshotter.rows import ImageChain, SnapshotKind, SnapshotRows
from imgfs.engines.stored_image import remove_image
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store
from tests.unit.test_gc import World

DIGEST = str(Digest.of(b"manifest"))


def test_an_image_goes_with_the_layers_that_only_it_has(tmp_path: Path) -> None:
    world = World(Store(tmp_path / "store"))
    other = {layer.digest for layer in world.two.manifest.layers}
    assert remove_image("one:1", world.one.digest, world.store)
    assert world.layers() == other
    assert [each.reference for each in world.store.resolutions()] == ["two:1"]


def test_an_image_that_is_used_stays_whole(tmp_path: Path) -> None:
    world = World(Store(tmp_path / "store"))
    before = world.layers()
    with world.store.layer(world.one.manifest.layers[-1].digest).use():
        assert not remove_image("one:1", world.one.digest, world.store)
    assert world.layers() == before
    assert len(list(world.store.resolutions())) == 2


def test_another_name_of_the_image_keeps_it(tmp_path: Path) -> None:
    world = World(Store(tmp_path / "store"))
    before = world.layers()
    world.add("my-own-name:1")  # is the last image of the source: the second
    assert remove_image("two:1", world.two.digest, world.store)
    assert world.layers() == before


def test_logs_of_its_mounts_go_when_their_daemons_have_ended(tmp_path: Path) -> None:
    world = World(Store(tmp_path / "store"))
    short = world.one.digest.short
    ended, alive, another = (world.store.logs / f"{name}-1.log" for name in (short, f"{short}-2", "0" * 12))
    for path in (ended, alive, another):
        path.write_text("")
    with alive.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_image("one:1", world.one.digest, world.store)
    assert sorted(world.store.logs.iterdir()) == sorted([alive, another])


def test_images_without_layers_are_known_until_they_are_forgotten(tmp_path: Path) -> None:
    """Also after a kill, and if the rows were written by an imgfs that did not write images down."""
    rows, image = SnapshotRows(tmp_path / "rows"), ImageChain(DIGEST, 0, "app:v1")
    with rows.changing():
        rows.add("imgfs", "low", "", SnapshotKind.COMMITTED, {}, ImageChain(DIGEST, 1, "app:v1"))
        rows.add("imgfs", "top", "low", SnapshotKind.COMMITTED, {}, image)
        rows._run("DELETE FROM images")
    rows.close()
    rows = SnapshotRows(tmp_path / "rows")
    rows.remove("imgfs", "top")
    assert rows.removed_images() == []
    rows.remove("imgfs", "low")
    rows.close()
    rows = SnapshotRows(tmp_path / "rows")
    assert rows.removed_images() == [image]
    rows.forget_image(image)
    assert rows.removed_images() == []
    rows.close()

"""Having disk space back: the least recently used goes first, and no mount is hurt."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.maintenance.gc import Prunable, prunable, prune
from imgfs.oci.descriptor import Digest, Platform
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.blobs import noise
from tests.support.fake_source import FakeSource, add_image
from tests.unit.test_prepare import Journal

SIZE = 300_000
NAMES = ("one", "two", "three")


class World:
    """A store of three images, of a layer each and one that all share; the first was used longest ago."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.source = FakeSource()
        self.images: dict[str, Resolved] = {}
        for number, name in enumerate(NAMES):
            base = tarmake.archive(tarmake.file("base", noise(99, SIZE)))
            own = tarmake.archive(tarmake.file(name, noise(number, SIZE)))
            add_image(self.source, [base, own])
            self.images[name] = resolve(f"{name}:1", self.source, store, Platform("linux", "amd64"))
            prepare(self.images[name], self.source, store, Journal())
            self.used(self.own(name), 1e9 + number)
        self.used(self.base, 1.5e9)

    @property
    def base(self) -> Digest:
        return self.images["one"].manifest.layers[0].digest

    def own(self, name: str) -> Digest:
        return self.images[name].manifest.layers[1].digest

    def used(self, layer: Digest, when: float) -> None:
        for path in self.store.layer(layer).directory.iterdir():
            os.utime(path, (when, when))

    def cached(self) -> set[Digest]:
        return {layer.digest for layer in self.store.layers() if layer.cached() >= SIZE}

    def prunable(
        self, *, keep: int = 0, before: float = math.inf, whole: bool = False, force: bool = False
    ) -> Prunable:
        return prunable(self.store, keep=keep, before=before, whole=whole, force=force)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store(tmp_path / "store"))


def layers_of(found: Prunable) -> list[Digest]:
    return [one.layer.digest for one in found.layers]


def test_all_goes_first_what_was_used_longest_ago(world: World) -> None:
    expected = [*map(world.own, NAMES), world.base]
    found = world.prunable()
    assert layers_of(found) == expected
    assert found.trees == ()
    assert prune(found, world.store, whole=False) == found.size > 4 * SIZE
    assert world.cached() == set()
    assert world.prunable().layers == ()


def test_no_more_goes_than_it_takes(world: World) -> None:
    assert layers_of(world.prunable(keep=3 * SIZE)) == [world.own("one"), world.own("two")]
    assert layers_of(world.prunable(keep=100 * SIZE)) == []


def test_what_was_used_since_stays(world: World) -> None:
    assert layers_of(world.prunable(before=1e9 + 1.5)) == [world.own("one"), world.own("two")]
    assert layers_of(world.prunable(before=1e9 + 1.5, keep=4 * SIZE)) == [world.own("one")]


def test_what_was_used_in_times_to_come_goes_as_well(world: World) -> None:
    ahead = time.time() + 86_400
    for path in world.store.layer(world.own("two")).directory.iterdir():
        os.utime(path, (ahead, ahead))
    assert world.own("two") in layers_of(world.prunable(before=time.time()))


def test_what_a_mount_uses_stays_unless_it_is_forced(world: World) -> None:
    with Image(world.images["one"], world.source, world.store) as image:
        assert layers_of(world.prunable()) == [world.own("two"), world.own("three")]
        forced = world.prunable(force=True)
        assert {*layers_of(forced)[2:]} == {world.own("one"), world.base}
        prune(forced, world.store, whole=False)
        world.source.forget_requests()
        assert b"".join(image.read(image.tree.resolve(b"/one").ino)) == noise(0, SIZE)
        assert world.source.ranges != []


def test_what_is_being_scanned_stays(world: World) -> None:
    with world.store.layer(world.own("one")).lock():
        found = world.prunable()
        assert layers_of(found) == [world.own("two"), world.own("three"), world.base]
        everything = Prunable((*found.layers, *world.prunable().layers))
    with world.store.layer(world.own("two")).lock():
        prune(everything, world.store, whole=True)
        assert world.cached() == {world.own("one"), world.own("two")}


def test_documents_indexes_trees_references_and_profiles_stay(world: World) -> None:
    one = world.images["one"]
    world.store.put_profile(one.digest, "default", b"{}")
    prune(world.prunable(), world.store, whole=False)
    assert world.store.layer(world.own("one")).index
    assert world.store.tree(one.digest)
    world.source.forget_requests()
    prepare(one, world.source, world.store, Journal())
    assert world.source.ranges == []


def test_all_of_a_layer_goes_with_the_trees_that_need_it_and_the_image_can_be_mounted_again(
    world: World,
) -> None:
    one = world.images["one"]
    world.store.put_profile(one.digest, "default", b"{}")
    found = world.prunable(before=1e9 + 0.5, whole=True)
    assert layers_of(found) == [world.own("one")]
    assert [digest for digest, _ in found.trees] == [one.digest]
    assert prune(found, world.store, whole=True) == found.size
    assert world.store.layer(world.own("one")).index is None
    assert world.store.tree(one.digest) is None
    assert world.store.tree(world.images["two"].digest)
    assert len(list(world.store.resolutions())) == 3
    assert world.store.profile(one.digest, "default") == b"{}"
    assert world.store.document(one.digest)
    prepare(one, world.source, world.store, Journal())
    with Image(one, world.source, world.store) as image:
        assert b"".join(image.read(image.tree.resolve(b"/one").ino)) == noise(0, SIZE)

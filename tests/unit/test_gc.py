"""What belongs to what in a store, and removing what nothing needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.maintenance.gc import (
    Contents,
    contents_of,
    evict,
    layers_in_use,
    refuse_if_used,
    remove_unreachable,
)
from imgfs.oci.descriptor import Digest, Platform
from imgfs.store.store import Resolution, Store
from tests.support import tarmake
from tests.support.fake_source import FakeSource, add_image, add_index
from tests.unit.test_prepare import Journal

BASE = tarmake.archive(tarmake.file("base", b"base" * 1000))
ONE = tarmake.archive(tarmake.file("one", b"one"))
TWO = tarmake.archive(tarmake.file("two", b"two"))


class World:
    """A store of two images that share their base layer; the first was named through an index."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.source = FakeSource()
        add_index(self.source, add_image(self.source, [BASE, ONE]))
        self.one = self.add("one:1")
        add_image(self.source, [BASE, TWO])
        self.two = self.add("two:1")

    def add(self, reference: str) -> Resolved:
        resolved = resolve(reference, self.source, self.store, Platform("linux", "amd64"))
        prepare(resolved, self.source, self.store, Journal())
        return resolved

    def resolution(self, resolved: Resolved) -> Resolution:
        (found,) = [each for each in self.store.resolutions() if each.reference == resolved.reference]
        return found

    def layers(self) -> set[Digest]:
        return {layer.digest for layer in self.store.layers()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Store(tmp_path / "store"))


def layers_of(*images: Resolved) -> set[Digest]:
    return {layer.digest for image in images for layer in image.manifest.layers}


def documents_of(*images: Resolved) -> set[Digest]:
    return {
        digest for image in images for digest in (image.named, image.digest, image.manifest.config.digest)
    }


def test_an_image_needs_its_documents_and_its_layers_in_order(world: World) -> None:
    needs = contents_of(world.resolution(world.one), world.store)
    assert needs.documents == documents_of(world.one)
    assert needs.layers == tuple(layer.digest for layer in world.one.manifest.layers)


@pytest.mark.parametrize("damage", [None, b"", b"{}", b'{"schemaVersion": 2, "manifests": []}'])
def test_an_image_whose_manifest_is_lost_needs_what_is_known(world: World, damage: bytes | None) -> None:
    digest = world.two.digest if damage is None else Digest.of(damage)
    if damage is None:
        world.store.remove_document(digest)
    else:
        world.store.put_document(digest, damage)
    needs = contents_of(Resolution("x", digest, digest, 0), world.store)
    assert needs == Contents(frozenset({digest}), ())


def test_sweeping_removes_nothing_that_an_image_needs(world: World) -> None:
    remove_unreachable(world.store, force=True)
    assert world.layers() == layers_of(world.one, world.two)
    assert set(world.store.trees()) == {world.one.digest, world.two.digest}
    assert set(world.store.documents()) == documents_of(world.one, world.two)


def test_sweeping_keeps_what_another_image_shares(world: World) -> None:
    world.store.forget(world.resolution(world.one))
    remove_unreachable(world.store, force=False)
    assert world.layers() == layers_of(world.two)
    assert set(world.store.trees()) == {world.two.digest}
    assert set(world.store.documents()) == documents_of(world.two)
    world.source.forget_requests()
    with Image(world.add("two:1"), world.source, world.store) as image:
        assert b"".join(image.read(image.tree.resolve(b"/base").ino)) == b"base" * 1000
    assert world.source.ranges == []


def test_sweeping_leaves_layers_alone_that_a_mount_uses(world: World) -> None:
    with Image(world.one, world.source, world.store):
        world.store.forget(world.resolution(world.one))
        remove_unreachable(world.store, force=False)
        assert world.layers() == layers_of(world.one, world.two)
    remove_unreachable(world.store, force=False)
    assert world.layers() == layers_of(world.two)


def test_sweeping_leaves_a_layer_alone_that_is_being_scanned(world: World) -> None:
    digest = Digest.of(b"being scanned")
    layer = world.store.layer(digest)
    with layer.lock(), closing(layer.flat_writer()):
        remove_unreachable(world.store, force=False)
        assert digest in world.layers()
    layer.index_file.touch()
    remove_unreachable(world.store, force=False)
    assert digest not in world.layers()


def test_sweeping_by_force_takes_a_mounts_layers_out_of_the_store_but_not_out_of_its_hands(
    world: World,
) -> None:
    with Image(world.one, world.source, world.store) as image:
        world.store.forget(world.resolution(world.one))
        remove_unreachable(world.store, force=True)
        assert world.layers() == layers_of(world.two)
        assert b"".join(image.read(image.tree.resolve(b"/one").ino)) == b"one"


def test_evicting_frees_the_flat_layers_and_keeps_the_indexes(world: World) -> None:
    layers = list(world.store.layers())
    before = sum(layer.disk_usage() for layer in layers)
    freed = evict(layers)
    assert freed > 0
    assert sum(layer.disk_usage() for layer in layers) == before - freed
    assert all(layer.index for layer in layers)
    assert evict(layers) == 0


def test_a_layer_without_an_index_has_nothing_to_evict(world: World) -> None:
    assert evict([world.store.layer(Digest.of(b"unknown"))]) == 0


def test_an_image_that_is_mounted_is_not_given_up(world: World) -> None:
    resolution = world.resolution(world.one)
    refuse_if_used(resolution, world.store)
    with Image(world.one, world.source, world.store):
        assert {layer.digest for layer in layers_in_use(resolution, world.store)} == layers_of(world.one)
        with pytest.raises(StoreError, match="one:1 is mounted: unmount it first, or use --force"):
            refuse_if_used(resolution, world.store)
        refuse_if_used(world.resolution(world.two), world.store)
    refuse_if_used(resolution, world.store)


@pytest.mark.parametrize("force", [False, True])
def test_a_layer_that_is_being_scanned_keeps_its_files(world: World, force: bool) -> None:
    for resolution in list(world.store.resolutions()):
        world.store.forget(resolution)
    first, second = (world.store.layer(layer.digest) for layer in world.one.manifest.layers)
    with first.lock(), closing(first.flat_writer(stays=True)) as writer:
        remove_unreachable(world.store, force=force)
        writer.write(0, b"scanned")
        writer.keep(size=7, spans=1)
    assert first.index
    assert second.index is None
    remove_unreachable(world.store, force=force)
    assert first.index is None


def test_an_image_that_comes_meanwhile_stays_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, came = world.store.resolutions, list[Resolved]()

    def and_then_comes_another() -> Iterator[Resolution]:
        yield from list(listed())
        monkeypatch.undo()
        add_image(world.source, [tarmake.archive(tarmake.file("three", b"three"))])
        came.append(world.add("three:1"))

    monkeypatch.setattr(world.store, "resolutions", and_then_comes_another)
    remove_unreachable(world.store, force=True)
    [three] = (contents_of(world.resolution(found), world.store) for found in came)
    assert all(world.store.document(digest) for digest in three.documents)
    assert set(three.layers) <= world.layers()
    assert world.store.tree(came[0].digest)

"""Layers that are here whole are held against their DiffIDs: a registry's word is verified, or gone."""

from __future__ import annotations

import errno
import logging
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from imgfs.content.requests import requests_for
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.errors import IntegrityError
from imgfs.image import verify as proofs
from imgfs.image.image import Image
from imgfs.image.resolve import Resolved
from imgfs.image.verify import QuietPeriod, Verifier
from imgfs.layer.entry import Entry
from imgfs.layer.index import LayerIndex
from imgfs.layer.indexwriter import IndexWriter
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.policy import Policy
from imgfs.store.store import Store
from imgfs.tree.reader import Tree
from tests.support import tarmake as tar
from tests.support.blobs import prose
from tests.support.fault_server import FaultServer
from tests.support.lies import lie, unpacked
from tests.support.mounted import Imgfs, Stored, gzipped, gzipped_in_members, plain, serve, until, zstd
from tests.support.offerings import Offering, contents, offering, pinned, prepared, repacked, stored_gzip

pytestmark = pytest.mark.timeout(400)  # long: not to be begun last

ORIGIN = "registry.example/app"


@cache
def noise_body() -> bytes:
    return random.Random(6).randbytes(1_500_000)


@cache
def image_files() -> dict[bytes, bytes]:
    return {
        b"etc/one": b"the first",
        b"noise": noise_body(),
        **{f"lib/{number}".encode(): prose(9000 + number, number) for number in range(40)},
        b"prose": prose(3_000_000, 9),
        b"two": b"the other",
    }


@cache
def true_tar() -> bytes:
    return tar.archive(
        *(tar.file(name, body) for name, body in image_files().items()), tar.symlink("link", "two")
    )


FORMATS: dict[str, Callable[[], Stored]] = {
    "tar": lambda: plain(true_tar()),
    "gzip": lambda: gzipped(true_tar(), 6),
    "gzip members": lambda: gzipped_in_members(true_tar(), 400_000),
    "zstd": lambda: zstd(true_tar()),
    "zstd frames": lambda: zstd(true_tar(), 300_000),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "mine")


def offer(tmp_path: Path, layer: Stored, *, repack: bool = False) -> Offering:
    made = offering(tmp_path / "theirs", [layer], repack=repack)
    made.refer()
    return made


def read_whole(image: Image) -> dict[bytes, bytes]:
    """All files; afterwards every span of every layer is here."""
    found = dict(contents(image))
    for content in image.content.layers:
        content.read(0, content.table.flat_size)
    return found


def index_of(layer: Descriptor, store: Store) -> LayerIndex:
    path = store.layer(layer.digest).index
    assert path
    return LayerIndex(path)


def tree_origin(resolved: Resolved, store: Store) -> str:
    path = store.tree(resolved.tree)
    assert path
    with Tree(path) as tree:
        return tree.origin


def entries_of(layer: Descriptor, store: Store) -> list[Entry]:
    with index_of(layer, store) as index:
        return list(index.entries())


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_that_is_here_whole_becomes_verified(tmp_path: Path, store: Store, name: str) -> None:
    made = offer(tmp_path, FORMATS[name]())
    resolved, told = prepared(made.source, store)
    assert (told.warned, told.streamed) == ([], set())
    with Image(resolved, made.source, store) as image:
        assert image.content.layers[0].index.summary.origin == ORIGIN
        assert read_whole(image) == image_files()
        Verifier(image, store).verify_complete()
        assert image.content.layers[0].index.summary.origin == ""
        assert tree_origin(resolved, store) == ""
        with index_of(made.layers[0], store) as index:
            assert not index.summary.is_lean
            assert index.windows is None
        evict(store.layers())
        assert read_whole(image) == image_files(), "by the index as it is now"
    local = Store(tmp_path / "local")
    prepared(made.source, local, policy=Policy.NONE)
    assert entries_of(made.layers[0], store) == entries_of(made.layers[0], local)


def test_what_has_been_verified_counts_for_a_digest_too(tmp_path: Path, store: Store) -> None:
    made = offer(tmp_path, gzipped(true_tar(), 6))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        Verifier(image, store).verify_complete()
    made.source.forget_requests()
    resolved, told = prepared(made.source, store, pinned(made.manifest))
    assert (told.warned, told.streamed, made.source.ranges) == ([], set(), [])
    with Image(resolved, made.source, store) as image:
        assert dict(contents(image)) == image_files()


def test_what_is_not_here_whole_is_not_looked_at(tmp_path: Path, store: Store) -> None:
    made = offer(tmp_path, gzipped(true_tar(), 6))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        made.source.forget_requests()
        Verifier(image, store).verify_complete()
        assert image.content.layers[0].index.summary.origin == ORIGIN
        assert not Verifier(image, store).check(image.content.layers[0])
    assert made.source.ranges == []


def test_a_seekable_copy_stays_its_registrys_but_its_bytes_are_verified(tmp_path: Path, store: Store) -> None:
    made = offer(tmp_path, zstd(tar.archive(tar.file("big", noise_body() * 6))), repack=True)
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        Verifier(image, store).verify_complete()
        content = image.content.layers[0]
        assert content.index.summary.origin == ORIGIN
        assert all(content.index.span(number).parts for number in range(len(content.table)))
        evict(store.layers())
        assert dict(contents(image)) == {b"big": noise_body() * 6}


def test_a_layer_that_an_image_has_twice_is_looked_at_once(tmp_path: Path, store: Store) -> None:
    layer = gzipped(true_tar(), 6)
    made = offering(tmp_path / "theirs", [layer, plain(tar.archive(tar.file("x"))), layer])
    made.refer()
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        Verifier(image, store).verify_complete()
        assert [content.index.summary.origin for content in image.content.layers] == ["", "", ""]


# -- lies ----------------------------------------------------------------------------------------------------


@cache
def evil_tar() -> bytes:
    return true_tar().replace(b"the other", b"the devil").replace(noise_body()[:64], bytes(64))


def test_a_lie_is_found_out_and_nothing_of_it_is_shown_any_more(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    made = lie(tmp_path, true_tar(), evil_tar())
    layer = made.layers[0]
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        two, other = (image.tree.resolve(path).ino for path in (b"two", b"etc/one"))
        assert b"".join(image.read(two)) == b"the devil", "the word of the registry, as far as it goes"
        read_whole(image)
        Verifier(image, store).verify_complete()
        for ino in (two, other):
            number, extents = image.tree.extents(ino)
            assert image.content.cached(number, extents, 0, 9) is None
            with pytest.raises(IntegrityError, match=f"{layer.digest.short}.*DiffID"):
                b"".join(image.read(ino))
        assert image.content.is_refused(0)
        assert image.content.layers[0].flat.count_present() == 0
    assert store.layer(layer.digest).index is None
    assert store.tree(resolved.tree) is None
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert layer.digest.short in record.getMessage()
    assert f"the index that {ORIGIN} vouches for is wrong" in record.getMessage()


def test_who_has_lied_is_not_believed_again(tmp_path: Path, store: Store) -> None:
    made = lie(tmp_path, true_tar(), evil_tar())
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        Verifier(image, store).verify_complete()
    with pytest.raises(IntegrityError, match="layer blob"):
        prepared(made.source, store)
    made.source.bodies[made.layers[0].digest] = stored_gzip(true_tar()).blob
    resolved, told = prepared(made.source, store)
    assert told.warned == [
        f"the indexes in {ORIGIN} are not used: that of layer {made.layers[0].digest.short} was wrong"
    ]
    assert told.streamed == {made.layers[0].digest}
    with Image(resolved, made.source, store) as image:
        assert dict(contents(image)) == image_files()


def test_a_layer_that_is_removed_is_forgotten_with_all_that_is_known_of_it(
    tmp_path: Path, store: Store
) -> None:
    place = store.layer(Digest.of(b"layer"))
    place.refute(ORIGIN)
    assert place.is_refuted(ORIGIN)
    assert not place.is_refuted("another.example/app")
    place.remove()
    assert not place.is_refuted(ORIGIN)


def test_what_arrives_while_a_layer_is_found_out_is_not_shown_either(tmp_path: Path, store: Store) -> None:
    made = lie(tmp_path, true_tar(), evil_tar())
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        content = image.content.layers[0]
        content.flat.evict()
        made.source.gate.clear()
        made.source.waiting.clear()
        late = content.fetch_in_background(
            requests_for(content.missing(), content.table), Priority.BACKGROUND, Cause.FILL
        )
        assert made.source.waiting.wait(10)
        content.refuse(IntegrityError("layer", expected="a", actual="b"))
        made.source.gate.set()
        for future in late:
            future.exception(10)
        assert content.flat.count_present() == 0
        with pytest.raises(IntegrityError, match="layer: expected a, got b"):
            content.read(0, 1)


def test_names_that_lie_are_put_right_for_the_next_mount(tmp_path: Path, store: Store) -> None:
    """The bytes are the layer's; but the tree that was published says that they are other files'."""
    made = offering(tmp_path / "theirs", [gzipped(true_tar(), 6)])
    tree = made.published.tree
    assert tree
    path = unpacked(tree, made, tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE node SET flat = (SELECT max(flat) FROM node WHERE size = 9) WHERE size = 9")
    made.refer(replace(made.published, tree=repacked(tree, path, made.source)))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        assert read_whole(image)[b"etc/one"] == b"the other"
        Verifier(image, store).verify_complete()
    resolved, told = prepared(made.source, store)
    assert told.streamed == set()
    with Image(resolved, made.source, store) as image:
        assert dict(contents(image)) == image_files()


# -- beside other work ---------------------------------------------------------------------------------------


def test_a_look_is_put_off_while_spans_arrive_but_not_for_ever() -> None:
    lull = QuietPeriod()
    assert [lull.has_come(present) for present in (0, 3, 4, 4, 4, 9)] == [
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    busy = QuietPeriod()
    looks = [busy.has_come(present) for present in range(100)]
    assert looks.index(True) == 12
    assert sum(looks) == 100 // 13


def test_the_thread_looks_by_itself_and_ends(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "_EVERY", 0.05)
    made = offer(tmp_path, gzipped(true_tar(), 6))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        prover = Verifier(image, store)
        prover.start()
        read_whole(image)
        until(lambda: image.content.layers[0].index.summary.origin == "", "the layer to be verified")
        until(
            lambda: prover._thread and not prover._thread.is_alive(),
            "the thread to end, there being nothing left to do",
        )
        prover.stop()
        again = Verifier(image, store)
        again.start()
        assert again._thread is None, "there is nothing to look at"
        again.stop()


def test_two_mounts_find_the_same(tmp_path: Path, store: Store) -> None:
    made = offer(tmp_path, gzipped(true_tar(), 6))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as one, Image(resolved, made.source, store) as other:
        read_whole(one)
        Verifier(one, store).verify_complete()
        Verifier(other, store).verify_complete()
        assert [image.content.layers[0].index.summary.origin for image in (one, other)] == ["", ""]
        evict(store.layers())
        assert dict(contents(other)) == image_files()


def test_a_layer_that_has_been_indexed_anew_meanwhile_is_left_alone(tmp_path: Path, store: Store) -> None:
    made = offer(tmp_path, gzipped(true_tar(), 6))
    resolved, _ = prepared(made.source, store)
    with Image(resolved, made.source, store) as image:
        read_whole(image)
        place = store.layer(made.layers[0].digest)
        with index_of(made.layers[0], store) as index, place.new_index() as path:
            writer = IndexWriter(path)
            summary = index.summary._asdict()
            del summary["entries"]
            writer.finish(**summary)
        Verifier(image, store).verify_complete()
        assert dict(contents(image)) == image_files()
    with index_of(made.layers[0], store) as index:
        assert index.span_count() == 0


# -- in a mount ----------------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_mount_finds_a_lie_out_and_reads_fail_from_then_on(imgfs: Imgfs, tmp_path: Path) -> None:
    imgfs.expected += ["vouches for is wrong", "EIO: /(two|noise): "]
    made = lie(tmp_path, true_tar(), evil_tar())
    with FaultServer() as server:
        server.referrers_api = True
        server.blobs |= {str(digest): body for digest, body in made.source.bodies.items()}
        image = f"{server.host}/app:v1"
        server.add_manifest("app", "v1", made.source.bodies[made.manifest.digest])
        assert made.referrer
        server.add_manifest("app", str(made.referrer.digest), made.source.bodies[made.referrer.digest])
        at = imgfs.mount(image, "--fill")
        assert (at / "two").read_bytes() == b"the devil"
        until(lambda: not is_readable(at / "two"), "the lie to be found out")
        assert not is_readable(at / "noise")
        assert "failing since" in imgfs.ok("status", at)
        imgfs.umount(at)
        server.blobs[str(made.layers[0].digest)] = stored_gzip(true_tar()).blob
        ran = imgfs.run("mount", image, at)
        assert ran.code == 0
        assert ran.err.startswith(f"imgfs: warning: the indexes in {server.host}/app are not used: ")
        imgfs.watch(at)
        assert (at / "two").read_bytes() == b"the other"
        imgfs.umount(at)


def is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


@pytest.mark.kernel
def test_a_mount_that_is_filled_is_verified_and_can_be_published_from(imgfs: Imgfs, tmp_path: Path) -> None:
    with FaultServer() as server:
        server.referrers_api = True
        image = serve(server, "app", "v1", [gzipped(true_tar(), 6)])
        imgfs.ok("index", "push", image)
        imgfs.ok("store", "rm", "--all", "--force")
        at = imgfs.mount(image, "--fill")
        assert imgfs.status(at)["layers"][0]["index"] == f"{server.host}/app"
        until(lambda: imgfs.status(at)["layers"][0]["index"] == "verified", "it to be verified")
        assert imgfs.status(at)["tree"] == f"{server.host}/app"
        imgfs.umount(at)
        at = imgfs.mount(image)
        assert imgfs.status(at)["tree"] == "verified"
        imgfs.umount(at)
        imgfs.ok("index", "push", image)

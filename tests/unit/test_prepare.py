"""An image made ready: what is fetched, what is kept, and what is left when something goes wrong."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

import pytest

from imgfs.errors import IntegrityError, InvalidImage, NotFound, StoreError, Unavailable
from imgfs.image.image import Image
from imgfs.image.prepare import prepare
from imgfs.image.resolve import Resolved, resolve
from imgfs.layer.entry import Entry
from imgfs.layer.growing import Withdrawn
from imgfs.layer.index import LayerIndex
from imgfs.maintenance.gc import evict
from imgfs.oci.descriptor import Descriptor, Digest, Platform
from imgfs.store.atomic import sweep_temporaries
from imgfs.store.layer import StoredLayer
from imgfs.store.store import Store
from imgfs.tree.builder import TreeBuilder
from tests.support import tarmake
from tests.support.children import Child
from tests.support.fake_source import FakeSource, add_image, add_index

AMD64 = Platform("linux", "amd64")


@cache
def noise_body() -> bytes:
    return random.Random(4).randbytes(9_000_000)


@cache
def lower_layer() -> bytes:
    return tarmake.archive(
        tarmake.directory("etc"),
        tarmake.file("etc/passwd", b"root"),
        tarmake.file("etc/old", b"old"),
        tarmake.file("big", noise_body()),
        tarmake.file("last", b"the last file"),
    )


MIDDLE = tarmake.archive(tarmake.whiteout("etc/old"), tarmake.file("etc/passwd", b"root\nann"))
UPPER = tarmake.archive(
    tarmake.symlink("link", "etc/passwd"), tarmake.sparse_pax("1.0", "sparse", 50, [(20, b"x")])
)
SMALL = tarmake.archive(tarmake.file("file", b"body"))


class Journal:
    """A Reporter that writes down what it is told."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self.arrived: Counter[Digest] = Counter()  # bytes, by layer
        self.ended: set[Digest] = set()

    def expects(self, layers: Iterable[Descriptor]) -> None:
        self.told["expects"] += len(list(layers))

    def layer_begins(self, layer: Descriptor) -> None:
        self.told["begins"] += 1
        self.arrived[layer.digest] = 0

    def layer_has(self, layer: Descriptor, count: int) -> None:
        self.told["has"] += 1
        self.arrived[layer.digest] += count

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        self.arrived[layer.digest] += count

    def layer_waits(self, layer: Descriptor) -> None:
        self.told["waits"] += 1
        assert layer.digest not in self.ended

    def layer_ends(self, layer: Descriptor) -> None:
        self.told["ends"] += 1
        self.ended.add(layer.digest)

    def merging(self) -> None:
        self.told["merging"] += 1

    def warns(self, text: str) -> None:
        self.told[text] += 1


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source() -> FakeSource:
    return FakeSource()


def prepared(source: FakeSource, store: Store) -> tuple[Resolved, Journal]:
    """Resolve and prepare, as a mount does."""
    resolved = resolve("app:1", source, store, AMD64)
    journal = Journal()
    prepare(resolved, source, store, journal)
    return resolved, journal


def body(image: Image, path: bytes) -> bytes:
    return b"".join(image.read(image.tree.resolve(path).ino))


def left_in(layer: StoredLayer) -> set[str]:
    return {path.name for path in layer.directory.iterdir()} - {"lock", "users"}


def flip(descriptor: Descriptor, source: FakeSource) -> None:
    """Damage a blob in the source for good."""
    damaged = bytearray(source.bodies[descriptor.digest])
    damaged[len(damaged) // 2] ^= 1
    source.bodies[descriptor.digest] = bytes(damaged)


@pytest.fixture
def several(source: FakeSource) -> FakeSource:
    """The source of an image of three layers."""
    add_image(source, [lower_layer(), MIDDLE, UPPER])
    return source


def test_an_image_of_several_layers_reads_as_its_layers_say(several: FakeSource, store: Store) -> None:
    resolved, journal = prepared(several, store)
    with Image(resolved, several, store) as image:
        assert body(image, b"/big") == noise_body()
        assert body(image, b"/etc/passwd") == b"root\nann"
        assert body(image, b"/link") == b"root\nann"
        assert body(image, b"/sparse") == bytes(20) + b"x" + bytes(29)
        with pytest.raises(FileNotFoundError):
            image.tree.resolve(b"/etc/old")
    assert journal.told == {"expects": 3, "begins": 3, "ends": 3, "merging": 1}
    assert journal.arrived == {layer.digest: layer.size for layer in resolved.manifest.layers}
    assert journal.ended == set(resolved.layers)


def test_nothing_of_an_image_is_fetched_twice(several: FakeSource, store: Store) -> None:
    resolved, _ = prepared(several, store)
    with Image(resolved, several, store) as image:
        body(image, b"/big")
    assert sorted(several.ranges) == sorted((0, layer.size) for layer in resolved.manifest.layers)
    assert len(several.documents_asked) == 2


def test_a_prepared_image_asks_for_nothing_but_what_its_tag_means(several: FakeSource, store: Store) -> None:
    prepared(several, store)
    several.forget_requests()
    resolved, journal = prepared(several, store)
    with Image(resolved, several, store) as image:
        assert body(image, b"/last") == b"the last file"
    assert (several.resolved, several.traffic().requests) == (1, 0)
    assert journal.told == {}


def test_a_shared_layer_is_fetched_once(source: FakeSource, store: Store) -> None:
    add_image(source, [lower_layer(), MIDDLE])
    prepared(source, store)
    source.forget_requests()
    add_image(source, [lower_layer(), UPPER])
    prepared(source, store)
    assert len(source.ranges) == 1


def test_a_layer_that_an_image_has_twice_is_fetched_once(source: FakeSource, store: Store) -> None:
    add_image(source, [SMALL, MIDDLE, SMALL])
    resolved, _ = prepared(source, store)
    assert len(source.ranges) == 2
    with Image(resolved, source, store) as image:
        assert image.tree.layer_count == 3
        assert body(image, b"/file") == b"body"


def test_an_image_without_layers_is_an_empty_directory(source: FakeSource, store: Store) -> None:
    add_image(source, [])
    resolved, _ = prepared(source, store)
    with Image(resolved, source, store) as image:
        assert list(image.tree.children(1)) == []


def test_an_index_leads_to_the_manifest_for_the_platform(source: FakeSource, store: Store) -> None:
    manifest = add_image(source, [SMALL])
    index = add_index(source, manifest)
    resolved, _ = prepared(source, store)
    assert (resolved.named, resolved.digest) == (index.digest, manifest.digest)
    (resolution,) = store.resolutions()
    assert (resolution.reference, resolution.digest, resolution.manifest) == (
        "app:1", index.digest, manifest.digest
    )  # fmt: skip
    with pytest.raises(InvalidImage, match="no image for linux/s390x; there are: linux/amd64"):
        resolve("app:1", source, store, Platform("linux", "s390x"))


def test_indexes_may_be_nested_but_not_without_end(source: FakeSource, store: Store) -> None:
    descriptor = add_image(source, [SMALL])
    for _ in range(4):
        descriptor = add_index(source, descriptor)
    assert resolve("app:1", source, store, AMD64).media_type.endswith("manifest.v1+json")
    add_index(source, descriptor)
    with pytest.raises(InvalidImage, match="app:1: indexes nested more than 4 deep"):
        resolve("app:1", source, store, AMD64)


def test_a_damaged_document_in_the_store_is_fetched_again(source: FakeSource, store: Store) -> None:
    manifest = add_image(source, [SMALL])
    resolve("app:1", source, store, AMD64)
    (store.root / "documents/sha256" / manifest.digest.hex).write_bytes(b"{}")
    source.forget_requests()
    resolve("app:1", source, store, AMD64)
    assert source.documents_asked == [manifest.digest]


def test_a_layer_with_another_diff_id_is_an_integrity_error(source: FakeSource, store: Store) -> None:
    wrong = Digest.of(b"something else")
    add_image(source, [SMALL], diff_ids=[wrong])
    with pytest.raises(IntegrityError, match=f"DiffID.*expected {wrong}, got {Digest.of(SMALL)}"):
        prepared(source, store)
    assert list(store.layers()) == []


def test_the_index_of_a_layer_has_to_have_the_configs_diff_id_too(source: FakeSource, store: Store) -> None:
    add_image(source, [SMALL])
    prepared(source, store)
    wrong = Digest.of(b"something else")
    add_image(source, [SMALL], diff_ids=[wrong])
    with pytest.raises(IntegrityError, match=f"DiffID of layer .* expected {wrong}"):
        prepared(source, store)
    assert len(list(store.layers())) == 1


def test_a_layer_whose_bytes_are_wrong_leaves_nothing_behind(several: FakeSource, store: Store) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    flip(resolved.manifest.layers[0], several)
    with pytest.raises(IntegrityError, match="layer blob"):
        prepare(resolved, several, store, Journal())
    assert left_in(store.layer(resolved.manifest.layers[0].digest)) == set()
    assert store.tree(resolved.digest) is None


def test_an_invalid_layer_is_named(source: FakeSource, store: Store) -> None:
    add_image(source, [tarmake.archive(tarmake.header("file", checksum=b"000000\0 "))])
    with pytest.raises(InvalidImage, match=r"layer [0-9a-f]{12}: "):
        prepared(source, store)
    assert list(store.layers()) == []


def test_layers_that_were_finished_before_another_failed_are_kept(source: FakeSource, store: Store) -> None:
    tars = [tarmake.archive(tarmake.file(f"{n}", noise_body()[: 100_000 * n])) for n in range(1, 6)]
    add_image(source, tars)
    resolved = resolve("app:1", source, store, AMD64)
    smallest = resolved.manifest.layers[0]
    source.broken = {smallest.digest}
    with pytest.raises(NotFound):
        prepare(resolved, source, store, Journal())
    kept = {layer.digest for layer in store.layers()}
    assert kept
    source.broken = set()
    source.forget_requests()
    prepare(resolved, source, store, Journal())
    assert len(source.ranges) == len(tars) - len(kept)


def test_when_one_layer_fails_the_others_are_cancelled(source: FakeSource, store: Store) -> None:
    """The largest begins first and would be the last to end; nobody waits for it."""
    add_image(source, [SMALL, lower_layer()])
    resolved = resolve("app:1", source, store, AMD64)
    small, large = resolved.manifest.layers
    slow = SlowSource()
    slow.bodies, slow.broken = source.bodies, {small.digest}
    journal = Journal()
    with pytest.raises(NotFound):
        prepare(resolved, slow, store, journal)
    assert journal.arrived[large.digest] < large.size / 2
    assert [layer.digest for layer in store.layers()] == [large.digest]
    assert left_in(store.layer(large.digest)) == {"part", "part.map"}  # for the next try


def test_layers_are_merged_while_others_are_still_streamed(several: FakeSource, store: Store) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    *lower, upper = resolved.manifest.layers
    late = LateSource(several, upper, lambda: all(is_read(store.layer(layer.digest)) for layer in lower))
    prepare(resolved, late, store, Journal())
    assert late.was_met
    with Image(resolved, several, store) as image:
        assert body(image, b"/etc/passwd") == b"root\nann"


def test_no_merge_waits_until_an_index_is_on_the_disk(
    source: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_image(source, [SMALL])
    resolved, journal, is_merging = resolve("app:1", source, store, AMD64), Journal(), threading.Event()
    monkeypatch.setattr(journal, "merging", is_merging.set)
    synced: list[bool] = []
    monkeypatch.setattr("imgfs.store.atomic._sync", lambda _: synced.append(is_merging.wait(10)))
    prepare(resolved, source, store, journal)
    assert synced == [True, True]  # the index and the tree


def test_a_layer_that_fails_after_others_were_merged_leaves_no_tree_and_no_thread(
    several: FakeSource, store: Store
) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    lower, *_, upper = resolved.manifest.layers
    late = LateSource(several, upper, lambda: is_read(store.layer(lower.digest)))
    late.broken = {upper.digest}
    with pytest.raises(NotFound):
        prepare(resolved, late, store, Journal())
    assert late.was_met
    assert [path for path in (store.root / "trees").rglob("*") if path.is_file()] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("imgfs-scan")]


def test_layers_that_cannot_be_merged_end_the_streaming(source: FakeSource, store: Store) -> None:
    add_image(source, [tarmake.archive(tarmake.hardlink("link", "nothing")), lower_layer()])
    resolved = resolve("app:1", source, store, AMD64)
    slow, journal = SlowSource(), Journal()
    slow.bodies = source.bodies
    with pytest.raises(InvalidImage, match="which is not in the image"):
        prepare(resolved, slow, store, journal)
    large = resolved.manifest.layers[1]
    assert journal.arrived[large.digest] < large.size
    assert journal.told["merging"] == 0


def many(*last: bytes, first: bytes = b"") -> bytes:
    """A layer of many files, behind `first`, then of one that does not compress, then of `last`."""
    files = (tarmake.file(f"many/{number}") for number in range(3000))
    return tarmake.archive(first, *files, tarmake.file("noise", noise_body()[:1_500_000]), *last)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names that merges have added so far."""
    names: list[bytes] = []
    add = TreeBuilder.add

    def noted(builder: TreeBuilder, parent: int, name: bytes, entry: Entry, layer: int) -> bool:
        names.append(name)
        return add(builder, parent, name, entry, layer)

    monkeypatch.setattr(TreeBuilder, "add", noted)
    return names


def test_a_layer_is_merged_while_it_is_streamed(source: FakeSource, store: Store, added: list[bytes]) -> None:
    add_image(source, [SMALL, many()])
    resolved = resolve("app:1", source, store, AMD64)
    late = LateSource(source, resolved.manifest.layers[1], lambda: len(added) > 1000, held=1_000_000)
    journal = Journal()
    prepare(resolved, late, store, journal)
    assert (late.was_met, journal.told["merging"], len(added)) == (True, 1, 3002)
    with Image(resolved, source, store) as image:
        assert body(image, b"/noise") == noise_body()[:1_500_000]
        assert image.tree.node_count == 3004


def test_a_whiteout_that_comes_late_hides_what_is_below(
    source: FakeSource, store: Store, added: list[bytes]
) -> None:
    add_image(source, [SMALL, many(tarmake.whiteout("file"))])
    resolved = resolve("app:1", source, store, AMD64)
    late = LateSource(source, resolved.manifest.layers[1], lambda: len(added) > 1000, held=1_000_000)
    prepare(resolved, late, store, Journal())
    assert late.was_met
    with Image(resolved, source, store) as image:
        assert {name for _, name, _ in image.tree.children(1)} == {b"many", b"noise"}


def test_merges_that_are_begun_again_for_what_layers_say_late_are_counted(
    several: FakeSource, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges = []

    def withdrawn(*_: object) -> None:
        merges.append(1)
        assert len(merges) < 20
        raise Withdrawn

    monkeypatch.setattr("imgfs.image.prepare.merge_layers", withdrawn)
    with pytest.raises(Withdrawn):  # which of layers that are waited for none is
        prepared(several, store)


def test_entries_that_cannot_be_merged_do_not_count_before_their_digest_does(
    source: FakeSource, store: Store, added: list[bytes]
) -> None:
    wrong = [tarmake.directory("many"), tarmake.hardlink("link", "many")]
    add_image(source, [SMALL, many(first=b"".join(wrong))])
    resolved = resolve("app:1", source, store, AMD64)
    upper = resolved.manifest.layers[1]
    flip(upper, source)
    late = LateSource(source, upper, lambda: added.count(b"file") == 2, held=1_000_000)
    with pytest.raises(IntegrityError, match="layer blob"):
        prepare(resolved, late, store, Journal())
    assert late.was_met
    assert store.tree(resolved.digest) is None


def is_read(layer: StoredLayer) -> bool:
    """Whether this process has the index of a layer open."""
    links = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(path.readlink())
    return layer.index in links


class LateSource(FakeSource):
    """Another source, but for one layer that comes only once something `is_met`, or after seconds.

    Its first `held` bytes, or some more, come at once.
    """

    def __init__(
        self, other: FakeSource, late: Descriptor, is_met: Callable[[], bool], *, held: int = 0
    ) -> None:
        super().__init__(other.root)
        self.bodies = other.bodies
        self.was_met = False
        self._late, self._is_met, self._held = late, is_met, held

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        at = start
        self._wait(descriptor, at)
        for chunk in super().blob(descriptor, start, end):
            self._wait(descriptor, at)
            yield chunk
            at += len(chunk)

    def _wait(self, descriptor: Descriptor, at: int) -> None:
        deadline = time.monotonic() + 120
        is_held = descriptor == self._late and at >= self._held
        while is_held and not self.was_met and time.monotonic() < deadline:
            time.sleep(0.01)
            self.was_met = self._is_met()


class SlowSource(FakeSource):
    """Takes seconds for what is large."""

    def blob(self, descriptor: Descriptor, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        for chunk in super().blob(descriptor, start, end):
            yield chunk
            threading.Event().wait(0.02)


def test_a_source_that_is_away_is_unavailable_and_the_next_try_works(
    several: FakeSource, store: Store
) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    several.away = True
    with pytest.raises(Unavailable):
        prepare(resolved, several, store, Journal())
    several.away = False
    prepare(resolved, several, store, Journal())
    assert store.tree(resolved.digest)


def test_a_cut_layer_is_an_error_and_the_next_try_works(several: FakeSource, store: Store) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    several.cut_at = resolved.manifest.layers[0].size - 1
    with pytest.raises(IntegrityError):
        prepare(resolved, several, store, Journal())
    several.cut_at = None
    prepare(resolved, several, store, Journal())
    with Image(resolved, several, store) as image:
        assert body(image, b"/big") == noise_body()


@pytest.mark.parametrize("damage", ["garbage", "empty", "another format"])
def test_a_bad_index_in_the_store_is_made_anew(source: FakeSource, store: Store, damage: str) -> None:
    add_image(source, [SMALL])
    resolved, _ = prepared(source, store)
    place = store.layer(resolved.manifest.layers[0].digest)
    assert place.index
    spoil(place.index, "summary", damage)
    source.forget_requests()
    prepare(resolved, source, store, Journal())
    assert len(source.ranges) == 1
    with LayerIndex(place.index) as index:
        assert index.summary.diff_id == str(Digest.of(SMALL))
    with Image(resolved, source, store) as image:
        assert body(image, b"/file") == b"body"


@pytest.mark.parametrize("damage", ["garbage", "empty", "another format"])
def test_a_bad_tree_in_the_store_is_made_anew_without_the_network(
    source: FakeSource, store: Store, damage: str
) -> None:
    add_image(source, [SMALL])
    resolved, _ = prepared(source, store)
    tree = store.tree(resolved.digest)
    assert tree
    spoil(tree, "summary", damage)
    source.forget_requests()
    prepare(resolved, source, store, Journal())
    assert source.ranges == []
    with Image(resolved, source, store) as image:
        assert body(image, b"/file") == b"body"


def spoil(database: Path, table: str, damage: str) -> None:
    if damage == "another format":
        with closing(sqlite3.connect(database)) as db:
            column = db.execute(f"SELECT name FROM pragma_table_info('{table}')").fetchone()[0]
            db.execute(f"UPDATE {table} SET {column} = 999")
            db.commit()
    else:
        database.write_bytes(b"garbage" * 1000 if damage == "garbage" else b"")


def test_two_processes_that_prepare_the_same_image_stream_it_once(several: FakeSource, store: Store) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    journal = store.root / "journal"

    def work() -> None:
        prepare(resolved, several, store, Journal())
        with open(journal, "a") as file:
            file.write(f"{len(several.ranges)} ")

    with Child(work) as one, Child(work) as other:
        assert (one.join(), other.join()) == (0, 0)
    assert sum(map(int, journal.read_text().split())) == 3


def test_a_preparation_that_is_killed_at_any_moment_can_be_done_again(
    several: FakeSource, store: Store
) -> None:
    resolved = resolve("app:1", several, store, AMD64)
    for delay in (0.01, 0.05, 0.1, 0.15, 0.2, 0.25):
        with Child(lambda: prepare(resolved, several, store, Journal())) as child:
            threading.Event().wait(delay)
            child.kill()
        if store.tree(resolved.digest):
            break
    prepare(resolved, several, store, Journal())
    with Image(resolved, several, store) as image:
        assert body(image, b"/big") == noise_body()
        assert body(image, b"/link") == b"root\nann"
    for layer in store.layers():
        sweep_temporaries(layer.directory)  # a killed one's scanner may have had its file open still
        assert left_in(layer) == {"index", "flat", "presence"}


def test_an_evicted_image_fetches_only_the_spans_it_needs(several: FakeSource, store: Store) -> None:
    resolved, _ = prepared(several, store)
    layers = [store.layer(layer.digest) for layer in resolved.manifest.layers]
    assert evict(layers) > len(noise_body())
    several.forget_requests()
    with Image(resolved, several, store) as image:
        assert body(image, b"/last") == b"the last file"
        whole = resolved.manifest.layers[0].size
        assert 0 < several.traffic().bytes < whole / 3
        assert len(several.ranges) == 1
        assert body(image, b"/big") == noise_body()


def test_an_image_serves_on_while_it_is_evicted(several: FakeSource, store: Store) -> None:
    resolved, _ = prepared(several, store)
    with Image(resolved, several, store) as image:
        evict(store.layers())
        assert body(image, b"/big") == noise_body()


def test_an_open_image_keeps_its_layers_in_use(source: FakeSource, store: Store) -> None:
    add_image(source, [SMALL])
    resolved, _ = prepared(source, store)
    place = store.layer(resolved.manifest.layers[0].digest)
    with Image(resolved, source, store):
        assert place.in_use()
    assert not place.in_use()


def test_an_image_whose_tree_or_index_was_removed_is_a_store_error(source: FakeSource, store: Store) -> None:
    add_image(source, [SMALL])
    resolved, _ = prepared(source, store)
    store.layer(resolved.manifest.layers[0].digest).remove()
    with pytest.raises(StoreError, match="mount the image again"):
        Image(resolved, source, store)
    store.remove_tree(resolved.digest)
    with pytest.raises(StoreError, match="mount it again"):
        Image(resolved, source, store)

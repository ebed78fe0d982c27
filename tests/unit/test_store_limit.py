"""The limit of a store: kept by whoever writes, and felt by nobody who reads."""

from __future__ import annotations

import logging
import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imgfs.errors import StoreError
from imgfs.oci.descriptor import Digest
from imgfs.store.disk_share import DiskUse, excess_of
from imgfs.store.layer import StoredLayer
from imgfs.store.limit import cached
from imgfs.store.store import Store
from tests.support import tarmake
from tests.support.blobs import noise
from tests.support.mounted import Imgfs, drop_caches, gzipped, plain, until, write_image

pytestmark = pytest.mark.timeout(400)  # long: not to be begun last

SIZE = 1 << 20  # of each layer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store, number: int, *, used: float | None = None) -> StoredLayer:
    """A layer of one span whose bytes are here, and that was last used then."""
    layer = store.layer(Digest.of(b"%d" % number))
    flat = layer.flat(size=SIZE, spans=1)
    aside = flat.span_buffer()
    aside.write(noise(number, SIZE))
    assert flat.put(0, flat.begin(0, 0), [(0, aside)])
    aside.close()
    flat.close()
    if used is not None:
        for path in layer.directory.iterdir():
            os.utime(path, (used, used))
    return layer


def kept(layers: list[StoredLayer]) -> list[bool]:
    return [layer.cached() >= SIZE for layer in layers]


def test_there_is_none_until_it_is_set(store: Store) -> None:
    assert store.limit.read() is None
    assert store.limit.keep() == 0
    store.limit.put(5_000_000)
    assert Store(store.root).limit.read() == 5_000_000
    store.limit.put(None)
    store.limit.put(None)
    assert store.limit.read() is None


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "٣", "9" * 40])
def test_a_limit_that_is_no_number_is_an_error_that_says_where(store: Store, text: str) -> None:
    (store.root / "limit").write_text(text)
    if text == "9" * 40:
        assert store.limit.keep() == 0
        return
    with pytest.raises(StoreError, match=r"limit: .* is not a number of bytes"):
        store.limit.keep()


def test_what_was_used_longest_ago_goes_first_and_no_more_than_has_to(store: Store) -> None:
    layers = [fill(store, number, used=1e9 + number) for number in (3, 0, 2, 1)]
    store.limit.put(7 * SIZE // 2)
    assert store.limit.keep() == SIZE
    assert kept(layers) == [True, False, True, True]
    assert store.limit.keep() == 0


def test_a_layer_that_was_used_in_times_to_come_is_one_of_long_ago(store: Store) -> None:
    """The clock was wrong, and has been put back: nothing waits until that time has come."""
    ahead = time.time() + 86_400
    layers = [fill(store, 0, used=1e9), fill(store, 1, used=ahead)]
    assert [one.layer.digest for one in cached(store.layers())] == [layers[1].digest, layers[0].digest]
    with layers[0].use(), layers[1].use():
        for layer in layers:
            layer.evict()
            os.utime(layer.directory / "evicted", (ahead, ahead))
        layers = [fill(store, number) for number in range(2)]
        store.limit.put(SIZE // 2)
        store.limit.keep()
        assert kept(layers) == [False, False]


def test_to_open_a_layer_is_to_use_it(store: Store) -> None:
    layers = [fill(store, number, used=1e9 + number) for number in range(3)]
    before = time.time()
    with layers[0].use():
        pass
    assert layers[0].last_used() > before - 1
    assert [one.layer.digest for one in cached(store.layers())] == [
        layers[number].digest for number in (1, 2, 0)
    ]


def test_layers_that_are_mounted_go_last_and_the_last_used_of_them_at_the_very_last(store: Store) -> None:
    layers = [fill(store, number) for number in range(3)]
    with layers[0].use(), layers[1].use():
        for used, layer in enumerate((layers[1], layers[0], layers[2])):
            for path in layer.directory.iterdir():
                os.utime(path, (1e9 + used, 1e9 + used))
        store.limit.put(5 * SIZE // 2)
        store.limit.keep()
        assert kept(layers) == [True, True, False]
        store.limit.put(3 * SIZE // 2)
        store.limit.keep()
        assert kept(layers) == [True, False, False]


def test_what_is_being_scanned_stays(store: Store) -> None:
    layer = fill(store, 1)
    store.limit.put(1)
    with layer.lock():
        assert store.limit.keep() == 0
        assert layer.evict() == 0
    assert kept([layer]) == [True]
    assert store.limit.keep() == SIZE


def test_what_a_broken_off_pull_has_left_goes_too(store: Store) -> None:
    layer = store.layer(Digest.of(b"pulled"))
    part = layer.part(SIZE)
    part.write(0, noise(1, SIZE))
    part.mark(0)
    part.close()
    store.limit.put(1)
    assert store.limit.keep() >= SIZE
    assert not layer.part(SIZE).has(0)


def test_a_layer_whose_map_is_damaged_can_be_evicted_all_the_same(store: Store) -> None:
    for damage in (b"", b"garbage", b"imgfsmap" + b"\xff" * 56, None):
        layer = fill(store, 1)
        presence = layer.directory / "presence"
        presence.unlink() if damage is None else presence.write_bytes(damage)
        assert layer.evict() >= SIZE, damage
        assert layer.cached() < SIZE


def test_writing_keeps_the_limit(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.limit.put(4 * SIZE)
    with caplog.at_level(logging.INFO, "imgfs.store.limit"):
        for number in range(12):
            fill(store, number, used=None)
            until(lambda: sum(one.size for one in cached(store.layers())) <= 4 * SIZE, "it is kept")
    assert "evicted 2 layers, 0 of them mounted" in caplog.text


def test_a_scan_keeps_it_as_it_goes(store: Store) -> None:
    old = fill(Store(store.root), 1)
    store.limit.put(2 * SIZE)
    layer = store.layer(Digest.of(b"scanned"))
    with layer.lock():
        writer = layer.flat_writer()
        for offset in range(0, 2 * SIZE, SIZE // 8):
            writer.write(offset, noise(offset, SIZE // 8))
        until(lambda: kept([old]) == [False], "the other layer has been evicted")
        assert layer.cached() >= 2 * SIZE
        writer.close()


def test_a_store_that_keeps_its_limit_goes_to_another_process(store: Store) -> None:
    store.limit.put(4 * SIZE)
    layer = fill(store, 1)  # and a thread looks at what there is
    there = pickle.loads(pickle.dumps(store))
    assert there.limit.read() == 4 * SIZE
    assert there.layer(layer.digest).cached() >= SIZE


def test_a_limit_set_while_others_write_counts_for_them(store: Store) -> None:
    other = Store(store.root)
    layers = [fill(other, number, used=1e9 + number) for number in range(20)]
    store.limit.put(4 * SIZE)
    layers += [fill(other, 100 + number) for number in range(20)]
    until(lambda: sum(one.size for one in cached(store.layers())) < 20 * SIZE, "it has been noticed")


def test_a_share_of_the_disk_has_two_marks() -> None:
    def excess(available: int) -> tuple[int, int]:
        return excess_of(DiskUse(1000, available), 80)

    assert excess(201) == (0, 0)
    assert excess(150) == (100, 0)  # 50 above, and 50 of room
    assert excess(60) == (190, 65)
    assert DiskUse(0, 0).free_share == 1.0
    assert excess_of(DiskUse(0, 0), 80) == (0, 0)


def test_unmounted_layers_go_first_and_mounted_ones_when_the_disk_is_nearly_full(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 1000 * SIZE

    def disk_use(_: Path) -> DiskUse:
        return DiskUse(1000 * SIZE, left - sum(kept(layers)) * SIZE)

    monkeypatch.setattr("imgfs.store.disk_share.disk_use", disk_use)
    monkeypatch.setattr("imgfs.store.limit.LEAST", 3 * SIZE // 2)
    layers = [fill(store, number, used=1e9 + number) for number in range(4)]
    store.limit.put_share(80)
    assert (store.limit.share(), store.limit.read()) == (80, 800 * SIZE)
    with layers[0].use(), layers[1].use():
        assert store.limit.keep() == 0
        left = 202 * SIZE  # too full, by two of the layers that are there
        assert store.limit.keep() >= 2 * SIZE
        assert kept(layers) == [True, True, False, False]
        left = 150 * SIZE
        assert store.limit.keep() == 0
        left = 20 * SIZE
        store.limit.keep()
        assert kept(layers) == [False, True, False, False]  # the last bytes stay, or no reader would get on
    store.limit.put(5)
    assert store.limit.share() is None


def test_a_limit_that_cannot_be_kept_is_said_and_stops_nobody(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (store.root / "limit").write_text("much")
    fill(store, 1)
    until(lambda: "the store's limit is not kept: " in caplog.text, "it is logged")
    assert "'much' is not a number of bytes" in caplog.text


# -- under mounts --------------------------------------------------------------------------------------------

FILES = 8
LENGTH = 400_000  # of each file


def files_of(image: int, layer: int) -> dict[str, bytes]:
    return {f"{layer}-{number}": noise(image * 100 + layer * 10 + number, LENGTH) for number in range(FILES)}


def read_some(at: Path, files: dict[str, bytes], seed: int, ends: float) -> int:
    """Read pieces until then, all of which must be right; how many there were."""
    chance, count = random.Random(seed), 0
    while time.monotonic() < ends:
        name = chance.choice(list(files))
        offset, length = chance.randrange(LENGTH), chance.choice((100, 5_000, 200_000))
        with (at / name).open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), length, offset) == files[name][offset : offset + length], name
        count += 1
    return count


@pytest.mark.skipif(os.geteuid() != 0, reason="the kernel's cache has to be dropped")
@pytest.mark.parametrize("share", [0.6, 0.1], ids=["less than all", "less than a layer"])
def test_mounts_that_share_a_limited_store_read_nothing_but_what_is_right(imgfs: Imgfs, share: float) -> None:
    everything: list[tuple[Path, dict[str, bytes]]] = []
    for image in range(3):
        parts = [files_of(image, layer) for layer in range(2)]
        layers = [tarmake.archive(*(tarmake.file(*item) for item in part.items())) for part in parts]
        name = write_image(imgfs.directory / f"image{image}", [plain(layers[0]), gzipped(layers[1], 1)])
        everything.append((imgfs.mount(name, at=imgfs.mountpoint(f"mnt{image}")), parts[0] | parts[1]))
    store = Store(imgfs.store)
    limit = int(sum(one.size for one in cached(store.layers())) * share)
    store.limit.put(limit)
    assert store.limit.keep() > 0
    ends, stop = time.monotonic() + 6, threading.Event()

    def press() -> None:
        while not stop.wait(0.1):
            drop_caches()

    pressing = threading.Thread(target=press)
    pressing.start()
    try:
        with ThreadPoolExecutor() as readers:
            counts = [
                readers.submit(read_some, at, files, seed, ends)
                for seed in range(2)
                for at, files in everything
            ]
            assert all(count.result() > 10 for count in counts)
    finally:
        stop.set()
        pressing.join()
    assert len([line for line in imgfs.logged() if "imgfs.store.limit: the store's layers take" in line]) > 2
    until(lambda: sum(one.size for one in cached(store.layers())) <= limit, "the limit is kept in the end")
    for at, _ in everything:
        imgfs.umount(at)

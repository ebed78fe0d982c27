"""Flat files that the kernel reads without us: nothing takes bytes from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imgfs.store.flat import FlatLayer, is_pinned, sweep_pins
from imgfs.store.flat_files import PRESENT

SPANS, SPAN = 4, 4096
BYTES = os.urandom(SPANS * SPAN)


def opened(directory: Path) -> FlatLayer:
    return FlatLayer(directory, size=len(BYTES), spans=SPANS)


def fill(flat: FlatLayer, *numbers: int) -> None:
    for number in numbers:
        with closing(flat.span_buffer()) as aside:
            aside.write(BYTES[number * SPAN : (number + 1) * SPAN])
            assert flat.put(number, flat.begin(number, number), [(number * SPAN, aside)])


@pytest.fixture
def flat(tmp_path: Path) -> Iterator[FlatLayer]:
    """A flat layer that is all there."""
    flat = opened(tmp_path)
    fill(flat, *range(SPANS))
    yield flat
    flat.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in directory.iterdir())


def test_a_whole_layer_is_pinned_under_another_name(flat: FlatLayer, tmp_path: Path) -> None:
    pin = flat.pin()
    assert pin is not None
    assert pin.read_bytes() == BYTES
    assert pin.samefile(tmp_path / "flat")


def test_one_of_which_something_is_missing_is_not(tmp_path: Path) -> None:
    flat = opened(tmp_path)
    fill(flat, 0, 1, 3)
    assert flat.pin() is None
    assert names(tmp_path) == ["flat", "presence"]
    flat.close()


def test_nor_one_that_has_been_replaced(flat: FlatLayer, tmp_path: Path) -> None:
    (tmp_path / "flat").rename(tmp_path / "old")
    (tmp_path / "flat").write_bytes(b"another")
    assert flat.pin() is None
    assert names(tmp_path) == ["flat", "old", "presence"]


def test_who_reads_a_pinned_layer_keeps_it_when_it_is_evicted_and_who_comes_begins_anew(
    flat: FlatLayer, tmp_path: Path
) -> None:
    pin = flat.pin()
    assert pin is not None
    reader = os.open(pin, os.O_RDONLY)
    assert flat.evict() == 0
    assert os.pread(reader, len(BYTES), 0) == BYTES
    assert names(tmp_path) == ["pin"]
    newcomer = opened(tmp_path)
    assert newcomer.count_present() == 0
    fill(newcomer, 2)
    assert newcomer.evict() > 0
    assert os.pread(reader, len(BYTES), 0) == BYTES
    newcomer.close()
    os.close(reader)


def test_a_pin_whose_reader_has_gone_holds_nothing(flat: FlatLayer, tmp_path: Path) -> None:
    pin = flat.pin()
    assert pin is not None
    reader = os.open(pin, os.O_RDONLY)
    fd = os.open(tmp_path / "flat", os.O_RDWR)
    flat.close()
    assert is_pinned(tmp_path, fd)
    os.close(reader)
    assert not is_pinned(tmp_path, fd)
    os.close(fd)
    assert names(tmp_path) == ["flat", "presence"]
    again = opened(tmp_path)
    assert again.evict() > 0
    assert (tmp_path / "flat").read_bytes() == bytes(len(BYTES))
    again.close()


def test_a_killed_process_s_pin_of_an_evicted_file_goes_once_nobody_reads_it(
    flat: FlatLayer, tmp_path: Path
) -> None:
    pin = flat.pin()
    assert pin is not None
    reader = os.open(pin, os.O_RDONLY)
    flat.evict()
    flat.close()
    sweep_pins(tmp_path)
    assert names(tmp_path) == ["pin"]
    os.close(reader)
    sweep_pins(tmp_path)
    assert names(tmp_path) == []


def test_a_file_whose_names_are_gone_is_not_emptied_while_it_is_read(flat: FlatLayer, tmp_path: Path) -> None:
    pin = flat.pin()
    assert pin is not None
    reader = os.open(pin, os.O_RDONLY)
    for path in tmp_path.iterdir():
        path.unlink()
    assert flat.evict() == 0
    assert os.pread(reader, len(BYTES), 0) == BYTES
    os.close(reader)


def test_what_loses_its_names_while_it_is_opened_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new map must not speak of an old file: what it marks would be zeros to the next process."""
    fill(first := opened(tmp_path), *range(SPANS))
    first.close()
    really = os.open
    raced: list[str] = []

    def race(path: str | Path, *rest: int) -> int:
        if Path(path).name == "presence" and not raced:
            raced.append("once")
            (tmp_path / "presence").unlink()
            (tmp_path / "flat").unlink()
        return really(path, *rest)

    monkeypatch.setattr(os, "open", race)
    flat = opened(tmp_path)
    assert raced
    assert flat.marks(0, SPANS - 1) == bytes(SPANS)
    fill(flat, 1)
    assert (tmp_path / "flat").read_bytes()[SPAN : 2 * SPAN] == BYTES[SPAN : 2 * SPAN]
    assert flat.marks(1, 1)[0] & PRESENT
    flat.close()

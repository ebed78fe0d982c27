"""Warm mounts: the tree is in the store; how long until the first listing, whatever the image's size?

And beside `podman image mount` of an image that podman has pulled, with and without an `imgfs serve`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.engines import DRIVERS
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Stage, attempt, forget_quietly, say
from scripts.benchmark.tools import Forgets, Imgfs, Podman
from scripts.lab.layout import Image

COLUMNS = ("image", "entries", "first mount s", "warm, page cache dropped s", "warm s", "store MB")
SECONDS = 0.5  # to the first listing of a warm mount
_TURNS = 11  # of each way beside podman: one of them alone is a matter of chance


def warm_mounts(stage: Stage, sizes: Sequence[int], names: Sequence[str]) -> Iterator[Table]:
    """Measure `imgfs mount` to the first `ls`, of ever more tiny files, and of applications."""
    table = Table("B. Mount to the first ls", COLUMNS)
    for image in [*map(stage.synthetic, sizes), *(stage.application(name).image for name in names)]:
        with attempt(stage.imgfs, table.notes):
            _measure(stage, image, table)
    yield table


def _measure(stage: Stage, image: Image, table: Table) -> None:
    imgfs, name = stage.imgfs, image.layout.name
    reference = stage.reference(image)

    def to_first_listing(before: Callable[[], None]) -> float:
        imgfs.hide()
        before()
        start = time.perf_counter()
        run(["ls", imgfs.show(reference)])
        return time.perf_counter() - start

    say(f"B warm mounts: {name}")
    first = to_first_listing(lambda: stage.cool(image))
    dropped = [to_first_listing(lambda: stage.cool(image)) for _ in range(stage.rounds)]
    warm = [to_first_listing(lambda: None) for _ in range(stage.rounds)]
    table.raw[name] = {"first": first, "dropped": dropped, "warm": warm}
    used = sum(path.stat().st_blocks * 512 for path in imgfs.store.rglob("*") if path.is_file())
    table.add(name, image.entries, first, median(dropped), median(warm), round(used / 1e6, 1))
    table.target(f"warm mount of {name} to ls, page cache dropped, in s", median(dropped), SECONDS)


class Way(NamedTuple):
    """A way to mount an image that is here; `most`: the multiple of podman's time that it may take."""

    name: str
    mount: Callable[[], Path]
    unmount: Callable[[], None]
    most: float = 0.0


def beside_podman(stage: Stage, name: str) -> Iterator[Table]:
    """Measure from a mount's command to the first `ls`, all ways in turns, unless podman is left out."""
    podman = next((tool for tool in stage.tools if isinstance(tool, Podman)), None)
    if podman is None:
        return
    image = stage.application(name).image
    reference = stage.reference(image)
    ways = [Way("podman image mount", lambda: podman.mount(reference), podman.hide)]
    table = Table(f"B. Warm mount of {name} to the first ls, beside podman", ("way", "s", "of podman's"))
    imgfs = {driver: stage.driven(driver) for driver in DRIVERS}
    try:
        say(f"B {name}: warm mounts beside podman")
        podman.pull(reference)
        for driver, each in imgfs.items():
            each.pull(reference)
            each.serve()
            ways += [
                _way(each, driver, reference, is_served=is_served, is_offline=is_offline)
                for is_served in (False, True)
                for is_offline in (False, True)
            ]
        _take_turns(ways, table)
    except CommandFailed as failed:
        table.notes.append(str(failed))
    finally:
        tools: list[Forgets] = [*imgfs.values(), podman]
        for tool in tools:
            forget_quietly(tool)
    yield table


def _way(imgfs: Imgfs, driver: str, reference: str, *, is_served: bool, is_offline: bool) -> Way:
    """Mount by imgfs; podman asks no registry what a tag means now, as imgfs does not if `is_offline`."""
    name = f"imgfs {driver}{is_offline * ', --offline'}{is_served * ', served'}"

    def show() -> Path:
        return imgfs.show(reference, is_served=is_served, is_offline=is_offline)

    return Way(name, show, imgfs.hide, 2 if is_served else 4)


def _take_turns(ways: Sequence[Way], table: Table) -> None:
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for turn in range(_TURNS + 1):
        for way in ways:
            begun = time.perf_counter()
            run(["ls", way.mount()])
            if turn:  # the first one is not warm
                found[way.name].append(time.perf_counter() - begun)
            way.unmount()
    podman = median(found[ways[0].name])
    for way in ways:
        seconds = median(found[way.name])
        table.add(way.name, seconds, ratio(seconds, podman))
        if way.most:
            table.target(f"{way.name}, as a multiple of podman's time", seconds / podman, way.most)
    table.raw |= found

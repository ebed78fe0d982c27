"""Warm mounts: the tree is in the store; how long until the first listing, whatever the image's size?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.report import Table
from scripts.benchmark.stage import Stage, forget_quietly, say
from scripts.lab.layout import Image

COLUMNS = ("image", "entries", "first mount s", "warm, page cache dropped s", "warm s", "store MB")
SECONDS = 0.5  # to the first listing of a warm mount


def warm_mounts(stage: Stage, sizes: Sequence[int], names: Sequence[str]) -> Iterator[Table]:
    """Measure `imgfs mount` to the first `ls`, of ever more tiny files, and of applications."""
    table = Table("B. Mount to the first ls", COLUMNS)
    for image in [*map(stage.synthetic, sizes), *(stage.application(name).image for name in names)]:
        try:
            _measure(stage, image, table)
        except CommandFailed as failed:
            table.notes.append(str(failed))
        finally:
            forget_quietly(stage.imgfs)
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

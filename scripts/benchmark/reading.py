"""Reading over the mount beside reading the unpacked directory: find, tar, sequential, random."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from scripts.benchmark.clock import drop_page_cache, output_of, run
from scripts.benchmark.journey import read_everything
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Stage, attempt, say

COLUMNS = ("what", "cold s", "native cold s", "cold ratio", "warm s", "native warm s", "warm ratio")
READS = 2_000  # random reads of 4 KiB

Measure = Callable[[Path], float]  # given a root, the seconds it took


def reading(stage: Stage, names: Sequence[str]) -> Iterator[Table]:
    """Measure reads of cached data: cold is with the page cache dropped, warm the second time."""
    for name in names:
        image = stage.application(name).image
        table = Table(f"C. Reading {name}: imgfs, all data in its store, beside the unpacked tree", COLUMNS)
        with attempt(stage.imgfs, table.notes):
            native = stage.unpacked(image)
            mounted = stage.imgfs.show(stage.reference(image))
            for what, measure in measures(native):
                say(f"C {name}: {what}")
                _compare(stage, table, what, measure, (mounted, native))
        yield table


def measures(native: Path) -> list[tuple[str, Measure]]:
    """Name the ways to read a tree that is unpacked at `native`."""
    large = largest(native)
    size = (native / large).stat().st_size
    return [
        ("find (names)", lambda root: run(["find", root])),
        ("find -size (attributes)", lambda root: run(["find", root, "-size", "+1"])),
        ("tar of everything", read_everything),
        (
            f"dd of {size / 1e6:.0f} MB",
            lambda root: run(["dd", f"if={root / large}", "of=/dev/null", "bs=1M"]),
        ),
        (f"{READS:,} random reads of 4 KiB", lambda root: random_reads(root / large)),
    ]


def _compare(stage: Stage, table: Table, what: str, measure: Measure, roots: tuple[Path, Path]) -> None:
    """Let the two take turns, so that what else the machine does hits both."""
    rounds = [[_cold_and_warm(measure, root) for root in roots] for _ in range(stage.rounds)]
    table.raw[what] = rounds
    (cold, warm), (native_cold, native_warm) = (
        [median(times) for times in zip(*pairs, strict=True)] for pairs in zip(*rounds, strict=True)
    )
    table.add(
        what,
        *(cold, native_cold, ratio(cold, native_cold)),
        *(warm, native_warm, ratio(warm, native_warm)),
    )


def _cold_and_warm(measure: Measure, root: Path) -> tuple[float, float]:
    drop_page_cache()
    return measure(root), measure(root)


def largest(root: Path) -> Path:
    """Find the largest regular file, as a path relative to `root`."""
    sizes = (
        (status.st_size, path)
        for directory, _, names in os.walk(root)
        for path in (Path(directory, name) for name in names)
        if stat.S_ISREG((status := path.lstat()).st_mode)
    )
    return max(sizes)[1].relative_to(root)


def random_reads(path: Path) -> float:
    """Read 4 KiB at random places, always the same ones; the reader's own start is not counted."""
    return float(output_of([sys.executable, "-c", RANDOM_READER, path, str(READS)]))


RANDOM_READER = """
import os, random, sys, time
name, reads = sys.argv[1:]
file = os.open(name, os.O_RDONLY)
pages = os.fstat(file).st_size // 4096
places = random.Random(1).choices(range(pages), k=int(reads))
start = time.perf_counter()
for place in places:
    os.pread(file, 4096, place * 4096)
print(time.perf_counter() - start)
"""

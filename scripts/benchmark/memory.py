"""The daemon's resident memory, from /proc: a million files mounted and listed, everything read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts.benchmark.clock import run
from scripts.benchmark.journey import read_everything
from scripts.benchmark.report import Table
from scripts.benchmark.stage import Stage, attempt, forget_quietly, say
from scripts.benchmark.tools import mounts_below
from scripts.lab.layout import Image

COLUMNS = ("image", "after", "VmRSS MiB", "VmHWM MiB", "RssAnon MiB", "Pss MiB")
MEBIBYTES = 100  # resident, at a million files
MOUNTS = (1, 10, 60)
PATIENCE = 300.0  # seconds for idle daemons to end: each has been started again by the reader
IDLE = 5  # seconds without a request, after which a daemon ends
SERVER = 2 + min(
    4, len(os.sched_getaffinity(0))
)  # processes of `imgfs serve`, with those that wait beside it
WAYS = (  # each with the options of `imgfs mount`, and whether `imgfs serve` runs
    ("each by itself", ("--driver", "fuse"), False),
    ("imgfs serve", ("--driver", "fuse"), True),
    ("--restart", ("--driver", "fuse", "--restart"), False),
    ("imgfs serve, --restart", ("--driver", "fuse", "--restart"), True),
    ("imgfs serve, --exit-idle", ("--driver", "fuse", "--restart", "--exit-idle", str(IDLE)), True),
)
READABLE = 200_000  # entries; to read a million tiny files takes minutes and shows nothing more


def memory(stage: Stage, sizes: Sequence[int], names: Sequence[str]) -> Iterator[Table]:
    """Measure the daemon of a warm mount: the synthetic images listed, the applications also read whole."""
    table = Table("B. Memory of the daemon", COLUMNS)
    for image in [*map(stage.synthetic, sizes), *(stage.application(name).image for name in names)]:
        with attempt(stage.imgfs, table.notes):
            _measure(stage, image, table)
    yield table
    for name in names[:1]:
        yield idle_mounts(stage, stage.application(name).image)


def idle_mounts(stage: Stage, image: Image) -> Table:
    """Sum what all processes of so many mounts take: one reads the root of each, then a while nothing."""
    table = Table("B. Pss of all processes of idle mounts, MiB", ("mounts", *(way for way, _, _ in WAYS)))
    imgfs, reference = stage.imgfs, stage.reference(image)
    imgfs.pull(reference)
    for count in MOUNTS:
        say(f"B memory: {count} idle mounts")
        sums = []
        for _, options, is_served in WAYS:
            with imgfs.shown_often(reference, count, options, is_served=is_served) as processes:
                for place in mounts_below(imgfs.mountpoint.parent):
                    run(["ls", place])
                settle(processes, count + SERVER if "--exit-idle" in options else None)
                sums.append(round(sum(map(_shared, processes())), 1))
        table.add(count, *sums)
    forget_quietly(imgfs)
    return table


def settle(processes: Callable[[], list[int]], left: int | None) -> None:
    """Wait until no more than so many processes are left, or a while."""
    end = time.monotonic() + PATIENCE
    time.sleep(1)
    while left is not None and len(processes()) > left and time.monotonic() < end:
        time.sleep(1)


def _shared(pid: int) -> float:
    """Return a process's Pss in MiB, 0 if it has ended."""
    try:
        return memory_of(pid)[3]
    except (OSError, ValueError):
        return 0.0


def _measure(stage: Stage, image: Image, table: Table) -> None:
    imgfs, name = stage.imgfs, image.layout.name
    reference = stage.reference(image)
    say(f"B memory: {name}")
    for after in ("first mount", "warm mount"):
        imgfs.hide()
        root = imgfs.show(reference)
        table.add(name, after, *memory_of(imgfs.pid()))
    run(["find", root, "-size", "+1000000000c"])
    table.add(name, "find of everything", *memory_of(imgfs.pid()))
    if image.entries <= READABLE:
        read_everything(root)
        table.add(name, "reading everything", *memory_of(imgfs.pid()))
    table.target(f"VmHWM with {name}, in MiB", resident(imgfs.pid())[1], MEBIBYTES)


def memory_of(pid: int) -> tuple[float, float, float, float]:
    """Read what `resident` does, and Pss: what other processes share counts in part (smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (shared,) = (int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))
    return *resident(pid), shared


def resident(pid: int) -> tuple[float, float, float]:
    """Read VmRSS, VmHWM and RssAnon of a process, in MiB (proc(5), /proc/pid/status: kB)."""
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    values = {key: text.split() for key, _, text in lines}
    current, highest, anonymous = (int(values[key][0]) / 1024 for key in ("VmRSS", "VmHWM", "RssAnon"))
    return current, highest, anonymous

"""The daemon's resident memory, from /proc: a million files mounted and listed, everything read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.journey import read_everything
from scripts.benchmark.report import Table
from scripts.benchmark.stage import Stage, forget_quietly, say
from scripts.lab.layout import Image

COLUMNS = ("image", "after", "VmRSS MiB", "VmHWM MiB", "RssAnon MiB", "Pss MiB")
MEBIBYTES = 100  # resident, at a million files
READABLE = 200_000  # entries; to read a million tiny files takes minutes and shows nothing more


def memory(stage: Stage, sizes: Sequence[int], names: Sequence[str]) -> Iterator[Table]:
    """Measure the daemon of a warm mount: the synthetic images listed, the applications also read whole."""
    table = Table("B. Memory of the daemon", COLUMNS)
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

"""A model file of 1 GB, from an empty store over a slow link: read from end to end, and mapped at random.

The image has one layer that is not compressed, so what the daemon does for each byte shows undisguised.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.benchmark.clock import run
from scripts.benchmark.cold import Way, measure, ways
from scripts.benchmark.editions import EDITIONS, profiled
from scripts.benchmark.journey import Milestone, plain, typical
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Application, Speed, Stage
from scripts.lab.link import Link
from scripts.lab.torch import MODEL_PATH, model

IN_SEQUENCE, AT_RANDOM = "large", "mapped"
COLUMNS = (
    *("tool", "dd s", "dd / wire", "MB", "requests", "CPU s", "CPU ms / MB"),
    *("mapped s", "mapped MB", "mapped requests", "CPU s, mapped"),
)
OF_WIRE = 1.1
TOUCHES = 64  # pages that are read of the mapped file
OF_FILES = tuple(each for each in EDITIONS if each.publish is not profiled)  # there is nothing to start


def models(stage: Stage, speeds: Sequence[Speed]) -> Iterator[Table]:
    """Measure imgfs, podman, and eStargz read by imgfs."""
    image = model(stage.images)
    application = Application("model", image, ("true",), MODEL_PATH, "models")
    notes: list[str] = []
    found = list(ways(stage, application, notes, OF_FILES))
    for speed in speeds:
        table = Table(f"L. A model file of {image.size / 1e6:,.0f} MB, {speed}", COLUMNS, notes=list(notes))
        with stage.link(speed) as link:
            _measure(stage, application, speed, found, link, table)
        yield table


def _measure(
    stage: Stage, application: Application, speed: Speed, found: Sequence[Way], link: Link, table: Table
) -> None:
    more = {AT_RANDOM: lambda root: touch_mapped(root / MODEL_PATH)}
    stops = ((IN_SEQUENCE,), (AT_RANDOM,))
    journeys = measure(stage, application, f"L {speed}", found, link, table.notes, stops, more)
    for name, each in journeys.items():
        table.raw[name] = plain(each)
        middle = typical(each)
        table.add(name, *_sequence(middle[IN_SEQUENCE], application, speed), *_random(middle[AT_RANDOM]))
        wire = speed.seconds(application.image.size)
        if wire and name.startswith("imgfs, index"):
            table.target(f"{name}: dd / wire", middle[IN_SEQUENCE].seconds / wire, OF_WIRE)


def _sequence(reached: Milestone, application: Application, speed: Speed) -> list[float | int | None]:
    wire = speed.seconds(application.image.size)
    fetched = reached.fetched / 1e6
    effort = reached.cpu, 1000 * reached.cpu / (application.image.size / 1e6)
    return [reached.seconds, ratio(reached.seconds, wire), fetched, reached.requests, *effort]


def _random(reached: Milestone) -> list[float | int | None]:
    return [reached.seconds, reached.fetched / 1e6, reached.requests, reached.cpu]


def touch_mapped(path: Path) -> float:
    """Map a file and read a byte of some of its pages, always the same ones; the seconds it took."""
    return run([sys.executable, "-c", MAPPED_READER, path, str(TOUCHES)])


MAPPED_READER = """
import mmap, random, sys
name, touches = sys.argv[1:]
with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    mapped.madvise(mmap.MADV_RANDOM)
    for page in random.Random(1).sample(range(len(mapped) // mmap.PAGESIZE), int(touches)):
        mapped[page * mmap.PAGESIZE]
"""

"""Cold starts over a slow link: imgfs with every kind of index, beside podman and beside the wire itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed
from scripts.benchmark.editions import EDITIONS, Edition, Place, plain
from scripts.benchmark.journey import Journey, Milestone, travel, typical
from scripts.benchmark.journey import plain as as_json
from scripts.benchmark.report import Cell, Table, ratio
from scripts.benchmark.stage import SHAPED, Application, Speed, Stage, forget_quietly, say
from scripts.benchmark.tools import PodmanRun, Tool
from scripts.lab.link import Link

# Each from nothing: what was fetched for one would make the next come sooner.
JOURNEYS = (("file", "app"), ("large",), ("everything",))
STOPS = ("file", "app", "large", "everything")
TIMES = (
    *("tool", *(f"{stop} s" for stop in STOPS), "app / podman", *(f"{stop} / wire" for stop in STOPS[1:])),
    *("CPU s to app", "switches to app", "CPU s to everything"),
)
COUNTS = ("tool", *(f"{what} to {stop}" for stop in STOPS for what in ("MB", "requests")), "connections")
INDEX, PROFILE = EDITIONS[1].name, EDITIONS[2].name
TO_FILE = 0.7  # seconds that an image with an index may take
TO_APP = {  # seconds, with an index (what the best peer takes), and with a profile too
    "python-app": (5.9, 2.0),
    "node-app": (8.5, 3.5),
    "ml-app": (26.0, 8.0),
    "torch": (14.0, 8.0),  # 1.2 times what its bytes take
}
OF_WIRE = 1.1  # times the wire's minimum for everything


class Way(NamedTuple):
    """A tool and where it finds the image."""

    name: str
    tool: Tool
    place: Place


def cold_starts(stage: Stage, names: Sequence[str], speeds: Sequence[Speed]) -> Iterator[Table]:
    """Measure the way from an empty store to a file, the application, a large file, everything."""
    for name in names:
        application = stage.application(name)
        notes: list[str] = []
        found = list(ways(stage, application, notes))
        for speed in speeds:
            yield from _tables(stage, application, speed, found, notes)


def ways(
    stage: Stage, application: Application, notes: list[str], editions: Sequence[Edition] = EDITIONS
) -> Iterator[Way]:
    """Name the ways that can be gone; why others cannot is noted."""
    for edition in editions:
        say(f"{application.name}: publishing for {edition.name}")
        try:
            yield Way(edition.name, stage.imgfs, edition.publish(stage, application))
        except CommandFailed as failed:
            notes.append(f"{edition.name}: skipped: {failed}")
    for tool in stage.containers:
        yield Way(tool.name, tool, plain(stage, application))


def _tables(
    stage: Stage, application: Application, speed: Speed, found: Sequence[Way], notes: Sequence[str]
) -> Iterator[Table]:
    size = application.image.size
    title = f"G. Cold start of {application.name} ({size / 1e6:.0f} MB), {speed}"
    times, counts = Table(title, TIMES, notes=list(notes)), Table(f"{title}: what crossed the link", COUNTS)
    with stage.link(speed) as link:
        journeys = measure(stage, application, f"G {application.name}, {speed}", found, link, times.notes)
    times.raw |= {name: as_json(each) for name, each in journeys.items()}
    middle = {name: typical(each) for name, each in journeys.items()}
    podman = middle[PodmanRun.name]["app"].seconds if PodmanRun.name in middle else None
    for name, journey in middle.items():
        reached = [journey[stop] for stop in STOPS]
        shares = [_of_wire(milestone, speed) for milestone in reached[1:]]
        seconds = [milestone.seconds for milestone in reached]
        effort = journey["app"].cpu, journey["app"].switches, journey["everything"].cpu
        times.add(name, *seconds, ratio(journey["app"].seconds, podman), *shares, *effort)
        crossed: list[Cell] = [cell for each in reached for cell in (each.fetched / 1e6, each.requests)]
        counts.add(name, *crossed, reached[-1].connections)
    wire = speed.seconds(size)
    if wire:
        times.add("wire minimum of the image", None, None, None, wire, *[None] * 7)
    if speed == SHAPED:
        _judge(times, application.name, middle)
    if wire and INDEX in middle:
        everything = middle[INDEX]["everything"].seconds
        times.target("everything with an index, as a multiple of the wire's", everything / wire, OF_WIRE)
    yield times
    yield counts


def _of_wire(reached: Milestone, speed: Speed) -> float | None:
    """Say how many times longer it took than what was fetched for it needs on the wire."""
    return ratio(reached.seconds, speed.seconds(reached.fetched))


def _judge(table: Table, name: str, middle: dict[str, Journey]) -> None:
    for way, limit in zip((INDEX, PROFILE), TO_APP[name], strict=True):
        if way in middle:
            table.target(f"{way}: s to the first file", middle[way]["file"].seconds, TO_FILE)
            table.target(f"{way}: s to the application", middle[way]["app"].seconds, limit)


def measure(
    stage: Stage,
    application: Application,
    title: str,
    found: Sequence[Way],
    link: Link,
    notes: list[str],
    journeys: Sequence[Sequence[str]] = JOURNEYS,
    more: Mapping[str, Callable[[Path], float]] | None = None,
) -> dict[str, list[Journey]]:
    """Go all ways in turns, round after round; those that can be gone, by name. `more` are further stops."""
    gone: dict[str, list[Journey]] = {}
    for number in range(1, stage.rounds + 1):
        for way in found:
            say(f"{title}, round {number}: {way.name}")
            try:
                journey = _travel(stage, application, way, link, journeys, more)
            except CommandFailed as failed:
                notes.append(f"{way.name}: {failed}")
            else:
                gone.setdefault(way.name, []).append(journey)
    return gone


def _travel(
    stage: Stage,
    application: Application,
    way: Way,
    link: Link,
    journeys: Sequence[Sequence[str]],
    more: Mapping[str, Callable[[Path], float]] | None,
) -> Journey:
    """Go all journeys, each from an empty store, a cold page cache, and without a connection."""
    reached: Journey = {}
    reference = stage.seen_through(link, *way.place)
    for stops in journeys:
        stage.cool(application.image, way.place.repository)
        try:
            reached |= travel(application, way.tool, reference, link, stops, more)
        finally:
            forget_quietly(way.tool)
    return reached

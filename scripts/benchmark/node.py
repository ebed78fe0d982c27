"""A node's containerd: from a pull to an application that answers; what images and containers cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, cpu_with_children
from scripts.benchmark.editions import Place
from scripts.benchmark.memory import memory_of
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.snapshotters import APART, OVERLAYFS, SNAPSHOTTERS, Node, Snapshotter, await_answer
from scripts.benchmark.stage import Application, Speed, Stage, say
from scripts.lab.link import Link
from scripts.lab.recipes import one_of_many
from scripts.lab.registry import free_port

READY = (
    *("snapshotter", "pulled s", "ready s", "ready / overlayfs"),
    *("MB to ready", "requests", "CPU s", "PSS MiB"),
)
COSTS = ("snapshotter", "images", "containers", "PSS MiB", "CPU s", "s")
OF_PEERS, NO_INDEX = 1.0, 1.5  # times the best other snapshotter, with an index beside the image and without
SERVER = """
const app = require('/app/node_modules/express')()
app.get('/', (request, response) => response.send('hello'))
app.listen({port}, '127.0.0.1')
"""


class Readiness(NamedTuple):
    """What it took until an application answered; PSS is what serves the image then."""

    pulled: float
    ready: float
    fetched: float
    requests: float
    cpu: float
    pss: float


def readiness(stage: Stage, names: Sequence[str], speed: Speed) -> Iterator[Table]:
    """Measure the way from a pull, nothing here, to an application that answers."""
    for name in names:
        application = stage.application(name)
        title = f"K. containerd: {name} ({application.image.size / 1e6:.0f} MB), pulled and ready, {speed}"
        table = Table(title, READY)
        ways = list(_published(stage, application, table.notes))
        found: dict[str, list[Readiness]] = {}
        with stage.link(speed) as link:
            for number in range(1, stage.rounds + 1):
                for way, place in ways:
                    say(f"K {name}, round {number}: {way.name}")
                    try:
                        taken = _get_ready(stage, application, way, place, link)
                        found.setdefault(way.name, []).append(taken)
                    except CommandFailed as failed:
                        table.notes.append(f"{way.name}: {failed}")
        tell(table, found)
        yield table


def _published(
    stage: Stage, application: Application, notes: list[str]
) -> Iterator[tuple[Snapshotter, Place]]:
    """Name the snapshotters for which the image can be published; why others are left out is noted."""
    for way in SNAPSHOTTERS:
        say(f"K {application.name}: publishing for {way.name}")
        try:
            yield way, way.publish(stage, application)
        except CommandFailed as failed:
            notes.append(f"{way.name}: skipped: {failed}")


def _get_ready(
    stage: Stage, application: Application, way: Snapshotter, place: Place, link: Link
) -> Readiness:
    reference = stage.seen_through(link, *place)
    with Node(stage.scratch / "node", stage.programs, way) as node:
        stage.cool(application.image, place.repository)
        before, used, began = link.traffic(), _cpu(node), time.perf_counter()
        node.pull(reference)
        pulled = time.perf_counter() - began
        _use(node, application, reference)
        ready, crossed = time.perf_counter() - began, link.traffic() - before
        effort = _cpu(node) - used
        return Readiness(pulled, ready, crossed.fetched / 1e6, crossed.requests, effort, _pss(node))


def _use(node: Node, application: Application, reference: str) -> None:
    """Start the application, and wait until it answers, or has ended if it is no server."""
    if application.name != "node-app":
        node.run(reference, application.start)
        return
    port = free_port()
    node.start(reference, "server", ["node", "-e", SERVER.format(port=port)])
    await_answer(port)


def tell(table: Table, found: dict[str, list[Readiness]]) -> None:
    """Make the table's rows of the medians, and note whether what is aimed at is reached."""
    table.raw |= {name: [one._asdict() for one in rounds] for name, rounds in found.items()}
    middle = {
        name: Readiness(*(median(column) for column in zip(*rounds, strict=True)))
        for name, rounds in found.items()
    }
    base = middle[OVERLAYFS].ready if OVERLAYFS in middle else None
    for name, one in middle.items():
        table.add(name, one.pulled, one.ready, ratio(one.ready, base), *one[2:])
    others = [one.ready for name, one in middle.items() if not name.startswith("imgfs")]
    for way, limit in ((SNAPSHOTTERS[0], NO_INDEX), (SNAPSHOTTERS[1], OF_PEERS)):
        if way.name in middle and others:
            what = f"{way.name}: ready, as a multiple of the best other"
            table.target(what, middle[way.name].ready / min(others), limit)


def costs(stage: Stage, images: Sequence[int], containers: int) -> Iterator[Table]:
    """Measure what serves so many images, each with a container, and then many containers of one of them."""
    table = Table("K. containerd: what a node pays, beside the containers themselves", COSTS)
    for way in APART:
        try:
            say(f"K costs: publishing {max(images)} images for {way.name}")
            places = [way.publish(stage, _one_of_many(stage, number)) for number in range(max(images))]
            references = [stage.seen_through(None, *place) for place in places]
            with Node(stage.scratch / "node", stage.programs, way) as node:
                for row in _grow(node, references, images, containers):
                    say(f"K costs: {way.name}: {row[0]} images, {row[1]} containers")
                    table.add(way.name, *row)
        except CommandFailed as failed:
            table.notes.append(f"{way.name}: {failed}")
    yield table


def _one_of_many(stage: Stage, number: int) -> Application:
    image = one_of_many(stage.images, number)
    return Application(image.layout.name, image, ("true",), "", "")


def _grow(
    node: Node, references: Sequence[str], images: Sequence[int], containers: int
) -> Iterator[tuple[int, int, float, float, float]]:
    """Yield images, containers, PSS, CPU and seconds, each counted from the row before."""
    started = 0

    def row(count: int) -> tuple[int, int, float, float, float]:
        return count, started, _pss(node), _cpu(node) - used, time.perf_counter() - began

    have = 0
    for count in images:
        used, began = _cpu(node), time.perf_counter()
        for reference in references[have:count]:
            node.pull(reference)
            node.start(reference, f"c{started}", ["sleep", "1000000"])
            started += 1
        have = count
        yield row(count)
    used, began = _cpu(node), time.perf_counter()
    for _ in range(containers):
        node.start(references[0], f"c{started}", ["sleep", "1000000"])
        started += 1
    yield row(have)


def _pss(node: Node) -> float:
    return _sum(node, lambda pid: memory_of(pid)[3])


def _cpu(node: Node) -> float:
    return _sum(node, cpu_with_children)


def _sum(node: Node, figure: Callable[[int], float]) -> float:
    """Add up a figure of a node's processes; one that has ended meanwhile counts nothing."""
    found = 0.0
    for pid in node.processes():
        with contextlib.suppress(OSError):
            found += figure(pid)
    return found

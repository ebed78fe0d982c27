"""A node's containerd: from a pull to an application that answers; what images and containers cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, cpu_with_children
from scripts.benchmark.editions import Place
from scripts.benchmark.memory import memory_of
from scripts.benchmark.pods import Pod
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.snapshotters import APART, OVERLAYFS, SNAPSHOTTERS, Node, Snapshotter, await_answer
from scripts.benchmark.stage import Application, Speed, Stage, say
from scripts.lab.link import Link
from scripts.lab.recipes import pause, shelf
from scripts.lab.registry import RegistryFailed, free_port
from scripts.lab.shelf import take_apart

READY = (
    *("snapshotter", "pulled s", "ready s", "ready / overlayfs"),
    *("MB to ready", "requests", "CPU s", "PSS MiB"),
)
COSTS = ("snapshotter", "images", "containers", "which", "PSS MiB", "CPU s", "s")
OF_PEERS, NO_INDEX = 1.0, 1.5  # times the best other snapshotter, with an index beside the image and without
_SILENCE = 0.2  # seconds without a byte after which a link is taken to be silent
PATIENCE = 120.0  # seconds for mounts to be idle,
_REST = 15.0  # which they are if no process has ended for so long: a daemon ends after two without a request
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
    reference, at = stage.seen_through(link, *place), stage.scratch / "node"
    with (
        Node(at, stage.programs, way, stage.reference(pause(stage.images))) as node,
        Pod(node, stage.programs, at / "pod") as pod,
    ):
        stage.cool(application.image, place.repository)
        _await_silence(link)
        before, used, began = link.traffic(), _cpu(node), time.perf_counter()
        pod.pull(reference)
        pulled = time.perf_counter() - began
        _use(pod, application, reference)
        ready, crossed = time.perf_counter() - began, link.traffic() - before
        effort = _cpu(node) - used
        return Readiness(pulled, ready, crossed.fetched / 1e6, crossed.requests, effort, _pss(node))


def _await_silence(link: Link) -> None:
    """Wait until nothing crosses the link that a node before this one had asked for."""
    before = None
    while (now := link.traffic().fetched) != before:
        before = now
        time.sleep(_SILENCE)


def _use(pod: Pod, application: Application, reference: str) -> None:
    """Start the application, and wait until it answers, or says that it has imported what it needs."""
    if application.name != "node-app":
        *python, program = application.start
        pod.start(reference, "program", [*python, f"{program}; print('ready', flush=True)"])
        pod.await_word("program", "ready")
        return
    port = free_port()
    pod.start(reference, "server", ["node", "-e", SERVER.format(port=port)])
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
    table.notes.append("an image: busybox and 10,000 tiny files in a layer that all share, 100 in its own")
    for way in APART:
        try:
            say(f"K costs: publishing {max(images)} images for {way.name}")
            references = _publish_many(stage, way, max(images))
            with Node(stage.scratch / "node", stage.programs, way) as node:
                for row in _grow(node, references, images, containers):
                    say(f"K costs: {way.name}: {row[0]} images, {row[1]} containers")
                    table.add(way.name, *row)
        except (CommandFailed, RegistryFailed) as failed:
            table.notes.append(f"{way.name}: {failed}")
    yield table


def _publish_many(stage: Stage, way: Snapshotter, count: int) -> list[str]:
    """Publish so many images for a snapshotter, unless a run before this one has; their names."""
    image = shelf(stage.images, count)
    repository, tag = way.publish(stage, Application(image.layout.name, image, ("true",), "", ""))
    tags = [f"{tag}-{number}" for number in range(count)]
    if not stage.holds(repository, tags[-1]):
        with stage.repository(repository) as opened:
            take_apart(opened, tag, tags)
    return [stage.seen_through(None, repository, tag) for tag in tags]


def _grow(
    node: Node, references: Sequence[str], images: Sequence[int], containers: int
) -> Iterator[tuple[int, int, str, float, float, float]]:
    """Yield images, containers, what these do, PSS, CPU and seconds, the last two from the row before."""
    have = started = 0

    def start(reference: str) -> None:
        nonlocal started
        node.start(reference, f"c{started}", ["sleep", "1000000"])
        started += 1

    def measured(does: str, work: Callable[[], None]) -> tuple[int, int, str, float, float, float]:
        used, began = _cpu(node), time.perf_counter()
        work()
        taken = time.perf_counter() - began
        return have, started, does, _pss(node), _cpu(node) - used, taken

    def grow(count: int) -> None:
        nonlocal have
        for reference in references[have:count]:
            node.pull(reference)
            start(reference)
        have = count

    def more() -> None:
        for _ in range(containers):
            start(references[0])

    for count in images:
        yield measured("started", partial(grow, count))
    yield measured("started", more)
    if node.is_imgfs:  # whose daemons end
        yield measured("idle", partial(_await_rest, node))


def _await_rest(node: Node) -> None:
    """Wait until the daemons of mounts have ended, as nothing is asked of them: no process ends any more."""
    ends, before, since = time.monotonic() + PATIENCE, -1, 0.0
    while time.monotonic() < ends and (before != len(node.processes()) or time.monotonic() < since + _REST):
        if before != len(node.processes()):
            before, since = len(node.processes()), time.monotonic()
        time.sleep(1)


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

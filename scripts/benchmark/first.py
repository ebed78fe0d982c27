"""First mounts from nothing, every tool in turn: how long, and how much CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from scripts.benchmark.clock import CommandFailed
from scripts.benchmark.journey import Journey, Milestone, plain, travel, typical
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import LOOPBACK, Application, Speed, Stage, forget_quietly, say
from scripts.benchmark.tools import Tool
from scripts.lab.link import Link

TIMES = (
    "tool",
    "mount s",
    "to ls s",
    "to file s",
    "to app s",
    "app / imgfs",
    "CPU s to app",
    "switches",
    "MB to app",
    "requests",
    "connections",
)
CPU = ("tool", "CPU s to ls", "CPU s to app", "to app / imgfs")
OF_PODMAN = 0.25  # the part of podman's time that imgfs may take to the application
OF_WIRE = 1.1  # the multiple of the wire's time


class FirstMounts:
    """The journeys of all tools; those over loopback serve both for the times and for the CPU."""

    def __init__(self, stage: Stage, names: Sequence[str]) -> None:
        self._stage, self._names = stage, names
        self._journeys: dict[tuple[str, Speed], dict[str, list[Journey]]] = {}
        self._failures: dict[tuple[str, Speed], list[str]] = {}

    def times(self, speeds: Sequence[Speed]) -> Iterator[Table]:
        """Measure the time to the first listing, file and application."""
        for name in self._names:
            application = self._stage.application(name)
            for speed in speeds:
                yield self._times(application, speed)

    def _times(self, application: Application, speed: Speed) -> Table:
        size = application.image.size
        table = Table(f"A. First mount of {application.name} ({size / 1e6:.0f} MB), {speed}", TIMES)
        middle = self._typical(application, speed, table)
        imgfs = middle["imgfs"]["app"].seconds if "imgfs" in middle else None
        for tool, journey in middle.items():
            table.add(
                tool, *_times_of(journey), ratio(journey["app"].seconds, imgfs), *_effort_of(journey["app"])
            )
        wire = speed.seconds(size)
        if wire:
            table.add("wire minimum", *[wire] * 4, ratio(wire, imgfs), None, None, size / 1e6, None, None)
        if imgfs and wire:
            table.target("imgfs's time to the app as a multiple of the wire's", imgfs / wire, OF_WIRE)
        elif imgfs and "podman" in middle:
            podman = middle["podman"]["app"].seconds
            table.target("imgfs's time to the app as a part of podman's", imgfs / podman, OF_PODMAN)
        return table

    def cpu(self) -> Iterator[Table]:
        """Measure the CPU that the tools and what they start use, not the registry's."""
        for name in self._names:
            application = self._stage.application(name)
            table = Table(f"E. CPU of the first mount of {name}, loopback", CPU)
            middle = self._typical(application, LOOPBACK, table)
            imgfs = middle["imgfs"]["app"].cpu if "imgfs" in middle else None
            for tool, journey in middle.items():
                table.add(tool, journey["ls"].cpu, journey["app"].cpu, ratio(journey["app"].cpu, imgfs))
            yield table

    def _typical(self, application: Application, speed: Speed, table: Table) -> dict[str, Journey]:
        """Measure, unless it has been, and take medians; what failed becomes the table's notes."""
        key = application.name, speed
        if key not in self._journeys:
            self._failures[key] = []
            self._journeys[key] = self._measure(application, speed, self._failures[key])
        table.notes += self._failures[key]
        table.raw |= {tool: plain(journeys) for tool, journeys in self._journeys[key].items()}
        return {tool: typical(journeys) for tool, journeys in self._journeys[key].items()}

    def _measure(
        self, application: Application, speed: Speed, failures: list[str]
    ) -> dict[str, list[Journey]]:
        journeys: dict[str, list[Journey]] = {}
        # A proxy costs CPU, of which the tools would have less: none where there is nothing to slow down.
        with nullcontext() if speed == LOOPBACK else self._stage.link(speed) as link:
            for number in range(1, self._stage.rounds + 1):
                for tool in self._stage.tools:
                    say(f"A/E {application.name}, {speed}, round {number}: {tool.name}")
                    try:
                        journeys.setdefault(tool.name, []).append(self._travel(application, tool, link))
                    except CommandFailed as failed:
                        failures.append(str(failed))
                    finally:
                        forget_quietly(tool)
        return {tool: found for tool, found in journeys.items() if found}

    def _travel(self, application: Application, tool: Tool, link: Link | None) -> Journey:
        reference = self._stage.reference(application.image, link)
        self._stage.cool(application.image)
        return travel(application, tool, reference, link)


def _times_of(journey: Journey) -> list[float]:
    return [journey[what].seconds for what in ("mount", "ls", "file", "app")]


def _effort_of(reached: Milestone) -> tuple[float | int | None, ...]:
    used = reached.cpu, reached.switches
    if not reached.connections:  # nothing counted on the wire
        return (*used, None, None, None)
    return (*used, reached.fetched / 1e6, reached.requests, reached.connections)

"""Containers started from nothing over a link, and with everything here: the page cache dropped, and warm."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, drop_page_cache
from scripts.benchmark.editions import Place, indexed, plain
from scripts.benchmark.engines import Command, Engine, PulledByPodman, engines
from scripts.benchmark.report import Cell, Table, ratio
from scripts.benchmark.stage import Application, Speed, Stage, forget_quietly, say
from scripts.lab.link import Link

COLD, FETCHED, DROPPED, WARM = "cold s", "cold MB", "page cache dropped s", "warm s"
COLUMNS = ("engine", COLD, "cold / podman", FETCHED, DROPPED, "dropped / podman", WARM, "warm / podman")
TRUE = ("true",)
_STARTS = 5  # of which the middle one counts, warm: one of them alone is a matter of chance
OF_PODMAN = 1.5  # the multiple of podman's time that `true` may take, everything in the store


class Starts:
    """What the starts of one command have taken, in all rounds; and what could not be measured, and why."""

    def __init__(self, title: str, command: Command) -> None:
        self.command = command
        self._found: dict[str, dict[str, list[float]]] = {}  # by engine, in the table's order, and column
        self._table = Table(title, COLUMNS)

    def expect(self, ways: Sequence[Engine]) -> None:
        """Settle the order of the table's rows."""
        self._found = {way.name: {} for way in ways}

    def add(self, engine: Engine, figures: dict[str, float]) -> None:
        """Keep a round's figures, by column."""
        for column, figure in figures.items():
            self._found[engine.name].setdefault(column, []).append(figure)

    def fail(self, why: str) -> None:
        """Note what could not be measured, once."""
        if why not in self._table.notes:
            say(why)
            self._table.notes.append(why)

    def table(self) -> Table:
        """Make the table of the medians."""
        middle = {
            name: {column: median(figures) for column, figures in columns.items()}
            for name, columns in self._found.items()
            if columns
        }
        podman = middle.get(PulledByPodman.name, {})
        for name, figures in middle.items():
            self._table.add(name, *_cells(figures, podman))
        if self.command == TRUE:
            _judge(self._table, middle, podman)
        self._table.raw |= self._found
        return self._table


def _cells(figures: dict[str, float], podman: dict[str, float]) -> Iterator[Cell]:
    for column in (COLD, FETCHED, DROPPED, WARM):
        yield figures.get(column)
        if column != FETCHED:
            yield ratio(figures[column], podman.get(column)) if column in figures else None


def _judge(table: Table, middle: dict[str, dict[str, float]], podman: dict[str, float]) -> None:
    """Note how a start of `true` by `imgfs run` compares with podman's, everything here."""
    for name, figures in middle.items():
        for column in (DROPPED, WARM):
            if name.startswith("imgfs run") and column in figures and column in podman:
                what = f"{name} of `true`, {column.removesuffix(' s')}, as a multiple of podman's"
                table.target(what, figures[column] / podman[column], OF_PODMAN)


def containers(stage: Stage, names: Sequence[str], speed: Speed) -> Iterator[Table]:
    """Measure the start of `true`, in the first of the images, and of each one's application."""
    for name in names:
        application = stage.application(name)
        commands = [TRUE, application.start] if name == names[0] else [application.start]
        title = f"H. Container start of {name} ({application.image.size / 1e6:.0f} MB), cold over {speed}: "
        starts = [Starts(title + " ".join(command), command) for command in commands]
        try:
            _measure(stage, application, speed, starts)
        except CommandFailed as failed:
            _fail(starts, str(failed))
        yield from (each.table() for each in starts)


class Trial(NamedTuple):
    """An image, where the registry has it, the link to there, and whose start in it is measured."""

    stage: Stage
    application: Application
    place: Place
    link: Link
    starts: Sequence[Starts]

    @property
    def reference(self) -> str:
        return self.stage.seen_through(self.link, *self.place)

    def turns(self, ways: Sequence[Engine], when: str) -> Iterator[tuple[Engine, Starts]]:
        """Let the engines take turns, round after round."""
        for number in range(1, self.stage.rounds + 1):
            for each, way in itertools.product(self.starts, ways):
                say(f"H {self.application.name}, {when}, round {number}: {way.name}: {each.command[0]}")
                yield way, each


def _measure(stage: Stage, application: Application, speed: Speed, starts: Sequence[Starts]) -> None:
    place = _publish(stage, application, starts)
    ways = list(engines(stage, application))
    for each in starts:
        each.expect(ways)
    try:
        with stage.link(speed) as link:
            trial = Trial(stage, application, place, link, starts)
            _cold(trial, [way for way in ways if way.fetches])
            _warm(trial, ways)
    finally:
        for way in ways:
            forget_quietly(way)


def _publish(stage: Stage, application: Application, starts: Sequence[Starts]) -> Place:
    say(f"H {application.name}: publishing with its index")
    try:
        return indexed(stage, application)
    except CommandFailed as failed:
        _fail(starts, f"without an index: {failed}")
        return plain(stage, application)


def _cold(trial: Trial, ways: Sequence[Engine]) -> None:
    """Start in an image of which nothing is here."""
    for way, each in trial.turns(ways, "cold"):
        trial.stage.cool(trial.application.image, trial.place.repository)
        before = trial.link.traffic()
        try:
            seconds = way.cold(trial.reference, each.command)
            fetched = (trial.link.traffic() - before).fetched / 1e6
            each.add(way, {COLD: seconds, FETCHED: fetched})
        except CommandFailed as failed:
            each.fail(f"{way.name}, cold: {failed}")
        finally:
            forget_quietly(way)


def _warm(trial: Trial, ways: Sequence[Engine]) -> None:
    """Start in an image that is here, whole, and in which something has been started once."""
    for way, each in trial.turns(list(_made_ready(trial, ways)), "everything here"):
        try:
            drop_page_cache()
            dropped = way.start(trial.reference, each.command)
            warm = median(way.start(trial.reference, each.command) for _ in range(_STARTS))
            each.add(way, {DROPPED: dropped, WARM: warm})
        except CommandFailed as failed:
            each.fail(f"{way.name}, everything here: {failed}")


def _made_ready(trial: Trial, ways: Sequence[Engine]) -> Iterator[Engine]:
    for way in ways:
        say(f"H {trial.application.name}: pulling for {way.name}")
        try:
            way.pull(trial.reference)
            way.start(trial.reference, TRUE)
            yield way
        except CommandFailed as failed:
            _fail(trial.starts, f"{way.name} is left out: {failed}")


def _fail(starts: Sequence[Starts], why: str) -> None:
    for each in starts:
        each.fail(why)

"""From a reference to the first listing, the first file, a running application: what each step has taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

from scripts.benchmark.clock import Effort, effort_of_children, run
from scripts.benchmark.stage import Application
from scripts.benchmark.tools import Tool
from scripts.lab.link import Link, Traffic

FIRST_FILE = "etc/os-release"


class Milestone(NamedTuple):
    """What it has taken from the start of the journey to here; bytes and requests are those on the wire."""

    seconds: float
    cpu: float  # seconds, of the tool and of what was run in the image
    switches: int  # of the same: voluntary ones
    fetched: int
    requests: int
    connections: int


Journey = dict[str, Milestone]  # by what has been reached
Result = TypeVar("Result")


TO_APP = ("ls", "file", "app")
TO_THE_END = (*TO_APP, "everything")


def travel(
    application: Application,
    tool: Tool,
    reference: str,
    link: Link | None,
    stops: Sequence[str] = TO_APP,
    more: Mapping[str, Callable[[Path], float]] | None = None,
) -> Journey:
    """Go from nothing to a mount, and from there to one of the `stops` after the other.

    They are "ls" of the root, the first "file", the "app", a "large" file, "everything", and `more`.
    Without a link nothing is counted on the wire. CommandFailed if a step fails.
    """
    reached: Journey = {}
    traffic = link.traffic if link else Traffic
    effort, before, began = Effort(), traffic(), time.perf_counter()

    def step(what: str, action: Callable[[], Result]) -> Result:
        nonlocal effort
        used = effort_of_children()
        result = action()
        # with what it has taken to ask for the figures of the steps before: a replay goes on meanwhile
        seconds = time.perf_counter() - began
        effort += effort_of_children() - used
        crossed, whole = traffic() - before, effort + tool.serving_effort()
        counts = whole.switches, crossed.fetched, crossed.requests, crossed.connections
        reached[what] = Milestone(seconds, whole.cpu, *counts)
        return result

    root = step("mount", lambda: tool.show(reference))
    actions: dict[str, Callable[[], float]] = {
        "ls": lambda: run(["ls", root]),
        "file": lambda: run(["cat", root / FIRST_FILE]),
        "app": lambda: run(tool.inside(reference, root, application.start)),
        "large": lambda: run(["dd", f"if={root / application.large}", "of=/dev/null", "bs=1M"]),
        "everything": lambda: read_everything(root),
        **{stop: partial(action, root) for stop, action in (more or {}).items()},
    }
    for stop in stops:
        step(stop, actions[stop])
    return reached


def read_everything(root: Path) -> float:
    """Read every byte; through a pipe, because GNU tar reads nothing when it writes to /dev/null itself."""
    return run(["sh", "-c", 'tar --one-file-system -C "$1" -cf - . | cat >/dev/null', "tar", root])


def typical(journeys: Sequence[Journey]) -> Journey:
    """Take the median of each figure over several journeys."""
    return {what: _median([journey[what] for journey in journeys]) for what in journeys[0]}


def plain(journeys: Sequence[Journey]) -> list[dict[str, dict[str, float]]]:
    """Say the same with the figures named, for JSON."""
    return [{what: reached._asdict() for what, reached in journey.items()} for journey in journeys]


def _median(milestones: Sequence[Milestone]) -> Milestone:
    seconds, cpu, *counts = (median(column) for column in zip(*milestones, strict=True))
    return Milestone(seconds, cpu, *(round(count) for count in counts))

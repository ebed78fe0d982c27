"""Reading by imgfs's two drivers, everything in the store, beside the kernel's overlayfs and fuse-overlayfs.

podman mounts the overlayfs, as it does for a container; fuse-overlayfs lies over the unpacked image, which
itself is the floor. They take turns at one work after the other: with the page cache dropped, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, cpu_of, drop_page_cache, run
from scripts.benchmark.engines import DRIVERS
from scripts.benchmark.memory import resident
from scripts.benchmark.overlays import FuseOverlayfs
from scripts.benchmark.reading import Measure, measures
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Application, Stage, attempt, forget_quietly, say
from scripts.benchmark.tools import Imgfs, Podman

PODMAN, FLOOR = "podman overlayfs", "unpacked"
TARGETS = {  # by driver and what a work begins with: the multiple of podman's time, page cache dropped
    "imgfs kernel": {"find": 0.5, "tar": 1.0},
    "imgfs fuse": {"find": 2.0, "tar": 3.0},
}
MEMORY = ("daemon", "VmHWM MiB", "VmRSS MiB", "RssAnon MiB", "CPU s of all works")
NOWHERE = "No package has this sentence"  # what grep looks for: it has to read everything
GREP = 'grep -rF "$1" "$2"; test $? = 1'  # POSIX grep: no line was selected, and no error
# Inode numbers and change times are a tree's own: an index that does not look at them is right for all trees.
GIT_SETTINGS = {
    "core.checkStat": "minimal",
    "core.trustctime": "false",
    "core.compression": "0",  # files as they are,
    "core.bigFileThreshold": "1",  # and all into one pack
    "gc.auto": "0",
    "user.name": "Bench",
    "user.email": "bench@localhost",
}


class Root(NamedTuple):
    """The image as one driver shows it, at `path`, from the process `server`, or 0 for the kernel alone."""

    name: str
    path: Path
    server: int = 0


class Figure(NamedTuple):
    """What a work has taken: seconds on the clock, and CPU seconds of the server."""

    seconds: float
    cpu: float


Rounds = list[tuple[Figure, Figure]]  # the page cache dropped, and again
Found = dict[str, dict[str, Rounds]]  # by the name of the work and of the root


class ServedByFuseOverlayfs(FuseOverlayfs):
    """fuse-overlayfs whose process is known."""

    def pid(self) -> int:
        """Say which process serves."""
        return self._server.pid if self._server else 0


def drivers(stage: Stage, names: Sequence[str]) -> Iterator[Table]:
    """Measure the works on every root: seconds, CPU and memory of the servers."""
    for name in names:
        application = stage.application(name)
        found: Found = {}
        notes: list[str] = []
        memory = Table(f"I. Memory of the daemons that {name} was read from", MEMORY)
        with attempt(stage.imgfs, notes), _roots(stage, application, notes) as roots:
            _measure(stage, application, roots, found, notes)
            _memory(memory, roots, found)
        yield from tables(name, found, notes)
        yield memory


@contextmanager
def _roots(stage: Stage, application: Application, notes: list[str]) -> Iterator[list[Root]]:
    """Show the image in all the ways that can be had, the floor last; hide all at the end."""
    image = application.image
    reference, native = stage.reference(image), stage.unpacked(image)
    stage.imgfs.pull(reference)
    ways: list[AbstractContextManager[Root]] = [
        *(_by_imgfs(stage.driven(driver), reference) for driver in DRIVERS),
        *(_by_podman(tool, reference) for tool in stage.tools if isinstance(tool, Podman)),
        _by_fuse_overlayfs(ServedByFuseOverlayfs(stage.scratch, native)),
    ]
    roots = list[Root]()
    with ExitStack() as stack:
        for way in ways:
            try:
                roots.append(stack.enter_context(way))
            except CommandFailed as failed:
                say(f"left out: {failed}")
                notes.append(f"left out: {failed}")
        yield [*roots, Root(FLOOR, native)]


@contextmanager
def _by_imgfs(imgfs: Imgfs, reference: str) -> Iterator[Root]:
    try:
        yield Root(imgfs.name, imgfs.show(reference), imgfs.pid())
    finally:
        _quietly(imgfs.hide)


@contextmanager
def _by_podman(podman: Podman, reference: str) -> Iterator[Root]:
    try:
        yield Root(PODMAN, podman.show(reference))
    finally:
        forget_quietly(podman)


@contextmanager
def _by_fuse_overlayfs(overlay: ServedByFuseOverlayfs) -> Iterator[Root]:
    try:
        yield Root(overlay.name, overlay.show(), overlay.pid())
    finally:
        _quietly(overlay.hide)


def _quietly(hide: Callable[[], None]) -> None:
    try:
        hide()
    except CommandFailed as failed:
        say(str(failed))


def works(stage: Stage, application: Application) -> list[tuple[str, Measure]]:
    """Name what is done in every root: what group C does, and what people do in a tree of packages."""
    native, packages = stage.unpacked(application.image), application.packages
    repository = commit(stage.scratch / f"git-{application.name}", native / packages)
    status = ["git", "--no-optional-locks", f"--git-dir={repository}"]  # the index stays as it is
    return [
        *measures(native),
        ("du -s", lambda root: run(["du", "-s", root])),
        (
            "git status of the packages",
            lambda root: run([*status, f"--work-tree={root / packages}", "status", "--short"]),
        ),
        (
            "grep -r through the packages",
            lambda root: run(["sh", "-c", GREP, "sh", NOWHERE, root / packages]),
        ),
    ]


def commit(place: Path, packages: Path) -> Path:
    """Commit all the packages, in a repository that does not lie among them."""
    run(["git", "init", "--quiet", "--bare", place])
    for name, value in GIT_SETTINGS.items():
        run(["git", f"--git-dir={place}", "config", name, value])
    git = ["git", f"--git-dir={place}", f"--work-tree={packages}"]
    run([*git, "add", "--all", "--force"])
    run([*git, "commit", "--quiet", "--message=packages"])
    return place


def _measure(
    stage: Stage, application: Application, roots: Sequence[Root], found: Found, notes: list[str]
) -> None:
    """Let the roots take turns, so that what else the machine does hits all."""
    for what, measure in works(stage, application):
        for number in range(1, stage.rounds + 1):
            say(f"I {application.name}, round {number}: {what}")
            for root in roots:
                try:
                    drop_page_cache()
                    both = _figure(measure, root), _figure(measure, root)
                    found.setdefault(what, {}).setdefault(root.name, []).append(both)
                except (CommandFailed, OSError) as failed:  # OSError: its server is gone
                    notes.append(f"{root.name}: {what}: {failed}")


def _figure(measure: Measure, root: Root) -> Figure:
    used = cpu_of(root.server) if root.server else 0.0
    seconds = measure(root.path)
    return Figure(seconds, cpu_of(root.server) - used if root.server else 0.0)


def _memory(table: Table, roots: Sequence[Root], found: Found) -> None:
    for root in roots:
        if root.server:
            current, highest, anonymous = resident(root.server)
            cpu = sum(
                figure.cpu for work in found.values() for both in work.get(root.name, []) for figure in both
            )
            table.add(root.name, highest, current, anonymous, cpu)


def tables(name: str, found: Found, notes: Sequence[str]) -> Iterator[Table]:
    """Make tables of the seconds, with the page cache dropped and not, and of the servers' CPU."""
    ways = list(dict.fromkeys(root for rounds in found.values() for root in rounds))
    dropped = _seconds(f"I. Reading {name}, page cache dropped, seconds", ways, found, 0)
    dropped.notes += notes
    dropped.raw |= found
    yield dropped
    yield _seconds(f"I. Reading {name}, warm, seconds", ways, found, 1)
    served = [way for way in ways if way not in (PODMAN, FLOOR)]
    columns = ("what", *(f"{way}, {when}" for way in served for when in ("dropped", "warm")))
    cpu = Table(f"I. Reading {name}: CPU seconds of the daemons", columns)
    for what, rounds in found.items():
        cpu.add(what, *(_median(rounds, way, which, 1) for way in served for which in (0, 1)))
    yield cpu


def _seconds(title: str, ways: Sequence[str], found: Found, which: int) -> Table:
    own = [way for way in ways if way in TARGETS]
    table = Table(title, ("what", *ways, *(f"{way} / podman" for way in own)))
    for what, rounds in found.items():
        seconds = {way: _median(rounds, way, which, 0) for way in ways}
        ratios = {way: _ratio(seconds[way], seconds.get(PODMAN)) for way in own}
        table.add(what, *seconds.values(), *ratios.values())
        for way, share in ratios.items():
            limit = TARGETS[way].get(what.partition(" ")[0])
            if which == 0 and share is not None and limit is not None:
                table.target(f"{way}: {what}, as a multiple of podman's time", share, limit)
    return table


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None else ratio(value, base)


def _median(rounds: dict[str, Rounds], way: str, which: int, what: int) -> float | None:
    """Take the median over the rounds: of seconds (0) or CPU (1), the page cache dropped (0) or not (1)."""
    return median(both[which][what] for both in rounds[way]) if way in rounds else None

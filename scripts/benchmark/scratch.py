"""Work in a writable scratch over an image, beside other overlays and a plain directory.

Every overlay is mounted anew in every round; they take turns at one scene after the other, each in a
directory of its own or on the image's files. All pages are synced before a work, so that no tool waits for
another's. That is not timed: the seconds are the command's alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.material import Material, Sizes
from scripts.benchmark.overlays import FuseOverlayfs, ImgfsOverlay, Overlay
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Stage, forget_quietly, say
from scripts.benchmark.works import PLACE, Scene, Work, scenes

APPLICATION = "python-app"
OF_PEER = 1.5  # the multiple of fuse-overlayfs's time that work in a scratch may take
OF_READ_ONLY = 1.1  # the multiple that looking at the image may take because there is a scratch over it
TELLING = 0.1  # seconds of the other; shorter works say more about the start of a process
FORGOTTEN = 62.0  # seconds
TIMEOUT = 300.0  # seconds for one command


class Figure(NamedTuple):
    """What a work has taken: seconds on the clock, and CPU seconds of the process that serves the root."""

    seconds: float
    cpu: float


Middle = dict[str, dict[str, Figure]]  # medians, by the name of the work and of the overlay


class Figures:
    """What was measured, a figure for each round; and what could not be, and why."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, list[Figure]]] = {}
        self._failures: list[str] = []

    def play(self, scene: Scene, overlay: Overlay, root: Path, material: Material) -> None:
        """Do the works of a scene; those after one that fails are left out."""
        try:
            if scene.writes:
                run(["mkdir", "-p", root / PLACE], timeout=TIMEOUT)
            for work in scene.works:
                figure = _measure(work, overlay, root, material)
                self._found.setdefault(work.name, {}).setdefault(overlay.name, []).append(figure)
        except (CommandFailed, OSError) as failed:  # OSError: its process is gone
            self.fail(f"{overlay.name}: {failed}")

    def fail(self, why: str) -> None:
        """Note what could not be measured, once."""
        if why not in self._failures:
            say(why)
            self._failures.append(why)

    def middle(self) -> Middle:
        """Take the medians over the rounds."""
        return {
            work: {
                name: Figure(*(median(column) for column in zip(*rounds, strict=True)))
                for name, rounds in found.items()
            }
            for work, found in self._found.items()
        }

    def tables(self, overlays: Sequence[Overlay]) -> tuple[Table, Table]:
        """Make the table of the seconds, with the failures and all rounds' figures, and that of the CPU."""
        middle = self.middle()
        seconds = _table(f"F. Work in a scratch over {APPLICATION}, seconds", overlays, middle, 0)
        served = [each for each in overlays if isinstance(each, FuseOverlayfs | ImgfsOverlay)]
        cpu = _table("F. The same work, CPU seconds of the daemons", served, middle, 1)
        _aims(seconds, overlays, middle)
        seconds.notes += self._failures
        seconds.raw |= self._found
        return seconds, cpu


def scratch(stage: Stage, sizes: Sizes) -> Iterator[Table]:
    """Measure the works of all scenes in all overlays: seconds, and the CPU of the daemons."""
    figures, overlays = Figures(), list[Overlay]()
    try:
        image = stage.application(APPLICATION).image
        overlays += stage.overlays(image)
        material = Material(stage.scratch / "material", stage.images / "wheels", stage.unpacked(image), sizes)
        for number in range(1, stage.rounds + 1):
            with _shown(overlays, figures) as roots:
                settle(stage.scratch)
                _play(number, roots, figures, material)
    except CommandFailed as failed:
        figures.fail(str(failed))
    finally:
        forget_quietly(stage.imgfs)
    yield from figures.tables(overlays)


def _play(number: int, roots: Sequence[tuple[Overlay, Path]], figures: Figures, material: Material) -> None:
    for scene in scenes(material.sizes):
        for overlay, root in roots:
            if overlay.writes or not scene.writes:
                say(f"F round {number}, {overlay.name}: {scene}")
                figures.play(scene, overlay, root, material)


def settle(directory: Path) -> None:
    """Wait until the file system has forgotten what was deleted, where that makes new files slow.

    ext4 without a journal gives no inode out again within a minute of its deletion, or six while that is not
    synced, and searches past all of those for every new file (fs/ext4/ialloc.c, recently_deleted): who comes
    after much deletion, another tool's or an earlier round's, takes many times as long for the same work.
    """
    device = Path("/sys/dev/block", _device(directory)).resolve().name
    if Path("/proc/fs/ext4", device).exists() and not list(Path("/proc/fs/jbd2").glob(f"{device}-*")):
        say(f"F: ext4 without a journal: {FORGOTTEN:.0f} s for it to forget what was deleted")
        os.sync()
        time.sleep(FORGOTTEN)


def _device(directory: Path) -> str:
    number = directory.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


@contextmanager
def _shown(overlays: Sequence[Overlay], figures: Figures) -> Iterator[list[tuple[Overlay, Path]]]:
    """Show the overlays that can be, say which cannot and why; hide all at the end, whatever happens."""
    roots = []
    with ExitStack() as stack:
        for overlay in overlays:
            stack.callback(_hide_quietly, overlay)
            try:
                roots.append((overlay, overlay.show()))
            except CommandFailed as failed:
                figures.fail(f"{overlay.name} is left out: {failed}")
        yield roots


def _hide_quietly(overlay: Overlay) -> None:
    try:
        overlay.hide()
    except CommandFailed as failed:
        say(str(failed))


def _measure(work: Work, overlay: Overlay, root: Path, material: Material) -> Figure:
    command = work.command(root, material)
    work.before(root, material)
    os.sync()
    used = overlay.serving_cpu()
    seconds = run(command, timeout=TIMEOUT)
    return Figure(seconds, overlay.serving_cpu() - used)


def _table(title: str, overlays: Sequence[Overlay], middle: Middle, which: int) -> Table:
    """Put the medians into a table: the overlays side by side, then imgfs's over fuse-overlayfs's."""
    names = [overlay.name for overlay in overlays]
    compared = _compared(overlays)
    ratios_of = (f"{name.removeprefix('imgfs ')} ratio" for name in compared)
    table = Table(f"{title}; ratios to {FuseOverlayfs.name}", ("work", *names, *ratios_of))
    for work, found in middle.items():
        cells = {name: figure[which] for name, figure in found.items()}
        base = cells.get(FuseOverlayfs.name)
        ratios = (ratio(cells[name], base) if name in cells else None for name in compared)
        table.add(work, *map(cells.get, names), *ratios)
    return table


def _compared(overlays: Sequence[Overlay]) -> list[str]:
    """Name imgfs's own overlays, those that are to be compared."""
    return [overlay.name for overlay in overlays if isinstance(overlay, ImgfsOverlay) and overlay.writes]


def _aims(table: Table, overlays: Sequence[Overlay], middle: Middle) -> None:
    """Note how the worst work compares with fuse-overlayfs, and looking at the image with imgfs read-only."""
    judged = [
        each.name for each in overlays if isinstance(each, ImgfsOverlay) and each.judged and each.writes
    ]
    for name in judged:
        for base, limit in ((FuseOverlayfs.name, OF_PEER), (overlays[-1].name, OF_READ_ONLY)):
            ratios = {
                found[name].seconds / found[base].seconds: work
                for work, found in middle.items()
                if name in found and base in found and found[base].seconds >= TELLING
            }
            if ratios:
                worst = max(ratios)
                table.target(
                    f"{name}'s time as a multiple of {base}'s, worst in '{ratios[worst]}',", worst, limit
                )

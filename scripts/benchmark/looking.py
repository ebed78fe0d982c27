"""Looking into images without a mount, beside fetching and unpacking them first.

Each work starts from nothing, an empty store, and is done again with what that has left. What it stands
beside brings the whole image first, and has it unpacked when the work is done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.report import Table, ratio
from scripts.benchmark.stage import Application, Stage, attempt, forget_quietly, say
from scripts.benchmark.tools import PodmanRun
from scripts.lab import recipes

COLUMNS = (
    "what",
    "imgfs first s",
    "imgfs again s",
    "beside",
    "first s",
    "again s",
    "first ratio",
    "again ratio",
)
COPIED = "etc/os-release"


class Times(NamedTuple):
    """Seconds from nothing, and with what that has left; 0 where there is nothing more to do."""

    first: float
    again: float


class Work(NamedTuple):
    """Something to look for, by imgfs and by other tools; both start from nothing."""

    what: str
    imgfs: Callable[[], Times]
    beside: str
    others: Callable[[], Times]


def looking(stage: Stage, files: int, name: str) -> Iterator[Table]:
    """Compare and weigh images of so many files; search, copy and mount an application's image."""
    yield _table(stage, f"J. Looking at images of {files:,} files", _entries(stage, files))
    application = stage.application(name)
    yield _table(stage, f"J. Looking into {name}", _application(stage, application))


def _table(stage: Stage, title: str, works: Iterator[Work]) -> Table:
    table = Table(title, COLUMNS)
    with attempt(stage.imgfs, table.notes):
        for work in works:
            _measure(stage, work, table)
    return table


def _measure(stage: Stage, work: Work, table: Table) -> None:
    ours, theirs = [], []
    try:
        for number in range(1, stage.rounds + 1):
            say(f"J {work.what}, round {number}")
            ours.append(work.imgfs())
            theirs.append(work.others())
    except CommandFailed as failed:
        table.notes.append(str(failed))
        return
    table.raw[work.what] = [ours, theirs]
    first, again = (median(times[at] for times in ours) for at in (0, 1))
    their_first, their_again = (median(times[at] for times in theirs) for at in (0, 1))
    ratios = ratio(their_first, first), ratio(their_again, again)
    table.add(work.what, first, again, work.beside, their_first, their_again, *ratios)


def _entries(stage: Stage, files: int) -> Iterator[Work]:
    images = [stage.synthetic(files), recipes.synthetic_changed(stage.images, files)]
    old, new = map(stage.reference, images)
    bundles = [stage.scratch / "look-old", stage.scratch / "look-new"]

    def unpack_and_compare() -> Times:
        pairs = zip(bundles, (old, new), strict=True)
        seconds = sum(_unpack_again(bundle, reference) for bundle, reference in pairs)
        again = _compare(bundles)
        return Times(seconds + again, again)

    yield Work(
        "diff of two tags",
        lambda: _twice(stage, "diff", old, new),
        "skopeo, umoci, diff -rq",
        unpack_and_compare,
    )

    def unpack_both() -> Times:
        pairs = zip(bundles, (old, new), strict=True)
        return Times(sum(_unpack_again(bundle, reference) for bundle, reference in pairs), 0.0)

    yield Work("waste", lambda: _twice(stage, "waste", new), "skopeo, umoci of both tags", unpack_both)
    for bundle in bundles:
        shutil.rmtree(bundle, ignore_errors=True)


def _unpack_again(bundle: Path, reference: str) -> float:
    shutil.rmtree(bundle, ignore_errors=True)
    return _fetch(reference, bundle)


def _fetch(reference: str, bundle: Path) -> float:
    """Fetch and unpack an image; return the seconds that took."""
    layout = bundle.with_name(f"{bundle.name}-layout")
    shutil.rmtree(layout, ignore_errors=True)
    source = reference if reference.startswith("docker-archive:") else f"docker://{reference}"
    copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false", source]
    seconds = run([*copy, f"oci:{layout}:latest"])
    seconds += run(["umoci", "unpack", "--image", f"{layout}:latest", bundle])
    shutil.rmtree(layout)
    return seconds


def _compare(bundles: list[Path]) -> float:
    roots = [bundle / "rootfs" for bundle in bundles]
    return run(["sh", "-c", 'diff -rq "$1" "$2" || test $? = 1', "sh", *roots])


def _twice(stage: Stage, *words: str | Path) -> Times:
    """Run a command of imgfs from an empty store, and again."""
    forget_quietly(stage.imgfs)
    return Times(stage.imgfs.look(*words), stage.imgfs.look(*words))


def _application(stage: Stage, application: Application) -> Iterator[Work]:
    reference = stage.reference(application.image)
    native = stage.unpacked(application.image)
    packages = application.packages
    search = ["grep", "-r", "-l", "TODO"]

    def grep_unpacked() -> Times:
        bundle = stage.scratch / "look-grep"
        seconds = _unpack_again(bundle, reference)
        shutil.rmtree(bundle)
        again = run([*search, native / packages])
        return Times(seconds + again, again)

    yield Work(
        "grep -r -l of its packages",
        lambda: _twice(stage, *search, reference, f"/{packages}"),
        "skopeo, umoci, grep",
        grep_unpacked,
    )
    copied = stage.scratch / "copied"
    yield from _copies(stage, reference, copied)
    yield from _archives(stage, application)


def _copies(stage: Stage, reference: str, copied: Path) -> Iterator[Work]:
    def copy() -> Times:
        forget_quietly(stage.imgfs)
        seconds = []
        for _ in range(2):
            copied.unlink(missing_ok=True)
            seconds.append(stage.imgfs.look("cp", f"{reference}:/{COPIED}", copied))
        return Times(*seconds)

    for podman in stage.containers:
        beside = partial(_copy_by, podman, reference, copied)
        yield Work("cp of one file", copy, "podman pull, create, cp", beside)


def _archives(stage: Stage, application: Application) -> Iterator[Work]:
    archive = stage.scratch / "archive.tar"
    run(["skopeo", "copy", "--quiet", application.image.reference, f"docker-archive:{archive}:app:latest"])

    def mount() -> Times:
        forget_quietly(stage.imgfs)
        seconds = []
        for _ in range(2):
            seconds.append(stage.imgfs.look("mount", f"docker-archive:{archive}", stage.imgfs.mountpoint))
            stage.imgfs.hide()
        return Times(*seconds)

    yield Work("mount of a docker-archive", mount, "skopeo, umoci", lambda: _unpack_archive(stage, archive))
    archive.unlink()


def _copy_by(podman: PodmanRun, reference: str, target: Path) -> Times:
    forget_quietly(podman)
    pulled = podman.pull(reference)
    again = podman.copy_out(reference, f"/{COPIED}", target)
    forget_quietly(podman)
    return Times(pulled + again, again)


def _unpack_archive(stage: Stage, archive: Path) -> Times:
    bundle = stage.scratch / "look-archive"
    shutil.rmtree(bundle, ignore_errors=True)
    seconds = _fetch(f"docker-archive:{archive}", bundle)
    shutil.rmtree(bundle)
    return Times(seconds, 0.0)

"""The index in the store and the data not: what crosses the wire for a file, an application, everything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scripts.benchmark.clock import CommandFailed
from scripts.benchmark.journey import TO_THE_END, Journey, plain, travel, typical
from scripts.benchmark.report import Table
from scripts.benchmark.stage import Application, Speed, Stage, forget_quietly, say

COLUMNS = ("from the mount to", "s", "wire minimum s", "MB", "% of image", "requests", "connections")
TO_FILE = 2.0  # per cent of the image that may cross before the first file is read


def lazy(stage: Stage, names: Sequence[str], speeds: Sequence[Speed]) -> Iterator[Table]:
    """Measure what imgfs fetches of images whose index is known; every figure counts from the mount."""
    for name in names:
        application = stage.application(name)
        for speed in speeds:
            yield _lazy(stage, application, speed)


def _lazy(stage: Stage, application: Application, speed: Speed) -> Table:
    size = application.image.size
    title = f"D. {application.name} ({size / 1e6:.0f} MB) with its index in the store and no data, {speed}"
    table = Table(title, COLUMNS)
    try:
        journeys = list(_journeys(stage, application, speed))
    except CommandFailed as failed:
        table.notes.append(str(failed))
        return table
    finally:
        forget_quietly(stage.imgfs)
    table.raw["imgfs"] = plain(journeys)
    middle = typical(journeys)
    for what, reached in middle.items():
        share = round(100 * reached.fetched / size, 2)
        wire = speed.seconds(reached.fetched)
        table.add(
            what, reached.seconds, wire, reached.fetched / 1e6, share, reached.requests, reached.connections
        )
    table.target("% of the image fetched to the first file", 100 * middle["file"].fetched / size, TO_FILE)
    return table


def _journeys(stage: Stage, application: Application, speed: Speed) -> Iterator[Journey]:
    imgfs = stage.imgfs
    say(f"D {application.name}, {speed}: indexing")
    with stage.link(speed) as link:
        reference = stage.reference(application.image, link)
        with stage.link() as fast:  # the same layers under another name: only the index is wanted
            imgfs.show(stage.reference(application.image, fast))
            imgfs.hide()
        imgfs.show(reference)
        for number in range(1, stage.rounds + 1):
            say(f"D {application.name}, {speed}, round {number}")
            imgfs.hide()
            imgfs.drop_data(reference)
            stage.cool(application.image)
            yield travel(application, imgfs, reference, link, TO_THE_END)

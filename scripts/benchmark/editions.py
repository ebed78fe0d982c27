"""An image in several editions, each in its own repository: plain, indexed, with a profile, eStargz, SOCI."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.stage import Application, Stage, forget_quietly, say
from scripts.lab.containerd import Containerd
from scripts.lab.go_programs import node_programs, program
from scripts.lab.recipes import RecipeError

SOCI_MINIMUM = 10 << 20  # bytes of a layer for SOCI to index it, and it wants one at least
PROFILE = "default"  # which a mount replays without being told


class Place(NamedTuple):
    """Where in the registry an edition is found."""

    repository: str
    tag: str


class Edition(NamedTuple):
    """How imgfs is to find an image. `publish` puts it there; CommandFailed if that cannot be done."""

    name: str
    publish: Callable[[Stage, Application], Place]


def plain(stage: Stage, application: Application) -> Place:
    """Publish the image as it is."""
    return _push(stage, application, "")


def indexed(stage: Stage, application: Application) -> Place:
    """Publish the image, and what `imgfs index push` makes of it."""
    place = _push(stage, application, "-indexed")
    try:
        stage.imgfs.push_index(stage.seen_through(None, *place))
    finally:
        forget_quietly(stage.imgfs)
    return place


def profiled(stage: Stage, application: Application) -> Place:
    """Publish the image, its index, and what the start of the application reads."""
    place, imgfs = _push(stage, application, "-replay"), stage.imgfs
    reference = stage.seen_through(None, *place)
    try:
        root = imgfs.show_recording(reference, PROFILE)
        run(imgfs.inside(reference, root, application.start))
        imgfs.hide()
        imgfs.push_index(reference)  # and what its store has recorded
    finally:
        forget_quietly(imgfs)
    return place


def estargz(stage: Stage, application: Application) -> Place:
    """Publish the image converted to eStargz, unless a run before this one has."""
    image = application.image
    place = Place(f"{application.name}-estargz", image.digest.partition(":")[2][:12])
    if not stage.holds(*place):
        say(f"converting {application.name} to eStargz")
        try:
            programs = node_programs(stage.programs)
            with Containerd(stage.scratch / "containerd", programs) as containerd:
                containerd.to_estargz(stage.reference(image), stage.seen_through(None, *place))
        except RecipeError as failed:
            raise CommandFailed(str(failed)) from failed
    return place


def soci(stage: Stage, application: Application) -> Place:
    """Publish the image with SOCI's own index (its v2), unless a run before this one has."""
    image = application.image
    place = Place(f"{application.name}-soci", image.digest.partition(":")[2][:12])
    if not stage.holds(*place):
        say(f"making SOCI's index of {application.name}")
        made = stage.scratch / f"{place.repository}-layout"
        try:
            options = ["--standalone", "--format", "oci-dir"]
            if image.size < SOCI_MINIMUM:
                options += ["--min-layer-size", "0"]
            run([program(stage.programs, "soci"), "convert", *options, image.layout, made])
            target = f"docker://{stage.seen_through(None, *place)}"
            run(["skopeo", "copy", "--all", "--quiet", "--dest-tls-verify=false", f"oci:{made}", target])
        except RecipeError as failed:
            raise CommandFailed(str(failed)) from failed
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return place


def _push(stage: Stage, application: Application, suffix: str) -> Place:
    image = application.image
    place = Place(f"{application.name}{suffix}", image.tag)
    stage.reference(image, repository=place.repository)
    return place


EDITIONS = (
    Edition("imgfs, no index", plain),
    Edition("imgfs, index", indexed),
    Edition("imgfs, index and profile", profiled),
    Edition("imgfs, eStargz", estargz),
)

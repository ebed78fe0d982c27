"""What starts containers: imgfs run by both drivers, podman run, runc on an unpacked directory.

runc starts them all, without a network: what differs is how the image's files come. Seconds are from the
command to its end, with whatever it clears up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from scripts.benchmark.clock import CommandFailed, run
from scripts.benchmark.stage import Application, Stage
from scripts.benchmark.tools import RUNTIME, Forgets, Imgfs, PodmanRun, unmount_below

DRIVERS = ("fuse", "kernel")

Command = Sequence[str]


class Engine(Forgets, Protocol):
    """A way to start containers. One that does not `fetch` has no cold start: it wants the image pulled."""

    @property
    def name(self) -> str: ...

    @property
    def fetches(self) -> bool: ...

    def pull(self, reference: str) -> object:
        """Have everything of the image on this machine."""

    def cold(self, reference: str, command: Command) -> float:
        """Run a command in an image of which nothing is here; the seconds it took."""

    def start(self, reference: str, command: Command) -> float:
        """Run a command in an image that has been pulled; the seconds it took."""


class ImgfsRun:
    """imgfs run, with some options."""

    def __init__(self, imgfs: Imgfs, *options: str, fetches: bool = True, is_served: bool = False) -> None:
        self._imgfs, self._options, self.fetches, self._is_served = imgfs, options, fetches, is_served
        self.name = " ".join(("imgfs run", *options)) + is_served * ", served"
        self.forget = imgfs.forget

    def pull(self, reference: str) -> None:
        self._imgfs.pull(reference)
        if self._is_served:
            self._imgfs.serve()

    def start(self, reference: str, command: Command) -> float:
        return self._imgfs.run_container(self._options, reference, command, is_served=self._is_served)

    cold = start  # nothing needs to be pulled


class PulledByPodman:
    """podman run of an image that podman has pulled; cold, the pull counts."""

    name, fetches = "podman run", True

    def __init__(self, podman: PodmanRun) -> None:
        self._podman = podman
        self.pull, self.forget = podman.pull, podman.forget

    def cold(self, reference: str, command: Command) -> float:
        return self.pull(reference) + self.start(reference, command)

    def start(self, reference: str, command: Command) -> float:
        return run(self._podman.inside(reference, Path("/"), command))


class Unpacked:
    """runc on the image unpacked: the floor."""

    name, fetches = "unpacked directory, runc", False

    def __init__(self, root: Path, runc: Runc) -> None:
        self._root, self._runc = root, runc
        self.forget = runc.forget

    def pull(self, reference: str) -> None:
        """Do nothing: it is there."""

    def start(self, _reference: str, command: Command) -> float:
        self._runc.prepare(self._root, command)
        return self._runc.run()

    cold = start


class Runc:
    """runc, with a bundle and state of its own in the directory `place`."""

    def __init__(self, place: Path) -> None:
        self._place, self._bundle = place, place / "bundle"
        self._runc = [RUNTIME, "--root", str(place / "state")]
        self._name = f"imgfs-bench-{os.getpid()}"

    def prepare(self, root: Path, command: Command) -> None:
        """Make a bundle of a root, which is not written to, and a command (OCI runtime-spec, config.md)."""
        config = self._bundle / "config.json"
        if not config.exists():
            self._bundle.mkdir(parents=True, exist_ok=True)
            run([*self._runc, "spec", "--bundle", self._bundle])
        spec = json.loads(config.read_text())
        spec["root"] = {"path": str(root), "readonly": True}
        spec["process"] |= {"terminal": False, "args": list(command)}
        config.write_text(json.dumps(spec))

    def run(self) -> float:
        """Run the bundle; the seconds it took."""
        return run([*self._runc, "run", "--bundle", self._bundle, self._name])

    def forget(self) -> None:
        """End a container that was interrupted, and remove the bundle."""
        if self._place.exists():
            with contextlib.suppress(CommandFailed):  # there is none
                run([*self._runc, "delete", "--force", self._name])
            unmount_below(self._place)
        shutil.rmtree(self._place, ignore_errors=True)


def engines(stage: Stage, application: Application) -> Iterator[Engine]:
    """Name the engines, the floor last; CommandFailed if the image cannot be unpacked for it.

    imgfs asks the registry what a tag means, and podman does not: so there is imgfs --offline, too; served,
    it is carried out by a waiting `imgfs serve`.
    """
    for driver in DRIVERS:
        yield ImgfsRun(stage.imgfs, "--driver", driver)
        yield ImgfsRun(stage.imgfs, "--driver", driver, "--offline", fetches=False)
        yield ImgfsRun(stage.imgfs, "--driver", driver, "--offline", fetches=False, is_served=True)
    if shutil.which("crun"):  # what imgfs takes where there is one; podman's wants other cgroups than these
        yield ImgfsRun(stage.imgfs, "--driver", "kernel", "--offline", "--runtime", "crun", fetches=False)
    yield from map(PulledByPodman, stage.containers)
    yield Unpacked(stage.unpacked(application.image), Runc(stage.scratch / "runc"))

"""Where the measuring happens: images built once, their registry, links to it, scratch space, the tools."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scripts.benchmark.clock import CommandFailed, drop_page_cache, run, warm
from scripts.benchmark.overlays import OVER_UNPACKED, ImgfsOverlay, Overlay
from scripts.benchmark.tools import PEERS, Forgets, Imgfs, PodmanRun, Tool, unmount_below
from scripts.lab import recipes
from scripts.lab.layout import Image
from scripts.lab.link import Link
from scripts.lab.registry import Registry, Repository
from scripts.lab.torch import ml_app, torch_cuda


class Speed(NamedTuple):
    """What a link can do: Mbit/s towards the client (None: all it can), seconds of round trip."""

    mbit: float | None
    round_trip: float

    def __str__(self) -> str:
        if self.mbit is None:
            return "loopback"
        return f"{self.mbit:.0f} Mbit/s and {self.round_trip * 1000:.0f} ms"

    def seconds(self, size: int) -> float | None:
        """Say how long `size` bytes take at least; None on a link that is not slowed down."""
        return size / (self.mbit * 125_000) if self.mbit else None  # 125,000 bytes are a Mbit


LOOPBACK = Speed(None, 0.0)
SHAPED = Speed(200.0, 0.020)
SPEEDS = {"loopback": LOOPBACK, "shaped": SHAPED, "gigabit": Speed(1000.0, 0.002)}


@dataclass(frozen=True)
class Application:
    """An image with something to start in it, one of its largest files, and the directory of its packages."""

    name: str
    image: Image
    start: tuple[str, ...]
    large: str
    packages: str


class Recipe(NamedTuple):
    """How an application's image is made, and what is done in it."""

    build: Callable[[Path], Image]
    start: tuple[str, ...]
    large: str
    packages: str


APPLICATIONS = {
    "python-app": Recipe(
        recipes.python_app,
        ("python3", "-c", "import numpy"),
        f"{recipes.SITE}/numpy.libs/libopenblas64_p-r0-0cf96a72.3.23.dev.so",  # 35 MB
        recipes.SITE,
    ),
    "node-app": Recipe(
        recipes.node_app,
        ("node", "/app/server.js"),
        "srv/site/node_modules/@next/swc-linux-x64-gnu/next-swc.linux-x64-gnu.node",  # 131 MB
        "srv/site/node_modules",
    ),
    "ml-app": Recipe(
        ml_app,
        ("python3", "-c", "import torch"),
        f"{recipes.SITE}/torch/lib/libtorch_cpu.so",  # 482 MB
        recipes.SITE,
    ),
    "torch": Recipe(
        torch_cuda,
        ("python3", "-c", "import torch"),
        f"{recipes.SITE}/torch/lib/libtorch_cuda.so",
        recipes.SITE,
    ),
}


class Stage:
    """Images, registry and tools; what it started is ended when its `with` block is left."""

    def __init__(
        self, images: Path, rounds: int, peers: Sequence[str], mount_options: Sequence[str] = ()
    ) -> None:
        self.images, self.rounds = images, rounds
        self.programs = images / "programs"  # what Debian has not: see scripts/lab/go_programs.py
        self._peers, self._mount_options = peers, mount_options
        self._stack = ExitStack()
        self._pushed: dict[str, str] = {}

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            self.images.mkdir(parents=True, exist_ok=True)
            # Beside the images, not in /tmp: that may be memory, and the stores grow to gigabytes.
            self.scratch = Path(tempfile.mkdtemp(prefix="scratch.", dir=self.images))
            stack.callback(shutil.rmtree, self.scratch, ignore_errors=True)
            stack.callback(unmount_below, self.scratch)
            self._registry = stack.enter_context(Registry(self.images / "registry"))
            self.imgfs = Imgfs(self.scratch, self._mount_options)
            self.tools: list[Tool] = [self.imgfs, *(PEERS[name](self.scratch) for name in self._peers)]
            self.containers = [PodmanRun(self.scratch)] if PodmanRun.program in self._peers else []
            for tool in [*self.tools, *self.containers]:
                stack.callback(forget_quietly, tool)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        say("clearing up")
        self._stack.close()

    def application(self, name: str) -> Application:
        """Build the application's image, or find it."""
        recipe = APPLICATIONS[name]
        if not (self.images / name).exists():
            say(f"building {name}")
        return Application(name, recipe.build(self.images), recipe.start, recipe.large, recipe.packages)

    def synthetic(self, files: int) -> Image:
        """Build the image of `files` tiny files, or find it."""
        return recipes.synthetic(self.images, files)

    def link(self, speed: Speed = LOOPBACK) -> Link:
        """Make a link to the registry that counts what crosses it, for a `with` block."""
        return Link(self._registry.port, speed.mbit, speed.round_trip)

    def reference(self, image: Image, link: Link | None = None, repository: str = "") -> str:
        """Push the image if the registry lacks it; name it as seen through the link, or directly.

        Its repository is called like the image itself, unless told.
        """
        repository = repository or image.layout.name
        if repository not in self._pushed:
            say(f"pushing {repository}")
            self._pushed[repository] = self._registry.push(image, repository)
        return self.seen_through(link, repository, image.tag)

    def seen_through(self, link: Link | None, repository: str, tag: str) -> str:
        """Name what the registry holds, as seen through the link or directly."""
        port = link.port if link else self._registry.port
        return f"127.0.0.1:{port}/{repository}:{tag}"

    def holds(self, repository: str, tag: str) -> bool:
        """Say whether the registry holds something of that name."""
        return self._registry.holds(repository, tag)

    def repository(self, name: str) -> Repository:
        """Open a repository of the registry, for documents."""
        return Repository(self._registry.host, name)

    def cool(self, image: Image, repository: str = "") -> None:
        """Drop the page cache, but for the image in the registry: that has its own machine and memory."""
        drop_page_cache()
        warm(self._registry.blobs(repository or image.layout.name))

    def unpacked(self, image: Image) -> Path:
        """Unpack the image natively, for comparison; it stays until the stage ends."""
        target = self.scratch / f"native-{image.layout.name}"
        if not target.exists():
            say(f"unpacking {image.layout.name}")
            run(["umoci", "unpack", "--image", f"{image.layout}:{image.tag}", target])
        return target / "rootfs"

    def driven(self, driver: str) -> Imgfs:
        """Make an imgfs, with the same store, that mounts by a driver."""
        return Imgfs(self.scratch, [*self._mount_options, "--driver", driver], f"imgfs {driver}")

    def overlays(self, image: Image) -> list[Overlay]:
        """Name the ways to write over the image, and last imgfs without any; nothing is mounted yet."""
        reference, lower, kept = self.reference(image), self.unpacked(image), self.scratch / "kept"

        def imgfs(name: str, *options: str, driver: str = "fuse") -> Imgfs:
            return Imgfs(self.scratch, [*self._mount_options, "--driver", driver, *options], name)

        return [
            *(overlay(self.scratch, lower) for overlay in OVER_UNPACKED),
            ImgfsOverlay(imgfs("imgfs --rw", "--rw"), reference),
            ImgfsOverlay(imgfs("imgfs --rw --scratch", "--rw", "--scratch", f"{kept}"), reference, kept=kept),
            ImgfsOverlay(imgfs("imgfs --write-through", "--rw", "--write-through"), reference, judged=False),
            ImgfsOverlay(imgfs("imgfs kernel --rw", "--rw", driver="kernel"), reference, judged=False),
            ImgfsOverlay(imgfs("imgfs"), reference, writes=False),
        ]


@contextmanager
def attempt(tool: Forgets, notes: list[str]) -> Iterator[None]:
    """Note that a command of the block has failed, which ends the block, and clear up after the tool."""
    try:
        yield
    except CommandFailed as failed:
        notes.append(str(failed))
    finally:
        forget_quietly(tool)


def forget_quietly(tool: Forgets) -> None:
    """Clear up after a tool; what cannot be cleared is said, not raised."""
    try:
        tool.forget()
    except CommandFailed as failed:
        say(str(failed))


def say(text: str) -> None:
    """Tell a person what is going on, apart from the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)

"""The ways to write over an image: imgfs's scratch, fuse-overlayfs and the kernel's overlayfs, a plain copy.

All are asked as they come: none of their options that trade safety or sharing for speed is given.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from scripts.benchmark.clock import CommandFailed, cpu_of, run
from scripts.benchmark.tools import Imgfs, mounts_below, unmount_below

PATIENCE = 20.0  # seconds for a mount to appear, or its server to end


class Overlay(Protocol):
    """The root of an image, with nothing written to it yet each time it is shown."""

    @property
    def name(self) -> str: ...

    @property
    def writes(self) -> bool: ...

    def show(self) -> Path:
        """Make the root visible and return where; CommandFailed if that does not work."""

    def serving_cpu(self) -> float:
        """Say how many CPU seconds the process that serves the root has used."""

    def hide(self) -> None:
        """Take the root away again, with everything that was written."""


class ImgfsOverlay:
    """imgfs with what its options say; `kept` is the directory that it was told to keep its scratch in.

    One that is not `judged` is only there to show what an option brings.
    """

    def __init__(
        self,
        imgfs: Imgfs,
        reference: str,
        *,
        writes: bool = True,
        kept: Path | None = None,
        judged: bool = True,
    ) -> None:
        self._imgfs, self._reference, self._kept = imgfs, reference, kept
        self.name, self.writes, self.judged = imgfs.name, writes, judged
        self._pid = 0

    def show(self) -> Path:
        root = self._imgfs.show(self._reference)
        self._pid = self._imgfs.pid()
        return root

    def serving_cpu(self) -> float:
        return cpu_of(self._pid)

    def hide(self) -> None:
        try:
            self._imgfs.hide()
        finally:
            unmount_below(self._imgfs.mountpoint)
            if self._kept:
                shutil.rmtree(self._kept, ignore_errors=True)


class _OverUnpacked:
    """An upper directory of its own over an unpacked image."""

    name: str
    writes = True

    def __init__(self, scratch: Path, lower: Path) -> None:
        self._place, self._lower = scratch / self.name, lower
        self.mountpoint = self._place / "mnt"

    def _options(self) -> str:
        upper, work = self._place / "upper", self._place / "work"
        for directory in (upper, work, self.mountpoint):
            directory.mkdir(parents=True)
        return f"lowerdir={self._lower},upperdir={upper},workdir={work}"

    def hide(self) -> None:
        unmount_below(self._place)
        shutil.rmtree(self._place, ignore_errors=True)


class KernelOverlayfs(_OverUnpacked):
    """The kernel's overlayfs."""

    name = "overlayfs"

    def show(self) -> Path:
        run(["mount", "-t", "overlay", "overlay", "-o", self._options(), self.mountpoint])
        return self.mountpoint

    def serving_cpu(self) -> float:
        return 0.0


class FuseOverlayfs(_OverUnpacked):
    """fuse-overlayfs, in the foreground, so that its process is known."""

    name = "fuse-overlayfs"

    def __init__(self, scratch: Path, lower: Path) -> None:
        super().__init__(scratch, lower)
        self._server: subprocess.Popen[bytes] | None = None

    def show(self) -> Path:
        options = self._options()
        with (self._place / "log").open("wb") as log:
            try:
                self._server = subprocess.Popen(
                    ["fuse-overlayfs", "-f", "-o", options, self.mountpoint],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            except OSError as problem:
                raise CommandFailed(f"fuse-overlayfs: {problem.strerror}") from problem
        self._await_mount(self._server, time.monotonic() + PATIENCE)
        return self.mountpoint

    def _await_mount(self, server: subprocess.Popen[bytes], deadline: float) -> None:
        while server.poll() is None and time.monotonic() < deadline:
            if self.mountpoint in mounts_below(self.mountpoint):
                return
            time.sleep(0.02)
        said = (self._place / "log").read_text(errors="replace").strip().splitlines()
        raise CommandFailed(f"fuse-overlayfs does not mount: {' / '.join(said[-3:])}")

    def serving_cpu(self) -> float:
        return cpu_of(self._server.pid) if self._server else 0.0

    def hide(self) -> None:
        unmount_below(self._place)
        if self._server:
            try:
                self._server.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._server = None
        super().hide()


class Plain:
    """A copy of the unpacked image: the floor."""

    name = "plain"
    writes = True

    def __init__(self, scratch: Path, lower: Path) -> None:
        self._copy, self._lower = scratch / "plain", lower

    def show(self) -> Path:
        run(["cp", "-a", self._lower, self._copy])
        return self._copy

    def serving_cpu(self) -> float:
        return 0.0

    def hide(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)


OVER_UNPACKED: tuple[Callable[[Path, Path], Overlay], ...] = (Plain, KernelOverlayfs, FuseOverlayfs)

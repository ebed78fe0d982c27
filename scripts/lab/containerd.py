"""A containerd of our own: to be measured, and for what only ctr-remote (of stargz-snapshotter) converts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from scripts.lab.recipes import RecipeError, run

PATIENCE = 20.0  # seconds for the daemon to answer
NOT_WANTED = (
    *("grpc.v1.cri", "internal.v1.opt", "internal.v1.tracing", "tracing.processor.v1.otlp"),
    *(f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")),
)
CONFIG = """version = 2
root = "{place}/root"
state = "{place}/state"
disabled_plugins = {disabled}
[grpc]
address = "{place}/containerd.sock"
[ttrpc]
address = "{place}/ttrpc.sock"
"""


class Containerd:
    """A containerd that keeps everything in the directory `place`, while its `with` block lasts.

    It is the one in the PATH, or that in the directory `programs`, with `more` of configuration. RecipeError
    if it is not installed or does not start.
    """

    def __init__(self, place: Path, programs: Path | None = None, more: str = "") -> None:
        self._place, self._programs, self._more = place, programs, more
        self.socket = place / "containerd.sock"
        self._stack = ExitStack()

    def __enter__(self) -> Containerd:
        self._place.mkdir(parents=True, exist_ok=True)
        config, log = self._place / "config.toml", self._place / "log"
        disabled = json.dumps([f"io.containerd.{name}" for name in NOT_WANTED])
        config.write_text(CONFIG.format(place=self._place, disabled=disabled) + self._more)
        with ExitStack() as stack:
            out = stack.enter_context(log.open("wb"))
            stack.callback(_end, daemon := _start(config, self._programs, out.fileno()))
            self.pid = daemon.pid
            deadline = time.monotonic() + PATIENCE
            while not self.socket.exists():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(errors="replace").strip().splitlines()
                    raise RecipeError(f"containerd does not start: {' '.join(said[-1:])[:300]}")
                time.sleep(0.05)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def to_estargz(self, source: str, target: str) -> None:
        """Convert `source`, an image in a registry without TLS, to eStargz and push that as `target`."""
        self._run("content", "fetch", "--plain-http", source)
        self._run("images", "convert", "--estargz", "--oci", source, target)
        self._run("images", "push", "--plain-http", target)

    def _run(self, *words: str) -> None:
        run(["ctr-remote", "--address", self.socket, *words])


def _start(config: Path, programs: Path | None, out: int) -> subprocess.Popen[bytes]:
    """Start containerd; it finds its shim beside itself."""
    path = os.environ["PATH"]
    name = str(programs / "containerd") if programs else "containerd"
    try:
        return subprocess.Popen(
            [name, "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "PATH": f"{programs}{os.pathsep}{path}" if programs else path},
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise RecipeError("containerd is not installed") from missing


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()

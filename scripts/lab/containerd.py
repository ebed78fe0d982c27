"""A containerd of our own: to be measured, and for what only ctr-remote (of stargz-snapshotter) converts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from scripts.lab.go_programs import program
from scripts.lab.recipes import RecipeError, run

PATIENCE = 20.0  # seconds for the daemon to answer
CRI = "grpc.v1.cri"
NOT_WANTED = (
    *(CRI, "internal.v1.opt", "internal.v1.tracing", "tracing.processor.v1.otlp"),
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

    It is the one in the PATH, or that in the directory `programs`, with `more` of configuration, and answers
    kubelet (CRI) if told. RecipeError if it is not installed or does not start.
    """

    def __init__(
        self, place: Path, programs: Path | None = None, more: str = "", *, has_cri: bool = False
    ) -> None:
        self._place, self._programs, self._more = place, programs, more
        self._not_wanted = [name for name in NOT_WANTED if not (has_cri and name == CRI)]
        self.socket = place / "containerd.sock"
        self._stack = ExitStack()
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Containerd:
        self._place.mkdir(parents=True, exist_ok=True)
        disabled = json.dumps([f"io.containerd.{name}" for name in self._not_wanted])
        text = CONFIG.format(place=self._place, disabled=disabled) + self._more
        (self._place / "config.toml").write_text(text)
        with ExitStack() as stack:
            stack.callback(self._end)
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        assert self._daemon
        return self._daemon.pid

    def crash(self) -> None:
        """Kill it, and start it again on what it has left."""
        assert self._daemon
        self._daemon.kill()
        self._daemon.wait()
        self._start()

    def to_estargz(self, source: str, target: str) -> None:
        """Convert `source`, an image in a registry without TLS, to eStargz and push that as `target`."""
        self._run("content", "fetch", "--plain-http", source)
        self._run("images", "convert", "--estargz", "--oci", source, target)
        self._run("images", "push", "--plain-http", target)

    def _start(self) -> None:
        """Start the daemon, which finds its shim beside itself, and wait until it answers."""
        path, log = os.environ["PATH"], self._place / "log"
        name = str(self._programs / "containerd") if self._programs else "containerd"
        with log.open("ab") as out:
            try:
                self._daemon = subprocess.Popen(
                    [name, "--config", str(self._place / "config.toml")],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={
                        **os.environ,
                        "PATH": f"{self._programs}{os.pathsep}{path}" if self._programs else path,
                    },
                    start_new_session=True,
                )
            except FileNotFoundError as missing:
                raise RecipeError("containerd is not installed") from missing
        deadline = time.monotonic() + PATIENCE
        while not answers(self.socket):
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").strip().splitlines()
                raise RecipeError(f"containerd does not start: {' '.join(said[-1:])[:300]}")
            time.sleep(0.05)

    def _end(self) -> None:
        if self._daemon:
            self._daemon.terminate()
            try:
                self._daemon.wait(10)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()

    def _run(self, *words: str) -> None:
        run([program(self._programs or Path(), "ctr-remote"), "--address", self.socket, *words])


def answers(path: Path) -> bool:
    """Say whether a process listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(str(path)) == 0

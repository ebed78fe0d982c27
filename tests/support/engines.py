"""Engines of a test's own: a containerd, and a podman that serves docker's API, on sockets in a directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lab.containerd import CONFIG, NOT_WANTED
from tests.support.mounted import until
from tests.support.patience import allowed

_TIMEOUT = allowed(60)
_METRICS = """[metrics]
address = "{metrics}"
"""
_STARTED = re.compile(
    r'grpc_server_started_total\{grpc_method="(\w+)",grpc_service="[\w.]+\.(\w+)".*\} (\d+)'
)

needs_containerd = pytest.mark.skipif(
    not (shutil.which("containerd") and shutil.which("ctr")) or os.geteuid() != 0,
    reason="no containerd for root",
)
needs_podman = pytest.mark.skipif(
    shutil.which("podman") is None or os.geteuid() != 0, reason="no podman for root"
)


@dataclass(frozen=True)
class Containerd:
    """A containerd that runs: its socket, and the address of its metrics."""

    socket: Path
    metrics: str

    def ctr(self, *words: str | Path, namespace: str = "default") -> str:
        """Run `ctr`."""
        return _ran("ctr", "-a", self.socket, "-n", namespace, *words)

    def add(self, layout: Path, name: str, namespace: str = "default") -> None:
        """Have it keep the images of an OCI layout as `name` and their tags; none is unpacked."""
        archive = self.socket.with_name("image.tar")
        _ran("tar", "-C", layout, "-cf", archive, ".")
        self.ctr(
            "images",
            "import",
            "--no-unpack",
            "--all-platforms",
            "--base-name",
            name,
            archive,
            namespace=namespace,
        )

    def calls(self) -> Counter[str]:
        """Count the calls that it was asked for, as `Service.Method`, by its own metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/v1/metrics", timeout=_TIMEOUT) as answer:
            said = answer.read().decode()
        return Counter({f"{found[2]}.{found[1]}": int(found[3]) for found in _STARTED.finditer(said)})


@contextmanager
def containerd(place: Path, more: str = "") -> Iterator[Containerd]:
    """Run a containerd that keeps everything in a directory, whose path must be short enough for a socket.

    It speaks CRI if there is `more` of its configuration.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    unwanted = [name for name in NOT_WANTED if not (more and name == "grpc.v1.cri")]
    disabled = json.dumps([f"io.containerd.{name}" for name in unwanted])
    config = place / "config.toml"
    config.write_text((CONFIG + _METRICS).format(place=place, disabled=disabled, metrics=metrics) + more)
    made = Containerd(place / "containerd.sock", metrics)
    with _running(place, "containerd", "--config", config) as process:
        until(lambda: _is_asked(process, made.socket), "containerd answers")
        made.ctr("version")
        yield made


@contextmanager
def podman_service(place: Path) -> Iterator[Path]:
    """Serve docker's API for a podman whose store is `place`/p, with the driver vfs: its socket."""
    path = place / "podman.sock"
    words = ["--root", f"{place}/p", "--runroot", f"{place}/r", "--storage-driver", "vfs"]
    with _running(place, "podman", *words, "system", "service", "-t", "0", f"unix://{path}") as process:
        until(lambda: _is_asked(process, path), "podman answers")
        yield path


@contextmanager
def _running(place: Path, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_asked(process: subprocess.Popen[bytes], path: Path) -> bool:
    assert process.poll() is None, f"{process.args!r} has ended"
    with socket.socket(socket.AF_UNIX) as tried:
        return tried.connect_ex(str(path)) == 0


def _ran(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_TIMEOUT).stdout

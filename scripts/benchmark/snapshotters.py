"""Nodes: a containerd with one snapshotter, each from nothing, in a directory of its own.

imgfs, containerd's own overlayfs, stargz-snapshotter on the image converted to eStargz, SOCI on the image
with SOCI's index. What they keep, and fetch ahead, is by their own defaults.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.clock import CommandFailed, output_of, run
from scripts.benchmark.editions import Place, estargz, indexed, plain, profiled, soci
from scripts.benchmark.stage import Application, Stage
from scripts.benchmark.tools import end, having, unmount_below
from scripts.lab.containerd import Containerd, answers
from scripts.lab.go_programs import node_programs, program
from scripts.lab.recipes import RecipeError

PATIENCE = 60.0  # seconds for an application to answer
OWN = "overlayfs"
KUBELETS = """
[plugins."io.containerd.cri.v1.images"]
snapshotter = "{plugin}"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
"""
OVERLAYFS = "containerd's overlayfs"
PROXY = """
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "lazy"
[proxy_plugins.lazy]
type = "snapshot"
address = "{socket}"
capabilities = ["remap-ids"]
[proxy_plugins.lazy.exports]
enable_remote_snapshot_annotations = "true"
root = "{root}"
"""

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Snapshotter:
    """A snapshotter: its name in a table, the edition of images that it is for, and its command.

    `command` makes the words that serve at a socket and keep all in a directory; None: containerd's own.
    """

    name: str
    publish: Callable[[Stage, Application], Place]
    command: Callable[[Path, Path, Path], Command] | None


def imgfs_command(*options: str) -> Callable[[Path, Path, Path], Command]:
    """Return what makes the words that run imgfs's snapshotter."""
    words = [sys.executable, "-m", "imgfs", "snapshotter", *options]
    return lambda _programs, socket, root: [*words, "--address", socket, "--root", root]


def _peer(name: str) -> Callable[[Path, Path, Path], Command]:
    return lambda programs, socket, root: [
        program(programs, name),
        *("--address", socket, "--root", root, "--config", _empty(root)),
    ]


def _empty(root: Path) -> Path:
    """Return a configuration that says nothing: the machine's own is not asked."""
    path = root.with_suffix(".toml")
    path.touch()
    return path


SNAPSHOTTERS = (
    Snapshotter("imgfs, no index", plain, imgfs_command()),
    Snapshotter("imgfs, index", indexed, imgfs_command("--index", "auto")),
    Snapshotter("imgfs, index and profile", profiled, imgfs_command("--index", "auto")),
    Snapshotter(OVERLAYFS, plain, None),
    Snapshotter("stargz, converted to eStargz", estargz, _peer("containerd-stargz-grpc")),
    Snapshotter("SOCI, its index", soci, _peer("soci-snapshotter-grpc")),
)

APART = (SNAPSHOTTERS[0], *SNAPSHOTTERS[3:])  # whose mounts are not served in the same way


class Node:
    """A containerd and a snapshotter that keep all in the directory `place`, while a `with` block lasts.

    containerd answers kubelet, too, if told of an image `pause`.
    """

    def __init__(self, place: Path, programs: Path, snapshotter: Snapshotter, pause: str = "") -> None:
        self._place, self._programs, self._snapshotter = place, programs, snapshotter
        self._pause = pause
        self._plugin = OWN if snapshotter.command is None else "lazy"
        self._mark = f"IMGFS_BENCH_NODE={place}"
        self._stack = ExitStack()
        self._serving: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Node:
        self._place.mkdir(parents=True)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, self._place, ignore_errors=True)
            stack.callback(unmount_below, self._place)
            try:
                if self._snapshotter.command:
                    stack.callback(end, lambda: having(self._mark))
                    stack.callback(unmount_below, self._place)
                    self._serve(self._snapshotter.command)
                    stack.callback(self._stop)
                programs = node_programs(self._programs)
                containerd = Containerd(
                    self._place / "c", programs, self._configuration(), has_cri=bool(self._pause)
                )
                self._containerd = stack.enter_context(containerd)
            except RecipeError as failed:
                raise CommandFailed(str(failed)) from failed
            stack.callback(self.remove_containers)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def pull(self, reference: str) -> None:
        """Have containerd pull an image for the snapshotter."""
        self._ctr("images", "pull", "--plain-http", "--snapshotter", self._plugin, reference)

    def start(self, reference: str, name: str, command: Sequence[str]) -> None:
        """Start a container, which goes on."""
        self._ctr(*self._run, "-d", reference, name, *command)

    def run(self, reference: str, command: Sequence[str], prefix: str = "run-") -> str:
        """Run a container to its end, by a name that begins so; what it has said."""
        return self._said(*self._run, "--rm", reference, f"{prefix}{time.monotonic_ns()}", *command)

    def remove(self, *references: str) -> None:
        """Have containerd forget images, or all, and what nothing needs any more."""
        for reference in references or self._said("images", "list", "--quiet").split():
            self._ctr("images", "remove", "--sync", reference)

    def collect_garbage(self) -> None:
        """Have containerd remove what nothing needs, now; leases of clients that have failed do not count."""
        self._ctr("leases", "create", "--id", f"collect-{time.monotonic_ns()}")
        for lease in self._said("leases", "list", "--quiet").split():
            self._ctr("leases", "delete", "--sync", lease)

    def remove_containers(self, prefix: str = "") -> None:
        """Kill and remove containers whose names begin so; what does not go is left to the next."""
        with contextlib.suppress(CommandFailed):
            for name in self._said("containers", "list", "--quiet").split():
                if name.startswith(prefix):
                    with contextlib.suppress(CommandFailed):
                        self._ctr("tasks", "delete", "--force", name)
                    self._ctr("containers", "delete", name)

    def crash_containerd(self) -> None:
        """Kill containerd, and start it again."""
        self._containerd.crash()

    def crash_snapshotter(self) -> None:
        """Kill the snapshotter, and start it again."""
        assert self._serving
        assert self._snapshotter.command
        self._serving.kill()
        self._serving.wait()
        self._serve(self._snapshotter.command)

    def processes(self) -> list[int]:
        """List containerd, the snapshotter and what serves its mounts; not what runs in containers."""
        return [self._containerd.pid, *(having(self._mark) if self._serving else [])]

    @property
    def is_imgfs(self) -> bool:
        return self._snapshotter.name.startswith("imgfs")

    @property
    def containerd(self) -> Path:
        """containerd's socket."""
        return self._containerd.socket

    @property
    def _run(self) -> tuple[str, ...]:
        return "run", "--snapshotter", self._plugin, "--net-host"

    @property
    def serving(self) -> int:
        """The snapshotter's process."""
        assert self._serving
        return self._serving.pid

    @property
    def kept(self) -> Path:
        """Where the snapshotter keeps what it has."""
        return self._place / "root"

    @property
    def _socket(self) -> Path:
        return self._place / "s.sock"

    def _configuration(self) -> str:
        proxy = PROXY.format(socket=self._socket, root=self.kept) if self._serving else ""
        return proxy + (KUBELETS.format(plugin=self._plugin, pause=self._pause) if self._pause else "")

    def _serve(self, command: Callable[[Path, Path, Path], Command]) -> None:
        name, _, value = self._mark.partition("=")
        environment: Mapping[str, str] = {
            **os.environ,
            name: value,
            "IMGFS_STORE": str(self._place / "store"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        words = command(self._programs, self._socket, self.kept)
        with (self._place / "snapshotter.log").open("ab") as log:
            self._serving = subprocess.Popen(
                [str(word) for word in words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not answers(self._socket):
            if self._serving.poll() is not None or time.monotonic() > deadline:
                said = (self._place / "snapshotter.log").read_text(errors="replace").strip().splitlines()
                raise CommandFailed(f"{words[0]} does not serve: {' '.join(said[-1:])[:300]}")
            time.sleep(0.02)

    def _stop(self) -> None:
        if self._serving:
            self._serving.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._serving.wait(10)
            self._serving.kill()
            self._serving.wait()

    def _ctr(self, *words: str) -> None:
        run(self._words(*words))

    def _said(self, *words: str) -> str:
        return output_of(self._words(*words))

    def _words(self, *words: str) -> list[str | Path]:
        return [self._programs / "ctr", "--address", self._containerd.socket, *words]


def await_answer(port: int) -> None:
    """Ask a server on loopback until it answers 200; CommandFailed if it does not in a minute."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            if answer.status == 200:
                return
        time.sleep(0.01)
    raise CommandFailed(f"no server answers on port {port}")

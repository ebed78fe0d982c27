"""The tools that turn a reference into a directory: imgfs, and what a user would use instead."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from scripts.benchmark.clock import CommandFailed, Effort, effort_of, output_of, run


class Forgets(Protocol):
    """What has mounts, processes and files of its own."""

    def forget(self) -> None:
        """Take everything away again: mounts, processes, files."""


class Tool(Forgets, Protocol):
    """A way to an image's root, with a scratch directory of its own."""

    @property
    def name(self) -> str: ...

    def show(self, reference: str) -> Path:
        """Make the image's root visible and return where; CommandFailed if that does not work."""

    def inside(self, reference: str, root: Path, command: Sequence[str]) -> Sequence[str | Path]:
        """Make the command line that runs `command` in the image, whose root is visible at `root`."""

    def serving_effort(self) -> Effort:
        """Say what the processes that still run for the image have used."""


# Starts containers for all of them: crun, podman's own choice, refuses cgroups of both versions side by side.
RUNTIME = "runc"
# With this machine's devices, as every container has: torch wants random numbers when it is imported.
INSIDE = 'mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'


class Rooted:
    """Runs commands in the image's root, without a container."""

    def inside(self, _reference: str, root: Path, command: Sequence[str]) -> Sequence[str | Path]:
        return ["unshare", "--mount", "sh", "-c", INSIDE, root, *command]


class Imgfs(Rooted):
    """imgfs, by its command line, with a store in `scratch`; each name has a mountpoint of its own."""

    def __init__(self, scratch: Path, options: Sequence[str] = (), name: str = "imgfs") -> None:
        self.name = name
        installed = Path(sys.executable).with_name("imgfs")
        self._program = [str(installed)] if installed.exists() else [sys.executable, "-m", "imgfs"]
        self._options = options
        self.mountpoint = scratch / f"{name.replace(' ', '')}-mnt"
        self.store = scratch / "imgfs-store"
        # An installation has its bytecode; empty means that a first run may write it.
        self._env = {
            "IMGFS_STORE": str(self.store),
            "PYTHONDONTWRITEBYTECODE": "",
            "IMGFS_SERVE": "none",
        }
        self._socket = scratch / f"{self.mountpoint.name}-serve.sock"
        self._server: subprocess.Popen[bytes] | None = None
        self._daemon: int | None = None
        self.mountpoint.mkdir(parents=True, exist_ok=True)

    def show(self, reference: str, *, is_served: bool = False, is_offline: bool = False) -> Path:
        more = ["--offline"] if is_offline else []
        self._run("mount", *self._options, *more, reference, self.mountpoint, is_served=is_served)
        return self.mountpoint

    def serve(self) -> None:
        """Have an `imgfs serve` wait, until `forget` or `end_server`, for what is to be served."""
        if self._server:
            return
        words = [*self._program, "serve", "--log-level", "warning"]
        self._server = subprocess.Popen(words, env={**os.environ, **self._environment(is_served=True)})
        while not self._socket.exists() and self._server.poll() is None:
            time.sleep(0.1)

    def end_server(self) -> None:
        """End the `imgfs serve`; what is mounted stays."""
        if self._server:
            self._server.terminate()
            self._server.wait()
        self._server = None

    def hide(self) -> None:
        """Unmount; the store stays."""
        if self.mountpoint in mounts_below(self.mountpoint):
            self._run("umount", self.mountpoint)

    def show_recording(self, reference: str, profile: str) -> Path:
        """Mount, recording what is read, and in which order, as `profile`."""
        self._require("--record", "mount")
        self._run("mount", "--record", profile, *self._options, reference, self.mountpoint)
        return self.mountpoint

    def push_index(self, reference: str) -> None:
        """Attach its index to the image in its registry; CommandFailed if this imgfs does not do that."""
        self._require("", "index", "push")
        self._run("index", "push", reference)

    def pull(self, reference: str) -> None:
        """Bring everything of the image into the store."""
        self._run("pull", "--quiet", reference)

    def run_container(
        self, options: Sequence[str], reference: str, command: Sequence[str], *, is_served: bool = False
    ) -> float:
        """Run a command in a container of the image; the seconds it took."""
        words = ("run", f"--runtime={RUNTIME}", "--network=none", *options, reference, *command)
        return self._run(*words, is_served=is_served)

    def _require(self, option: str, *command: str) -> None:
        """Raise CommandFailed unless this imgfs has a command, and the command an option."""
        wanted = " ".join(filter(None, ("imgfs", *command, option)))
        try:
            understood = option in output_of([*self._program, *command, "--help"], env=self._env)
        except CommandFailed as failed:
            raise CommandFailed(f"there is no `{wanted}`") from failed
        if not understood:
            raise CommandFailed(f"there is no `{wanted}`")

    def drop_data(self, reference: str) -> None:
        """Drop the cached bytes and keep the indexes: the state of a machine that finds them published."""
        self._run("store", "rm", "--data", reference)

    def forget(self) -> None:
        self.end_server()
        try:
            self.hide()
        except CommandFailed:
            run(["umount", "--lazy", self.mountpoint])
            raise
        finally:
            end(lambda: having(f"IMGFS_STORE={self.store}"))  # they would write to it once more
            shutil.rmtree(self.store, ignore_errors=True)

    def pid(self) -> int:
        """Ask for the id of the mount's daemon."""
        status = output_of([*self._program, "status", "--json", self.mountpoint], env=self._env)
        return int(json.loads(status)["pid"])

    @contextlib.contextmanager
    def shown_often(
        self, reference: str, count: int, options: Sequence[str] = (), *, is_served: bool = False
    ) -> Iterator[Callable[[], list[int]]]:
        """Mount it so many times, by an `imgfs serve` or each by itself; yields what lists all processes."""
        places = [self.mountpoint.with_name(f"{self.mountpoint.name}{number}") for number in range(count)]
        if is_served:
            self.serve()
        try:
            for place in places:
                place.mkdir(exist_ok=True)
                self._run("mount", *self._options, *options, reference, place, is_served=is_served)
            yield lambda: having(f"IMGFS_STORE={self.store}")
        finally:
            for place in mounts_below(self.mountpoint.parent):
                run(["umount", place])
            self.end_server()
            end(lambda: having(f"IMGFS_STORE={self.store}"))  # another mount namespace may still have one

    def serving_effort(self) -> Effort:
        """Say what the daemon, the oldest process, has used: to ask imgfs would keep a core meanwhile."""
        variable = f"IMGFS_STORE={self.store}"
        if not (self._daemon and has(self._daemon, variable)):  # all processes are looked at but once
            self._daemon = min(having(variable), default=None)
        return effort_of(self._daemon) if self._daemon else Effort()

    def look(self, *words: str | Path) -> float:
        """Run a command that looks into images; one says by exit code 1 that it found, or found nothing."""
        accepting = 'rc=0; "$@" || rc=$?; test $rc -le 1'
        return run(["sh", "-c", accepting, "sh", *self._program, *words], env=self._env)

    def _run(self, *words: str | Path, is_served: bool = False) -> float:
        return run([*self._program, *words], env=self._environment(is_served=is_served))

    def _environment(self, *, is_served: bool) -> Mapping[str, str]:
        return {**self._env, "IMGFS_SERVE": str(self._socket)} if is_served else self._env


class Podman(Rooted):
    """podman pull, then podman image mount, with storage of its own."""

    name = "podman"

    def __init__(self, scratch: Path) -> None:
        self._root = scratch / "podman"
        self._run_root = Path(f"/tmp/podman-{os.getpid()}")  # podman wants 50 characters at most
        places = ["--root", str(self._root), "--runroot", str(self._run_root)]
        self._podman = ["podman", f"--runtime={RUNTIME}", *places]

    def pull(self, reference: str) -> float:
        """Fetch and unpack the image, unless it is there; the seconds it took."""
        return run([*self._podman, "pull", "--quiet", "--tls-verify=false", reference])

    def copy_out(self, reference: str, path: str, target: Path) -> float:
        """Copy a file out of an image that has been pulled, by way of a container; the seconds it took."""
        begun = time.perf_counter()
        made = output_of([*self._podman, "create", "--pull=never", "--network=none", reference, "/x"]).strip()
        run([*self._podman, "cp", f"{made}:{path}", target])
        seconds = time.perf_counter() - begun
        run([*self._podman, "rm", made])
        return seconds

    def show(self, reference: str) -> Path:
        self.pull(reference)
        return self.mount(reference)

    def mount(self, reference: str) -> Path:
        """Mount an image that has been pulled, and return where."""
        return Path(output_of([*self._podman, "image", "mount", reference]).strip())

    def hide(self) -> None:
        """Unmount all images; they stay."""
        run([*self._podman, "image", "umount", "--all"])

    def serving_effort(self) -> Effort:
        return Effort()  # the kernel's overlayfs serves

    def forget(self) -> None:
        if self._root.exists():
            with contextlib.suppress(CommandFailed):  # nothing was mounted
                self.hide()
            with contextlib.suppress(CommandFailed):
                run([*self._podman, "image", "rm", "--all", "--force"])
            unmount_below(self._root)  # podman leaves its directory bound to itself
        shutil.rmtree(self._root, ignore_errors=True)
        shutil.rmtree(self._run_root, ignore_errors=True)


PATIENCE = 15.0  # seconds; a container whose caller has been killed is given ten
LIMITS = ("nofile=10000:10000", "nproc=5000:5000")


class PodmanRun(Podman):
    """podman pull, then podman run."""

    name, program = "podman pull + run", "podman"

    def inside(self, reference: str, _root: Path, command: Sequence[str]) -> Sequence[str | Path]:
        # What podman would choose itself may not work in a sandbox: a network, limits above the sandbox's.
        options = ["--rm", "--pull=never", "--network=none", *(f"--ulimit={limit}" for limit in LIMITS)]
        return [*self._podman, "run", *options, "--entrypoint", command[0], reference, *command[1:]]


class Umoci(Rooted):
    """skopeo copy to an OCI layout, then umoci unpack."""

    name = "skopeo + umoci"

    def __init__(self, scratch: Path) -> None:
        self._layout, self._bundle = scratch / "umoci-layout", scratch / "umoci-bundle"

    def show(self, reference: str) -> Path:
        copy = ["skopeo", "copy", "--quiet", "--src-tls-verify=false"]
        run([*copy, f"docker://{reference}", f"oci:{self._layout}:latest"])
        run(["umoci", "unpack", "--image", f"{self._layout}:latest", self._bundle])
        return self._bundle / "rootfs"

    def serving_effort(self) -> Effort:
        return Effort()

    def forget(self) -> None:
        shutil.rmtree(self._layout, ignore_errors=True)
        shutil.rmtree(self._bundle, ignore_errors=True)


PEERS: dict[str, Callable[[Path], Tool]] = {"podman": Podman, "umoci": Umoci}


def having(variable: str) -> list[int]:
    """List the processes that were started with a variable, NAME=VALUE, in their environment."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if has(pid, variable)]


def has(pid: int, variable: str) -> bool:
    """Tell whether a process was started with a variable, NAME=VALUE; one that has ended was not."""
    with contextlib.suppress(OSError):
        return variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def end(processes: Callable[[], list[int]]) -> None:
    """Wait for processes to end, as they will when their mount or their caller is gone, or else kill them."""
    deadline = time.monotonic() + PATIENCE
    while left := processes():
        if time.monotonic() > deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)


def mounts_below(directory: Path) -> list[Path]:
    """List the mounts at and below `directory`, the latest first (proc(5), mountinfo: field 5).

    Asks the kernel's list, not the mountpoints: one whose server is dead does not answer.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace("\\040", " ")) for line in lines]
    return [point for point in reversed(points) if point.is_relative_to(directory)]


def unmount_below(directory: Path) -> None:
    """Detach whatever is still mounted there, so that removing it harms no files."""
    for point in mounts_below(directory):
        with contextlib.suppress(CommandFailed):  # went away with the one above it
            run(["umount", "--lazy", point], timeout=30)

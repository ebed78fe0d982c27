"""imgfs as its users meet it: the command in processes of its own, mounts in the kernel, images on disk.

    def test_x(imgfs: Imgfs, tmp_path: Path) -> None:
        image = write_image(tmp_path / "layout", [gzipped(archive(file("a", b"1")))])
        mountpoint = imgfs.mount(image)
        assert (mountpoint / "a").read_bytes() == b"1"

Whatever a test leaves behind is taken down by `Imgfs.close`, which fails the test if a daemon has logged a
warning or worse that the test did not announce in `expected`.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import zstandard

from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import Mount, imgfs_mount_at, mounts
from imgfs.oci.descriptor import Digest
from imgfs.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.support.fault_server import FaultServer
from tests.support.patience import allowed
from tests.support.zygote import ForkedCommand, is_forked

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SESSION = f"IMGFS_TEST_SESSION={os.getpid()}"  # in the environment of every process the tests start
_ROUNDS = 5  # of daemons that end, before no more may begin
TIMEOUT = allowed(120)  # seconds a command may take
HANGS = allowed(180)  # seconds of one test after which its mounts' daemons are killed: none waits for ever
NO_LIMIT = (
    "--limit",
    "none",
)  # of a node's store: else a full disk of this machine evicts what a test has cached
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
_QUIET_LINE = re.compile(r"\S+ \S+ (DEBUG|INFO) ")
_PROGRESS = re.compile(r"imgfs: \w+(?:, going on at [^:]+)?: [\d.]+ \w?B of [\d.]+ \w?B, .*")
# What Python says of an exception, and imgfs never: its class, its traceback, its errno as a number.
_RAW_PYTHON = re.compile(
    r"Traceback \(most recent|invalid \w+ value: |Expecting \w+|codec can't |"
    r"\[Errno -?\d+\]|\bOSError\b|<class '|<[\w.]+ object at 0x|\bNoneType\b|"
    r"\b(?:[a-z_]+\.)*(?:[A-Z][A-Za-z]*(?:Error|Exception|Warning)|KeyboardInterrupt)\b(?:\(|: )"
)


class Account(NamedTuple):
    """Somebody to run commands as."""

    uid: int
    gid: int


NOBODY = Account(65534, 65534)


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return os.fsdecode(self.out)

    def complaint(self, code: int = 1) -> str:
        """Return the one line it failed with; the assertions are what every error owes a person."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("imgfs: "), self.err
        assert len(lines[0]) < 600, self.err
        return lines[0].removeprefix("imgfs: ")


def without_progress(said: str) -> str:
    """What a command wrote to standard error, but for the lines that it adds when it takes ten seconds."""
    return "".join(line for line in said.splitlines(keepends=True) if not _PROGRESS.fullmatch(line.rstrip()))


def check_words(said: str) -> None:
    """Fail if what imgfs wrote for a person, or a daemon's log, has Python's own text of an exception."""
    raw = _RAW_PYTHON.search(said)
    assert raw is None, f"Python's own words ({raw[0]!r}) in: {said}"


@dataclass
class Imgfs:
    """The command `imgfs`, with a store and mount points of its own below `directory`.

    `expected` are patterns of lines that daemons may log although they are no good news.
    """

    directory: Path
    user: Account | None = None
    environment: dict[str, str] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    driver: str = "fuse"  # what root's mounts are made by, unless they say it themselves
    passthrough: bool = False  # whether the kernel reads whole layers itself, as it does for users
    _mounted: dict[Path, Watchdog] = field(default_factory=dict)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        if self.user:
            os.chown(self.directory, *self.user)
            os.chown(home, *self.user)
        name, _, value = SESSION.partition("=")
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "IMGFS_STORE": str(self.store),
            "IMGFS_ETC": str(self.directory / "etc"),  # what this machine says of registries does not count
            "IMGFS_SERVE": "none",  # nor one that waits here
            "LC_ALL": "C.UTF-8",
            name: value,
            **self.environment,
        }

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def start(self, *arguments: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """Begin `imgfs ARGUMENTS…`; `more` is for Popen."""
        more = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        words = self.command(*arguments)
        if self.user or not is_forked(words, self.environment, more):
            process = subprocess.Popen(words, env=self.environment, **self._as_user(), **more)
        else:
            process = ForkedCommand(words, env=self.environment, **more)
        self._started.append(process)
        return process

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the words that start `imgfs ARGUMENTS…`."""
        return [sys.executable, "-m", "imgfs", *map(str, self._with_driver(arguments))]

    def run(self, *arguments: str | Path, timeout: float = TIMEOUT, **more: Any) -> Ran:
        """`imgfs ARGUMENTS…` to its end."""
        process = self.start(*arguments, **more)
        out, err = process.communicate(timeout=timeout)
        ran = Ran(process.returncode, out, err.decode() if err else "")
        check_words(ran.err)
        return ran

    def ok(self, *arguments: str | Path, **more: Any) -> str:
        """Return what `imgfs ARGUMENTS…` writes; it must succeed and have nothing to complain of."""
        ran = self.run(*arguments, **more)
        assert (ran.code, without_progress(ran.err)) == (0, ""), ran
        return ran.text

    def program(self, *words: str | Path, timeout: float = TIMEOUT, **more: Any) -> Ran:
        """Return another program, as the same user, to its end."""
        done = subprocess.run(
            list(map(str, words)),
            env=self.environment,
            timeout=timeout,
            capture_output=True,
            check=False,
            **self._as_user(),
            **more,
        )
        return Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def mountpoint(self, name: str = "mnt") -> Path:
        """Return an empty directory to mount on."""
        path = self.directory / name
        path.mkdir(exist_ok=True)
        if self.user:
            os.chown(path, *self.user)
        return path

    def mount(self, image: str, *options: str, at: Path | None = None, timeout: float = TIMEOUT) -> Path:
        """Mount `image`; it answers when this returns."""
        mountpoint = at or self.mountpoint()
        ran = self.run("mount", *options, image, mountpoint, timeout=timeout)
        assert (ran.code, ran.out, without_progress(ran.err)) == (0, b"", ""), ran
        self.watch(mountpoint)
        return mountpoint

    def watch(self, mountpoint: Path) -> int:
        """Have the daemon of a new mount killed should it ever hang, and unmounted in the end; its pid."""
        pid = self.pid(mountpoint)
        self._mounted[mountpoint] = Watchdog(pid)
        self._mounted[mountpoint].start()
        return pid

    def umount(self, mountpoint: Path, *options: str) -> None:
        """Unmount by the command."""
        assert self.ok("umount", *options, mountpoint) == ""
        self._mounted.pop(mountpoint).cancel()

    def gone(self, mountpoint: Path) -> None:
        """Note that a mount has been ended by other means."""
        self._mounted.pop(mountpoint).cancel()

    def status(self, mountpoint: Path) -> dict[str, Any]:
        """`imgfs status --json`."""
        found: dict[str, Any] = json.loads(self.ok("status", "--json", mountpoint))
        return found

    def pid(self, mountpoint: Path) -> int:
        """Return the pid of a mount's daemon; a user's mount answers to that user only."""
        if self.user:
            return int(self.status(mountpoint)["pid"])
        return read_status(imgfs_mount_at(mountpoint)).pid

    def evict(self, image: str) -> None:
        """Drop the image's cached bytes, and what the kernel has of them."""
        self.ok("store", "rm", "--data", image)
        drop_caches()

    def logged(self) -> list[str]:
        """Return all lines in the store's logs."""
        return [line for path in sorted(self.store.glob("logs/*")) for line in path.read_text().splitlines()]

    def close(self) -> None:
        """Take everything down; fail if a daemon did not end by itself or said something unexpected."""
        for mountpoint, watchdog in self._mounted.items():
            watchdog.cancel()
            subprocess.run(["umount", "-l", str(mountpoint)], check=False, capture_output=True)
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        ours = (
            mount.mountpoint for mount in mounts() if mount.is_imgfs or mount.filesystem.startswith("fuse")
        )
        below = [mountpoint for mountpoint in ours if mountpoint.is_relative_to(self.directory)]
        for left in reversed(below):
            subprocess.run(["umount", "-l", str(left)], check=False, capture_output=True)
        assert below == [], f"mounts left behind: {below}"
        for _ in range(_ROUNDS):
            if not (alive := processes_of_tests(self.store)):
                break
            until(partial(_have_ended, alive), "every daemon has ended")
        else:
            raise AssertionError(f"daemons begin again and again: {alive}")
        check_words("\n".join(self.logged()))
        unexpected = [line for line in self.logged() if not self._is_expected(line)]
        assert unexpected == [], f"in the daemons' logs: {unexpected}"

    def _is_expected(self, line: str) -> bool:
        return bool(_QUIET_LINE.match(line)) or any(re.search(pattern, line) for pattern in self.expected)

    def _with_driver(self, arguments: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
        if self.user or arguments[:1] != ("mount",):
            return arguments
        is_served = self.driver == "kernel" and not self.passthrough
        served = ("-o", "nopassthrough") if is_served else ()
        return "mount", "--driver", self.driver, *served, *arguments[1:]

    def _as_user(self) -> dict[str, Any]:
        if self.user is None:
            return {}
        return {"user": self.user.uid, "group": self.user.gid, "extra_groups": [], "cwd": self.directory}


class Watchdog(threading.Thread):
    """Kills a daemon if one test goes on for HANGS seconds; the mounts of a module may be older than that."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    def run(self) -> None:
        test, began = "", time.monotonic()
        while not self._cancelled.wait(HANGS / 10):
            running = os.environ.get("PYTEST_CURRENT_TEST", "")  # and its phase: pytest sets it
            if running != test:
                test, began = running, time.monotonic()
            elif time.monotonic() - began > HANGS:
                _kill(self._pid)
                return


def until(condition: Callable[[], object], what: str, timeout: float = 60.0, *, pause: float = 0.02) -> None:
    """Wait for `condition` to hold; `timeout` is in seconds of a quiet machine, `pause` between two looks."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < timeout or waited < allowed(timeout), f"not within {waited:.0f} s: {what}"
        time.sleep(pause)


def errno_of(call: Callable[[], object]) -> int | None:
    """Return the errno that a call fails with, None if it does not."""
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def is_alive(pid: int) -> bool:
    """Return whether the process runs: one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_line(pid: int) -> bytes:
    """Return the words of a process, each with a NUL after it; none once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _have_ended(pids: Sequence[int]) -> bool:
    return not any(map(is_alive, pids))


def processes_of_tests(store: Path | None = None) -> list[int]:
    """Processes these tests started, daemons included: those of `store`, or all."""
    marks = {SESSION.encode()} | ({f"IMGFS_STORE={store}".encode()} if store else set())
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):  # all of the machine's: it has to be quick
        with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb", 0) as file:
            body = file.read()
            if all(mark in body for mark in marks) and marks <= set(body.split(b"\0")):
                found.append(int(name))
    return [pid for pid in found if is_alive(pid)]


def mount_of(mountpoint: Path) -> Mount | None:
    """Return the mount at `mountpoint`, as the kernel lists it."""
    return next((mount for mount in mounts() if mount.mountpoint == mountpoint), None)


def mount_flags(mountpoint: Path) -> set[str]:
    """Return the per-mount and per-superblock options of a mount (proc(5), mountinfo)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            return {*fields[5].split(","), *fields[-1].split(",")}
    raise AssertionError(f"{mountpoint} is not mounted")


def resident(pid: int) -> int:
    """Return bytes of memory the process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def drop_caches(what: str = "3") -> None:
    """Have the kernel forget pages, entries and inodes, those of all mounts included: only root can.

    Waits for the tests of other workers that stand on what the kernel has cached (`caches_kept`).
    """
    with _caches(fcntl.LOCK_EX):
        Path("/proc/sys/vm/drop_caches").write_text(what)


@contextlib.contextmanager
def caches_kept() -> Iterator[None]:
    """Meanwhile no test of any worker drops what the kernel has cached."""
    with _caches(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _caches(kind: int) -> Iterator[None]:
    with open(f"{tempfile.gettempdir()}/imgfs-test-caches-{os.geteuid()}", "w") as lock:
        fcntl.flock(lock, kind)
        yield


def on_terminal(words: Sequence[str], environment: Mapping[str, str], timeout: float = TIMEOUT) -> Ran:
    """Return a command whose standard error is a terminal: what it drew there is `err`."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        drawn = b"".join(_read_terminal(ours, time.monotonic() + timeout))
        os.close(ours)
        out, _ = process.communicate(timeout=timeout)
    return Ran(process.returncode, out, drawn.decode())


def _read_terminal(fd: int, ends: float) -> Iterator[bytes]:
    while select.select([fd], [], [], max(0.0, ends - time.monotonic()))[0]:
        try:
            yield os.read(fd, 4096)
        except OSError:  # EIO: nobody has it open any more
            return


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class Stored(NamedTuple):
    """A layer as it is stored, and what its DiffID and descriptor say of it."""

    blob: bytes
    diff_id: str
    media_type: str = LAYER_TAR
    digest: str | None = None
    size: int | None = None
    annotations: Mapping[str, str] = {}

    def descriptor(self) -> dict[str, Any]:
        """Return its entry in a manifest."""
        size = len(self.blob) if self.size is None else self.size
        fields = {"mediaType": self.media_type, "digest": self.digest or sha256(self.blob), "size": size}
        return fields | ({"annotations": dict(self.annotations)} if self.annotations else {})


def sha256(body: bytes) -> str:
    """Return the digest of `body`, as documents write it."""
    return str(Digest.of(body))


def plain(tar: bytes) -> Stored:
    """Return a layer stored as it is."""
    return Stored(tar, sha256(tar))


def gzipped(tar: bytes, level: int = 1) -> Stored:
    """Return a layer in one gzip member."""
    return Stored(gzip.compress(tar, level, mtime=0), sha256(tar), f"{LAYER_TAR}+gzip")


def gzipped_in_members(tar: bytes, size: int = 100_000) -> Stored:
    """Return a layer in many gzip members, as pigz and bgzip write them."""
    pieces = [tar[at : at + size] for at in range(0, len(tar), size)]
    blob = b"".join(gzip.compress(piece, 1, mtime=0) for piece in pieces)
    return Stored(blob, sha256(tar), f"{LAYER_TAR}+gzip")


def zstd(tar: bytes, size: int | None = None) -> Stored:
    """Return a layer in one zstd frame, or in frames of `size` bytes."""
    pieces = [tar[at : at + size] for at in range(0, len(tar), size)] if size else [tar]
    blob = b"".join(zstandard.compress(piece, 3) for piece in pieces)
    return Stored(blob, sha256(tar), f"{LAYER_TAR}+zstd")


class Documents(NamedTuple):
    """An image's documents, ready to be put somewhere."""

    manifest: bytes
    config: bytes
    blobs: dict[str, bytes]  # by digest, without the manifest


def documents(layers: Sequence[Stored], config: Mapping[str, Any] | None = None) -> Documents:
    """Config and manifest of an image of `layers`; `config` replaces fields of a small one."""
    fields = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        **(config or {}),
    }
    body = json.dumps(fields).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": sha256(body), "size": len(body)},
        "layers": [layer.descriptor() for layer in layers],
    }
    blobs = {sha256(body): body, **{layer.digest or sha256(layer.blob): layer.blob for layer in layers}}
    return Documents(json.dumps(manifest).encode(), body, blobs)


def write_image(
    layout: Path, layers: Sequence[Stored], config: Mapping[str, Any] | None = None, tag: str = "test"
) -> str:
    """Add an image to an OCI layout; its reference."""
    made = documents(layers, config)
    return write_documents(layout, made.manifest, made.blobs, tag)


def write_documents(
    layout: Path, manifest: bytes, blobs: Mapping[str, bytes], tag: str = "test", **claims: Any
) -> str:
    """Add documents to an OCI layout as they are; `claims` replace fields of the manifest's descriptor."""
    place = layout / "blobs" / "sha256"
    place.mkdir(parents=True, exist_ok=True)
    for digest, body in {**blobs, sha256(manifest): manifest}.items():
        (place / digest.removeprefix("sha256:")).write_bytes(body)
    index = layout / "index.json"
    entries = json.loads(index.read_text())["manifests"] if index.exists() else []
    notes = {"org.opencontainers.image.ref.name": tag}
    entry = {"mediaType": OCI_MANIFEST, "digest": sha256(manifest), "size": len(manifest)}
    entries.append({**entry, "annotations": notes, **claims})
    index.write_text(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{layout}:{tag}"


def serve(
    server: FaultServer,
    repository: str,
    tag: str,
    layers: Sequence[Stored],
    host: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Have a registry serve an image; its reference, seen at `host` if that is another."""
    made = documents(layers, config)
    server.blobs.update(made.blobs)
    server.add_manifest(repository, tag, made.manifest)
    return f"{host or server.host}/{repository}:{tag}"


class Wire:
    """A TCP line to a server, which can be cut or made to stall, and mended, on one port: a context manager.

    Counts the bytes that came back over it, at most `rate` a second on each connection.
    """

    def __init__(self, target: str, rate: float | None = None) -> None:
        self.rate = rate
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._ends: set[socket.socket] = set()
        self._stalled = threading.Event()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.received = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Carry bytes."""
        self._stalled.clear()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self.port = self._listener.getsockname()[1]
            self._run(self._accept, self._listener)

    def stall(self) -> None:
        """Take connections and bytes, and give none back."""
        self._stalled.set()
        self._hang_up()

    def cut(self) -> None:
        """Refuse connections, as if the server had gone."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._hang_up()

    def _hang_up(self) -> None:
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                self._ends.add(near)
                if self._stalled.is_set():
                    continue
                far = socket.create_connection(self._target)
                self._ends.add(far)
                self._run(self._carry, near, far)
                self._run(self._carry, far, near)

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while body := source.recv(1 << 16):
                if sink.getsockname()[1] == self.port:
                    self.received += len(body)
                    if self.rate:
                        time.sleep(len(body) / self.rate)
                sink.sendall(body)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

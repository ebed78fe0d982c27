"""A server for engines at a socket that systemd holds: what asks while it is started anew is not refused."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from imgfs.engines.passing import passing
from imgfs.errors import Unavailable
from imgfs.transport.engine_socket import connect_engine
from imgfs.transport.grpc import GrpcChannel
from tests.support.mounted import NO_LIMIT, Imgfs, Ran, until
from tests.support.patience import allowed
from tests.support.snapshots import Info, Snapshots

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the snapshotter is root's")

GIVING = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'


class Systemd:
    """Holds a listening socket, as by a socket unit, and starts a server with it."""

    def __init__(self, imgfs: Imgfs, place: Path) -> None:
        self.imgfs, self.root = imgfs, place / "root"
        self.path, self._told = place / "s", place / "notify"
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(self.path))
        self.listening.listen()

    def snapshotter(self, *words: str | Path) -> list[str | Path]:
        """Return the words that start the snapshotter."""
        return ["snapshotter", "--root", self.root, *words, *NO_LIMIT]

    def start(self, *words: str | Path, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start `imgfs WORDS…` with the socket as its descriptor 3."""
        command = self.imgfs.command(*words)
        return subprocess.Popen(
            ["bash", "-c", GIVING, "bash", str(self.listening.fileno()), *command],
            env={**self.imgfs.environment, "NOTIFY_SOCKET": str(self._told)},
            pass_fds=[self.listening.fileno()],
            stderr=stderr,
        )

    def serve(self, stack: ExitStack, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start the snapshotter, or what `words` say, and wait until it is ready; it ends with `stack`."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hearing:
            hearing.bind(str(self._told))
            hearing.settimeout(allowed(20))
            process = self.start(*(words or self.snapshotter("--address", self.path)))
            stack.callback(end, process)
            assert hearing.recv(100) == b"READY=1"
        self._told.unlink()
        return process


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    process.send_signal(number)
    process.wait(allowed(60))


@pytest.fixture
def systemd(imgfs: Imgfs) -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        made = Systemd(imgfs, Path(short))
        with made.listening:
            yield made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_while_the_snapshotter_is_away_waits_for_the_next(systemd: Systemd, number: int) -> None:
    with ExitStack() as stack:
        first = systemd.serve(stack)
        asked, other = (stack.enter_context(closing(Snapshots(systemd.path))) for _ in range(2))
        for key in range(40):  # an answer of more bytes than are passed on at once
            asked.prepare(f"key {key:02}", "", {"padding": "x" * 4000})
        before = asked.all()
        end(first, number)
        assert systemd.path.is_socket()
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(other.all)
            until(lambda: is_connected(systemd.path), "a client waits")
            assert not waiting.done()
            systemd.serve(stack)
            assert waiting.result(60) == before
        assert (asked.all(), len(before)) == (before, 40)


@pytest.mark.parametrize("server", ["csi", "cri"])
def test_what_kubelet_asks_while_a_server_is_away_waits_for_the_next(systemd: Systemd, server: str) -> None:
    """As by the units that `imgfs csi install` and `imgfs cri install` write."""
    address = f"unix://{systemd.path}"
    words: dict[str, list[str | Path]] = {
        "csi": [
            "csi",
            "--endpoint",
            address,
            "--root",
            systemd.root,
            "--register",
            systemd.path.parent / "r",
            *NO_LIMIT,
        ],
        "cri": [
            "cri",
            "--address",
            address,
            "--containerd",
            systemd.root,
            "--auth-file",
            systemd.path.parent / "auth",
        ],
    }
    with ExitStack() as stack:
        first = systemd.serve(stack, *words[server])
        channels = (
            GrpcChannel(lambda: connect_engine(systemd.path, "it", "X"), "it", allowed(60)) for _ in range(2)
        )
        asked, other = (stack.enter_context(closing(channel)) for channel in channels)

        def answer(channel: GrpcChannel) -> object:
            if server == "csi":
                return channel.call("csi.v1.Identity/Probe", b"", {}, 99)
            with pytest.raises(Unavailable) as refused:  # there is no containerd behind it
                channel.call("runtime.v1.ImageService/ListImages", b"", {}, 99)
            return refused.value.code

        before = answer(asked)
        end(first, signal.SIGKILL)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(answer, other)
            until(lambda: is_connected(systemd.path), "a client waits")
            assert not waiting.done()
            systemd.serve(stack, *words[server])
            assert waiting.result(60) == before
        assert answer(asked) == before


def test_many_clients_at_once_are_all_answered(systemd: Systemd) -> None:
    with ExitStack() as stack:
        systemd.serve(stack)
        askers = [stack.enter_context(closing(Snapshots(systemd.path))) for _ in range(20)]

        def ask(number: int) -> list[Info]:
            askers[number].prepare(f"key {number}", "")
            return askers[number].all()

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(ask, range(20)))
        assert len(askers[0].all()) == 20


class Full(socket.socket):
    """A socket at which the first client cannot be taken."""

    is_full = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.is_full:
            self.is_full = False
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


def test_a_client_that_cannot_be_taken_ends_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where no more files may be open: those that come later are answered."""
    monkeypatch.setattr("imgfs.engines.passing._PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)  # the path of a socket has 107 bytes at most
    with ExitStack() as stack:
        given, own = (stack.enter_context(kind(socket.AF_UNIX)) for kind in (Full, socket.socket))
        for listening, name in ((given, "given"), (own, "own")):
            listening.bind(name)
            listening.listen()
        stack.enter_context(passing(given, Path("own")))
        Path("own").rename("away")
        with socket.socket(socket.AF_UNIX) as refused:
            refused.connect("given")
            assert refused.recv(1) == b""
        Path("away").rename("own")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("given")
            client.sendall(b"asked")
            server = stack.enter_context(own.accept()[0])
            assert server.recv(9) == b"asked"
    said = [record.message.rpartition(": ")[2] for record in caplog.records]
    assert said == ["Too many open files", "No such file or directory"]


def test_a_socket_elsewhere_is_an_error(systemd: Systemd) -> None:
    words = systemd.snapshotter("--address", "/run/imgfs-elsewhere/s")
    process = systemd.start(*words, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=allowed(60))
    complaint = Ran(process.returncode, b"", said.decode()).complaint(2)
    assert complaint == f"systemd's socket unit listens at {systemd.path}, not at /run/imgfs-elsewhere/s"


def is_connected(path: Path) -> bool:
    """Whether a client of a listening socket is in its queue (unix(7); /proc/net/unix, state 2)."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(str(path)) and line.split()[5] == "02" for line in lines)

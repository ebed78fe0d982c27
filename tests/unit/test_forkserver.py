"""The fork server's protocol, and who it does not stand for."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs.forkserver import caller
from imgfs.forkserver.caller import Differs, check_likeness
from imgfs.forkserver.command import Commands, carry_out
from imgfs.forkserver.request import REFUSED, WORD, CommandRequest
from imgfs.variables import server_socket

STREAMS = ["utf-8", "strict"] * 3
NOTHING = Commands(lambda _: pytest.fail("it was run"), lambda _: False)


def test_a_request_is_read_as_it_was_written() -> None:
    words = ["mount", "", "an image", "/m\udcffnt"]
    body = CommandRequest("imgfs", words, {"A": "1=2", "B": ""}, STREAMS).encode()
    assert int.from_bytes(body[:WORD], "little") == len(body) - WORD
    found = CommandRequest.decode(body[WORD:])
    assert (found.name, found.words, found.variables) == ("imgfs", words, {"A": "1=2", "B": ""})
    assert found.streams == STREAMS


@pytest.mark.parametrize("body", [b"", b"\0", b"9.9\0x\0y\0z\0", b"\xff" * 100])
def test_what_no_client_of_this_version_sends_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever is wrong)
        CommandRequest.decode(body)


def test_what_a_process_inherits_is_taken_over() -> None:
    """umask, limits, priority, processors' turns, what is ignored; nothing that the server ignores."""
    begun = "trap '' HUP USR1; umask 027; ulimit -n 99; exec chrt -b 0 nice -n 3 sh -c 'echo; read x'"
    taking = (
        "import os, resource, signal, sys; from imgfs.forkserver.caller import take_over;"
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN); take_over(int(sys.argv[1]), whole_cgroup=True);"
        "ignored = [n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN];"
        "print(oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.getpriority(0, 0),"
        " os.sched_getscheduler(0) == os.SCHED_BATCH, *ignored)"
    )
    with subprocess.Popen(["sh", "-c", begun], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        words = [sys.executable, "-c", taking, str(other.pid)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        other.communicate(b"\n")
    usual = {str(int(number)) for number in (signal.SIGPIPE, signal.SIGXFSZ)}  # Python's own, or this test's
    assert said[:4] == ["0o27", "99", str(min(os.nice(0) + 3, 19)), "True"]
    assert set(said[4:]) - usual == {"1", "10"}


@pytest.mark.parametrize("whole", [False, True])
def test_a_cgroup_that_cannot_be_entered_is_in_the_way_of_a_container_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bool
) -> None:
    monkeypatch.setattr(caller, "_CGROUPS", tmp_path)
    monkeypatch.setattr(caller, "_cgroups", lambda pid: {"": "/there" if pid else "/here"})
    expected = pytest.raises(Differs, match="cgroup") if whole else contextlib.nullcontext()
    with expected:
        caller.take_over(os.getpid(), whole_cgroup=whole)


def test_a_process_with_fewer_rights_is_not_like_this_one() -> None:
    check_likeness(os.getpid())
    words = ["setpriv", "--no-new-privs", "sh", "-c", "echo; read x"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(Differs, match="NoNewPrivs: 1, not 0"):
            check_likeness(other.pid)
        other.communicate(b"\n")


def test_a_process_that_may_be_confined_by_what_cannot_be_seen_is_like_no_other() -> None:
    code = "import os; from imgfs.forkserver.caller import check_likeness as c; c(os.getppid())"
    words = ["setpriv", "--no-new-privs", "sh", "-c", f"{sys.executable} -c '{code}'; exit"]
    said = subprocess.run(words, capture_output=True, text=True, check=False).stderr
    assert "Differs: NoNewPrivs: by what such processes are confined" in said


NAMELESS = CommandRequest("imgfs", ["mount"], {"": "x"}, STREAMS).encode()


@pytest.mark.parametrize("sent", [b"", b"\x01\0\0\0", b"\xff\xff\xff\xff", b"\x04\0\0\0\0\0\0\0", NAMELESS])
def test_what_is_no_request_is_refused_and_nothing_is_run(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        socket.send_fds(ours, [sent or b"\0"], [0, 1, 2, 0])
        ours.shutdown(socket.SHUT_WR)
        assert carry_out(theirs, NOTHING, lambda: True)
        assert ours.recv(9) == REFUSED


def test_a_client_that_has_gone_is_refused_in_silence() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    assert carry_out(theirs, NOTHING, lambda: True)
    assert theirs.fileno() < 0


def test_another_imgfs_is_refused_and_told(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    body = CommandRequest("imgfs", ["mount"], {}, STREAMS).encode()
    with ours, theirs:
        socket.send_fds(ours, [body[:WORD]], [0, 1, 2, os.open(tmp_path, os.O_PATH)])
        ours.sendall(body[WORD:])
        assert not carry_out(theirs, NOTHING, lambda: False)
        assert ours.recv(9) == REFUSED


def test_a_client_without_a_server_carries_on_and_loads_next_to_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from imgfs.forkserver.client import run_in_server as r;"
        "before = set(sys.modules); assert r(['mount']) is None; print(*set(sys.modules) - before)"
    )
    for place, most in ((tmp_path / "nowhere", 0), (tmp_path, 1)):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "IMGFS_SERVE": str(place)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(ran.stdout.split()) <= most, ran.stdout


def test_what_hands_a_command_over_loads_no_more_than_it_takes() -> None:
    """It is in the way of each served command: `re` and `collections` would take longer than all it does."""
    code = (
        "import sys; before = set(sys.modules); import imgfs.cli, imgfs.forkserver.client, _socket;"
        "import imgfs.forkserver.request; print(*set(sys.modules) - before)"
    )
    loaded = subprocess.check_output([sys.executable, "-I", "-c", code], text=True).split()
    assert len(loaded) <= 14, loaded  # 11
    assert not {"re", "enum", "typing", "collections", "contextlib", "signal"} & set(loaded)


def test_where_the_socket_is() -> None:
    assert server_socket({}, 0) == server_socket({"XDG_RUNTIME_DIR": "/run/user/7"}, 0)
    assert server_socket({"XDG_RUNTIME_DIR": "/x"}, 7) == "/x/imgfs/serve.sock"
    assert server_socket({}, 7) == "/run/user/7/imgfs/serve.sock"
    assert server_socket({"IMGFS_SERVE": "none"}, 7) is None

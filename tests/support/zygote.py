"""`imgfs ARGUMENTS…` in processes that a warm one forks: the suite starts some thousand.

An interpreter that starts and imports is more than half of what a short command costs, and trio most of what
a daemon does. So each process of pytest has a zygote, which has imported what commands import and only forks.
A command's process begins in `runpy.run_module("imgfs")`, as with `python -m imgfs`, has the same
descriptors, variables (/proc/PID/environ too), directory and session, and ends as any interpreter does, but
for freeing its objects: that is two thirds of the processor time of a short command.

A command's first process in each process of pytest is a real one, as are those of ordinary users, those with
unusual arguments for Popen, and `imgfs serve`: what only a fresh interpreter shows is seen there.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

CHECKOUT = Path(__file__).resolve().parent.parent.parent

_ROOM = "IMGFS_TEST_ROOM"  # a variable that is overwritten with those of a command
_ROOM_SIZE = 32_768  # bytes
_WORD = 4  # bytes of a message's length, of a pid, of a wait status
_HIGH = 512  # a descriptor above all that the zygote has
_SIMPLE = {"stdin", "stdout", "stderr", "start_new_session", "cwd"}  # of Popen's arguments
_IMPORTED = (
    "imgfs.cli.mount",
    "imgfs.cli.run",
    "imgfs.cli.container",
    "imgfs.cli.container_run",
    "imgfs.cli.umount",
    "imgfs.cli.status",
    "imgfs.cli.look",
    "imgfs.mount.fuse",
    "imgfs.fuse.tasks",
    "imgfs.mount.kernel",
    "imgfs.mount.serving",
    "imgfs.registry.adapter",
    "imgfs.transport.registry",
    "imgfs.transport.layout",
)
_ANEW = {"serve"}  # commands that start themselves anew, by the words that their process began with

_seen: set[str] = set()  # commands that have had a real process


def is_forked(words: Sequence[str], environment: Mapping[str, str], more: Mapping[str, Any]) -> bool:
    """Return True if `python -m imgfs COMMAND…` is to be forked, with these variables, by these arguments."""
    command = words[3] if len(words) > 3 else ""
    is_first = command not in _seen
    _seen.add(command)
    python = {name for name in environment if name.startswith(("PYTHON", "LC_", "LANG"))}
    usual = python <= {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_ALL"} and set(more) <= _SIMPLE
    is_fit = not is_first and command not in _ANEW
    return usual and is_fit and environment.get("LC_ALL") == "C.UTF-8"


class ForkedCommand(subprocess.Popen[bytes]):
    """A process that the zygote has forked; `args` are as for `python -m imgfs`."""

    _status: int  # a pipe from which its wait status can be read, in the end

    def _execute_child(self, args: Sequence[str], *more: Any) -> None:
        """Have the zygote fork; `more` is what Popen of all supported versions gives by position."""
        (cwd, env), pipes, new_session = more[4:6], more[9:15], more[20]
        given = [fd if fd >= 0 else number for number, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        self._status, told = os.pipe()
        try:
            self.pid = zygote().fork(_Request(list(args), dict(env), cwd, new_session), [*given, told])
        finally:
            os.close(told)
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]  # Popen's own
        self._child_created = True

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]  # Popen's own
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Return the pid and the wait status, or 0 and 0 if it runs on (waitpid(2))."""
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        said = os.read(self._status, 4)
        os.close(self._status)
        return self.pid, int.from_bytes(said, "little")


class _Request(NamedTuple):
    args: list[str]
    env: dict[str, str]
    cwd: str | os.PathLike[str] | None
    new_session: bool


class Zygote:
    """The process that forks, seen from that of pytest."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                env={**os.environ, "LC_ALL": "C.UTF-8", _ROOM: "x" * _ROOM_SIZE},
                cwd=CHECKOUT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def fork(self, request: _Request, fds: Sequence[int]) -> int:
        """Fork a process with these as its standard files; it writes its wait status to the fourth."""
        body = pickle.dumps(request)
        socket.send_fds(self._socket, [len(body).to_bytes(_WORD, "little")], fds)
        self._socket.sendall(body)
        return int.from_bytes(self._socket.recv(_WORD, socket.MSG_WAITALL), "little")


@cache
def zygote() -> Zygote:
    """Return the zygote of this process."""
    return Zygote()


# -- in the zygote -------------------------------------------------------------------------------------------


def _serve(requests: socket.socket) -> _Request:
    """Fork for each request; return the request in the process that was forked for it, never otherwise."""
    waiting: dict[int, int] = {}  # what a child's wait status is written to
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _reap(waiting)
        if requests in ready:
            head, fds, _, _ = socket.recv_fds(requests, _WORD, 4)
            if not head:
                os._exit(0)
            size = int.from_bytes(head, "little")
            request: _Request = pickle.loads(requests.recv(size, socket.MSG_WAITALL))
            pid = os.fork()
            if pid == 0:
                for end in (requests, woken, wakes):
                    end.detach()  # their numbers are other files' soon, which none of these must close
                _become(request, fds)
                return request
            waiting[pid] = fds.pop()
            for fd in fds:
                os.close(fd)
            requests.sendall(pid.to_bytes(_WORD, "little"))


def _reap(waiting: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            fd = waiting.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # it is not waited for
                os.write(fd, status.to_bytes(_WORD, "little"))
            os.close(fd)


def _become(request: _Request, fds: Sequence[int]) -> None:
    """Make this process what it would be had it been started with `python -m imgfs`."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number + _HIGH, inheritable=True)
    for number in range(3):
        os.dup2(number + _HIGH, number, inheritable=True)
    os.closerange(3, _HIGH + 16)
    if request.new_session:
        os.setsid()
    if request.cwd:
        os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    _show_environment(request.env)
    sys.stdin = _text(io.BufferedReader(io.FileIO(0, closefd=False)), "surrogateescape")
    sys.stdout = _text(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "surrogateescape")
    sys.stderr = _text(io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "backslashreplace", is_line=True)


def _text(
    file: io.BufferedReader | io.BufferedWriter, errors: str, *, is_line: bool = False
) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-8", errors, line_buffering=is_line or file.isatty())


def _show_environment(environment: Mapping[str, str]) -> None:
    """Have /proc/PID/environ show the variables, in the room that the zygote's own have (proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])  # env_start, env_end
    body = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    assert len(body) <= end - start, "too many variables"
    ctypes.memmove(start, body.ljust(end - start, b"\0"), end - start)


def main() -> None:
    """Import what commands import, then fork for those that ask."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    request = _serve(requests)
    sys.argv = request.args[2:]
    try:
        runpy.run_module("imgfs", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        with contextlib.suppress(OSError):  # the interpreter says so as it ends
            sys.stdout.flush()
            sys.stderr.flush()
            if isinstance(error.code, int | None):
                _end(error.code or 0)
        raise


def _end(code: int) -> NoReturn:
    """End as an interpreter does, but for taking its objects apart: pages that have some would be copied."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    main()

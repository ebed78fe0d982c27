"""The fork server: it listens, and forks a process for each client before a byte of the request is read.

A client with other rights is refused without one. The server has one thread and no locks, and stays as it was
when everything was loaded.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from imgfs.errors import StoreError, describe
from imgfs.forkserver.command import Commands, carry_out, is_worth_a_fork
from imgfs.forkserver.companions import Companion
from imgfs.listening import remove_stale
from imgfs.starting import close_all_but

log = logging.getLogger(__name__)

_BACKLOG = 64
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PAUSE = 0.5  # seconds before a client is accepted that could not be
_OUTDATED = 75  # the exit code of a forked process that has found another imgfs installed


class ForkServer:
    """Carries out the words of each client that connects to `listening`, in a process of its own.

    `kept` are descriptors that such a process has, too.
    """

    def __init__(
        self,
        listening: socket.socket,
        commands: Commands,
        companions: Sequence[Companion] = (),
        kept: Sequence[int] = (),
    ) -> None:
        self._listening = listening
        self._commands = commands
        self._companions = companions
        self._kept = kept
        self._files = _files_of_imgfs()
        self._identity = _identity_of(self._files)
        self._ends = self._is_outdated = False

    def serve(self, on_ready: Callable[[], None]) -> bool:
        """Serve until a signal comes, or another imgfs was installed: then return False. Mounts go on."""
        gc.collect()
        gc.freeze()  # no collection touches, and so copies, what all processes share
        self._listening.setblocking(False)
        with self._woken_by_signals() as woken:
            on_ready()
            while not self._ends:
                waits = [companion.start(self._fork) for companion in self._companions]
                soonest = min((wait for wait in waits if wait is not None), default=None)
                ready = select.select([self._listening.fileno(), woken], [], [], soonest)[0]
                if woken in ready:
                    with suppress(BlockingIOError):
                        os.read(woken, 512)
                    self._reap()
                if self._listening.fileno() in ready and not self._ends:
                    self._accept()
        for companion in self._companions:
            companion.stop()
        return not self._is_outdated

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no more files or memory: it waits in line
            log.warning("no client can be answered: %s", describe(error))
            time.sleep(_PAUSE)
            return
        with connection:
            if not is_worth_a_fork(connection):
                return
            try:
                self._fork(partial(self._carry_out, connection))
            except OSError as error:  # no more processes: the client does without
                log.warning("no process can be forked: %s", describe(error))

    def _carry_out(self, connection: socket.socket) -> None:
        """In the forked process: serve a client. What is the server's, or a companion's, is closed."""
        close_all_but([*self._kept, connection.fileno()])
        if not carry_out(connection, self._commands, lambda: _identity_of(self._files) == self._identity):
            os._exit(_OUTDATED)

    def _fork(self, work: Callable[[], object]) -> int:
        """Fork a process that does `work`, as a process that was started, and ends; return its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            self._be_forked()
            work()
            code = 0
        except BaseException:  # noqa: BLE001  (the fork must not go on as its parent)
            traceback.print_exc()
        finally:
            os._exit(code)

    def _be_forked(self) -> None:
        """Let go, in a forked process, of what is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (*_ENDING, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        for fd in (self._listening.fileno(), *self._pipe):
            os.close(fd)
        self._listening.detach()

    def _reap(self) -> None:
        """Note the ends of processes."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if any(companion.has_ended(pid, status) for companion in self._companions):
                    continue
                if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _OUTDATED:
                    log.warning("another imgfs has been installed: this one ends")
                    self._ends = self._is_outdated = True

    @contextmanager
    def _woken_by_signals(self) -> Iterator[int]:
        """A descriptor that can be read once a signal has come: to end, or of the end of a process."""

        def end(*_: object) -> None:
            self._ends = True

        self._pipe = woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        yield woken


@contextmanager
def listening_at(path: Path) -> Iterator[socket.socket]:
    """Listen at a socket for this user alone. Raises StoreError; also if a server answers there already."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: {describe(error)}") from error
    before = os.umask(0o177)
    try:
        remove_stale(path)
        listening.bind(str(path))
        made = path.stat()
        listening.listen(_BACKLOG)
    except OSError as error:
        raise StoreError(f"{path}: {describe(error)}") from error
    finally:
        os.umask(before)
    try:
        yield listening
    finally:
        listening.close()
        with suppress(OSError):
            if os.path.samestat(path.stat(), made):
                path.unlink()


def _files_of_imgfs() -> str:
    """Return the files that imgfs and Python were loaded from, a line each, as one object."""
    ours = [module for name, module in sys.modules.items() if name.startswith("imgfs.")]
    return "\n".join([sys.executable, *(module.__file__ for module in ours if module.__file__)])


def _identity_of(files: str) -> str:
    """Return what tells these files from others of the same names: inode, size, time."""
    found = []
    for name in files.split("\n"):
        try:
            status = os.stat(name)
        except OSError:
            found.append("none")
        else:
            found.append(f"{status.st_ino} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(found)

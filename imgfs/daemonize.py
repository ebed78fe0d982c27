"""Becoming a daemon: a forked process that serves, and tells its caller how it began.

Nothing open may cross the fork but what the caller means to: the daemon opens what it needs itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from imgfs.errors import ImgfsError, MountError, StoreError, describe
from imgfs.garbage import collect_as_usual
from imgfs.loglines import LineFormatter
from imgfs.owned.opening import open_owned_file
from imgfs.starting import fork

log = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None]], None]  # is given what to call when it is ready; returns at its end
GetReady = Callable[[], Iterator[None]]
ServeTask = Callable[[Any, Callable[[], None]], None]  # is given the task that `start` has sent, too
GetMore = Callable[[Any], None]  # is given what `expect_more` has sent
_READY = b"\0"


def run_in_foreground(serve: Serve, log_level: str) -> NoReturn:
    """Serve in this process, logging to standard error, and end it."""
    log_to_stderr(log_level)
    serve(lambda: None)
    logging.shutdown()
    os._exit(0)  # threads that still wait for a dead registry must not hold up the end


class Daemon(AbstractContextManager["Daemon"]):
    """A process of its own, forked at once: it gets ready while its caller finds out what it is to serve.

    `get_ready` goes first in it: step by step, until its caller knows what is to be served; what has to be
    done in any case is its first step. If `expect_more` is called then, `get_more` is next. Then `serve` is
    called with the task that `start` sends, which must be one that can be pickled; it goes through a pipe, as
    what `expect_more` sends. A daemon that has not been started by the end of the `with` block ends.
    """

    def __init__(self, pid: int, task: int, answer: int) -> None:
        self.pid = pid
        self._task = task  # the pipe that the daemon reads its task from
        self._answer = answer  # the pipe that it writes to how it began
        self._lock = threading.Lock()  # guards the first of them

    @classmethod
    def fork(cls, get_ready: GetReady, serve: ServeTask, get_more: GetMore = lambda _: None) -> Daemon:
        """Fork a daemon, which begins to get ready. Raises LimitReached."""
        task, send_task = os.pipe()
        read_answer, answer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = fork()
        if pid == 0:
            os.close(send_task)
            os.close(read_answer)
            _daemon(get_ready, get_more, serve, task, answer)
        os.close(task)
        os.close(answer)
        return cls(pid, send_task, read_answer)

    def expect_more(self, known: object = None) -> None:
        """Have it get ready for more than what is done in any case, by what is `known` of that so far.

        Any thread may call it; once the daemon has its task it does nothing.
        """
        with self._lock, contextlib.suppress(BrokenPipeError):  # it has died: `wait` says why
            if self._task >= 0:
                with open(self._task, "wb", closefd=False) as pipe:
                    pickle.dump((False, known), pipe)

    def start(self, task: object, log_file: Path, log_level: str) -> None:
        """Have it serve `task`, logging to `log_file`; the caller must call `wait` next."""
        self._log_file = log_file
        with self._lock, contextlib.suppress(BrokenPipeError), open(self._task, "wb") as pipe:  # as above
            self._task = -1
            pickle.dump((True, (task, log_file, log_level)), pipe)

    def wait(self) -> None:
        """Return when it is ready; raises MountError with the reason if it ends before that."""
        with open(self._answer, "rb") as pipe:
            self._answer = -1
            answer = pipe.read()
        if answer != _READY:
            os.waitpid(self.pid, 0)  # then it holds nothing any more
            said = answer.decode(errors="replace")
            raise MountError(said or f"the daemon died before it could say why: see {self._log_file}")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            is_idle, task, self._task = self._task >= 0, self._task, -1
        if is_idle:
            os.kill(self.pid, signal.SIGKILL)  # it holds nothing yet
            os.close(task)
            os.close(self._answer)
            os.waitpid(self.pid, 0)


def _daemon(
    get_ready: GetReady,
    get_more: GetMore,
    serve: ServeTask,
    task_pipe: int,
    answer: int,
) -> NoReturn:
    """Serve, in the forked process, and tell `answer` how it began. Exits without the caller's clean-up."""
    status, log_file = 1, Path(os.devnull)

    def tell(message: bytes | str) -> None:
        body = message.encode(errors="backslashreplace") if isinstance(message, str) else message
        with contextlib.suppress(OSError):  # told already
            os.write(answer, body)
            os.close(answer)

    try:
        os.setsid()  # a signal to its caller is not for the daemon: then no task will come
        logging.basicConfig(handlers=[logging.NullHandler()])  # until there is a log the answer says it all
        for _ in get_ready():
            if select.select([task_pipe], [], [], 0)[0]:
                break
        if sent := _read_task(task_pipe, get_more):
            task, log_file, log_level = sent
            os.chdir("/")
            _redirect(_open_log(log_file))
            log_to_stderr(log_level)
            gc.freeze()  # what is loaded stays, and is shared with the caller as long as nothing looks at it
            collect_as_usual()
            serve(task, lambda: tell(_READY))
        status = 0
    except ImgfsError as error:
        log.error("%s", error)  # noqa: TRY400  (a line for a person)
        tell(str(error))
    except BaseException as error:
        log.exception("the daemon ends")
        tell(f"an error that imgfs did not expect: {describe(error)}; see {log_file}")
    finally:
        logging.shutdown()
        os._exit(status)  # as in the foreground


def _read_task(task_pipe: int, get_more: GetMore) -> tuple[Any, Path, str] | None:
    """Wait for the task, and get ready for more if told to; None if the caller has ended without one."""
    with open(task_pipe, "rb") as pipe, contextlib.suppress(EOFError):
        while True:
            is_task, sent = pickle.load(pipe)
            if is_task:
                task: tuple[Any, Path, str] = sent
                return task
            get_more(sent)
    return None


def _open_log(path: Path) -> int:
    """Open the daemon's log, locked while the daemon lives: `store prune --all` leaves it alone then."""
    try:
        fd = open_owned_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return fd


def _redirect(log_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for target, stream in ((null, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(target, stream)
    os.close(null)
    os.close(log_fd)


def log_to_stderr(level: str) -> None:
    """Have this process log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)

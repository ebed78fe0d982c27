"""Becoming a daemon: a forked process that serves, and tells its caller how it began.

Nothing open may cross the fork but what the caller means to: the daemon opens what it needs itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from imgfs.errors import ImgfsError, MountError, StoreError

log = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None]], None]  # is given what to call when it is ready; returns at its end
_READY = b"\0"


def run_in_foreground(serve: Serve, log_level: str) -> NoReturn:
    """Serve in this process, logging to standard error, and end it."""
    _log_to_stderr(log_level)
    serve(lambda: None)
    logging.shutdown()
    os._exit(0)  # threads that still wait for a dead registry must not hold up the end


def run_as_daemon(serve: Serve, log_file: Path, log_level: str) -> None:
    """Serve in a process of its own that logs to `log_file`; returns when it is ready.

    Raises MountError with the reason if it ends before that, StoreError if there can be no log.
    """
    log_fd = _open_log(log_file)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        os.close(reading)
        _daemon(serve, log_file, log_fd, log_level, writing)
    os.close(log_fd)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    if answer != _READY:
        reason = answer.decode(errors="replace") or f"the daemon died before it could say why: see {log_file}"
        raise MountError(reason)


def _daemon(serve: Serve, log_file: Path, log_fd: int, log_level: str, answer: int) -> NoReturn:
    """The forked process: serve, and tell `answer` how it began. Ends without the caller's clean-up."""
    status = 1

    def tell(message: bytes | str) -> None:
        body = message.encode(errors="backslashreplace") if isinstance(message, str) else message
        with contextlib.suppress(OSError):  # told already
            os.write(answer, body)
            os.close(answer)

    try:
        os.setsid()
        os.chdir("/")
        _redirect(log_fd)
        _log_to_stderr(log_level)
        serve(lambda: tell(_READY))
        status = 0
    except ImgfsError as error:
        log.error("%s", error)  # noqa: TRY400  (a line for a person)
        tell(str(error))
    except BaseException as error:
        log.exception("the daemon ends")
        tell(f"{type(error).__name__}: {error}; see {log_file}")
    finally:
        logging.shutdown()
        os._exit(status)  # as in the foreground


def _open_log(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error


def _redirect(log_fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for target, stream in ((null, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(target, stream)
    os.close(null)
    os.close(log_fd)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)

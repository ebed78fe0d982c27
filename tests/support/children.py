"""Child processes for tests: forked, so that a test says in place what one does; none outlives its block.

To fork a worker of pytest, which has hundreds of megabytes, takes some 30 ms. Where that is done hundreds of
times, `code_of` has a small process fork instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self

_SMALL = multiprocessing.get_context("forkserver")
_SMALL.set_forkserver_preload(["tests.unit.test_union_killed"])  # what `code_of` is given functions of


def code_of(work: Callable[..., object], *arguments: object) -> int:
    """Do `work`, a function of a module, in a child of a small process, to its end; its exit code."""
    process = _SMALL.Process(target=work, args=arguments)
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


class Child:
    """Runs `work` in a process of its own. As a context manager: killed at the end, if it still lives."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:  # noqa: BLE001  (the traceback is for the test's output)
                traceback.print_exc()
            finally:
                os._exit(status)

    def join(self) -> int:
        """Wait for its end; its exit code, negative for the signal that ended it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status is None

    def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

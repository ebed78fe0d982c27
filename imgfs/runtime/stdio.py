"""The standard files of a container without a terminal: pipes between its runtime and imgfs.

The rule: a container never holds a file of its caller's, as with podman. From a terminal, open for reading
and writing whichever of the three it is, it could read what is typed and type itself; of a file it could
read and change more than was meant, and a directory leads out of it. Runtimes differ: crun hands on what it
is given, runc copies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import termios
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from imgfs.errors import MountError
from imgfs.runtime.output_log import STREAMS, LogWriter
from imgfs.runtime.process_id import first_process
from imgfs.starting import start_thread, try_thread

_SIZE = (24, 80)  # lines and columns of a terminal that is seen by no caller
_PIECE = 1 << 16  # bytes, as many as a pipe holds
_EOF_GRACE = (
    5.0  # seconds that the end of what an ended container says may take: another process holds its pipe
)
_OUTPUT_GRACE = 10.0  # seconds in which the rest of it can be written once imgfs was told to end
_NAMES = {1: "standard output", 2: "standard error"}


class StdioPipes(contextlib.AbstractContextManager["StdioPipes"]):
    """The pipes of one container: `stdin`, `stdout` and `stderr` are the ends for its runtime.

    They belong to `owner`, a uid and a gid, so that /dev/stdout can be opened. Without `has_input`, there is
    nothing to read. With a `log` its caller is not there: what it says goes there, and its input never comes,
    and never ends.
    """

    def __init__(self, owner: tuple[int, int], *, has_input: bool, log: LogWriter | None = None) -> None:
        self._log = log
        self._copies: list[_PipeCopy] = []
        self._input: _PipeCopy | None = None
        self._runtime_ends: list[int] = []
        self._owner = owner
        self.stdin = self._input_end() if has_input else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.stdout, self.stderr = self._output_end(1), self._output_end(2)
        self._runtime_ends += [self.stdin, self.stdout, self.stderr]

    @classmethod
    def of_terminal(cls, owner: tuple[int, int], log: LogWriter) -> StdioPipes:
        """Return a terminal instead, which no caller sees: its runtime copies the container's own there."""
        made = cls(owner, has_input=False)
        made._close_runtime_ends()
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", *_SIZE, 0, 0))
        made.stdin = made.stdout = made.stderr = theirs
        made._copies = [_PipeCopy(ours, 1, log=log)]
        made._runtime_ends = [theirs]
        return made

    def begin(self) -> None:
        """Start to copy. Raises LimitReached."""
        for copy in (*self._copies, *([self._input] if self._input else [])):
            copy.start()

    def handed_on(self) -> None:
        """Close the ends for the runtime, which has them: so what it says has an end."""
        self._close_runtime_ends()

    def abandon(self) -> None:
        """Close the pipes of the output: what the container's caller has not read by now is lost.

        A runtime that copies the output itself (runc) then gets EPIPE, and ends. A thread may be blocked
        while it copies, so its descriptor is not closed, which would free the number for another file, but
        becomes one of /dev/null: the end of the output, should the thread ever go on.
        """
        for copy in self._copies:
            copy.abandon()

    def abandon_after(self, pid_file: Path) -> None:
        """Abandon the output some seconds after the process whose pid is in a file has ended, in a thread.

        For a container that is told to end: its runtime may be one that ends only when the output is read.
        """
        try_thread(partial(self._abandon_after, pid_file), "imgfs-abandon")

    def _abandon_after(self, pid_file: Path) -> None:
        _wait_for_end(pid_file)
        time.sleep(_OUTPUT_GRACE)
        self.abandon()

    def finish(self, is_ending: Callable[[], bool]) -> None:
        """Wait until what an ended container has said is written; raises MountError if it cannot be."""
        for copy in self._copies:
            copy.wait(is_ending)
        failed = next((copy for copy in self._copies if copy.error), None)
        if failed and failed.error:
            raise MountError(f"{_NAMES[failed.sink]}: {failed.error.strerror}") from failed.error

    def __exit__(self, *_: object) -> None:
        self._close_runtime_ends()

    def _close_runtime_ends(self) -> None:
        while self._runtime_ends:
            os.close(self._runtime_ends.pop())

    def _input_end(self) -> int:
        theirs, ours = os.pipe()
        os.fchown(theirs, *self._owner)
        if self._log:
            return theirs  # and the other end stays open
        self._input = _PipeCopy(0, ours, closes_sink=True)
        return theirs

    def _output_end(self, sink: int) -> int:
        ours, theirs = os.pipe()
        os.fchown(theirs, *self._owner)
        self._copies.append(_PipeCopy(ours, sink, log=self._log))
        return theirs


class _PipeCopy:
    """Copies from one descriptor to another until the one ends or the other takes no more.

    Then it closes the one that is a pipe's: its writer gets SIGPIPE, or its reader the end of the file.
    """

    def __init__(
        self, source: int, sink: int, *, closes_sink: bool = False, log: LogWriter | None = None
    ) -> None:
        self._thread: threading.Thread | None = None
        self.sink = sink
        self.error: OSError | None = None
        self._source = source
        self._closes_sink = closes_sink
        self._log = log
        self._is_writing = False
        self._is_abandoned = False
        self._ending = threading.Lock()  # held while the descriptor is closed, or replaced

    def start(self) -> None:
        """Begin, in a thread. Raises LimitReached."""
        self._thread = start_thread(self._run, "imgfs-copy")

    def _run(self) -> None:
        try:
            while piece := _read(self._source):
                self._is_writing = True
                if self._log:
                    self._log.write(STREAMS[self.sink], piece)
                else:
                    _write(self.sink, piece)
                self._is_writing = False
        except OSError as error:
            # EIO: a terminal that has gone; EPIPE: its reader has had enough
            self.error = None if error.errno in (errno.EPIPE, errno.EIO) else error
        finally:
            with self._ending:
                os.close(self.sink if self._closes_sink else self._source)
                self._source = -1

    def abandon(self) -> None:
        """Have the source's writer get EPIPE, and `wait` return."""
        self._is_abandoned = True
        with self._ending:
            if self._source >= 0:
                null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
                os.dup2(null, self._source, inheritable=False)
                os.close(null)

    def wait(self, is_ending: Callable[[], bool]) -> None:
        """Wait until all is copied, or the grace period has passed."""
        began = last = time.monotonic()
        while self._thread and self._thread.is_alive() and not self._is_abandoned:
            self._thread.join(0.05)
            now = time.monotonic()
            last = now if self._is_writing else last
            if now - last > _EOF_GRACE or (now - began > _OUTPUT_GRACE and is_ending()):
                break


def _wait_for_end(pid_file: Path) -> None:
    """Wait until the process whose pid is in a file, once it is written there, has ended."""
    while True:
        try:
            with first_process(pid_file) as process:
                process.wait()
        except FileNotFoundError:
            time.sleep(0.1)
            continue
        except ProcessLookupError:
            pass
        return


def _read(fd: int) -> bytes:
    while True:
        try:
            return os.read(fd, _PIECE)
        except BlockingIOError:  # the caller has made it so
            select.select([fd], [], [])


def _write(fd: int, piece: bytes) -> None:
    left = memoryview(piece)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            select.select([], [fd], [])

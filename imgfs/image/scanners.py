"""Processes that scan layers, one for each core: under one interpreter's lock, threads keep one core busy.

What of a scan needs no such lock (hashing, writing) is in threads of its process where cores would be idle
otherwise: an image often has one layer that is larger than all the others together, and in the end there are
fewer layers left than cores.

The processes are forked while this process has one thread, as the kernel counts them: then no lock can be
held by another, and the fork is safe. Where that is not so, or processes would bring nothing (one core, an
interpreter without the lock, little to scan), layers are scanned in this process, in threads. The parent
keeps what has to do with the registry, the store's locks and the temporary files.
"""

from __future__ import annotations

import os
import pickle
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.image.scan_process import (
    ANSWER_LIMIT,
    Broken,
    Channel,
    Job,
    Message,
    pack_range,
    parse_error,
    parse_number,
    serve,
)
from imgfs.layer.codec.blob import fastest_engine
from imgfs.layer.indexwriter import IndexWriter
from imgfs.layer.scan import scan
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.store.partial import StoredPiece
from imgfs.store.staging import FlatWriter

_WORTHWHILE = 4 << 20  # bytes of blobs: less is scanned before processes are under way
_MOST = 8  # processes: one connection to a registry seldom feeds more
_GRACE = 1.0  # seconds that a process may take to end after its end of the socket was closed
_LINGER = 0.05  # seconds that threads may take to end whose work is done


class Scanners:
    """Scans layers in its `processes`, or, if there are none, in the caller's threads. Safe in threads.

    `expected` is how many bytes of blobs there are to scan, as far as that is known: `cores` share them.
    """

    def __init__(self, processes: Iterable[ScanProcess] = (), expected: int = 0, cores: int = 1) -> None:
        self.processes = tuple(processes)
        self._left = expected  # bytes of blobs whose scan has not begun
        self._cores = cores
        self._counting = threading.Lock()
        self._idle: queue.SimpleQueue[ScanProcess] = queue.SimpleQueue()
        for process in self.processes:
            self._idle.put(process)

    @property
    def count(self) -> int:
        """Return the number of processes."""
        return len(self.processes)

    def scan(
        self,
        chunks: Iterator[bytes | StoredPiece],
        layer: Descriptor,
        diff_id: Digest,
        flat: FlatWriter,
        index: Path,
    ) -> int:
        """Write a layer's flat layer and index, and return the former's size in bytes; see `layer.scan.scan`.

        Raises ImgfsError as that does, or if the process is killed.
        """
        if not self.processes:
            return _scan_here(chunks, layer, diff_id, flat, index)
        process = self._idle.get()
        try:
            return process.scan(chunks, Job(layer, diff_id, index, self._takes_threads(layer.size)), flat)
        finally:
            self._idle.put(process)

    def _takes_threads(self, size: int) -> bool:
        """Return True if the scan that begins, of a blob of `size` bytes, had better use threads.

        That is, if by itself it would go on when the other cores have done all else: in the threads of one
        core's process its bytes only go from one to the next.
        """
        with self._counting:
            self._left -= size
            return size >= _WORTHWHILE and size * (self._cores - 1) >= self._left

    def close(self) -> None:
        """End the processes: they own nothing."""
        for process in self.processes:
            process.end()


@contextmanager
def open_scanners(layers: Iterable[Descriptor]) -> Iterator[Scanners]:
    """Scanners for these layers, for the length of the block."""
    sizes = [layer.size for layer in layers]
    cores = len(os.sched_getaffinity(0))
    count = min(len(sizes), _MOST, cores)
    processes = _forked(count) if count > 1 and sum(sizes) >= _WORTHWHILE else ()
    scanners = Scanners(processes, sum(sizes), cores)
    try:
        yield scanners
    finally:
        scanners.close()


def _scan_here(
    chunks: Iterator[bytes | StoredPiece], layer: Descriptor, diff_id: Digest, flat: FlatWriter, path: Path
) -> int:
    index = IndexWriter(path, shared=True)
    try:
        bodies = (chunk if isinstance(chunk, bytes) else chunk.read() for chunk in chunks)
        return scan(bodies, layer, diff_id, flat, index)
    finally:
        index.close()


def _forked(count: int) -> list[ScanProcess]:
    """Fork so many processes; none where that is not safe, or needless."""
    is_locking: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)
    if not is_locking() or not _is_alone():
        return []
    fastest_engine()  # tries itself out once, here: not in each
    processes: list[ScanProcess] = []
    with suppress(OSError):  # as many as there may be
        while len(processes) < count:
            processes.append(ScanProcess.fork())
    return processes


def _is_alone() -> bool:
    """Return True if this is the process's only thread; one whose work is done may take a moment to end."""
    until = time.monotonic() + _LINGER
    while (count := _thread_count()) > 1 and time.monotonic() < until:
        time.sleep(_LINGER / 10)
    return count == 1


def _thread_count() -> int:
    """Return how many threads the kernel counts in this process (proc(5)); 0 if that cannot be seen."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


class ScanProcess:
    """A forked process that scans one layer at a time, seen from its parent."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)  # the pid may be another's once it has been waited for
        self._end = end
        self._using = threading.RLock()  # its socket
        self._reaping = threading.Lock()
        self._part = -1  # the file that it has been given to read from
        self._status: int | None = None  # its wait status, once it has ended
        self._channel = Channel(end, ANSWER_LIMIT)

    @classmethod
    def fork(cls) -> ScanProcess:
        """Fork one; the caller is this process's only thread."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    serve(theirs)
                return cls(pid, ours)
            except OSError:
                ours.close()  # at which one that has been forked ends
                raise

    def scan(self, chunks: Iterator[bytes | StoredPiece], job: Job, flat: FlatWriter) -> int:
        """Have it scan a layer; returns the flat layer's size. Raises ImgfsError."""
        with self._using:
            try:
                self._channel.send(Message.JOB, pickle.dumps(job), flat.fileno())
                return self._feed(chunks, job, flat)
            except Broken as error:
                name = f"layer {job.layer.digest.short}"
                raise ImgfsError(f"{name}: the process that scanned it {self._fate(error)}") from error

    def _feed(self, chunks: Iterator[bytes | StoredPiece], job: Job, flat: FlatWriter) -> int:
        """Hand the blob over, up to its end or to an answer that comes before."""
        outcome: int | ImgfsError | None = None
        self._part = -1
        try:
            for chunk in chunks:
                self._send(chunk)
                outcome = self._heard(job, flat)
                if outcome is not None:
                    break
        except Broken:
            raise
        except BaseException:
            self._channel.send(Message.ABORT)
            self._outcome(job, flat)
            raise
        self._channel.send(Message.END)
        if outcome is None:
            outcome = self._outcome(job, flat)
        if isinstance(outcome, ImgfsError):
            raise outcome
        return outcome

    def _send(self, chunk: bytes | StoredPiece) -> None:
        """Hand over a part of the blob; of a file, where it is."""
        if isinstance(chunk, bytes):
            self._channel.send(Message.CHUNK, chunk)
            return
        if chunk.fd != self._part:
            self._channel.send(Message.FILE, os.fsencode(chunk.path), chunk.fd)
            self._part = chunk.fd
        self._channel.send(Message.STORED, pack_range(chunk.start, chunk.end))

    def _heard(self, job: Job, flat: FlatWriter) -> int | ImgfsError | None:
        """Take what has been answered up to now; the outcome, if that is among it."""
        outcome = None
        while outcome is None and _is_readable(self._end.fileno(), 0):
            outcome = self._answer(job, flat)
        return outcome

    def _outcome(self, job: Job, flat: FlatWriter) -> int | ImgfsError:
        """Wait for the outcome."""
        while (outcome := self._answer(job, flat)) is None:
            pass
        return outcome

    def _answer(self, job: Job, flat: FlatWriter) -> int | ImgfsError | None:
        """Wait for an answer; None if it is not the outcome. Raises Broken."""
        kind, body, _ = self._channel.receive()
        if kind is Message.WROTE:
            flat.note(parse_number(body))
            return None
        if kind is Message.DONE:
            return parse_number(body)
        if kind is Message.FAILED:
            return parse_error(body, job)
        raise Broken(f"an answer of kind {kind}")

    def _fate(self, error: Broken) -> str:
        """End the scanner, if it runs on after a broken answer; return what became of it, for an error."""
        status = self._wait(_GRACE)
        if status is None:
            self.end()
            return f"gave no proper answer: {error}"
        if os.WIFSIGNALED(status):
            return f"was killed by signal {os.WTERMSIG(status)}"
        return f"ended with status {os.waitstatus_to_exitcode(status)}"

    def _wait(self, patience: float | None) -> int | None:
        """Return its wait status, waiting so many seconds for it, or for ever; None if it runs on."""
        with self._reaping:
            if self._status is None and _is_readable(self._pidfd, patience):
                try:
                    self._status = os.waitpid(self.pid, 0)[1]
                except ChildProcessError:  # the program has SIGCHLD ignored, or waits for all its children
                    self._status = 0
            return self._status

    def end(self) -> None:
        """Kill it, unless it has ended, and wait for that."""
        with suppress(ProcessLookupError):
            if self._status is None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._wait(None)
        if self._using.acquire(timeout=_GRACE):  # else a thread is left behind, and the program about to end
            self._end.close()
            self._close_pidfd()
            self._using.release()

    def _close_pidfd(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _is_readable(fd: int, patience: float | None) -> bool:
    """Wait so many seconds, or for ever, until `fd` is readable: a pidfd is once its process has ended."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if patience is None else patience * 1000))

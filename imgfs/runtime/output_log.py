"""What a detached container says, in a file: written by its monitor, read by `imgfs logs`.

The format is podman's (`k8s-file`), which is Kubernetes': a line each of

    2026-11-28T23:32:20.014385234+00:00 stdout F text        F: its end is a newline, P: it goes on

The log is bounded: a file that has reached its size becomes `output.log.1`, whose predecessor goes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imgfs.owned.opening import open_owned_file
from imgfs.owned.writing import write_all

LOG, OLDER = "output.log", "output.log.1"
LARGEST = 10 << 20  # bytes of each of the two files, unless the user says otherwise
SMALLEST = 4096
_PAUSE = 0.1  # seconds between two looks at a log that is followed
_LONGEST = 1 << 16  # bytes of text in one line of the file
STREAMS = {1: b"stdout", 2: b"stderr"}


class LogWriter:
    """Appends to a log, from several threads; a disk that takes no more loses lines, never the container."""

    def __init__(self, directory: Path, largest: int = LARGEST) -> None:
        self._directory = directory
        self._largest = largest
        self._lock = threading.Lock()
        self._fd, self._size = self._open()

    def write(self, stream: bytes, piece: bytes) -> None:
        """Append what was written to a stream at once: lines, and perhaps a part of one."""
        head = f"{_timestamp()} ".encode() + stream
        lines = [head + (b" F " if whole else b" P ") + text + b"\n" for text, whole in _lines(piece)]
        with self._lock, contextlib.suppress(OSError):
            body = bytearray()
            for line in lines:
                if self._size + len(body) and self._size + len(body) + len(line) > self._largest:
                    self._append(body)
                    body.clear()
                    self._rotate()
                body += line
            self._append(body)

    def _append(self, body: bytes | bytearray) -> None:
        write_all(self._fd, bytes(body))
        self._size += len(body)

    def close(self) -> None:
        """Close it."""
        with self._lock:
            os.close(self._fd)
            self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)  # a thread may go on

    def _rotate(self) -> None:
        os.rename(self._directory / LOG, self._directory / OLDER)
        before = self._fd
        self._fd, self._size = self._open()
        os.close(before)

    def _open(self) -> tuple[int, int]:
        fd = open_owned_file(self._directory / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return fd, os.fstat(fd).st_size


def _lines(piece: bytes) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines in a piece, each with whether its end is there."""
    for line in _split(piece):
        whole = line.endswith(b"\n")
        text = line[:-1] if whole else line
        while len(text) > _LONGEST:
            yield text[:_LONGEST], False
            text = text[_LONGEST:]
        yield text, whole


def _split(piece: bytes) -> list[bytes]:
    """Lines end at newlines alone: a carriage return is text."""
    parts = piece.split(b"\n")
    return [*(part + b"\n" for part in parts[:-1]), *([parts[-1]] if parts[-1] else [])]


def _timestamp() -> str:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}+00:00"


class LogLine(NamedTuple):
    """A line of a log: when (text, and seconds since 1970), by which stream, what, and whether it ends."""

    stamp: str
    time: float
    stream: bytes
    text: bytes
    whole: bool


def read_log(directory: Path) -> Iterator[LogLine]:
    """Yield what a log has now, the oldest first."""
    for name in (OLDER, LOG):
        with contextlib.suppress(FileNotFoundError), _opened(directory / name) as file:
            yield from _parsed(file)


def follow_log(directory: Path, is_running: Callable[[], bool]) -> Iterator[LogLine]:
    """Yield what a log has, and what is added until its container has ended."""
    with contextlib.suppress(FileNotFoundError), _opened(directory / OLDER) as file:
        yield from _parsed(file)
    last: os.stat_result | None = None
    while True:
        was_running = is_running()
        try:
            file = _opened(directory / LOG)
        except FileNotFoundError:  # it goes with its container, or is being replaced
            if not was_running:
                return
            time.sleep(_PAUSE)
            continue
        with file:
            found = os.fstat(file.fileno())
            if last is None or not os.path.samestat(found, last):
                last = found
                yield from _to_its_end(file, directory / LOG, is_running)
        if not was_running:
            return


def _to_its_end(file: BinaryIO, path: Path, is_running: Callable[[], bool]) -> Iterator[LogLine]:
    """Yield what is in one file, until another has its name, or nothing more can come."""
    rest = b""
    while True:
        goes_on = is_running() and _is_named(path, file)
        while piece := file.read(1 << 16):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if parsed := parse_line(line):
                    yield parsed
        if not goes_on:
            return
        time.sleep(_PAUSE)


def _is_named(path: Path, file: BinaryIO) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(file.fileno()))
    return False


def _opened(path: Path) -> BinaryIO:
    return open(open_owned_file(path, os.O_RDONLY), "rb")


def _parsed(file: BinaryIO) -> Iterator[LogLine]:
    for line in file:
        if parsed := parse_line(line.removesuffix(b"\n")):
            yield parsed


def parse_line(line: bytes) -> LogLine | None:
    """Return a line of the file without its newline; None for one that is damaged."""
    stamp, _, rest = line.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    kind, space, text = rest.partition(b" ")
    with contextlib.suppress(ValueError):
        if space and stream in STREAMS.values():
            when = stamp.decode("ascii")
            return LogLine(when, _seconds(when), stream, text, kind == b"F")
    return None


def _seconds(stamp: str) -> float:
    """Return a timestamp of the log's in seconds since 1970."""
    whole, _, rest = stamp.partition(".")
    moment = datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
    return moment.timestamp() + float(f"0.{rest.partition('+')[0]}")

"""Readers who know what they should read, and what a daemon takes of the machine."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

_PIECE = 300_000  # bytes read at once, at most


class Usage(NamedTuple):
    """What a process takes of the machine: bytes of memory, threads, open files."""

    memory: int
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Ask the kernel (proc(5)); OSError if the process is gone."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(int(status["VmRSS"].split()[0]) << 10, int(status["Threads"]), files)


@dataclass
class Ledger:
    """What readers have met, by image; safe in threads. `wrong` says where bytes were not the image's."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, image: str, what: str, seconds: float, amount: int = 0) -> None:
        """Count a read: "read" or "failed", its time and its bytes."""
        with self._lock:
            counts = self.counts.setdefault(image, Counter())
            counts[what] += 1
            counts["bytes"] += amount
            self.slowest[image] = max(self.slowest.get(image, 0.0), seconds)

    def blame(self, what: str) -> None:
        """Note that something was wrong."""
        with self._lock:
            self.wrong.append(what)


@dataclass
class Reader:
    """Reads pieces of files of the mount `at`, which should hold `files`, until `ended` is set."""

    image: str
    at: Path
    files: Mapping[str, bytes]
    chance: Random
    ledger: Ledger
    ended: threading.Event
    under_way: tuple[float, str] | None = None  # when a read began, and of what

    def run(self) -> None:
        """Read; what is not expected of a read is blamed on it."""
        names = sorted(self.files)
        while not self.ended.is_set():
            name = self.chance.choice(names)
            offset = self.chance.randrange(len(self.files[name]) + 1)
            self.read(name, offset, self.chance.choice((1, 4096, 70_000, _PIECE)))

    def read(self, name: str, offset: int, length: int) -> bool:
        """Read a piece, as often as not past the kernel's cache; False if that was an error."""
        began = time.monotonic()
        self.under_way = began, f"{self.image}: {name} at {offset}"
        try:
            found = _read(self.at / name, offset, length, fresh=self.chance.random() < 0.5)
        except OSError as error:
            if error.errno != 5:  # EIO
                self.ledger.blame(f"{self.under_way[1]}: {error}")
            self.ledger.note(self.image, "failed", time.monotonic() - began)
            return False
        finally:
            where, self.under_way = self.under_way[1], None
        if found != self.files[name][offset : offset + length]:
            self.ledger.blame(f"{where}: wrong bytes")
        self.ledger.note(self.image, "read", time.monotonic() - began, len(found))
        return True


def _read(path: Path, offset: int, length: int, *, fresh: bool) -> bytes:
    """Return a piece of a file, all that there is of it."""
    parts = []
    with path.open("rb", buffering=0) as file:
        if fresh:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while length and (part := os.pread(file.fileno(), length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
    return b"".join(parts)

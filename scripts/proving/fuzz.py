"""Damage every kind of byte of images in every format, case after case, and see that nothing comes of it.

Of each case must come: the image's own files and nothing else, or InvalidImage or IntegrityError; within
20 seconds and 256 MiB. Kinds take turns, each in a process of its own. A case is repeated with --only KIND
--seed SEED --case NUMBER.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from scripts.benchmark.report import Table
from scripts.proving.cases import KINDS, Case, make_ready

SECONDS, MEMORY = 20, 256 << 20  # that a case may take
TURN = 10.0  # seconds of one kind until it is the next one's turn
OUTCOMES = ("the same", "errors", "refused", "taken", "parsed")
MEMORY_DIRECTORY = Path("/dev/shm")  # cases write some megabytes each and keep nothing


class TooMuch(Exception):
    """A case takes more time or memory than it may."""


@dataclass
class Tally:
    """What came of the cases of a kind."""

    kind: str
    next: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    slowest: float = 0.0
    largest: int = 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, metavar="N", help="how long (default: 5)")
    add("--seed", type=int, metavar="S", help="which damage (default: by chance)")
    add("--only", type=_kinds, default=list(KINDS), metavar="KIND,…", help=f"of {','.join(KINDS)}")
    add("--case", type=int, metavar="NUMBER", help="this one case of --only KIND, with its traceback")
    add(
        "--keep", type=Path, default=Path("fuzz-results"), metavar="DIR", help="for what fails (fuzz-results)"
    )
    asked = parser.parse_args(arguments)
    if asked.case is not None and (len(asked.only) != 1 or asked.seed is None):
        parser.error("--case wants --only KIND and --seed S")
    asked.seed = random.randrange(10**6) if asked.seed is None else asked.seed
    return asked


def _kinds(text: str) -> list[str]:
    found = text.split(",")
    for kind in found:
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    return found


def main(arguments: Sequence[str]) -> int:
    """Fuzz; 1 if a case has failed."""
    asked = parse(arguments)
    with _scratch():
        if asked.case is not None:
            print(run_case(asked.only[0], asked.seed, asked.case, asked.keep))
            return 0
        make_ready(asked.only)
        tallies = [Tally(kind) for kind in asked.only]
        ends = time.monotonic() + 60 * asked.minutes
        while time.monotonic() < ends:
            for tally in tallies:
                _take_turn(tally, asked.seed, asked.keep, min(TURN, 60 * asked.minutes / len(tallies)))
    print(_table(tallies, asked.seed))
    return int(any(tally.failed for tally in tallies))


@contextmanager
def _scratch() -> Iterator[None]:
    """Have temporary files in memory, and none of them left."""
    place = MEMORY_DIRECTORY if MEMORY_DIRECTORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        usual, tempfile.tempdir = tempfile.tempdir, scratch
        try:
            yield
        finally:
            tempfile.tempdir = usual


def _table(tallies: Sequence[Tally], seed: int) -> Table:
    table = Table(f"fuzz, seed {seed}", ["kind", "cases", *OUTCOMES, "s at most", "MB at most", "failed"])
    for tally in tallies:
        counts = [tally.outcomes[outcome] for outcome in OUTCOMES]
        table.add(tally.kind, tally.next, *counts, tally.slowest, tally.largest / 1e6, tally.failed)
    return table


# -- a kind's turn, in a process of its own ------------------------------------------------------------------

_NOTE = struct.Struct("<Qd32sQ")  # the case, its seconds, its outcome, its memory


def _take_turn(tally: Tally, seed: int, keep: Path, seconds: float) -> None:
    """Run cases for some seconds; a process that dies has failed in its last case."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run_cases(tally, seed, keep, time.monotonic() + seconds, writing)
    os.close(writing)
    began = tally.next
    with os.fdopen(reading, "rb") as notes:
        while note := notes.read(_NOTE.size):
            _count(tally, *_NOTE.unpack(note))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        tally.failed += 1
        print(f"{tally.kind}: the process ended: {code}  {_again(tally.kind, seed, tally.next)}")
        tally.next += 1
    assert tally.next > began, "no case has been run"


def _count(tally: Tally, number: int, seconds: float, outcome: bytes, memory: int) -> None:
    tally.next = number + 1
    tally.slowest = max(tally.slowest, seconds)
    tally.largest = max(tally.largest, memory)
    text = outcome.rstrip(b"\0").decode()
    tally.outcomes[text] += 1
    tally.failed += text == "failed"


def _run_cases(tally: Tally, seed: int, keep: Path, ends: float, notes: int) -> None:
    """Run cases and end the process."""
    code = 1
    try:
        faulthandler.enable(2)
        number = tally.next
        while number == tally.next or time.monotonic() < ends:
            began = time.monotonic()
            try:
                outcome, memory = run_case(tally.kind, seed, number, keep)
            except Exception:  # noqa: BLE001  (whatever it is, it is what is looked for)
                outcome, memory = "failed", 0
            os.write(notes, _NOTE.pack(number, time.monotonic() - began, outcome.encode(), max(0, memory)))
            number += 1
        code = 0
    except BaseException:  # noqa: BLE001  (nothing of the parent's is to be run here)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _again(kind: str, seed: int, number: int) -> str:
    return f"(scripts/fuzz --only {kind} --seed {seed} --case {number})"


def run_case(kind: str, seed: int, number: int, keep: Path) -> tuple[str, int]:
    """Return what comes of a case, and the bytes of memory it took; raises what it should not have.

    Then what was damaged is kept in the directory `keep`.
    """
    with tempfile.TemporaryDirectory() as directory:
        case = Case(random.Random(f"{seed}/{kind}/{number}"), Path(directory))
        try:
            with _limited() as used:
                outcome = KINDS[kind](case)
            return outcome, used()
        except Exception as error:
            _keep(case, error, keep, f"{kind}-{seed}", _again(kind, seed, number))
            raise


def _keep(case: Case, error: Exception, keep: Path, prefix: str, again: str) -> None:
    """Say what failed and keep it, but each thing once."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/imgfs/" in frame.filename]
    place = f"{Path(frames[-1].filename).stem}-{frames[-1].lineno}" if frames else "case"
    stem = keep / f"{prefix}-{type(error).__name__}-{place}"
    if not stem.with_suffix(".txt").exists():
        keep.mkdir(exist_ok=True)
        stem.with_suffix(".damaged").write_bytes(case.evidence)
        stem.with_suffix(".txt").write_text(f"{again}\n{'; '.join(case.about)}\n\n{traceback.format_exc()}")
        print(f"{stem.name}: {error!r:.300}  {again}", flush=True)


@contextmanager
def _limited() -> Iterator[Callable[[], int]]:
    """Bound the time and the memory of what is done meanwhile."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooMuch(f"not done within {SECONDS} s")

    def used() -> int:
        return _memory("VmHWM") - before

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew (proc(5))
    before = _memory("VmRSS")
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield used
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    if used() > MEMORY:
        raise TooMuch(f"took {used() >> 20} MiB")


def _memory(field_name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field_name):
            return int(line.split()[1]) << 10
    raise OSError(f"no {field_name} in /proc/self/status")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

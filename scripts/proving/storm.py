"""Kill the daemons of mounts of --restart again and again, while programs read and change what is mounted.

Programs take turns, by both drivers, as root and as an ordinary user. What each says (names, digests, what
every call came to) must be what it says of an undisturbed mount of the same image. Beside kills there are
hand-overs (`imgfs upgrade`); under programs that only read, the cached bytes are evicted and the registry
goes away for a moment; and in some turns the holder is killed in the end. A turn is repeated with
--seed SEED --only PROGRAM. Needs root.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmark.report import Table
from scripts.proving.storm_programs import PROGRAMS
from tests.support import tarmake
from tests.support.blobs import prose
from tests.support.fault_server import FaultServer
from tests.support.mounted import (
    CHECKOUT,
    NOBODY,
    Imgfs,
    Stored,
    Wire,
    drop_caches,
    gzipped,
    processes_of_tests,
    serve,
    until,
)
from tests.support.restarted import RESTARTED, holders, successors

FILES = {
    **{f"n{number}/noise{number}": random.Random(number).randbytes(400_000) for number in range(4)},
    **{f"n{number % 4}/prose{number}": prose(90_000, number) for number in range(40)},
    **{f"n{number}": random.Random(number).randbytes(200_000) for number in range(4, 9)},
}
PAUSE = 0.4  # seconds from one event to the next at most; or, if that is longer, the time of SLOW restarts
SLOW = 1.5
HAPPEN = 10  # events in a turn of a program that only reads
EVENTS = {"kill": 6, "hand over": 2, "torn": 2, "evict": 1, "cut": 1}  # how often each
HARMLESS_TO_CHANGES = ("kill", "hand over", "torn")
HAND_OVER = 1.0  # seconds that one takes about: "torn" is a kill of either daemon meanwhile
CUT = 0.7  # seconds that the registry is away at most
HOLDER_DIES = 0.3  # of the turns
LONGEST = 600.0  # seconds that another mount namespace may last
LIMIT = 300.0  # seconds that a program may take: one that takes longer hangs


@dataclass
class Tally:
    """What came of the turns of a program."""

    turns: int = 0
    events: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    longest: float = 0.0


@dataclass
class Killer(threading.Thread):
    """Kills the daemon of the mount `at`, and does what else happens (`events`), until it is stopped.

    It goes on only while a daemon serves: each restart is looked at by `imgfs status`.
    """

    imgfs: Imgfs
    at: Path
    image: str
    wire: Wire
    chance: random.Random
    events: Sequence[str]
    done: Counter[str] = field(default_factory=Counter)
    stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        away = 0.0
        while not self.stopped.wait(self.chance.uniform(0, max(PAUSE, SLOW * away))):
            began = time.monotonic()
            pid = self.imgfs.pid(self.at)
            away = time.monotonic() - began
            (event,) = self.chance.choices(self.events, [EVENTS[event] for event in self.events])
            self._do(event, pid)
            self.done[event] += 1

    def end(self) -> None:
        """Have no more happen; perhaps the holder dies, and the last daemon serves on alone."""
        self.stopped.set()
        self.join()
        if self.chance.random() < HOLDER_DIES:
            self.imgfs.pid(self.at)
            for pid in holders(self.imgfs):
                os.kill(pid, signal.SIGKILL)
                self.done["holder"] += 1

    def _do(self, event: str, pid: int) -> None:
        if event == "kill":
            os.kill(pid, signal.SIGKILL)
        elif event == "hand over":
            self.imgfs.run("upgrade", self.at)
        elif event == "torn":
            upgrade = self.imgfs.start("upgrade", self.at)
            time.sleep(self.chance.uniform(0, HAND_OVER))
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice([pid, *successors(self.imgfs)]), signal.SIGKILL)
            upgrade.communicate(timeout=LIMIT)
        elif event == "evict":
            self.imgfs.evict(self.image)
        else:
            self.wire.cut()
            time.sleep(self.chance.uniform(0, CUT))
            self.wire.mend()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/storm", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, metavar="N", help="how long (default: 5)")
    add("--seed", type=int, metavar="S", help="which moments and changes (default: by chance)")
    add("--only", choices=PROGRAMS, metavar="PROGRAM", help=f"one of {', '.join(PROGRAMS)}")
    asked = parser.parse_args(arguments)
    asked.seed = random.randrange(10**6) if asked.seed is None else asked.seed
    return asked


def main(arguments: Sequence[str]) -> int:
    """Storm; 1 if something was wrong."""
    asked = parse(arguments)
    if os.geteuid():
        print("storm: needs root, to mount by the kernel's own file systems", file=sys.stderr)
        return 2
    print(f"seed {asked.seed}")
    tallies = storm(asked.seed, 60 * asked.minutes, [asked.only] if asked.only else list(PROGRAMS))
    happened = [*EVENTS, "holder"]
    table = Table("storm", ["program", "turns", *happened, "wrong", "longest [s]"])
    for name, tally in tallies.items():
        counts = (tally.events[event] for event in happened)
        table.add(name, tally.turns, *counts, tally.wrong, f"{tally.longest:.1f}")
    print(table)
    return 1 if any(tally.wrong for tally in tallies.values()) else 0


def storm(seed: int, seconds: float, names: Sequence[str]) -> dict[str, Tally]:
    """Have programs take turns for so long; what came of them."""
    tallies = {name: Tally() for name in names}
    ends, number = time.monotonic() + seconds, 0
    with FaultServer() as server:
        while number < len(names) or time.monotonic() < ends:
            name = names[number % len(names)]
            chance = random.Random(f"{seed}-{number}")
            kind = ("fuse", "kernel", "user")[number // len(names) % 3]
            tally = tallies[name]
            turn(server, name, kind, chance, tally)
            number += 1
    return tallies


def layer() -> Stored:
    """Return the image that is mounted: files to read, and a program."""
    directories = (tarmake.directory(f"n{number}") for number in range(4))
    files = (tarmake.file(name, body) for name, body in sorted(FILES.items()))
    program = Path(shutil.which("busybox") or "/bin/true").read_bytes()
    return gzipped(tarmake.archive(*directories, *files, tarmake.file("busybox", program, mode=0o755)))


@contextmanager
def installed(kind: str) -> Iterator[Imgfs]:
    """An imgfs with a store of its own: by a driver, as root, or as an ordinary user."""
    directory = Path(tempfile.mkdtemp(prefix="imgfs-storm-"))
    directory.chmod(0o755)
    user = NOBODY if kind == "user" else None
    imgfs = Imgfs(directory / "imgfs", user=user, driver="fuse" if user else kind)
    imgfs.expected += [RESTARTED, " WARNING "]
    try:
        yield imgfs
    finally:
        imgfs.close()
        shutil.rmtree(directory, ignore_errors=True)


def turn(server: FaultServer, name: str, kind: str, chance: random.Random, tally: Tally) -> None:
    """Run a program at an undisturbed mount, and at one whose daemon is killed; compare what they say."""
    seed, (_, changes) = chance.randrange(10**6), PROGRAMS[name]
    options = ["--rw"] if changes else []
    with installed(kind) as imgfs, Wire(server.host) as wire:
        image = serve(server, "storm", "v1", [layer()], wire.host)
        twin = imgfs.mount(image, *options, at=imgfs.mountpoint("twin"))
        right = said(imgfs, name, twin, seed)
        unmount(imgfs, twin)
        at = imgfs.mount(image, "--restart", *options)
        imgfs.ok("store", "rm", "--data", image)
        events = HARMLESS_TO_CHANGES if changes else tuple(EVENTS)
        killer = Killer(imgfs, at, image, wire, chance, events)
        killer.start()
        began = time.monotonic()
        found = [said(imgfs, name, at, seed)]
        while not changes and killer.done.total() < HAPPEN:
            drop_caches()
            found.append(said(imgfs, name, at, seed))
        tally.longest = max(tally.longest, (time.monotonic() - began) / len(found))
        killer.end()
        if not changes:
            found.append(said(imgfs, name, at, seed))
        tally.events += killer.done
        tally.turns += 1
        wrong = [one for one in found if one != right]
        if wrong:
            tally.wrong += 1
            print(f"{name}, {kind}, by the seed {seed}: {difference(right, wrong[0])}", flush=True)
        unmount(imgfs, at)


def unmount(imgfs: Imgfs, at: Path) -> None:
    """Unmount, and wait for the daemon: another program's mount namespace may have the mount for a while."""
    done = imgfs.run("umount", at)
    assert done.code == 0 or "in another mount namespace" in done.err, done
    imgfs.gone(at)
    until(lambda: not processes_of_tests(imgfs.store), "the daemon and its holder have ended", LONGEST)


def said(imgfs: Imgfs, name: str, at: Path, seed: int) -> str:
    """Return what a program says at a mount: both outputs, and its exit code."""
    words = {"at": shlex.quote(str(at)), "seed": seed, "python": shlex.quote(sys.executable)}
    where = CHECKOUT if "{python}" in PROGRAMS[name][0] else at
    try:
        done = imgfs.program("sh", "-c", f"cd {where}; {PROGRAMS[name][0].format(**words)}", timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return f"nothing within {LIMIT:.0f} s"
    return f"{done.text}{done.err}exit code {done.code}".replace(str(at), "")


def difference(right: str, found: str) -> str:
    """Return the first line that is another."""
    pairs = zip(right.splitlines(), found.splitlines(), strict=False)
    first = next(((one, other) for one, other in pairs if one != other), None)
    counts = Counter(right.splitlines()), Counter(found.splitlines())
    return f"{first[1]!r}, not {first[0]!r}" if first else f"lines {(counts[1] - counts[0])!r}"[:500]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Kill containerd, imgfs's snapshotter, the daemons of its mounts and their holders, while a node is at work.

Three workers pull images, run containers that read every byte that is theirs, and remove images. What fails
because something was killed just then is counted; bytes that are wrong, and mounts, rows, directories or
processes that are left when all images are removed, are what must not be. Needs root, and containerd 2.x as
group K of the bench has it. As a program:

    python -m scripts.proving.node_storm --minutes 3 --seed 7
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from scripts.benchmark.clock import CommandFailed
from scripts.benchmark.editions import plain
from scripts.benchmark.snapshotters import SNAPSHOTTERS, Node
from scripts.benchmark.stage import Application, Stage
from scripts.benchmark.tools import mounts_below
from scripts.lab.recipes import one_of_many, own_text, shared_text

IMAGES, WORKERS = 10, 3
OFTEN = {"containerd": 3, "snapshotter": 3, "daemon": 5, "holder": 1}  # how often each is killed
PAUSE = (0.3, 2.0)  # seconds from one to the next
REMOVES = 0.15  # of a worker's turns: the image goes
PATIENCE = 60.0  # seconds for the last mount to go
READ = "set -e -o pipefail; for at in /own/00 /00; do busybox cat $at/0*/file-* | busybox md5sum; done"


class Storm:
    """A node at work for so many seconds, what has happened in it, and what was wrong."""

    def __init__(self, node: Node, references: Sequence[str], seed: int) -> None:
        self._node, self._references, self._seed = node, references, seed
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.happened: Counter[str] = Counter()
        self.wrong: list[str] = []

    def rage(self, seconds: float) -> None:
        """Work, and kill, for so long."""
        workers = [threading.Thread(target=self._work, args=(number,)) for number in range(WORKERS)]
        for worker in workers:
            worker.start()
        chance, ends = random.Random(self._seed), time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(chance.uniform(*PAUSE))
            (what,) = chance.choices(list(OFTEN), list(OFTEN.values()))
            self._kill(what, chance)
        self._over.set()
        for worker in workers:
            worker.join()

    def _work(self, worker: int) -> None:
        chance = random.Random(f"{self._seed}-{worker}")
        while not self._over.is_set():
            number = chance.randrange(len(self._references))
            self._turn(worker, number)
            if chance.random() < REMOVES:
                self._tried("image removed", partial(self._node.remove, self._references[number]))
            self._node.remove_containers(f"w{worker}-")

    def _turn(self, worker: int, number: int) -> None:
        reference, said = self._references[number], ""

        def read() -> None:
            nonlocal said
            said = self._node.run(reference, ["/bin/busybox", "sh", "-c", READ], f"w{worker}-")

        if self._tried("pulled", lambda: self._node.pull(reference)) and self._tried("read", read):
            expected = [_digest(own_text(number) * 2_000), _digest(shared_text() * 10_000)]
            if said.split()[::2] != expected:
                self.wrong.append(f"{reference}: {said!r}")

    def _tried(self, what: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except CommandFailed:
            what = f"not {what}"
        with self._lock:
            self.happened[what] += 1
        return not what.startswith("not ")

    def _kill(self, what: str, chance: random.Random) -> None:
        if what == "containerd":
            self._node.crash_containerd()
        elif what == "snapshotter":
            self._node.crash_snapshotter()
        elif found := self._serving_mounts(b"holder.py" if what == "holder" else b"\0mount\0"):
            with suppress(ProcessLookupError):
                os.kill(chance.choice(found), signal.SIGKILL)
        self.happened[f"{what} killed"] += 1

    def _serving_mounts(self, word: bytes) -> list[int]:
        found = []
        for pid in self._node.processes():
            with suppress(OSError):  # it has ended
                if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found


def left_behind(node: Node) -> list[str]:
    """Have everything removed, and say what has not gone in a minute."""
    ends = time.monotonic() + PATIENCE
    while True:
        with suppress(CommandFailed):
            node.remove_containers()
            node.remove()
            node.collect_garbage()
        with closing(sqlite3.connect(node.kept / "snapshots.db")) as rows:
            found = [f"row {name}" for (name,) in rows.execute("SELECT name FROM snapshots")]
        found += [f"mount {path}" for path in mounts_below(node.kept)]
        found += [
            f"directory {path}" for name in ("mnt", "snapshots") for path in (node.kept / name).iterdir()
        ]
        found += [_described(pid) for pid in node.processes()[1:] if not _is_of(pid, node.serving)]
        if not found or time.monotonic() > ends:
            return found
        time.sleep(1)


def _is_of(pid: int, ancestor: int) -> bool:
    """Return True for a process, and all that have begun below it: what serves the next mounts waits."""
    while pid > 1 and pid != ancestor:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            return True
    return pid == ancestor


def _described(pid: int) -> str:
    words = b""
    with suppress(OSError):  # it has ended
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    return f"process {pid}: {words.decode(errors='replace')[:300]}"


def _digest(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def main(arguments: Sequence[str]) -> int:
    """Storm; 1 if a byte was wrong, or something is left behind."""
    parser = argparse.ArgumentParser(prog="node_storm", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, metavar="N")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="S")
    parser.add_argument("--images", type=Path, default=Path("~/.cache/imgfs-bench"), metavar="DIR")
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}", flush=True)
    with Stage(asked.images.expanduser().absolute(), 1, []) as stage:
        references = []
        for number in range(IMAGES):
            image = one_of_many(stage.images, number)
            place = plain(stage, Application(image.layout.name, image, ("true",), "", ""))
            references.append(stage.seen_through(None, *place))
        with Node(stage.scratch / "node", stage.programs, SNAPSHOTTERS[0]) as node:
            storm = Storm(node, references, asked.seed)
            storm.rage(60 * asked.minutes)
            wrong = [*storm.wrong, *left_behind(node)]
    print(", ".join(f"{count} {what}" for what, count in sorted(storm.happened.items())))
    print("\n".join(wrong) or "nothing wrong, and nothing left")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

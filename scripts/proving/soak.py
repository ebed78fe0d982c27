"""Mount images of every format from registries that misbehave by chance, read them in parallel, evict them.

One registry wants tokens, the other sends readers to a third host by signed links; both expire in seconds.
In the end: no wrong byte, no read that took longer than it may, nothing in the logs but errors of reads;
every image reads whole; and the daemons hold no more threads, files and memory than after the first quarter
of the time. Needs root.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.maintenance.gc import evict
from imgfs.store.store import Store
from scripts.benchmark.report import Table
from scripts.lab.registry import Registry
from scripts.proving.load import Ledger, Reader, Usage
from tests.support import tarmake
from tests.support.blobs import prose
from tests.support.docker_registry import push_image
from tests.support.fault_proxy import HARMLESS, PASSING, FaultProxy
from tests.support.fault_server import Fault
from tests.support.mounted import Imgfs, Stored, gzipped, gzipped_in_members, plain, sha256, zstd
from tests.support.tocmake import Made, chunked_layer, estargz_layer

READ_TIMEOUT = 8.0  # seconds, as the mounts are told
LATEST = 3 * READ_TIMEOUT  # of a read of several requests, on a busy machine
MORE = Usage(
    memory=24 << 20, threads=24, files=48
)  # that a daemon may hold in the end: kept connections, pools
READERS = 3  # of each mount
ROUGH = 0.12  # of the requests meet trouble
LIFETIME = (1.0, 5.0)  # seconds of tokens and links
PHASE = (2.0, 6.0)  # seconds until the weather changes

FILES = {
    **{f"noise{number}": random.Random(number).randbytes(500_000) for number in range(5)},
    **{f"prose{number}": prose(600_000, number) for number in range(6)},
    **{f"small{number}": b"%d " % number * 300 for number in range(60)},
}
TAR = tarmake.archive(*(tarmake.file(name, body) for name, body in FILES.items()))
STALL = Fault(stall_after=3_000)


def _with_toc(made: Made, flat: bytes) -> Stored:
    return Stored(made.blob, sha256(flat), made.layer.media_type, annotations=made.layer.annotations)


def formats() -> Mapping[str, Stored]:
    """Return the same layer in every format that has spans of its own."""
    estargz = estargz_layer(TAR, chunk=200_000)
    return {
        "tar": plain(TAR),
        "gzip": gzipped(TAR, 6),
        "gzip-members": gzipped_in_members(TAR),
        "zstd": zstd(TAR, 250_000),
        "estargz": _with_toc(estargz, gzip.decompress(estargz.blob)),
        "chunked": _with_toc(chunked_layer(TAR, chunk=200_000), TAR),
    }


@dataclass
class Weather:
    """How registries behave: calm, or rough by chance. Thread-safe as far as it matters: `Random` is."""

    chance: random.Random
    rough: bool = False

    def decide(self, _method: str, path: str) -> Fault | None:
        """Return what goes wrong with a request for a blob."""
        if not self.rough or "/blobs/" not in path or self.chance.random() > ROUGH:
            return None
        return self.chance.choice([*(trouble.fault for trouble in (*PASSING, *HARMLESS)), STALL])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, metavar="N", help="how long (default: 5)")
    parser.add_argument("--seed", type=int, metavar="S", help="which faults (default: by chance)")
    asked = parser.parse_args(arguments)
    asked.seed = random.randrange(10**6) if asked.seed is None else asked.seed
    return asked


def main(arguments: Sequence[str]) -> int:
    """Soak; 1 if something was wrong."""
    asked = parse(arguments)
    if os.geteuid():
        print("soak: needs root, to mount for everybody", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="imgfs-soak-"))
    try:
        soak = Soak(directory, asked.seed)
        wrong = soak.run(60 * asked.minutes)
        print(soak.table())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for line in wrong:
        print(f"soak: {line}")
    if wrong:
        print(f"soak: failed; again: scripts/soak --minutes {asked.minutes:g} --seed {asked.seed}")
    return int(bool(wrong))


class Soak:
    """One soak, in `directory`."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self._weather = Weather(random.Random(f"{seed}/weather"))
        self._imgfs = Imgfs(directory / "imgfs", expected=[r"(ERROR|WARNING) "])
        self._ledger = Ledger()
        self._ended = threading.Event()
        self._readers: list[Reader] = []
        self._mounts: dict[str, tuple[Path, int]] = {}
        self._usage: dict[str, tuple[Usage, Usage]] = {}
        self._events: list[str] = []
        self._evictions = 0
        self._expiries = 0
        self._expire: Callable[[str], None] = lambda signature: None  # noqa: ARG005

    def run(self, seconds: float) -> list[str]:
        """Soak for so long; what was wrong."""
        with ExitStack() as stack:
            registry = stack.enter_context(Registry(self._directory / "registry"))
            guarded, signing, cdn = (
                stack.enter_context(FaultProxy(registry.host, self._weather.decide)) for _ in range(3)
            )
            guarded.token_server, signing.blob_host = guarded.url, cdn.host
            self._expire = partial(_expire, guarded, signing, cdn)
            self._mount_all(registry, [guarded, signing])
            try:
                self._soak(registry, seconds)
                self._read_whole()
            finally:
                self._ended.set()
                self._weather.rough = False
                self._umount_all()
        self._check_logs()
        return self._ledger.wrong

    def _mount_all(self, registry: Registry, proxies: Sequence[FaultProxy]) -> None:
        for number, (name, layer) in enumerate(formats().items()):
            push_image(
                registry.host,
                name,
                "v1",
                [layer.blob],
                diff_ids=[layer.diff_id],
                media_types=[layer.media_type],
                layer_annotations=[layer.annotations],
            )
            at = self._imgfs.mountpoint(name)
            image = f"{proxies[number % len(proxies)].host}/{name}:v1"
            self._imgfs.ok("mount", "--read-timeout", str(READ_TIMEOUT), image, at)
            self._mounts[name] = at, self._imgfs.pid(at)
            self._readers += [self._reader(name, at, one) for one in range(READERS)]

    def _reader(self, name: str, at: Path, number: int) -> Reader:
        chance = random.Random(f"{self._seed}/{name}/{number}")
        return Reader(name, at, FILES, chance, self._ledger, self._ended)

    def _soak(self, registry: Registry, seconds: float) -> None:
        others = (self._evict_now_and_then, self._expire_now_and_then)
        with _threads([*(reader.run for reader in self._readers), *others], self._ended):
            ends = time.monotonic() + seconds
            self._live_through(registry, time.monotonic() + seconds / 4)
            self._calm()
            before = self._measure()
            self._live_through(registry, ends)
            self._calm()
            after = self._measure()
        self._usage = {name: (before[name], after[name]) for name in before}
        for name, (was, now) in self._usage.items():
            grown = Usage(*(new - old for new, old in zip(now, was, strict=True)))
            for what, more, most in zip(Usage._fields, grown, MORE, strict=True):
                if more > most:
                    self._ledger.blame(f"{name}: {what}: {more:,} more than after a quarter of the time")

    def _live_through(self, registry: Registry, ends: float) -> None:
        """Have the weather change until then; watch for reads that hang."""
        chance = random.Random(f"{self._seed}/phases/{ends > 0}/{len(self._events)}")
        while time.monotonic() < ends:
            event = chance.choice(("rough", "rough", "calm", "restart"))
            self._events.append(event)
            self._weather.rough = event != "calm"
            if event == "restart":
                registry.close()
                self._watch(chance.uniform(0.1, 1.5))
                registry.start()
            self._watch(min(chance.uniform(*PHASE), max(0.0, ends - time.monotonic())))

    def _watch(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            time.sleep(min(0.5, left))
            for reader in self._readers:
                under_way = reader.under_way
                if under_way and time.monotonic() - under_way[0] > LATEST:
                    reader.under_way = None
                    self._ledger.blame(f"{under_way[1]}: a read takes more than {LATEST:.0f} s")

    def _calm(self) -> None:
        self._weather.rough = False
        self._watch(READ_TIMEOUT / 2)

    def _measure(self) -> dict[str, Usage]:
        return {name: Usage.of(pid) for name, (_, pid) in self._mounts.items()}

    def _evict_now_and_then(self) -> None:
        chance = random.Random(f"{self._seed}/evictions")
        store = Store(self._imgfs.store)
        while not self._ended.wait(chance.uniform(0.2, 1.5)):
            layers = list(store.layers())
            try:
                evict(chance.sample(layers, chance.randint(1, len(layers))))
            except ImgfsError as error:
                self._ledger.blame(f"an eviction: {error}")
            self._evictions += 1

    def _expire_now_and_then(self) -> None:
        chance = random.Random(f"{self._seed}/expiries")
        while not self._ended.wait(chance.uniform(*LIFETIME)):
            self._expire(str(self._expiries))
            self._expiries += 1

    def _read_whole(self) -> None:
        """Read every image whole, now that the weather is calm."""
        evict(Store(self._imgfs.store).layers())
        for name, (at, _) in self._mounts.items():
            reader = Reader(name, at, FILES, random.Random(0), self._ledger, self._ended)
            missing = [path for path, body in FILES.items() if not reader.read(path, 0, len(body))]
            if missing:
                self._ledger.blame(f"{name}: {len(missing)} files cannot be read although nothing is wrong")

    def _umount_all(self) -> None:
        for at, _ in self._mounts.values():
            self._imgfs.run("umount", at)
        try:
            self._imgfs.close()
        except AssertionError as error:
            self._ledger.blame(str(error)[:500])

    def _check_logs(self) -> None:
        odd = [
            line
            for line in self._imgfs.logged()
            if not re.match(r"\S+ \S+ (INFO|WARNING|ERROR .*EIO: )", line)
        ]
        for line in odd[:20]:
            self._ledger.blame(f"in a log: {line[:300]}")

    def table(self) -> Table:
        """Return what was done, by image, and what the daemons held before and after."""
        columns = [
            "image",
            "reads",
            "errors",
            "MB",
            "s at most",
            "MB before",
            "after",
            "threads",
            "after",
            "files",
            "after",
        ]
        table = Table(f"soak, seed {self._seed}", columns)
        for name, (was, now) in self._usage.items():
            counts = self._ledger.counts[name]
            numbers = [cell for pair in zip(was, now, strict=True) for cell in pair]
            numbers[:2] = [size >> 20 for size in numbers[:2]]
            slowest = self._ledger.slowest[name]
            table.add(name, counts["read"], counts["failed"], counts["bytes"] // 10**6, slowest, *numbers)
        events = ", ".join(f"{self._events.count(event)} {event}" for event in sorted(set(self._events)))
        table.notes.append(
            f"phases: {events}; evictions: {self._evictions}; tokens and links expired: {self._expiries}; "
            f"wrong: {len(self._ledger.wrong)}"
        )
        return table


def _expire(guarded: FaultProxy, signing: FaultProxy, cdn: FaultProxy, signature: str) -> None:
    """Let no token of one be worth anything, and no link of the other, but those to come."""
    guarded.valid_tokens.clear()
    signing.signature = signature
    cdn.signatures = {signature}


@contextmanager
def _threads(works: Sequence[Callable[[], None]], ended: threading.Event) -> Iterator[None]:
    """Threads that run while the block lasts."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(LATEST)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

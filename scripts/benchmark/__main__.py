"""`scripts/bench`: build the images once, measure, print tables, write JSON. Needs root."""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from scripts.benchmark import __doc__ as about
from scripts.benchmark.cold import cold_starts
from scripts.benchmark.containers import containers
from scripts.benchmark.drivers import drivers
from scripts.benchmark.first import FirstMounts
from scripts.benchmark.lazy import lazy
from scripts.benchmark.looking import looking
from scripts.benchmark.machine import machine
from scripts.benchmark.material import FULL, QUICK
from scripts.benchmark.memory import memory
from scripts.benchmark.models import models
from scripts.benchmark.node import costs, readiness
from scripts.benchmark.reading import reading
from scripts.benchmark.report import Table, write_json
from scripts.benchmark.scratch import scratch
from scripts.benchmark.stage import APPLICATIONS, SPEEDS, Stage, say
from scripts.benchmark.tools import PEERS
from scripts.benchmark.warm import beside_podman, warm_mounts
from scripts.lab.recipes import RecipeError
from scripts.lab.registry import RegistryFailed

GROUPS = "ABCDEFGHIJKL"
USUAL_APPLICATIONS, USUAL_LINKS = ("python-app", "node-app"), ("loopback", "shaped")
ALL_APPLICATIONS = [name for name in APPLICATIONS if name != "torch"]  # 3 GB: only if it is asked for
SLOW_LINKS = ("shaped", "gigabit")  # of groups G and L; the first, of group H
SIZES = (10_000, 100_000, 1_000_000)
IMAGES, CONTAINERS = (1, 10, 60), 100  # of group K: so many images, then so many containers more of one


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", type=some_of(GROUPS), default=list(GROUPS), metavar="A,B,…", help="groups to measure")
    add("--rounds", type=int, default=3, metavar="N", help="medians of N rounds (default: 3)")
    add("--quick", action="store_true", help="one round, python-app, 10,000 files; less work in F")
    add(
        "--json",
        type=Path,
        default=Path("bench-results", f"{time.strftime('%Y-%m-%d-%H%M%S')}.json"),
        metavar="FILE",
        help="default: bench-results/DATE-TIME.json",
    )
    add(
        "--images",
        type=Path,
        default=Path("~/.cache/imgfs-bench"),
        metavar="DIR",
        help="images and registry are kept here, scratch space lies here (default: ~/.cache/imgfs-bench)",
    )
    add(
        "--apps",
        type=some_of(APPLICATIONS),
        help=_listed(APPLICATIONS) + " (default: all but torch for G and H, else two)",
    )
    add(
        "--links",
        type=some_of(SPEEDS),
        help=_listed(SPEEDS)
        + " (default: the slow ones for G, L; else two); H and K take one, the first or shaped",
    )
    add("--peers", type=some_of(PEERS), default=list(PEERS), help=_listed(PEERS) + "; '' for none")
    add("--mount-options", type=shlex.split, default=[], metavar="WORDS", help="for every `imgfs mount`")
    add("--build", action="store_true", help="only build the images")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error("at least one round")
    asked.sizes = SIZES
    if asked.quick:
        asked.rounds, asked.apps, asked.sizes = 1, (asked.apps or USUAL_APPLICATIONS)[:1], SIZES[:1]
    return asked


def some_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Make a type for argparse: words of `known`, with commas between them."""

    def words(text: str) -> list[str]:
        found = [word for word in text.split(",") if word]
        for word in found:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word} is none of {', '.join(known)}")
        return found

    return words


def _listed(known: Iterable[str]) -> str:
    return f"of {','.join(known)}"


def main(arguments: list[str]) -> int:
    """Measure what is asked; exit code 0 if it could be measured at all."""
    asked = parse(arguments)
    if os.geteuid():
        say("needs root, to drop the page cache and to chroot")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell's background jobs ignore it
        signal.signal(number, _interrupt)
    tables: list[Table] = []
    try:
        with Stage(
            asked.images.expanduser().absolute(), asked.rounds, asked.peers, asked.mount_options
        ) as stage:
            _run(asked, stage, tables)
    except (RecipeError, RegistryFailed) as failed:
        say(str(failed))
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if tables:
            write_json(asked.json, tables, asked.rounds)
            say(f"wrote {asked.json}")
    return 0


def _run(asked: argparse.Namespace, stage: Stage, tables: list[Table]) -> None:
    """Build, or measure group after group; a table is printed as soon as it is whole."""
    if asked.build:
        for image in [
            *map(stage.application, asked.apps or ALL_APPLICATIONS),
            *map(stage.synthetic, asked.sizes),
        ]:
            say(f"{image} is there")
        return
    for table in _tables(asked, stage):
        tables.append(table)
        print(table, end="\n\n", flush=True)


def _tables(asked: argparse.Namespace, stage: Stage) -> Iterable[Table]:
    names = asked.apps or USUAL_APPLICATIONS
    speeds = [SPEEDS[name] for name in asked.links or USUAL_LINKS]
    slow = [SPEEDS[name] for name in asked.links or SLOW_LINKS]
    first = FirstMounts(stage, names)
    groups = {
        "A": first.times(speeds),
        "B": itertools.chain(
            beside_podman(stage, names[0]),
            warm_mounts(stage, asked.sizes, names),
            memory(stage, asked.sizes[-1:], names),
        ),
        "C": reading(stage, names),
        "D": lazy(stage, names, speeds),
        "E": first.cpu(),
        "F": scratch(stage, QUICK if asked.quick else FULL),
        "G": cold_starts(stage, asked.apps or ALL_APPLICATIONS, slow),
        "H": containers(stage, asked.apps or ALL_APPLICATIONS, slow[0]),
        "I": drivers(stage, names),
        "K": itertools.chain(
            readiness(stage, names, slow[0]), costs(stage, IMAGES[: 2 if asked.quick else 3], CONTAINERS)
        ),
        "J": looking(stage, asked.sizes[:2][-1], names[0]),
        "L": models(stage, slow),
    }
    return itertools.chain([machine()], *(groups[name] for name in sorted(asked.only)))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run README's commands in a fresh Debian: `scripts/test --fresh [SUITE] [--first] [PYTEST-ARGUMENT...]`.

A bare root file system of SUITE (bookworm, unless it says trixie) is made with mmdebstrap; a clone of this
checkout's last commit is put in it, and scripts/quickstart and scripts/test run there, with /dev/fuse and
nothing else of this machine but its network. --first: of each module the first test, no lint. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from scripts.fresh import contained, root

SUITES = ("bookworm", "trixie")
TOOLS = ("mmdebstrap", "git", "unshare", "setpriv", "pivot_root", "mount")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _interrupted(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Run a command whose processes and mounts end with it, and it with us; its exit code."""
    environment = {"PYTHONPATH": str(root.CHECKOUT), "PATH": f"{PATH}", **(environment or {})}
    with subprocess.Popen(contained.words(command), env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise


def travel(place: Path, suite: str, first: bool, arguments: Sequence[str]) -> int:
    """Make the root at `place` and run the journey there; its exit code."""
    begun = time.monotonic()
    made = _run(root.bootstrap(place, suite), dict(os.environ))
    if made:
        return made
    fresh = place / "root"
    environment = {"HOME": "/root", "LANG": "C.UTF-8", "CI": "true", **root.furnish(fresh)}
    print(f"== fresh: a bare {suite}: {time.monotonic() - begun:.0f} s", flush=True)
    inside = [sys.executable, "-B", "-m", "scripts.fresh.contained", str(fresh), f"/{root.CLONE}"]
    journey = [f"/{root.CLONE}/scripts/fresh/journey", "FIRST" if first else "ALL"]
    code = _run([*inside, *journey, *arguments], environment)
    print(f"== fresh: {suite}: exit code {code} after {time.monotonic() - begun:.0f} s", flush=True)
    return code


def main(arguments: list[str]) -> int:
    """Do what the module's docstring says."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    suite = arguments.pop(0) if arguments and arguments[0] in SUITES else SUITES[0]
    first = arguments[:1] == ["--first"]
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if os.geteuid() or lacking:
        sys.exit(
            f"fresh: needs {' '.join(lacking)}" if lacking else "fresh: only root can make a root file system"
        )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    with root.scratch() as place:
        return travel(place, suite, first, arguments[first:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

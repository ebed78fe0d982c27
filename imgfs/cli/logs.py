"""imgfs logs: what a detached container has said."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from imgfs.cli.options import Commands, add_command, store_option

if TYPE_CHECKING:
    from imgfs.runtime.output_log import LogLine

_DURATION = re.compile(r"(?:[0-9.]+(?:h|ms|m|s))+")
_PART = re.compile(r"([0-9.]+)(h|ms|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def add_logs(commands: Commands) -> None:
    """`imgfs logs`."""
    command = add_command(
        commands,
        "logs",
        logs,
        "show the output of a detached container",
        """\
Writes what a container started with `imgfs run -d` has written to its standard output and standard error, to
the same two. The last 10 to 20 MB of it are kept (imgfs run --log-opt max-size=SIZE), until the container is
removed.

Examples:
  imgfs logs web
  imgfs logs -f --tail 20 web
  imgfs logs -t --since 10m web
""",
    )
    add = command.add_argument
    add("-f", "--follow", action="store_true", help="go on with what it says from now on, until its end")
    add("--tail", metavar="N", type=_count, default=-1, help="begin with the last N lines (default: all)")
    add("-t", "--timestamps", action="store_true", help="begin each line with when it was written")
    when = "a time (RFC 3339, or seconds since 1970) or how long ago (10m, 1h30m)"
    add("--since", metavar="TIME", type=_time, help=f"only what was written after {when}")
    add("--until", metavar="TIME", type=_time, help="only what was written before it")
    store_option(command)
    add("container", metavar="CONTAINER", help="its name, id, or the beginning of its id")


def logs(options: argparse.Namespace) -> int:
    """Show a log; raises ImgfsError."""
    from imgfs.cli.options import open_store
    from imgfs.errors import UsageError
    from imgfs.runtime.containers import find_container
    from imgfs.runtime.output_log import follow_log, read_log

    container = find_container(open_store(options, writable=False).root, options.container)
    if not container.record.detached:
        raise UsageError(f"{container.record.name} was not detached: its output is where it was started")
    follows = options.follow and container.is_running
    wanted = _within(read_log(container.directory), options.since, options.until)
    if not follows:
        _show(_last(wanted, options.tail), options.timestamps)
        return 0
    shown = _within(
        follow_log(container.directory, lambda: container.is_running), options.since, options.until
    )
    skipped = max(0, sum(line.whole for line in wanted) - options.tail) if options.tail >= 0 else 0
    with contextlib.suppress(KeyboardInterrupt):
        _show(_without_first(shown, skipped), options.timestamps)
    return 0


def _within(lines: Iterable[LogLine], since: float | None, until: float | None) -> Iterator[LogLine]:
    for line in lines:
        if (since is None or line.time >= since) and (until is None or line.time <= until):
            yield line


def _last(lines: Iterable[LogLine], count: int) -> Iterable[LogLine]:
    """Return the last lines: a line may be in parts."""
    if count < 0:
        return lines
    kept: deque[list[LogLine]] = deque(maxlen=count)
    parts: list[LogLine] = []
    for line in lines:
        parts.append(line)
        if line.whole:
            kept.append(parts)
            parts = []
    if parts:
        kept.append(parts)
    return [part for line in kept for part in line]


def _without_first(lines: Iterable[LogLine], count: int) -> Iterator[LogLine]:
    for line in lines:
        if count > 0:
            count -= line.whole
            continue
        yield line


def _show(lines: Iterable[LogLine], timestamps: bool) -> None:
    sinks = {b"stdout": sys.stdout.buffer, b"stderr": sys.stderr.buffer}
    begins = dict.fromkeys(sinks, True)
    for line in lines:
        sink = sinks[line.stream]
        head = f"{line.stamp} ".encode() if timestamps and begins[line.stream] else b""
        sink.write(head + line.text + (b"\n" if line.whole else b""))
        sink.flush()
        begins[line.stream] = line.whole


def _count(text: str) -> int:
    if not re.fullmatch("all|-1|[0-9]{1,12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return -1 if text == "all" else int(text)


def _time(text: str) -> float:
    """Return seconds since 1970 of a time, or of how long ago something was."""
    if _DURATION.fullmatch(text):
        with contextlib.suppress(ValueError):
            return time.time() - sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    with contextlib.suppress(ValueError, OverflowError):
        return float(text)
    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    raise argparse.ArgumentTypeError(f"{text!r} is not a time, like 10m or 2026-11-28T12:00:00")

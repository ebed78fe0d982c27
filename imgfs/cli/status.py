"""imgfs status: once, or again and again; as text, JSON, or as Prometheus reads it.

`report` makes the text for people: what a mount has cost so far, layer by layer, and what goes wrong. It is
pure; with an earlier status of the same mount it also says how fast the numbers grow.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imgfs.cli.format import counted, size, sizes
from imgfs.cli.options import Commands
from imgfs.cli.output import say
from imgfs.quoting import printable
from imgfs.status import BroughtStatus, EndpointStatus, LayerStatus, MountStatus

if TYPE_CHECKING:
    import argparse

_EVERY = 2.0  # seconds
_OFTENEST, _SELDOMEST = 0.1, 86_400.0
Status = Mapping[str, object]  # as the daemon says it: --json shows all of it, whatever its version
Text = Callable[[Status, Status | None], str]  # of a status, and of the one before it
# Home and erase; erase to the end of a line, of the screen; lines are cut off, not broken (xterm's ctlseqs).
_CLEAR, _HOME, _REST_OF_LINE, _REST = "\x1b[H\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_MARGIN = " " * 6
_VERIFIED = "verified"
_CAUSES = {  # why spans were fetched (content.stats.Cause)
    "miss": "for a miss",
    "near": "beside one",
    "ahead": "by read-ahead",
    "replay": "by replay",
    "whole": "with the whole layer",
    "fill": "by the fill",
    "sweep": "by a sweep of the tree",
    "library": "by a guess at libraries",
    "module": "by a guess at modules",
}

Counted = TypeVar("Counted", MountStatus, LayerStatus)


def add_status(commands: Commands) -> None:
    """`imgfs status`."""
    command = commands.add_parser(
        "status",
        help="show what a mount has fetched and served",
        usage="imgfs status [-h] [--json | --metrics] [--watch [SECONDS]] MOUNTPOINT",
        description="""\
Shows what is mounted at MOUNTPOINT, what it has cost since it was mounted, and errors. Sizes are of
compressed bytes, as the registry sends them, except where it says decompressed.

  fetched    what came from the registry since the mount was there: bytes of layers, and of indexes and
             documents
  peers      what other machines' imgfs brought of layers, who send it decompressed
  served     bytes of files handed out by imgfs; not those that the kernel had cached, or reads itself
  needed     the spans of a layer that readers have touched, whole: less than a span cannot be read
  discarded  what came between the spans that were wanted, or damaged
  kept       the spans that came, by why they were fetched

Examples:
  imgfs status /mnt
  imgfs status --watch /mnt            look again every two seconds, until it is interrupted
  imgfs status --json /mnt | jq .bytes_fetched
  imgfs status --json --watch 10 /mnt  a line of JSON every ten seconds
  imgfs status --metrics /mnt          as Prometheus reads it (see: imgfs mount --metrics)
""",
    )
    command.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--metrics", action="store_true", help="print Prometheus's text format")
    command.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        const=str(_EVERY),
        help=f"print it again and again, with the rates of change (default: every {_EVERY:.0f} seconds)",
    )

    def run(options: argparse.Namespace) -> int:
        _tell_apart(options, command)
        return status(options)

    command.set_defaults(run=run)


def _tell_apart(options: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Tell whether the word after --watch is its number or the mount point: the number may be left out."""
    if options.watch is not None and options.mountpoint is None and _seconds(options.watch) is None:
        options.watch, options.mountpoint = str(_EVERY), options.watch
    if options.mountpoint is None:
        command.error("the following arguments are required: MOUNTPOINT")
    if options.watch is not None:
        seconds = _seconds(options.watch)
        if seconds is None:
            command.error(
                f"argument --watch: {options.watch!r} is not a number of seconds from {_OFTENEST} to "
                f"{_SELDOMEST:.0f}"
            )
        options.watch = seconds


def _seconds(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        if _OFTENEST <= float(text) <= _SELDOMEST:
            return float(text)
    return None


def status(options: argparse.Namespace) -> int:
    """Show what a mount has fetched and served."""
    path = Path(options.mountpoint).absolute()
    text = _text(options)
    found = _look(path)
    if options.watch is None:
        say(text(found, None))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # SIGINT ends it
        _watch(path, options.watch, found, text)
    return 0


def _watch(path: Path, every: float, found: Status, text: Text) -> None:
    """Show the status until SIGINT, or until the mount is gone."""
    before: Status | None = None
    draw = _redraw if sys.stdout.isatty() else _append
    while True:
        draw(text(found, before), before is None)
        time.sleep(every)
        before, found = found, _look(path)


def _look(path: Path) -> Status:
    from imgfs.mounts.status_client import read_status_json
    from imgfs.mounts.table import imgfs_mount_at

    return read_status_json(imgfs_mount_at(path))


def _text(options: argparse.Namespace) -> Text:
    if options.metrics:
        from imgfs.metrics.exposition import exposition

        return lambda found, _: exposition(MountStatus.from_json(found)).rstrip("\n")
    if options.json:
        import json

        indent = 2 if options.watch is None else None
        return lambda found, _: json.dumps(found, indent=indent)
    return _report


def _report(found: Status, before: Status | None) -> str:
    return report(MountStatus.from_json(found), MountStatus.from_json(before) if before else None)


def _append(text: str, is_first: bool) -> None:
    """Write a block; an empty line parts it from the one before, if it has several."""
    say(f"\n{text}" if "\n" in text and not is_first else text, flush=True)


def _redraw(text: str, is_first: bool) -> None:
    """Write over what was there, as much as the screen holds."""
    import shutil  # here: one look has no use for it

    height = shutil.get_terminal_size().lines
    lines = text.splitlines()
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    drawn = "".join(f"{line}{_REST_OF_LINE}{os.linesep}" for line in lines)
    sys.stdout.write(f"{_CLEAR if is_first else _HOME}{_NO_WRAP}{drawn}{_REST}{_WRAP}")
    sys.stdout.flush()


def report(found: MountStatus, before: MountStatus | None = None) -> str:
    """Return the text, without a newline at its end."""
    seconds = _seconds_between(found, before)
    earlier = before if seconds else None
    lines = [*_head(found), *_totals(found, earlier, seconds), "layers"]
    layers_before = earlier.layers if earlier else [None] * len(found.layers)
    for layer, layer_before in zip(found.layers, layers_before, strict=True):
        lines += _layer(layer, layer_before, seconds)
    return "\n".join(map(printable, lines))


def _seconds_between(found: MountStatus, before: MountStatus | None) -> float:
    """0 if there was nothing before, or another mount."""
    if before is None or (before.pid, before.began) != (found.pid, found.began):
        return 0.0
    return max(0.0, float(found.seconds - before.seconds))


def _head(found: MountStatus) -> Iterator[str]:
    yield f"image     {found.image}"
    yield f"digest    {found.digest}"
    yield f"platform  {found.platform}"
    yield f"mounted   {found.mountpoint}, {found.seconds:.0f} s ago, by pid {found.pid}"
    if found.restarts:
        yield f"restarted {counted(found.restarts, 'time')}: the figures below are those since the last"
    if scratch := found.scratch:
        yield f"scratch   {scratch.name}" if scratch.kept else "scratch   goes with the mount"
    if (by_kernel := found.passthrough) is not None:
        yield f"driver    kernel; it reads {by_kernel} of {counted(len(found.layers), 'layer')} itself"
    if found.tree != _VERIFIED:
        yield f"tree      on the word of {found.tree}"
    if found.metrics:
        yield f"metrics   {found.metrics}"
    if fill := found.fill:
        yield f"fill      {fill.state}, {size(fill.missing)} missing"
    for endpoint in found.endpoints:
        yield f"source    {_endpoint(endpoint)}"


def _totals(found: MountStatus, before: MountStatus | None, seconds: float) -> Iterator[str]:
    fetched = _rate(found, before, "bytes_fetched", seconds)
    from_peers = sum(layer.from_peers for layer in found.layers)
    of_layers = sum(layer.fetched for layer in found.layers) - from_peers
    total, layers, others = sizes(of_layers, max(0, found.bytes_fetched - of_layers))
    requests = counted(found.requests_fetched, "request")
    yield f"fetched   {total} in {requests}: {layers} of layers, {others} of indexes and documents{fetched}"
    if from_peers:
        yield f"peers     spared the registry {size(from_peers)} of layers"
    served = f"{size(found.bytes_served)} of files, decompressed"
    yield f"served    {served}{_rate(found, before, 'bytes_served', seconds)}"
    if reads := _reads(found.layers):
        yield f"reads     {reads}"


def _layer(layer: LayerStatus, before: LayerStatus | None, seconds: float) -> Iterator[str]:
    """Yield a line that tells layers apart, then, indented, what there is to say of one that is in use."""
    there = f"{layer.spans_present}/{layer.spans} spans here"
    fetched = f"{size(layer.bytes_fetched)} fetched{_rate(layer, before, 'bytes_fetched', seconds)}"
    short = layer.digest.partition(":")[2][:12]
    yield f"  {short}  {layer.format:12}  {size(layer.size):>8}  {there:>22}  {fetched}"
    vouched = _VERIFIED if layer.index == _VERIFIED else f"on the word of {layer.index}"
    yield f"{_MARGIN}index {vouched}"
    reads = f"reads {_reads([layer])}" if layer.hits + layer.misses else ""
    lines = [_needed(layer), _fetched(layer), _brought(layer.brought), reads, _trouble(layer)]
    yield from (f"{_MARGIN}{line}" for line in lines if line)


def _needed(layer: LayerStatus) -> str:
    """Return the compressed bytes of the spans that readers have touched, by where those came from."""
    if not layer.needed:
        return ""
    fetched, here = layer.needed_fetched, layer.needed_here
    rest = max(0, layer.needed - fetched - here)
    total, *parts = sizes(fetched, here, rest)
    said = f"{parts[0]} fetched by this mount, {parts[1]} in the store before"
    said += f", {parts[2]} awaited or fetched by another mount" if rest else ""
    spans = counted(layer.spans_touched, "span")
    return f"needed {total} in {spans} ({size(layer.needed_flat)} decompressed): {said}"


def _fetched(layer: LayerStatus) -> str:
    """Return the compressed bytes that came, by what became of them."""
    if not layer.fetched:
        return ""
    used = sum(one.bytes_used for one in layer.brought.values())
    arriving = max(0, layer.fetched - used - layer.untouched - layer.discarded)
    total, *parts = sizes(used, layer.untouched, layer.discarded, arriving)
    said = f"{parts[0]} read, {parts[1]} not read yet, {parts[2]} discarded"
    said += f", {parts[3]} not verified yet" if arriving else ""
    said += f"; {size(layer.from_peers)} of it by peers" if layer.from_peers else ""
    return f"fetched {total} in {counted(layer.requests, 'request')}: {said}"


def _reads(layers: Sequence[LayerStatus]) -> str:
    """Return how many reads found what they wanted, and how long the others waited for a first byte."""
    hits, misses = (sum(getattr(layer, name) for layer in layers) for name in ("hits", "misses"))
    if not hits + misses:
        return ""
    said = f"{hits + misses}, {100 * hits / (hits + misses):.1f} % without waiting"
    waits = [layer.first_byte for layer in layers]
    if count := sum(wait.requests for wait in waits):
        mean = 1000 * sum(wait.seconds for wait in waits) / count
        longest = 1000 * max(wait.longest for wait in waits)
        said += f"; first byte after {mean:.0f} ms, {longest:.0f} ms at most"
    return said


def _brought(brought: Mapping[str, BroughtStatus]) -> str:
    """Return what was fetched for which reason, and how much of that has been read."""
    parts = [
        f"{size(one.bytes)} {_CAUSES.get(cause, cause)} ({100 * one.bytes_used // one.bytes} % read)"
        for cause, one in brought.items()
        if one.bytes
    ]
    return f"kept {', '.join(parts)}" if parts else ""


def _trouble(layer: LayerStatus) -> str:
    error = layer.last_error
    if error is None:
        return ""
    since = f"failing since {_time(layer.failing_since)}: " if layer.failing_since else ""
    return f"{since}{counted(layer.errors, 'error')}, the last at {_time(error.time)}: {error.text}"


def _endpoint(endpoint: EndpointStatus) -> str:
    """Return a place that is asked.

    If that fails, since when, how often it was tried, and what it last said.
    """
    if endpoint.since is None:
        return f"{endpoint.endpoint}: {endpoint.state}"
    said = f"{endpoint.state} since {_time(endpoint.since)}, {counted(endpoint.tries, 'try', 'tries')}"
    if endpoint.left_alone_until:
        said += f", left alone until {_time(endpoint.left_alone_until)}"
    return f"{endpoint.endpoint}: {said}: {endpoint.error}"


def _rate(found: Counted, before: Counted | None, name: str, seconds: float) -> str:
    if before is None or seconds <= 0:
        return ""
    return f", {size((getattr(found, name) - getattr(before, name)) / seconds)}/s now"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

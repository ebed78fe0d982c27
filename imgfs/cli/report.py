"""A mount's status as text for people: what it has cost so far, layer by layer, and what goes wrong.

Pure. With an earlier status of the same mount, also how fast the numbers grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from imgfs.cli.format import counted, size
from imgfs.quoting import printable
from imgfs.status import BroughtStatus, EndpointStatus, LayerStatus, MountStatus

_MARGIN = " " * 6
_VERIFIED = "verified"

Counted = TypeVar("Counted", MountStatus, LayerStatus)


def report(found: MountStatus, before: MountStatus | None = None) -> str:
    """The text, without a newline at its end."""
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
    if scratch := found.scratch:
        yield f"scratch   {scratch.name}" if scratch.kept else "scratch   goes with the mount"
    if (by_kernel := found.passthrough) is not None:
        yield f"driver    kernel; it reads {by_kernel} of {len(found.layers)} layers itself"
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
    requests = counted(found.requests_fetched, "request")
    yield f"fetched   {size(found.bytes_fetched)} in {requests}{fetched}"
    yield f"served    {size(found.bytes_served)}{_rate(found, before, 'bytes_served', seconds)}"
    if reads := _reads(found.layers):
        yield f"reads     {reads}"


def _layer(layer: LayerStatus, before: LayerStatus | None, seconds: float) -> Iterator[str]:
    """A line that tells layers apart, then, indented, what there is to say of one that is in use."""
    there = f"{layer.spans_present}/{layer.spans} spans here"
    fetched = f"{size(layer.bytes_fetched)} fetched{_rate(layer, before, 'bytes_fetched', seconds)}"
    short = layer.digest.partition(":")[2][:12]
    yield f"  {short}  {layer.format:12}  {size(layer.size):>8}  {there:>22}  {fetched}"
    vouched = _VERIFIED if layer.index == _VERIFIED else f"on the word of {layer.index}"
    yield f"{_MARGIN}index {vouched}"
    reads = f"reads {_reads([layer])}" if layer.hits + layer.misses else ""
    lines = [_cost(layer), reads, _brought(layer.brought), _trouble(layer)]
    yield from (f"{_MARGIN}{line}" for line in lines if line)


def _cost(layer: LayerStatus) -> str:
    """What readers needed, and what came in vain: for good, or so far."""
    if not layer.needed and not layer.fetched:
        return ""
    requests = counted(layer.requests, "request")
    return (
        f"needed {size(layer.needed)}; fetched {size(layer.fetched)} in {requests}, "
        f"of that {size(layer.discarded)} discarded, {size(layer.untouched)} not read yet"
    )


def _reads(layers: Sequence[LayerStatus]) -> str:
    """How many reads found what they wanted, and how long the others waited for a first byte."""
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
    """What was fetched for which reason, and how much of that has been read."""
    parts = (
        f"{cause} {size(one.bytes)}, {100 * one.bytes_used // one.bytes} % used"
        for cause, one in brought.items()
        if one.bytes
    )
    return "; ".join(parts)


def _trouble(layer: LayerStatus) -> str:
    error = layer.last_error
    if error is None:
        return ""
    since = f"failing since {_time(layer.failing_since)}: " if layer.failing_since else ""
    return f"{since}{layer.errors} errors, the last at {_time(error.time)}: {error.text}"


def _endpoint(endpoint: EndpointStatus) -> str:
    """A place that is asked; if that fails, since when, how often it was tried, and what it last said."""
    if endpoint.since is None:
        return f"{endpoint.endpoint}: {endpoint.state}"
    said = f"{endpoint.state} since {_time(endpoint.since)}, {endpoint.tries} tries"
    if endpoint.left_alone_until:
        said += f", left alone until {_time(endpoint.left_alone_until)}"
    return f"{endpoint.endpoint}: {said}: {endpoint.error}"


def _rate(found: Counted, before: Counted | None, name: str, seconds: float) -> str:
    if before is None or seconds <= 0:
        return ""
    return f", {size((getattr(found, name) - getattr(before, name)) / seconds)}/s now"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")

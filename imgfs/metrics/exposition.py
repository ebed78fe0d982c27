"""A mount's status as text for Prometheus ("Exposition formats", text format 0.0.4).

Pure: a MountStatus becomes text. Names end in their unit, bytes or seconds;
counters, which only grow while the mount lives, in `_total`. An image may have one layer twice: `number`,
from 1 for the lowest, tells them apart.

prometheus-client is not used for this: it takes 15 to 20 ms of CPU and 36 modules to load in a mount's
daemon, and would stand in for `_family` and `_sample` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from imgfs.status import BroughtStatus, EndpointStatus, FillStatus, LayerStatus, MountStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})  # of a label's value

Sample = MountStatus | LayerStatus | BroughtStatus | EndpointStatus


class _Metric(NamedTuple):
    """A family: what follows `imgfs_` in its name; its type and meaning; the field it is, or a function."""

    name: str
    type: str
    help: str
    value: str | Callable[[Any], float | None]


_MOUNT = (
    _Metric("mount_start_time_seconds", "gauge", "When the mount began, since 1970.", "began"),
    _Metric("restarts_total", "counter", "Daemons of the mount that were killed.", "restarts"),
    _Metric("served_bytes_total", "counter", "Bytes of files handed to readers.", "bytes_served"),
    _Metric("fetched_bytes_total", "counter", "Bytes received from the registry.", "bytes_fetched"),
    _Metric("requests_total", "counter", "Requests sent to the registry.", "requests_fetched"),
    _Metric("recorded_spans", "gauge", "Spans in the profile that is being recorded.", "spans_recorded"),
)
_ENDPOINT = (
    _Metric(
        "endpoint_up",
        "gauge",
        "1 if the registry or mirror answers.",
        lambda endpoint: endpoint.since is None,
    ),
    _Metric("endpoint_failed_tries", "gauge", "Tries that failed, one after the other.", "tries"),
)
_LAYER = (
    _Metric("layer_size_bytes", "gauge", "Compressed size of the layer.", "size"),
    _Metric("layer_flat_size_bytes", "gauge", "Uncompressed size of the layer.", "flat_size"),
    _Metric("layer_spans", "gauge", "Spans that the layer is cut into.", "spans"),
    _Metric("layer_spans_present", "gauge", "Spans that are in the store.", "spans_present"),
    _Metric("layer_spans_touched", "gauge", "Spans that readers have used.", "spans_touched"),
    _Metric("layer_hits_total", "counter", "Reads of what was there already.", "hits"),
    _Metric("layer_misses_total", "counter", "Reads that had to wait for the registry.", "misses"),
    _Metric("layer_needed_bytes_total", "counter", "Compressed bytes that readers have used.", "needed"),
    _Metric(
        "layer_needed_fetched_bytes_total", "counter", "Of them, fetched by the mount.", "needed_fetched"
    ),
    _Metric("layer_needed_here_bytes_total", "counter", "Of them, in the store before.", "needed_here"),
    _Metric("layer_fetched_bytes_total", "counter", "Compressed bytes received.", "fetched"),
    _Metric("layer_peer_bytes_total", "counter", "Of them, spared the registry by peers.", "from_peers"),
    _Metric("layer_discarded_bytes_total", "counter", "Of them, thrown away.", "discarded"),
    _Metric("layer_unread_bytes", "gauge", "Of them, kept but not read yet.", "untouched"),
    _Metric("layer_window_bytes_total", "counter", "Bytes of checkpoints' windows received.", "windows"),
    _Metric("layer_requests_total", "counter", "Requests sent for the layer.", "requests"),
    _Metric("layer_errors_total", "counter", "Requests that failed.", "errors"),
    _Metric(
        "layer_failing_since_seconds",
        "gauge",
        "Since when every request has failed, since 1970; 0 if the last one did not.",
        lambda layer: layer.failing_since or 0,
    ),
    _Metric(
        "layer_first_byte_longest_seconds",
        "gauge",
        "The longest that a reader's request has waited for its first byte.",
        lambda layer: layer.first_byte.longest,
    ),
)
_BROUGHT = (
    _Metric("layer_brought_spans_total", "counter", "Spans fetched, by cause.", "spans"),
    _Metric("layer_brought_used_spans_total", "counter", "Of them, read since.", "spans_used"),
    _Metric("layer_brought_bytes_total", "counter", "Compressed bytes fetched, by cause.", "bytes"),
    _Metric("layer_brought_used_bytes_total", "counter", "Of them, read since.", "bytes_used"),
)


def exposition(status: MountStatus) -> str:
    """Return the whole text, ending in a newline."""
    layers = [(_labels_of(layer, number), layer) for number, layer in enumerate(status.layers, 1)]
    brought = [
        ({**labels, "cause": cause}, counts)
        for labels, layer in layers
        for cause, counts in layer.brought.items()
    ]
    lines = [*_mount_info(status), *_families(_MOUNT, [({}, status)]), *_fill(status.fill)]
    endpoints = [({"endpoint": each.endpoint}, each) for each in status.endpoints]
    lines += _families(_ENDPOINT, endpoints)
    lines += [*_layer_info(layers), *_families(_LAYER, layers), *_first_byte(layers)]
    return "\n".join([*lines, *_families(_BROUGHT, brought), ""])


def _labels_of(layer: LayerStatus, number: int) -> dict[str, str]:
    return {"layer": layer.digest, "number": str(number), "format": layer.format}


def _families(
    metrics: Iterable[_Metric], samples: Iterable[tuple[Mapping[str, str], Sample]]
) -> Iterator[str]:
    for name, kind, text, value in metrics:
        found = [
            (labels, getattr(fields, value) if isinstance(value, str) else value(fields))
            for labels, fields in samples
        ]
        yield from _family(
            name, kind, text, [(labels, number) for labels, number in found if number is not None]
        )


def _family(
    name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]
) -> Iterator[str]:
    yield f"# HELP imgfs_{name} {text}"
    yield f"# TYPE imgfs_{name} {kind}"
    for labels, value in samples:
        yield _sample(name, labels, value)


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    pairs = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels.items())
    return f"imgfs_{name}{f'{{{pairs}}}' if pairs else ''} {float(value)!r}"


def _mount_info(status: MountStatus) -> Iterator[str]:
    about = {name: str(getattr(status, name)) for name in ("image", "digest", "platform", "mountpoint")}
    return _family("mount_info", "gauge", "What is mounted where; always 1.", [(about, 1)])


def _fill(fill: FillStatus | None) -> Iterator[str]:
    if not fill:
        return
    yield from _family("fill_missing_bytes", "gauge", "Compressed bytes still to come.", [({}, fill.missing)])
    state = {"state": fill.state.partition(":")[0]}
    yield from _family("fill_state", "gauge", "What the fill is doing; always 1.", [(state, 1)])


def _layer_info(layers: Iterable[tuple[Mapping[str, str], LayerStatus]]) -> Iterator[str]:
    vouched = [({**labels, "index": layer.index}, 1) for labels, layer in layers]
    return _family("layer_info", "gauge", "Who vouches for the layer's index; always 1.", vouched)


def _first_byte(layers: Iterable[tuple[Mapping[str, str], LayerStatus]]) -> Iterator[str]:
    """Yield a summary without quantiles: how often and how long readers waited for a first byte."""
    name = "layer_first_byte_seconds"
    yield from _family(name, "summary", "How long readers' requests waited for their first byte.", [])
    for labels, layer in layers:
        waited = layer.first_byte
        yield _sample(f"{name}_sum", labels, waited.seconds)
        yield _sample(f"{name}_count", labels, waited.requests)

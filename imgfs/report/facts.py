"""What a report says of an image and of a mount, as JSON has it: text is quoted, lists have bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from imgfs.errors import ImgfsError
from imgfs.image.files import ImageFiles
from imgfs.image.image import Image
from imgfs.image.profiles import profile_for
from imgfs.image.resolve import Resolved
from imgfs.image.versions import steps_of
from imgfs.image.waste import Waste
from imgfs.packages.installed import InstalledPackages
from imgfs.quoting import printable, printable_path
from imgfs.report.treemap import Area, SizeMap
from imgfs.status import MountStatus
from imgfs.store.store import Store

Facts = dict[str, object]

WASTED = 100  # files that are listed
_PACKAGES = 5000
_STEPS = 1000
_TEXT = 2000  # characters of a text
_POINTS = 4000  # accesses that are drawn
_CONFIG = (
    "Entrypoint",
    "Cmd",
    "User",
    "WorkingDir",
    "ExposedPorts",
    "Volumes",
    "Env",
    "Labels",
    "StopSignal",
)


def image_facts(resolved: Resolved, sizes: SizeMap) -> Facts:
    """Say what an image is: layers, steps, configuration, the map of sizes and the largest files."""
    steps = steps_of(resolved)
    commands = {step.layer: step.command for step in steps if step.layer}
    return {
        "image": _text(resolved.reference),
        "digest": str(resolved.digest),
        "platform": _text(str(resolved.config.platform)),
        "created": _text(resolved.config.created or ""),
        "config": _config(resolved.config.config),
        "layers": [
            {
                "number": number,
                "digest": str(layer.digest),
                "stored": layer.size,
                "shown": sizes.by_layer.get(number, 0),
                "command": _text(commands.get(number, "")),
            }
            for number, layer in enumerate(resolved.manifest.layers, 1)
        ],
        "steps": [
            {
                "layer": step.layer,
                "command": _text(step.command),
                "created": _text(step.created),
                "size": step.size,
            }
            for step in steps[:_STEPS]
        ],
        "map": _area(sizes.root),
        "largest": [[each.path, each.size, each.layer] for each in sizes.largest],
    }


def waste_facts(waste: Waste) -> Facts:
    """Say what the layers store for nothing."""
    return {
        "efficiency": waste.efficiency,
        "stored": waste.stored,
        "lost": waste.lost,
        "largest": [
            [
                printable_path(b"/" + each.path.lstrip(b"/")),
                each.size,
                each.layer,
                each.hider,
                each.is_replaced,
            ]
            for each in waste.largest
        ],
    }


def package_facts(image: Image) -> Facts:
    """Say which packages are installed; their metadata is fetched. What cannot be read is said, too."""
    try:
        installed = InstalledPackages(ImageFiles(image))
        found = sorted(
            islice(installed.packages(), _PACKAGES + 1), key=lambda one: (one.type, one.name, one.version)
        )
    except ImgfsError as error:
        return {"error": _text(str(error)), "list": []}
    unread = [f"{printable_path(one.path)}: {one.reason}" for one in installed.unread]
    return {
        "distribution": _text(
            " ".join(filter(None, (installed.distribution.id, installed.distribution.version)))
        ),
        "more": len(found) > _PACKAGES,
        "list": [
            [one.type, _text(one.name), _text(one.full_version), one.layer] for one in found[:_PACKAGES]
        ],
        "unread": [_text(line) for line in unread],
    }


def access_facts(resolved: Resolved, store: Store) -> Facts | None:
    """Say in which order the last mounts have read the layers, by their profile; None if there is none.

    A point is a layer's number and how far in it the access was, from 0 to 1.
    """
    profile = profile_for(resolved, store, None)
    if profile is None or not profile.touches:
        return None
    numbers = {str(diff_id): number for number, diff_id in enumerate(resolved.config.diff_ids, 1)}
    known = [
        (numbers[profile.layers[layer].diff_id], start / max(1, profile.layers[layer].size))
        for layer, start, _ in profile.touches
        if profile.layers[layer].diff_id in numbers
    ]
    return {"count": len(known), "points": [[layer, round(at, 4)] for layer, at in _thinned(known)]}


def mount_facts(status: MountStatus, digest: str) -> Facts:
    """Say what a mount has fetched, why, and what of it was used."""
    causes: dict[str, list[int]] = {}
    for layer in status.layers:
        for cause, brought in layer.brought.items():
            sums = causes.setdefault(_text(cause), [0, 0, 0, 0])
            sums[:] = [
                sums[0] + brought.spans,
                sums[1] + brought.bytes,
                sums[2] + brought.spans_used,
                sums[3] + brought.bytes_used,
            ]
    return {
        "mountpoint": _text(status.mountpoint),
        "driver": _text(status.driver),
        "seconds": status.seconds,
        "fetched": status.bytes_fetched,
        "served": status.bytes_served,
        "requests": status.requests_fetched,
        "moved": status.digest != digest,
        "timeline": _timeline(status),
        "causes": [[cause, *sums] for cause, sums in sorted(causes.items(), key=lambda each: -each[1][1])],
        "layers": [
            {
                "size": layer.size,
                "needed": layer.needed,
                "here": layer.needed_here,
                "fetched": layer.fetched,
                "spans": layer.spans,
                "present": layer.spans_present,
                "touched": layer.spans_touched,
            }
            for layer in status.layers
        ],
    }


def _timeline(status: MountStatus) -> Facts | None:
    """Return the course of time; None of a daemon that does not say it."""
    found = status.timeline
    if found is None or found.stretch <= 0:
        return None
    fetched = {_text(cause): list(sums) for cause, sums in found.fetched.items() if any(sums)}
    return {"stretch": found.stretch, "read": list(found.read), "fetched": fetched}


def _thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    step = -(-len(points) // _POINTS)
    return points[:: max(1, step)]


def _config(config: Mapping[str, object]) -> list[list[str]]:
    """Return what the configuration says of running it, as names and texts."""
    return [[name, _text(_flat(config[name]))] for name in _CONFIG if config.get(name)]


def _flat(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value[:100])
    if isinstance(value, Mapping):
        pairs = islice(value.items(), 100)
        return ", ".join(f"{name}={each}" if each not in ({}, None) else str(name) for name, each in pairs)
    return str(value)


def _text(text: str) -> str:
    return printable(text if len(text) <= _TEXT else f"{text[: _TEXT - 1]}…")


def _area(area: Area) -> list[object]:
    below = [_area(each) for each in area.below]
    return [area.name, area.size, area.layer, area.files, *([below] if below else [])]

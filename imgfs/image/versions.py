"""Where the files of an image come from: the steps that made it, and a path's versions in its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from imgfs.image.files import Found, ImageFiles
from imgfs.image.resolve import Resolved


class Step(NamedTuple):
    """A step of an image's making; `layer` is the number of the layer that it made, None if it made none."""

    layer: int | None
    command: str
    created: str
    size: int  # bytes of the layer as it is stored
    digest: str  # of the layer, "" if there is none


class Version(NamedTuple):
    """What a layer does to a path: "added", "changed" or "deleted"; `found` is the file, None if deleted."""

    layer: int
    change: str
    found: Found | None


def steps_of(resolved: Resolved) -> list[Step]:
    """Return the steps of the image's history, the oldest first; a layer that it does not tell of comes last.

    OCI image-spec, config.md, "history": `empty_layer` is true of a step that made no layer.
    """
    layers = list(enumerate(resolved.manifest.layers, 1))[::-1]
    steps = []
    for entry in resolved.config.history:
        number, layer = None, None
        if entry.get("empty_layer") is not True and layers:
            number, layer = layers.pop()
        command = " ".join(str(entry.get("created_by") or entry.get("comment") or "").split())
        created = str(entry.get("created") or "")
        steps.append(
            Step(number, command, created, layer.size if layer else 0, str(layer.digest) if layer else "")
        )
    return steps + [Step(number, "", "", layer.size, str(layer.digest)) for number, layer in layers[::-1]]


def versions_of(
    path: bytes, layers: int, open_at: Callable[[int], AbstractContextManager[ImageFiles]]
) -> Iterator[Version]:
    """Yield what layers do to a path, the uppermost first; only layers that do anything to it.

    `open_at` opens the image as it was after so many layers. Each of these has the path resolved by itself,
    links within it included.
    """
    found, count = _found(path, layers, open_at), layers
    while count:
        if found is None:
            count -= 1
            found = _found(path, count, open_at) if count else None
            if found is not None:
                yield Version(count + 1, "deleted", None)
            continue
        above, file = found
        below = _found(path, above - 1, open_at) if above > 1 else None
        yield Version(above, "changed" if below else "added", file)
        found, count = below, above - 1


def _found(
    path: bytes, count: int, open_at: Callable[[int], AbstractContextManager[ImageFiles]]
) -> tuple[int, Found] | None:
    """Return a path after `count` layers, with the number of the layer that brought it; None if it is not."""
    with open_at(count) as files:
        found = files.at(path)
        return (files.layer(found), found) if found else None

"""imgfs store ls: the images and layers in the cache directory, with their sizes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.format import Column, short, size
from imgfs.cli.options import Commands, add_command, json_option, open_store
from imgfs.cli.output import say, say_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from imgfs.store.layer import StoredLayer
    from imgfs.store.store import Resolution, Store


def add_ls(actions: Commands) -> argparse.ArgumentParser:
    """`imgfs store ls`."""
    text = """\
Lists images by the names they were used by, then layers: their size compressed, uncompressed (FLAT) and on
disk, and how much of each is cached.

Examples:
  imgfs store ls
  imgfs store ls --json | jq '[.layers[].disk] | add'
"""
    command = add_command(actions, "ls", ls, "list images and layers with their sizes", text)
    json_option(command)
    return command


def ls(options: argparse.Namespace) -> int:
    """List images and layers with their sizes."""
    import json

    store = open_store(options, writable=False)
    layers = [_layer(layer) for layer in store.layers()]
    disks = {layer.digest: layer.disk for layer in layers}
    found = StoreListing(
        store=str(store.root),
        limit=store.limit.read(),
        images=[_image(resolution, store, disks) for resolution in store.resolutions()],
        layers=layers,
    )
    if options.json:
        say(json.dumps(found.to_json(), indent=2))
    else:
        _show(found)
    return 0


class ImageRow(NamedTuple):
    """An image in the store."""

    reference: str
    digest: str
    resolved: int
    layers: list[str]
    disk: int
    tree: bool


class LayerRow(NamedTuple):
    """A layer in the store; what its index would say is None without one, and not in the JSON."""

    digest: str
    disk: int
    in_use: bool
    last_used: int
    state: str
    format: str | None = None
    size: int | None = None
    flat_size: int | None = None
    entries: int | None = None
    spans: int | None = None
    present: int | None = None
    partial: int | None = None  # bytes of disk that a download takes that was broken off


class StoreListing(NamedTuple):
    """What `imgfs store ls` shows."""

    store: str
    limit: int | None
    images: list[ImageRow]
    layers: list[LayerRow]

    def to_json(self) -> dict[str, object]:
        """Return it as --json prints it."""
        layers = [layer._asdict() for layer in self.layers]
        known = [{name: value for name, value in layer.items() if value is not None} for layer in layers]
        images = [image._asdict() for image in self.images]
        return {**self._asdict(), "images": images, "layers": known}


def _image(resolution: Resolution, store: Store, disks: Mapping[str, int]) -> ImageRow:
    """Describe an image; `disks` are the bytes of disk of all layers, by their digests."""
    from imgfs.maintenance.gc import contents_of

    layers = [str(digest) for digest in contents_of(resolution, store).layers]
    return ImageRow(
        reference=resolution.reference,
        digest=str(resolution.manifest),
        resolved=int(resolution.resolved),
        layers=layers,
        disk=sum(disks.get(digest, 0) for digest in layers),
        tree=store.tree(resolution.manifest) is not None,
    )


def _layer(layer: StoredLayer) -> LayerRow:
    from imgfs.layer.index import LayerIndex

    known = LayerRow(
        digest=str(layer.digest),
        disk=layer.disk_usage(),
        in_use=layer.in_use(),
        last_used=int(layer.last_used()),
        state="being indexed" if layer.is_locked() else "incomplete",
    )
    index = layer.index
    if index is None:
        return known._replace(partial=layer.partial())
    with LayerIndex(index) as opened:
        summary, spans, bound = opened.summary, opened.span_count(), opened.binding()
    present = layer.count_present(size=summary.flat_size, spans=spans, binding=bound)
    return known._replace(
        state="indexed",
        format=summary.format,
        size=summary.size,
        flat_size=summary.flat_size,
        entries=summary.entries,
        spans=spans,
        present=present,
    )


_IMAGE_COLUMNS = (
    Column("IMAGE"),
    Column("DIGEST"),
    Column("LAYERS", right=True),
    Column("ON DISK", right=True),
    Column("RESOLVED"),
)
_LAYER_COLUMNS = (
    Column("LAYER"),
    Column("FORMAT"),
    Column("SIZE", right=True),
    Column("FLAT", right=True),
    Column("ON DISK", right=True),
    Column("CACHED", right=True),
    Column("STATE"),
)


def _show(found: StoreListing) -> None:
    say_table(_IMAGE_COLUMNS, map(_image_cells, found.images))
    say("")
    say_table(_LAYER_COLUMNS, map(_layer_cells, found.layers))


def _image_cells(image: ImageRow) -> tuple[str, ...]:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(image.resolved))
    return image.reference, short(image.digest), str(len(image.layers)), size(image.disk), when


def _layer_cells(layer: LayerRow) -> tuple[str, ...]:
    cached = "-" if layer.spans is None else f"{100 * (layer.present or 0) // max(1, layer.spans)} %"
    sizes = size(layer.size or 0), size(layer.flat_size or 0), size(layer.disk)
    kept = f", {size(layer.partial)} fetched" if layer.partial else ""
    state = layer.state + kept + (", in use" if layer.in_use else "")
    return short(layer.digest), layer.format or "-", *sizes, cached, state

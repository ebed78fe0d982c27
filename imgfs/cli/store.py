"""imgfs store path, ls: where the cache directory is, and what is in it."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from imgfs.cli.check import add_check
from imgfs.cli.format import size
from imgfs.cli.options import Commands as Actions
from imgfs.cli.options import json_option, store_option
from imgfs.cli.output import say
from imgfs.cli.prune import add_limit, add_prune
from imgfs.cli.store_rm import add_rm
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.store.layer import StoredLayer
    from imgfs.store.store import Resolution, Store


def add_store(commands: Actions) -> None:
    """`imgfs store`."""
    command = commands.add_parser(
        "store",
        help="show, limit, prune or check what is kept in the cache directory",
        description="""\
Indexes, trees and cached bytes are kept in one directory, shared by all mounts and images.

Examples:
  imgfs store path
  imgfs store ls                       images and layers, with sizes
  imgfs store rm debian:12             an image, and the layers only it uses
  imgfs store rm --data debian:12      its cached bytes; its indexes stay
  imgfs store rm --all
  imgfs store limit 20G                keep no more than 20 GB of cached bytes
  imgfs store prune --keep 5G          free disk space now
  imgfs store check --repair           after trouble with the disk

Each has its own help: imgfs store prune --help
""",
    )
    actions = command.add_subparsers(metavar="path|ls|rm|limit|prune|check", required=True)
    for add in (_add_path, _add_ls, add_rm, add_limit, add_prune, add_check):
        store_option(add(actions))


def _add_path(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser("path", help="print its path")
    command.set_defaults(run=path)
    return command


def _add_ls(actions: Actions) -> argparse.ArgumentParser:
    command = actions.add_parser("ls", help="list images and layers with their sizes")
    command.set_defaults(run=ls)
    json_option(command)
    return command


def path(options: argparse.Namespace) -> int:
    """Print the store's path."""
    from imgfs.cli.selection import open_store

    say(open_store(options).root)
    return 0


def ls(options: argparse.Namespace) -> int:
    """List images and layers with their sizes."""
    import json

    from imgfs.cli.selection import open_store

    store = open_store(options)
    found = {
        "store": str(store.root),
        "limit": store.limit.read(),
        "images": [_image(resolution, store) for resolution in store.resolutions()],
        "layers": [_layer(layer) for layer in store.layers()],
    }
    say(json.dumps(found, indent=2) if options.json else _text(found))
    return 0


def _image(resolution: Resolution, store: Store) -> dict[str, Any]:
    from imgfs.maintenance.gc import contents_of

    layers = contents_of(resolution, store).layers
    return {
        "reference": resolution.reference,
        "digest": str(resolution.manifest),
        "resolved": int(resolution.resolved),
        "layers": [str(digest) for digest in layers],
        "disk": sum(store.layer(digest).disk_usage() for digest in layers),
        "tree": store.tree(resolution.manifest) is not None,
    }


def _layer(layer: StoredLayer) -> dict[str, Any]:
    from imgfs.layer.index import LayerIndex

    found: dict[str, Any] = {
        "digest": str(layer.digest),
        "disk": layer.disk_usage(),
        "in_use": layer.in_use(),
        "last_used": int(layer.last_used()),
    }
    index = layer.index
    if index is None:
        return {**found, "state": "being indexed" if layer.is_locked() else "incomplete"}
    with LayerIndex(index) as opened:
        summary, spans, bound = opened.summary, opened.span_count(), opened.binding()
    flat = layer.flat(size=summary.flat_size, spans=spans)
    present = flat.count_present() if flat.is_bound_to(bound) else 0
    flat.close()
    sizes = {"size": summary.size, "flat_size": summary.flat_size, "entries": summary.entries}
    return {
        **found,
        "state": "indexed",
        "format": summary.format,
        **sizes,
        "spans": spans,
        "present": present,
    }


def _text(found: dict[str, Any]) -> str:
    lines = [f"{'IMAGE':<52} {'DIGEST':<12} {'LAYERS':>6} {'ON DISK':>9}  RESOLVED"]
    for image in found["images"]:
        short = image["digest"].partition(":")[2][:12]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(image["resolved"]))
        sizes = f"{len(image['layers']):>6} {size(image['disk']):>9}"
        lines.append(f"{printable(image['reference']):<52} {short:<12} {sizes}  {when}")
    lines += ["", f"{'LAYER':<12} {'FORMAT':<6} {'SIZE':>9} {'FLAT':>9} {'ON DISK':>9} {'CACHED':>7}  STATE"]
    for layer in found["layers"]:
        short = layer["digest"].partition(":")[2][:12]
        sizes = (
            f"{size(layer.get('size', 0)):>9} {size(layer.get('flat_size', 0)):>9} {size(layer['disk']):>9}"
        )
        cached = f"{100 * layer['present'] // max(1, layer['spans'])} %" if "spans" in layer else "-"
        state = layer["state"] + (", in use" if layer["in_use"] else "")
        lines.append(f"{short:<12} {layer.get('format', '-'):<6} {sizes} {cached:>7}  {state}")
    return "\n".join(lines)

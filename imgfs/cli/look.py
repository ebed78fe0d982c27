"""imgfs ls, cat, inspect, version: looking without mounting."""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any

from imgfs import __version__
from imgfs.cli.images import wanted
from imgfs.cli.output import say, say_line
from imgfs.cli.text import long_line, size
from imgfs.image.resolve import Resolved
from imgfs.quoting import printable
from imgfs.tree.reader import Node, Tree


def ls(options: argparse.Namespace) -> int:
    """List files of an image."""
    path = os.fsencode(options.path)
    with wanted(options).open() as image:
        top = image.tree.resolve(path, follow=not options.long or path.endswith(b"/"))
        if not stat.S_ISDIR(top.mode):
            _print_line(image.tree, top, path, options.long)
            return 0
        for directory, names in _listings(image.tree, top, path, options.recursive):
            if options.recursive:
                say_line(directory + b":")
            for name, node in names:
                _print_line(image.tree, node, name, options.long)
            if options.recursive:
                say_line(b"")
    return 0


def cat(options: argparse.Namespace) -> int:
    """Write files of an image to standard output."""
    with wanted(options).open() as image:
        for path in options.paths:
            node = image.tree.resolve(os.fsencode(path))
            if not stat.S_ISREG(node.mode):
                number = errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL
                raise OSError(number, os.strerror(number), path)
            for piece in image.read(node.ino):
                sys.stdout.buffer.write(piece)
    return 0


def inspect(options: argparse.Namespace) -> int:
    """Show what an image is."""
    resolved = wanted(options).resolve()
    say(json.dumps(_document(resolved), indent=2) if options.json else _text(resolved))
    return 0


def version(options: argparse.Namespace) -> int:
    """Show imgfs's version and what it stands on."""
    del options
    import pyfuse3

    python = ".".join(map(str, sys.version_info[:3]))
    say(f"imgfs {__version__} (Python {python}, pyfuse3 {pyfuse3.__version__}, Linux {os.uname().release})")
    return 0


def _listings(
    tree: Tree, top: Node, path: bytes, recursive: bool
) -> Iterator[tuple[bytes, Iterator[tuple[bytes, Node]]]]:
    """Directories from `top` down, each with its children, parents first."""
    ahead = [(path, top)]
    while ahead:
        directory, node = ahead.pop()
        yield directory, ((name, child) for _, name, child in tree.children(node.ino))
        if recursive:
            below = [(_join(directory, name), child) for _, name, child in tree.children(node.ino)]
            ahead += [(name, child) for name, child in reversed(below) if stat.S_ISDIR(child.mode)]


def _join(directory: bytes, name: bytes) -> bytes:
    return directory.rstrip(b"/") + b"/" + name


def _print_line(tree: Tree, node: Node, name: bytes, long: bool) -> None:
    if not long:
        say_line(name)
        return
    target = tree.target(node.ino) if stat.S_ISLNK(node.mode) else None
    say_line(long_line(node, name, target))


def _document(resolved: Resolved) -> dict[str, Any]:
    layers = zip(resolved.manifest.layers, resolved.config.diff_ids, strict=True)
    return {
        "reference": resolved.reference,
        "digest": str(resolved.digest),
        "named_digest": str(resolved.named),
        "media_type": resolved.media_type,
        "platform": str(resolved.config.platform),
        "created": resolved.config.created,
        "config_digest": str(resolved.manifest.config.digest),
        "config": dict(resolved.config.config),
        "history": [dict(entry) for entry in resolved.config.history],
        "layers": [
            {
                "digest": str(layer.digest),
                "diff_id": str(diff_id),
                "size": layer.size,
                "media_type": layer.media_type,
                "annotations": dict(layer.annotations),
            }
            for layer, diff_id in layers
        ],
    }


def _text(resolved: Resolved) -> str:
    config = resolved.config.config
    total = sum(layer.size for layer in resolved.manifest.layers)
    rows = [
        ("reference", resolved.reference),
        ("digest", str(resolved.digest)),
        ("platform", str(resolved.config.platform)),
        ("created", resolved.config.created or "not said"),
        *((name.lower(), _shown(config[name])) for name in _RUNTIME if config.get(name)),
        ("layers", f"{len(resolved.manifest.layers)}, {size(total)}"),
    ]
    lines = [f"{name:<11} {printable(value)}" for name, value in rows]
    lines += [f"  {layer.digest}  {size(layer.size):>8}" for layer in resolved.manifest.layers]
    return "\n".join(lines)


_RUNTIME = (
    "User",
    "WorkingDir",
    "Entrypoint",
    "Cmd",
    "Env",
    "ExposedPorts",
    "Volumes",
    "Labels",
    "StopSignal",
)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

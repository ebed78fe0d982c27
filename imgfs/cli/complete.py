"""imgfs complete KIND: the values that shell completions offer, one a line. Not shown in the help.

Reads the mount table and the store; asks no registry and no daemon, so it answers at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence

from imgfs.cli.options import Commands, open_store, store_option
from imgfs.cli.output import say

# The kind of values that completes an argument, by its metavar.
KINDS = {
    "images": ("IMAGE", "SRC", "IMAGE|DIGEST"),
    "mounts": ("MNT", "MOUNTPOINT", "MNT|NAME"),
    "scratches": ("NAME|DIR", "SCRATCH"),
    "containers": ("CONTAINER",),
    "volumes": ("VOLUME",),
    "topics": ("TOPIC",),
}


def add_complete(commands: Commands) -> None:
    """Describe `imgfs complete`."""
    command = commands.add_parser("complete")
    command.add_argument("kind", choices=KINDS)
    command.add_argument("word", nargs="?", default="")
    command.set_defaults(run=complete)
    store_option(command)


def complete(options: argparse.Namespace) -> int:
    """Print the values of a kind."""
    sources: dict[str, Callable[[argparse.Namespace], Iterable[str]]] = {
        "images": _images,
        "mounts": _mounts,
        "scratches": _scratches,
        "containers": _containers,
        "volumes": _volumes,
        "topics": _topics,
    }
    found = sorted(set(sources[options.kind](options)))
    for value in matching(found, options.word) if options.kind == "images" else found:
        if value.isprintable() and " " not in value:  # shells split words at spaces
            say(value)
    return 0


def matching(references: Sequence[str], word: str) -> Sequence[str]:
    """Return the references that begin with a word; if none does, those of which a part of the path does.

    A shell puts what all have in common into the place of the word. Where the word would be lost by that, it
    is one of them.
    """
    begin = [reference for reference in references if reference.startswith(word)]
    if begin or not word:
        return begin
    within = [reference for reference in references if f"/{word}" in reference]
    common = os.path.commonprefix(within)  # noqa: RUF071  (by characters, as shells do)
    return [*within, word] if common and word not in common else within


def _images(options: argparse.Namespace) -> Iterable[str]:
    return (resolution.reference for resolution in open_store(options, writable=False).resolutions())


def _mounts(options: argparse.Namespace) -> Iterable[str]:
    del options
    from imgfs.mounts.table import mounts

    return (str(mount.mountpoint) for mount in mounts() if mount.is_imgfs)


def _scratches(options: argparse.Namespace) -> Iterable[str]:
    from imgfs.overlay.scratches import list_scratches

    return (
        scratch.name for scratch in list_scratches(open_store(options, writable=False).root) if scratch.name
    )


def _containers(options: argparse.Namespace) -> Iterable[str]:
    from imgfs.runtime.container_record import containers_in

    return (container.record.name for container in containers_in(open_store(options, writable=False).root))


def _volumes(options: argparse.Namespace) -> Iterable[str]:
    from imgfs.runtime.named_volumes import volumes_in

    return (volume.name for volume in volumes_in(open_store(options, writable=False).root))


def _topics(options: argparse.Namespace) -> Iterable[str]:
    del options
    from imgfs.manual import TOPICS

    return TOPICS

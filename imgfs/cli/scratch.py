"""imgfs scratch ls, rm, reset: the scratches that are kept; and the choice of one by MNT|NAME.

`ScratchSelection` is that scratch and the image below it: what diff and commit begin with.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.format import Column, size
from imgfs.cli.options import (
    Commands,
    Run,
    add_command,
    connection_options,
    json_option,
    open_store,
    store_option,
)
from imgfs.cli.output import say, say_table
from imgfs.errors import MountError, StoreError, UsageError

if TYPE_CHECKING:
    from imgfs.config import Environment
    from imgfs.image.image import Image
    from imgfs.oci.reference import Reference
    from imgfs.overlay.diff import Diff
    from imgfs.overlay.scratch import Scratch, ScratchBase
    from imgfs.store.store import Store


def add_scratch(commands: Commands) -> None:
    """`imgfs scratch`."""
    command = commands.add_parser(
        "scratch",
        help="list, reset or remove scratches",
        description="""\
A scratch that has a name is kept in the store, with all that was changed in the image it lies on.

Examples:
  imgfs mount --scratch work debian:12 /mnt
  imgfs scratch ls
  imgfs scratch reset work             back to the image as it is
  imgfs scratch rm work
""",
    )
    actions = command.add_subparsers(metavar="ls|rm|reset", required=True)
    listing = _add_action(actions, "ls", ls, "list them with their sizes and images", _LS)
    json_option(listing)
    for action in (
        _add_action(actions, "rm", rm, "remove scratches with all their changes", _RM),
        _add_action(actions, "reset", reset, "throw away all changes", _RESET),
    ):
        action.add_argument("names", metavar="NAME|DIR", nargs="+", help="as `imgfs scratch ls` shows them")


_LS = """\
Lists the scratches in the store: how much disk space each takes, on which image it lies, and what uses it.

Examples:
  imgfs scratch ls
  imgfs scratch ls --json | jq -r '.[] | select(.in_use == null).name'
"""
_RM = """\
Removes scratches with all their changes. One that is mounted, or that a container uses, is refused.

Examples:
  imgfs scratch rm work
  imgfs scratch rm work ./changes      by name, or by directory
"""
_RESET = """\
Throws away all changes: the next mount shows the image as it is. The scratch keeps its name.

Examples:
  imgfs scratch reset work
"""


def _add_action(
    actions: Commands, name: str, run: Run, summary: str, description: str
) -> argparse.ArgumentParser:
    action = add_command(actions, name, run, summary, description)
    store_option(action)
    return action


def ls(options: argparse.Namespace) -> int:
    """List the scratches in the store."""
    import json

    from imgfs.overlay.scratches import list_scratches

    store = open_store(options, writable=False)
    found = [_described(scratch) for scratch in list_scratches(store.root)]
    if options.json:
        say(json.dumps([asdict(one) for one in found], indent=2))
        return 0
    columns = (
        Column("SCRATCH"),
        Column("ON DISK", right=True),
        Column("IMAGE"),
        Column("IN USE"),
    )
    images = ["(damaged)" if one.damaged else one.image or "-" for one in found]
    say_table(
        columns,
        [
            (one.name, size(one.disk), image, one.in_use or "-")
            for one, image in zip(found, images, strict=True)
        ],
    )
    return 0


def rm(options: argparse.Namespace) -> int:
    """Remove scratches, and all their changes."""
    with ExitStack() as locks:
        scratches = _scratches(options)
        for scratch in scratches:
            locks.enter_context(scratch.locked("being removed"))
        for scratch in scratches:
            scratch.remove()
    return 0


def reset(options: argparse.Namespace) -> int:
    """Throw away all changes, so that the image shows again as it is."""
    for scratch in _scratches(options):
        scratch.reset()
    return 0


def _scratches(options: argparse.Namespace) -> list[Scratch]:
    from imgfs.overlay.scratches import find_scratch

    store = open_store(options)
    found = [find_scratch(name, store.root) for name in dict.fromkeys(options.names)]
    for scratch in found:
        if not scratch.exists():
            raise UsageError(f"{scratch.name}: no such scratch (see: imgfs scratch ls)")
    return found


@dataclass(frozen=True, slots=True)
class ScratchRow:
    """A scratch as `imgfs scratch ls --json` shows it."""

    name: str
    directory: str
    image: str | None
    digest: str | None
    disk: int
    in_use: str | None
    damaged: bool


def _described(scratch: Scratch) -> ScratchRow:
    base, damaged = None, False
    try:
        base = scratch.base()
    except StoreError:
        damaged = True
    return ScratchRow(
        name=scratch.name,
        directory=str(scratch.directory),
        image=base.reference if base else None,
        digest=base.digest if base else None,
        disk=scratch.disk_usage(),
        in_use=scratch.holder(),
        damaged=damaged,
    )


def scratch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("scratch", metavar="MNT|NAME", help="a mount, or a scratch by its name or directory")
    connection_options(command)
    store_option(command)


@dataclass(frozen=True, slots=True)
class ScratchSelection:
    """A scratch named on the command line, and the image below it."""

    scratch: Scratch
    base: ScratchBase
    store: Store
    environment: Environment
    options: argparse.Namespace

    @property
    def reference(self) -> Reference:
        """The image by its digest."""
        from imgfs.oci.descriptor import Digest
        from imgfs.oci.reference import parse_reference

        return replace(parse_reference(self.base.reference), digest=Digest.parse(self.base.digest))

    @contextmanager
    def changes(self, image: Image) -> Iterator[Diff]:
        """Compare the scratch with that image."""
        from imgfs.kernel.erofs_format import ino_resolver
        from imgfs.overlay.scratch_opened import scratch_diff

        resolver = ino_resolver(image.resolved.tree, self.store)
        with scratch_diff(self.scratch, image.tree, image.content, resolver) as changes:
            yield changes

    @contextmanager
    def open(self) -> Iterator[Image]:
        """Open the image, indexed and merged."""
        from imgfs.cli.connection import connect_to
        from imgfs.cli.progress import Progress
        from imgfs.image.image import Image
        from imgfs.image.prepare import prepare
        from imgfs.image.resolve import resolve
        from imgfs.oci.descriptor import Platform

        with closing(connect_to(self.reference, self.options, self.environment)) as source:
            host = Platform.host()  # the digest is one platform's already
            resolved = resolve(self.base.reference, source, self.store, host, remember=False)
            if self.base.layers:
                resolved = resolved.up_to(str(self.base.layers))
            with closing(Progress()) as progress:
                prepare(resolved, source, self.store, progress)
            with Image(resolved, source, self.store) as image:
                yield image


def select_scratch(options: argparse.Namespace, hint: str = "") -> ScratchSelection:
    """Select the scratch of MNT|NAME: of a mount, by its name, or by its directory.

    Raises ImgfsError; UsageError with a `hint` if there is none.
    """
    from imgfs.config import Environment
    from imgfs.mounts.table import mount_at
    from imgfs.overlay.scratches import find_scratch

    environment = Environment.read()
    mounted = mount_at(Path(os.path.abspath(options.scratch)))
    if mounted is not None and mounted.is_imgfs:
        return _mounted(options, environment)
    store = open_store(options, environment)
    scratch = find_scratch(options.scratch, store.root)
    if not scratch.exists():
        if os.path.isdir(f"./{options.scratch}/upper"):
            hint = f"; a directory is ./{options.scratch}"
        raise UsageError(f"{options.scratch}: no mount and no scratch{hint} (see: imgfs scratch ls)")
    base = scratch.base()
    if base is None:
        raise UsageError(
            f"scratch {scratch.name} does not say what image it lies on: mount it once with imgfs"
        )
    return ScratchSelection(scratch, base, store, environment, options)


def _mounted(options: argparse.Namespace, environment: Environment) -> ScratchSelection:
    from imgfs.mounts.status_client import read_status
    from imgfs.mounts.table import imgfs_mount_at
    from imgfs.overlay.scratch import Scratch
    from imgfs.overlay.scratches import sync
    from imgfs.store.store import Store

    status = read_status(imgfs_mount_at(Path(options.scratch)))
    scratch_status = status.scratch
    if not scratch_status:
        raise MountError(f"{options.scratch}: mounted read-only: there are no changes (imgfs mount --rw)")
    sync(Path(options.scratch))
    directory, name = Path(scratch_status.directory), scratch_status.name
    scratch = Scratch(directory, name, volatile=not scratch_status.kept)
    base = scratch.base()
    if base is None:
        raise MountError(f"{options.scratch}: its scratch {scratch.directory} is gone")
    return ScratchSelection(scratch, base, Store(Path(status.store)), environment, options)

"""From MNT|NAME on the command line to a scratch and the image below it: what diff and commit share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs.cli.options import (
    connection_options,
    store_option,
)
from imgfs.errors import MountError, UsageError

if TYPE_CHECKING:
    from imgfs.config import Environment
    from imgfs.image.image import Image
    from imgfs.oci.reference import Reference
    from imgfs.overlay.diff import Diff
    from imgfs.overlay.scratch import Scratch, ScratchBase
    from imgfs.store.store import Store


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
        from imgfs.kernel.filehandle import ino_resolver

        with self.scratch.diff(
            image.tree, image.content, ino_resolver(image.resolved.tree, self.store)
        ) as changes:
            yield changes

    @contextmanager
    def open(self) -> Iterator[Image]:
        """Open the image, indexed and merged."""
        from imgfs.cli.progress import Progress
        from imgfs.cli.selection import connect_to
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


def select_scratch(options: argparse.Namespace) -> ScratchSelection:
    """Select the scratch of MNT|NAME: of a mount, by its name, or by its directory. Raises ImgfsError."""
    from imgfs.cli.selection import open_store
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
        raise UsageError(f"{options.scratch}: no mount and no scratch (see: imgfs scratch ls)")
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
    scratch_status = status.get("scratch")
    if not scratch_status:
        raise MountError(f"{options.scratch}: mounted read-only: there are no changes (imgfs mount --rw)")
    sync(Path(options.scratch))
    scratch = Scratch(
        Path(scratch_status["directory"]), scratch_status["name"], volatile=not scratch_status["kept"]
    )
    base = scratch.base()
    if base is None:
        raise MountError(f"{options.scratch}: its scratch {scratch.directory} is gone")
    return ScratchSelection(scratch, base, Store(Path(status["store"])), environment, options)

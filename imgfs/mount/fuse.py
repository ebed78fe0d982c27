"""An image mounted by FUSE: this process answers every request."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from imgfs.errors import MountError
from imgfs.fuse.device import device_of
from imgfs.fuse.operations import Operations
from imgfs.fuse.views import TreeView, UnionView
from imgfs.fuse.writable import WritableOperations
from imgfs.mount.serving import (
    MountOptions,
    base_of,
    end_on_signal,
    limit_unwritten,
    raise_read_ahead,
    sync_now_and_then,
)
from imgfs.mounts.table import mount_at
from imgfs.overlay.scratch import Scratch

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.overlay.overlay import Overlay
    from imgfs.status import MountStatus
    from imgfs.store.store import Store
    from imgfs.tree.reader import Node

log = logging.getLogger("imgfs.mount")


def serve_by_fuse(
    image: Image,
    options: MountOptions,
    tell: Callable[[], MountStatus],
    on_ready: Callable[[], None],
    store: Store,
) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes; `tell` gives the status.

    Raises MountError, StoreError.
    """
    with contextlib.ExitStack() as stack:
        overlay = None
        if options.scratch:
            overlay = stack.enter_context(_overlay(image, options.scratch, options.mountpoint, store))
        trio.run(_serve_image, image, overlay, options, tell, on_ready)


@contextlib.contextmanager
def _overlay(image: Image, scratch: Scratch, mountpoint: Path, store: Store) -> Iterator[Overlay]:
    """The scratch over an image, for as long as it is mounted."""
    from imgfs.kernel.filehandle import ino_resolver

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))  # every file open in it is open here
    os.umask(0)  # the kernel has applied the caller's
    base, use = base_of(image, mountpoint)
    with scratch.overlay(
        image.tree, image.content, base, use, ino_resolver(image.resolved.tree, store)
    ) as overlay:
        yield overlay


async def _serve_image(
    image: Image,
    overlay: Overlay | None,
    options: MountOptions,
    tell: Callable[[], MountStatus],
    on_ready: Callable[[], None],
) -> None:
    greeted = trio.Event()
    operations = _operations(image, overlay, options, greeted.set, tell)
    fuse_options = {"default_permissions", "subtype=imgfs", *options.fuse} - {"rw", "nopassthrough"}
    fuse_options |= {f"fsname={_escaped(image.resolved.reference)}"} | (set() if overlay else {"ro"})
    nothing = pyfuse3.Operations()  # libfuse mounts and unmounts, and never hears of a request
    with _library_messages() as messages:
        try:
            descriptor = device_of(
                lambda: pyfuse3.init(nothing, str(options.mountpoint), fuse_options - {"nonempty"})
            )
        except RuntimeError as error:
            raise MountError(f"{options.mountpoint}: {messages() or error}") from error
    session = operations.session(descriptor)
    try:
        async with trio.open_nursery() as nursery:
            # before anything is answered: a process that sees the mount may end it
            await nursery.start(end_on_signal, session.end, nursery.cancel_scope.cancel)
            nursery.start_soon(sync_now_and_then, image)
            nursery.start_soon(_announce, greeted, image.resolved.reference, options.mountpoint, on_ready)
            await session.serve()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


def _operations(
    image: Image,
    overlay: Overlay | None,
    options: MountOptions,
    on_ready: Callable[[], None],
    tell: Callable[[], MountStatus],
) -> Operations[Node] | WritableOperations:
    """The operations of a mount: of the image's tree, or of its union with a scratch."""
    tree = TreeView(image)
    if overlay is None:
        return Operations(tree, squash=options.owner, on_ready=on_ready, status=tell)
    union = UnionView(tree, overlay)
    reading = Operations(union, squash=options.owner, on_ready=on_ready, status=tell)
    return WritableOperations(
        reading, union, overlay, squash=options.owner, write_through=options.write_through
    )


async def _announce(
    greeted: trio.Event, reference: str, mountpoint: Path, on_ready: Callable[[], None]
) -> None:
    """Say that the mount answers, once the kernel has its reply: taking that, it sets its own read-ahead."""
    await greeted.wait()
    log.info("mounted %s at %s", reference, mountpoint)
    if mounted := mount_at(mountpoint):
        raise_read_ahead(mounted.device)
        limit_unwritten(mounted.device)
    on_ready()


def _escaped(text: str) -> str:
    """A comma would end the option; pyfuse3 takes ASCII only."""
    ascii_text = text.encode("ascii", "backslashreplace").decode("ascii")
    return ascii_text.replace("\\", "\\\\").replace(",", "\\,")


@contextlib.contextmanager
def _library_messages() -> Iterator[Callable[[], str]]:
    """What libfuse and fusermount3 write to standard error meanwhile: their last line is why they failed."""
    sys.stderr.flush()
    with open(os.memfd_create("imgfs"), "w+b") as capture:  # no directory need be writable
        kept = os.dup(2)
        os.dup2(capture.fileno(), 2)

        def last_line() -> str:
            capture.seek(0)
            lines = capture.read().decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""

        try:
            yield last_line
        finally:
            os.dup2(kept, 2)
            os.close(kept)

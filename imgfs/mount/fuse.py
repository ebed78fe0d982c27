"""An image mounted by FUSE: this process answers every request."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from imgfs import syscalls
from imgfs.errors import MountError
from imgfs.fuse.operations import Operations
from imgfs.fuse.session import Session, device_of
from imgfs.fuse.views import TreeView, VirtualXattr
from imgfs.layer.entry import ACL
from imgfs.mount.options import MountOptions
from imgfs.mount.serving import (
    ServedMount,
    end_on_signal,
    follow,
    limit_unwritten,
    raise_read_ahead,
    resume,
    sync_now_and_then,
)
from imgfs.mounts.mountpoint import open_mountpoint
from imgfs.mounts.table import mount_at, mounts

if TYPE_CHECKING:
    from imgfs.fuse.history_view import HistoryView
    from imgfs.fuse.provenance import Provenance
    from imgfs.fuse.writable import WritableOperations
    from imgfs.image.image import Image
    from imgfs.overlay.overlay import Overlay
    from imgfs.tree.database import Node
    from imgfs.tree.reader import Tree


_NOT_LIBFUSES = {"rw", "nopassthrough", "history"}


def serve_by_fuse(mount: ServedMount) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes. Raises MountError, StoreError."""
    with contextlib.ExitStack() as stack:
        overlay = None
        if mount.options.scratch:
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))  # all open files of a scratch
            os.umask(0)  # the kernel has applied the caller's
            overlay = stack.enter_context(mount.options.scratch.overlay(*mount.scratch_terms()))
        trio.run(_serve_image, mount, overlay)


async def _serve_image(mount: ServedMount, overlay: Overlay | None) -> None:
    greeted = trio.Event()
    operations = _operations(mount, overlay, greeted.set)
    fuse_options = {"default_permissions", "subtype=imgfs", *mount.options.fuse} - _NOT_LIBFUSES
    fuse_options |= {f"fsname={_escaped(mount.image.resolved.reference)}"} | (set() if overlay else {"ro"})
    succession = mount.succession
    if succession and succession.is_taken_over:
        descriptor, unmount = succession.descriptor, succession.unmount
    else:
        descriptor, unmount = _mounted(mount.options, fuse_options - {"nonempty"})
    session = operations.session(descriptor)
    for number, layer in enumerate(mount.image.content.layers):
        layer.on_refuse = partial(operations.refused, number, session)
    try:
        async with trio.open_nursery() as nursery:
            # before anything is answered: a process that sees the mount may end it
            await nursery.start(end_on_signal, session.end, nursery.cancel_scope.cancel)
            nursery.start_soon(sync_now_and_then, mount.image)
            nursery.start_soon(_announce, greeted, mount, session, descriptor, nursery)
            if succession and succession.is_taken_over:
                await resume(succession, session, nursery)
            await session.serve()
            nursery.cancel_scope.cancel()
    finally:
        if succession is None or succession.has_turn:
            unmount()


def _mounted(options: MountOptions, fuse_options: set[str]) -> tuple[int, Callable[[], None]]:
    """Have libfuse mount; return its descriptor of /dev/fuse, and what ends the mount. Raises MountError.

    Root's mount is on the open directory. For a user fusermount3 mounts, which sees to that by itself.
    """
    nothing = pyfuse3.Operations()  # libfuse never hears of a request
    directory = open_mountpoint(options.mountpoint, options.checked)
    place = str(options.mountpoint) if os.geteuid() else f"/proc/self/fd/{directory}"
    try:
        with _library_messages() as messages:
            try:
                descriptor = device_of(lambda: pyfuse3.init(nothing, place, fuse_options))
            except RuntimeError as error:
                said = (messages() or str(error)).replace(place, str(options.mountpoint))
                raise MountError(f"{options.mountpoint}: {said}") from error
        if os.geteuid():
            return descriptor, partial(pyfuse3.close, unmount=True)
        mounted = mount_at(Path(os.readlink(place)))
        return descriptor, partial(_unmount, descriptor, mounted.device if mounted else None)
    finally:
        os.close(directory)


def _unmount(descriptor: int, device: str | None) -> None:
    """Detach root's mount, of which libfuse does not know the path, unless it is unmounted already."""
    polled = select.poll()
    polled.register(descriptor, 0)
    if not polled.poll(0):  # POLLERR: the kernel has let go of it, and its number may be another mount's
        for mount in [mount for mount in mounts() if mount.device == device]:
            with contextlib.suppress(OSError):
                syscalls.detach_mount(str(mount.mountpoint))
    pyfuse3.close(unmount=False)


def _operations(
    mount: ServedMount, overlay: Overlay | None, on_ready: Callable[[], None]
) -> Operations[Node] | WritableOperations:
    """The operations of a mount: of the image's tree, or of its union with a scratch."""
    image, squash = mount.image, mount.options.owner
    tree = TreeView(image.tree, image.content, _provenance(image, image.tree))
    if overlay is None:
        view = _with_history(tree, image) if mount.options.history else tree
        acls = mount.options.history or image.tree.has_xattr(ACL)
        return Operations(view, squash=squash, on_ready=on_ready, status=mount.tell, acls=acls)
    from imgfs.fuse.union_view import UnionView  # here: most mounts have no scratch
    from imgfs.fuse.writable import WritableOperations

    union = UnionView(tree, overlay)
    reading = Operations(union, squash=squash, on_ready=on_ready, status=mount.tell)
    write_through = mount.options.write_through
    return WritableOperations(reading, union, overlay, squash=squash, write_through=write_through)


def _with_history(top: TreeView, image: Image) -> HistoryView:
    """An image with its earlier states, which have been prepared. Raises MountError, StoreError."""
    from imgfs.fuse.history_view import HistoryView

    HistoryView.check(image.tree)
    trees = [image.tree_after(number) for number in range(1, len(image.resolved.manifest.layers) + 1)]
    return HistoryView(top, [TreeView(tree, image.content, _provenance(image, tree)) for tree in trees])


def _provenance(image: Image, tree: Tree) -> VirtualXattr:
    """The virtual attributes of a tree's files; what they take is loaded when the first is asked for."""

    @functools.cache
    def loaded() -> Provenance:
        from imgfs.fuse.provenance import Provenance

        return Provenance(image.resolved, tree, image.content)

    return lambda ino, name: loaded().value(ino, name)


async def _announce(
    greeted: trio.Event, mount: ServedMount, session: Session, descriptor: int, nursery: trio.Nursery
) -> None:
    """Say that the mount answers, once the kernel has its reply: taking that, it sets its own read-ahead."""
    await greeted.wait()
    if mounted := mount_at(mount.options.mountpoint):
        raise_read_ahead(mounted.device)
        limit_unwritten(mounted.device)
    if mount.succession:
        mount.succession.serves(descriptor, mount, session)
        follow(mount, session, nursery)
    mount.announce(" again" if mount.succession and mount.succession.is_taken_over else "")


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

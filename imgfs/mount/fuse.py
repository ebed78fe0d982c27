"""An image mounted by FUSE: this process answers every request."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from imgfs.fuse.files_ahead import FilesAhead
from imgfs.fuse.operations import Operations
from imgfs.fuse.session import Session
from imgfs.fuse.views import TreeView, VirtualXattr
from imgfs.layer.entry import ACL
from imgfs.mount.fuse_mount import mount_fuse
from imgfs.mount.resume import leave
from imgfs.mount.serving import (
    EndSignals,
    ServedMount,
    hand_over,
    limit_unwritten,
    raise_read_ahead,
    resume,
    serve_on,
    syncing,
    wait_for_turn,
)
from imgfs.mounts.table import mount_at
from imgfs.store.open_files import allow_all_files

if TYPE_CHECKING:
    from imgfs.fuse.history_view import HistoryView
    from imgfs.fuse.provenance import Provenance
    from imgfs.fuse.writable import WritableOperations
    from imgfs.image.image import Image
    from imgfs.overlay.overlay import Overlay
    from imgfs.tree.database import Node
    from imgfs.tree.reader import Tree


def serve_by_fuse(mount: ServedMount) -> None:
    """Mount and answer the kernel until it is unmounted or a signal comes. Raises MountError, StoreError."""
    succession = mount.succession
    with contextlib.ExitStack() as stack:
        overlay = None
        if mount.options.scratch:
            allow_all_files()
            os.umask(0)  # the kernel has applied the caller's
            if succession and succession.is_heir:  # until then another process changes the scratch
                wait_for_turn(succession)
            from imgfs.overlay.scratch_opened import scratch_overlay  # here: most mounts have no scratch

            overlay = stack.enter_context(scratch_overlay(mount.options.scratch, mount.scratch_terms()))
        _serve_image(mount, overlay)
        if overlay and succession and not succession.has_turn:
            leave(stack)
            hand_over(mount, succession)


def _serve_image(mount: ServedMount, overlay: Overlay | None) -> None:
    operations = _operations(mount, overlay, lambda: _announce(mount, session))
    succession = mount.succession
    if succession and succession.is_taken_over:
        descriptor, unmount = succession.descriptor, succession.unmount
    else:
        source, read_only = mount.image.resolved.reference, overlay is None
        descriptor, unmount = mount_fuse(mount.options, source, read_only=read_only)
    session = operations.session(descriptor)
    for number, layer in enumerate(mount.image.content.layers):
        layer.on_refuse = partial(operations.refused, number, session)
    try:
        # before anything is answered: a process that sees the mount may end it
        with EndSignals(session, session.end) as signals, syncing(mount.image):
            if succession and succession.is_taken_over:
                resume(succession, session, signals)
            session.serve()
    finally:
        if succession is None or succession.has_turn:
            unmount()


def _operations(
    mount: ServedMount, overlay: Overlay | None, on_ready: Callable[[], None]
) -> Operations[Node] | WritableOperations:
    """Return the operations of a mount: of the image's tree, or of its union with a scratch."""
    image, squash = mount.image, mount.options.owner
    tree = TreeView(image.tree, image.content, _provenance(image, image.tree))
    if overlay is None:
        view = _with_history(tree, image) if mount.options.history else tree
        acls = mount.options.history or image.tree.has_xattr(ACL)
        ahead = None if mount.options.history else FilesAhead(image.tree, image.content)
        return Operations(view, squash=squash, on_ready=on_ready, status=mount.tell, acls=acls, ahead=ahead)
    from imgfs.fuse.union_view import UnionView  # here: most mounts have no scratch
    from imgfs.fuse.writable import WritableOperations

    union = UnionView(tree, overlay)
    reading = Operations(union, squash=squash, on_ready=on_ready, status=mount.tell)
    write_through = mount.options.write_through
    once = mount.succession.memory() if mount.succession else None
    return WritableOperations(reading, union, overlay, squash=squash, write_through=write_through, once=once)


def _with_history(top: TreeView, image: Image) -> HistoryView:
    """Return an image with its earlier states, which have been prepared. Raises MountError, StoreError."""
    from imgfs.fuse.history_view import HistoryView

    HistoryView.check(image.tree)
    trees = [image.tree_after(number) for number in range(1, len(image.resolved.manifest.layers) + 1)]
    return HistoryView(top, [TreeView(tree, image.content, _provenance(image, tree)) for tree in trees])


def _provenance(image: Image, tree: Tree) -> VirtualXattr:
    """Return the virtual attributes of a tree's files.

    What they take is loaded when the first is asked for.
    """

    @functools.cache
    def loaded() -> Provenance:
        from imgfs.fuse.provenance import Provenance

        return Provenance(image.resolved, tree, image.content)

    return lambda ino, name: loaded().value(ino, name)


def _announce(mount: ServedMount, session: Session) -> None:
    """Say that the mount answers, once the kernel has its reply: taking that, it sets its own read-ahead."""
    if mounted := mount_at(mount.options.mountpoint):
        raise_read_ahead(mounted.device)
        limit_unwritten(mounted.device)
    serve_on(mount, session)
    mount.announce(" again" if mount.succession and mount.succession.is_taken_over else "")

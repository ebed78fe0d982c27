"""An image mounted by the kernel's own file systems: this process serves the flat layers below them."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgfs.errors import ImgfsError
from imgfs.mount.serving import MountOptions, base_of, end_on_signal, raise_read_ahead, sync_now_and_then
from imgfs.store.store import Store

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.kernel.chunk_index import AssembledDevice
    from imgfs.kernel.driver import KernelDriver
    from imgfs.status import MountStatus

log = logging.getLogger("imgfs.mount")


def served_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], MountStatus],
    on_ready: Callable[[], None],
    store: Store,
) -> bool:
    """Mount by the kernel's own file systems and serve, as `options.driver` says; False if FUSE has to.

    To write the tree as EROFS takes longer than all else of a first mount: `auto` has it done beside that
    one, which is by FUSE, for those to come.
    """
    if options.driver == "fuse":
        return False
    from imgfs.kernel.writer import sizes_of, spawn_writer

    try:
        if options.driver == "auto" and not _is_written(image, options, store):
            log.info("by FUSE this time: what the kernel needs is written meanwhile")
            spawn_writer(image.resolved.tree, sizes_of(image), store)
            return False
        _serve_by_kernel(image, options, tell, on_ready, store)
    except ImgfsError as error:
        if options.driver == "kernel":
            raise
        log.info("by FUSE, not by EROFS: %s", error)
        return False
    return True


def _is_written(image: Image, options: MountOptions, store: Store) -> bool:
    """Whether the tree is there as EROFS; raises ImgfsError if that would be of no use."""
    from imgfs.kernel.driver import check_host, mount_attributes
    from imgfs.kernel.mkfs import has_image
    from imgfs.kernel.writer import sizes_of

    check_host(owner=options.owner)
    mount_attributes(options.fuse)
    return has_image(image.tree, image.resolved.tree, sizes_of(image), store)


def _serve_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], MountStatus],
    on_ready: Callable[[], None],
    store: Store,
) -> None:
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError."""
    from imgfs.kernel.driver import (
        NO_PASSTHROUGH,
        KernelDriver,
        check_host,
        mount_attributes,
        runtime_directory,
    )
    from imgfs.kernel.filehandle import ino_resolver
    from imgfs.kernel.mkfs import make_image
    from imgfs.kernel.passthrough import Passthrough
    from imgfs.kernel.writer import sizes_of

    check_host(owner=options.owner)
    attributes = mount_attributes(options.fuse)
    sizes = sizes_of(image)
    erofs = make_image(image.tree, image.resolved.tree, sizes, store)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(runtime_directory(image.resolved.reference, erofs.path))
        if options.scratch:
            base, use = base_of(image, options.mountpoint)
            ino_of = ino_resolver(image.resolved.tree, store)
            stack.enter_context(options.scratch.for_kernel(image.tree, image.content, base, use, ino_of))
        is_served = options.record is not None or NO_PASSTHROUGH in options.fuse
        passthrough = Passthrough([] if is_served else image.content.layers)
        driver = KernelDriver(link, passthrough.files, len(sizes) + 1, options.mountpoint, attributes)
        stack.callback(driver.close)

        def tell_more() -> MountStatus:
            return replace(tell(), driver="kernel", passthrough=passthrough.count)

        try:
            has_let_go = _serve_flat_files(image, erofs.assembled, driver, options, tell_more, on_ready)
        except ImgfsError:  # then nothing is mounted
            passthrough.release()
            raise
        if has_let_go:
            passthrough.release()


def _serve_flat_files(
    image: Image,
    assembled: AssembledDevice,
    driver: KernelDriver,
    options: MountOptions,
    tell: Callable[[], MountStatus],
    on_ready: Callable[[], None],
) -> bool:
    """Serve until the kernel lets go of the flat files, or a signal comes: then it may still use them."""
    from imgfs.fuse.erofs_devices import FlatView
    from imgfs.fuse.erofs_server import serve_flat_files
    from imgfs.kernel.passthrough import drop_cached_pages

    for layer in image.content.layers:
        layer.on_refuse = partial(drop_cached_pages, options.mountpoint)

    def attach() -> None:
        driver.attach(options.scratch, raise_read_ahead)
        log.info("mounted %s at %s, by EROFS", image.resolved.reference, options.mountpoint)
        on_ready()

    def detach() -> None:
        threading.Thread(target=driver.detach, daemon=True).start()

    async def until_signal(end: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
        await end_on_signal(detach, end, task_status=task_status)

    async def sync(_: Callable[[], None], *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await sync_now_and_then(image)

    files, descriptor = FlatView(image, assembled), driver.open_flat_files()
    tasks = until_signal, sync
    return trio.run(serve_flat_files, files, descriptor, attach, tell, driver.status_socket, tasks)

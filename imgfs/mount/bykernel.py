"""An image mounted by the kernel's own file systems: this process serves the flat layers below them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from imgfs.errors import ImgfsError
from imgfs.mount.options import MountOptions
from imgfs.mount.serving import base_of, end_on_signal, raise_limits, sync_now_and_then
from imgfs.store import Store

if TYPE_CHECKING:
    from imgfs.image.image import Image
    from imgfs.kernel.assembled import Assembled
    from imgfs.kernel.driver import Driver

log = logging.getLogger("imgfs.mount")

_QUIET = 2.0  # seconds without a waiting reader


def served_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
    store: Store,
) -> bool:
    """Mount by the kernel's own file systems and serve, as `options.driver` says; False if FUSE has to.

    To write the tree as EROFS takes longer than all else of a first mount: `auto` does it beside that one,
    which is by FUSE, for those to come.
    """
    if options.driver == "fuse":
        return False
    try:
        if options.driver == "auto" and not _is_written(image, options, store):
            log.info("by FUSE this time: what the kernel needs is written meanwhile")
            threading.Thread(target=_write, args=(image, store), name="imgfs-erofs", daemon=True).start()
            return False
        _serve_by_kernel(image, options, lambda: {**tell(), "driver": "kernel"}, on_ready, store)
    except ImgfsError as error:
        if options.driver == "kernel":
            raise
        log.info("by FUSE, not by EROFS: %s", error)
        return False
    return True


def _is_written(image: Image, options: MountOptions, store: Store) -> bool:
    """Whether the tree is there as EROFS; raises ImgfsError if that would be of no use."""
    from imgfs.kernel.driver import attributes_of, check_host
    from imgfs.kernel.metadata import has_metadata

    check_host(owner=options.owner)
    attributes_of(options.fuse)
    return has_metadata(image.tree, image.resolved.tree, _sizes(image), store)


def _write(image: Image, store: Store) -> None:
    """Write the tree as EROFS, while nobody waits for a read; ends when the image is closed."""
    from imgfs.kernel.metadata import metadata_of

    try:
        time.sleep(_QUIET)
        while any(layer.fetchers.quiet_for() < _QUIET for layer in image.content.layers):
            time.sleep(_QUIET)
        metadata_of(image.tree, image.resolved.tree, _sizes(image), store)
    except ImgfsError as error:  # the next mount will say so, if it is anything
        log.debug("the tree is not written for the kernel: %s", error)


def _sizes(image: Image) -> list[int]:
    return [layer.index.summary.flat_size for layer in image.content.layers]


def _serve_by_kernel(
    image: Image,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
    store: Store,
) -> None:
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError."""
    from imgfs.kernel.driver import Driver, attributes_of, check_host, place
    from imgfs.kernel.metadata import metadata_of

    check_host(owner=options.owner)
    attributes = attributes_of(options.fuse)
    sizes = _sizes(image)
    metadata = metadata_of(image.tree, image.resolved.tree, sizes, store)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(place(image.resolved.reference, metadata.path))
        if options.scratch:
            base = base_of(image, options.mountpoint)
            stack.enter_context(options.scratch.for_kernel(image.tree, image.content, *base))
        driver = Driver(link, len(sizes) + 1, options.mountpoint, attributes)
        stack.callback(driver.close)
        _serve_flat_files(image, metadata.assembled, driver, options, tell, on_ready)


def _serve_flat_files(
    image: Image,
    assembled: Assembled,
    driver: Driver,
    options: MountOptions,
    tell: Callable[[], dict[str, Any]],
    on_ready: Callable[[], None],
) -> None:
    from imgfs.fuse.flatfiles import FlatFiles
    from imgfs.fuse.flatserver import serve_flat_files

    def attach() -> None:
        driver.attach(options.scratch, raise_limits)
        log.info("mounted %s at %s, by EROFS", image.resolved.reference, options.mountpoint)
        on_ready()

    def detach() -> None:
        threading.Thread(target=driver.detach, daemon=True).start()

    async def until_signal(end: Callable[[], None]) -> None:
        await end_on_signal(detach, end)

    async def sync(_: Callable[[], None]) -> None:
        await sync_now_and_then(image)

    files, descriptor = FlatFiles(image, assembled), driver.open_flat_files()
    tasks = until_signal, sync
    trio.run(serve_flat_files, files, descriptor, attach, tell, driver.status_socket, tasks)

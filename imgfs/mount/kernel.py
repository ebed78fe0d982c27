"""An image mounted by the kernel's own file systems: this process serves the flat layers below them.

EROFS asks for nothing but the bytes of its devices: there is no place in it for a status, so a socket tells
that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgfs.errors import ImgfsError, MountError
from imgfs.fuse.operations import Operations
from imgfs.mount.serving import ServedMount, end_on_signal, raise_read_ahead, sync_now_and_then
from imgfs.mounts.status_client import encode_status
from imgfs.status import MountStatus

if TYPE_CHECKING:
    from imgfs.fuse.erofs_devices import FlatView
    from imgfs.kernel.chunk_index import AssembledDevice
    from imgfs.kernel.driver import KernelDriver

log = logging.getLogger("imgfs.mount")

_PATIENCE = 10.0  # seconds that a client of the status has to take the answer


def served_by_kernel(mount: ServedMount) -> bool:
    """Mount by the kernel's own file systems and serve, as `options.driver` says; False if FUSE has to.

    To write the tree as EROFS takes longer than all else of a first mount: `auto` has it done beside that
    one, which is by FUSE, for those to come.
    """
    if mount.options.driver == "fuse":
        return False
    from imgfs.kernel.erofs_image import sizes_of, spawn_writer

    try:
        if mount.options.driver == "auto" and not _is_written(mount):
            log.info("by FUSE this time: what the kernel needs is written meanwhile")
            spawn_writer(mount.image.resolved.tree, sizes_of(mount.image), mount.store)
            return False
        _serve_by_kernel(mount)
    except ImgfsError as error:
        if mount.options.driver == "kernel":
            raise
        log.info("by FUSE, not by EROFS: %s", error)
        return False
    return True


def _is_written(mount: ServedMount) -> bool:
    """Whether the tree is there as EROFS; raises ImgfsError if that would be of no use."""
    from imgfs.kernel.driver import check_host, mount_attributes
    from imgfs.kernel.erofs_image import has_image, sizes_of

    check_host(owner=mount.options.owner)
    mount_attributes(mount.options.fuse)
    image = mount.image
    return has_image(image.tree, image.resolved.tree, sizes_of(image), mount.store)


def _serve_by_kernel(mount: ServedMount) -> None:
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError."""
    from imgfs.kernel.driver import (
        NO_PASSTHROUGH,
        KernelDriver,
        check_host,
        mount_attributes,
        runtime_directory,
    )
    from imgfs.kernel.erofs_image import make_image, sizes_of
    from imgfs.kernel.passthrough import Passthrough

    image, options = mount.image, mount.options
    check_host(owner=options.owner)
    attributes = mount_attributes(options.fuse)
    sizes = sizes_of(image)
    erofs = make_image(image.tree, image.resolved.tree, sizes, mount.store)
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(runtime_directory(image.resolved.reference, erofs.path))
        if options.scratch:
            stack.enter_context(options.scratch.for_kernel(*mount.scratch_terms()))
        is_served = options.record is not None or NO_PASSTHROUGH in options.fuse
        passthrough = Passthrough([] if is_served else image.content.layers)
        where = options.mountpoint, attributes, options.checked
        driver = KernelDriver(link, passthrough.files, len(sizes) + 1, *where)
        stack.callback(driver.close)

        def tell() -> MountStatus:
            return replace(mount.tell(), driver="kernel", passthrough=passthrough.count)

        try:
            has_let_go = _serve_flat_files(replace(mount, tell=tell), erofs.assembled, driver)
        except ImgfsError:  # then nothing is mounted
            passthrough.release()
            raise
        if has_let_go:
            passthrough.release()


def _serve_flat_files(mount: ServedMount, assembled: AssembledDevice, driver: KernelDriver) -> bool:
    """Serve until the kernel lets go of the flat files, or a signal comes: then it may still use them."""
    from imgfs.fuse.erofs_devices import FlatView
    from imgfs.kernel.passthrough import drop_cached_pages

    for layer in mount.image.content.layers:
        layer.on_refuse = partial(drop_cached_pages, mount.options.mountpoint)
    files, descriptor = FlatView(mount.image, assembled), driver.open_flat_files()
    return trio.run(_serve, mount, driver, files, descriptor)


async def _serve(mount: ServedMount, driver: KernelDriver, files: FlatView, descriptor: int) -> bool:
    """Serve `files` by an open `descriptor` of /dev/fuse until the kernel has let go of them; False if it has
    not, but a signal has ended the service.

    What stands on the files is mounted meanwhile, in a thread; what that raises ends the service, and is
    raised. Nothing is answered before signals are.
    """
    raised: list[ImgfsError] = []
    tried, let_go = trio.Event(), False
    session = Operations(files).session(descriptor, stands_below=True)

    def attach() -> None:
        driver.attach(mount.options.scratch, raise_read_ahead)
        mount.announce(", by EROFS")

    def detach() -> None:
        threading.Thread(target=driver.detach, daemon=True).start()

    try:
        with _listening(driver.status_socket) as listener:
            async with trio.open_nursery() as nursery:
                await nursery.start(end_on_signal, detach, nursery.cancel_scope.cancel)
                nursery.start_soon(sync_now_and_then, mount.image)
                nursery.start_soon(_attach, attach, raised, tried)
                nursery.start_soon(_tell, listener, mount.tell, nursery)
                await session.serve()
                await tried.wait()
                let_go = True
                nursery.cancel_scope.cancel()
    finally:
        os.close(descriptor)
    if raised:
        raise raised[0]
    return let_go


async def _attach(attach: Callable[[], None], raised: list[ImgfsError], tried: trio.Event) -> None:
    """Attach; what fails has let go of the flat files, so their service ends by itself."""
    try:
        await trio.to_thread.run_sync(attach, abandon_on_cancel=True)
    except ImgfsError as error:
        raised.append(error)
    finally:
        tried.set()


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[trio.socket.SocketType]:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield trio.socket.from_stdlib_socket(listener)
    except OSError as error:
        raise MountError(f"{path}: {os.strerror(error.errno or 0)}") from error
    finally:
        listener.close()


async def _tell(
    listener: trio.socket.SocketType, tell: Callable[[], MountStatus], nursery: trio.Nursery
) -> None:
    """Send the status to every client that connects."""
    while True:
        asking, _ = await listener.accept()
        nursery.start_soon(_answer, trio.SocketStream(asking), encode_status(tell().to_json()))


async def _answer(stream: trio.SocketStream, body: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_PATIENCE):
        async with stream:
            await stream.send_all(body)

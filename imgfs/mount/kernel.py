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
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from imgfs.errors import ImgfsError, MountError
from imgfs.fuse.operations import Operations
from imgfs.mount.resume import KernelMount, leave
from imgfs.mount.serving import (
    ServedMount,
    end_on_signal,
    follow,
    raise_read_ahead,
    resume,
    sync_now_and_then,
)
from imgfs.mounts.status_client import encode_status
from imgfs.status import MountStatus

if TYPE_CHECKING:
    from imgfs.fuse.session import Session
    from imgfs.kernel.chunk_index import AssembledDevice
    from imgfs.kernel.driver import KernelDriver, RuntimeDirectory
    from imgfs.kernel.passthrough import Passthrough

log = logging.getLogger("imgfs.mount")

_PATIENCE = 10.0  # seconds that a client of the status has to take the answer


def served_by_kernel(mount: ServedMount) -> bool:
    """Mount by the kernel's own file systems and serve, as `options.driver` says; False if FUSE has to.

    To write the tree as EROFS takes longer than all else of a first mount: `auto` has it done beside that
    one, which is by FUSE, for those to come. What another process has mounted is served as that did it.
    """
    succession = mount.succession
    if succession and succession.is_taken_over:
        if succession.state.kernel:
            _serve_by_kernel(mount)
        return succession.state.kernel is not None
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
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError.

    What another process has mounted is only served.
    """
    from imgfs.kernel.driver import (
        KernelDriver,
        check_host,
        inherited_directory,
        mount_attributes,
        runtime_directory,
    )
    from imgfs.kernel.erofs_image import make_image, sizes_of

    image, options = mount.image, mount.options
    mounted = mount.succession.state.kernel if mount.succession else None
    check_host(owner=options.owner)
    attributes = mount_attributes(options.fuse)
    sizes = sizes_of(image)
    erofs = make_image(image.tree, image.resolved.tree, sizes, mount.store)
    with contextlib.ExitStack() as stack:
        made = runtime_directory(image.resolved.reference, erofs.path)
        directory = stack.enter_context(inherited_directory(mounted.directory) if mounted else made)
        if options.scratch:
            stack.enter_context(options.scratch.for_kernel(*mount.scratch_terms()))
        passthrough = _passthrough(mount, mounted)
        where = options.mountpoint, attributes, options.checked
        driver = KernelDriver(directory.link, passthrough.files, len(sizes) + 1, *where)
        stack.callback(driver.close)

        def tell() -> MountStatus:
            return replace(mount.tell(), driver="kernel", passthrough=passthrough.count)

        below = FlatFilesServer(replace(mount, tell=tell), driver, directory, passthrough)
        try:
            has_let_go = below.serve(erofs.assembled)
        except ImgfsError:
            if not mounted:  # then nothing is
                passthrough.release()
            raise
        finally:
            if mount.succession and not mount.succession.has_turn:
                leave(stack)
        if has_let_go:
            passthrough.release()


def _passthrough(mount: ServedMount, mounted: KernelMount | None) -> Passthrough:
    """What the kernel is to read itself, or reads already."""
    from imgfs.kernel.driver import NO_PASSTHROUGH
    from imgfs.kernel.passthrough import Passthrough

    if mounted:
        return Passthrough(mounted.passthrough)
    is_served = mount.options.record is not None or NO_PASSTHROUGH in mount.options.fuse
    return Passthrough.pin([] if is_served else mount.image.content.layers)


@dataclass(frozen=True, slots=True)
class FlatFilesServer:
    """The flat files below `driver`, and the status of `mount`, which are served."""

    mount: ServedMount
    driver: KernelDriver
    directory: RuntimeDirectory
    passthrough: Passthrough

    def serve(self, assembled: AssembledDevice) -> bool:
        """Serve until the kernel lets go of them, or a signal comes: then it may still use them."""
        from imgfs.fuse.erofs_devices import FlatView
        from imgfs.kernel.passthrough import drop_cached_pages

        image, succession = self.mount.image, self.mount.succession
        for layer in image.content.layers:
            layer.on_refuse = partial(drop_cached_pages, self.mount.options.mountpoint)
        is_taken_over = succession and succession.is_taken_over
        descriptor = succession.descriptor if succession and is_taken_over else self.driver.open_flat_files()
        session = Operations(FlatView(image, assembled)).session(descriptor, stands_below=True)
        try:
            return trio.run(self._serve, session, descriptor)
        finally:
            os.close(descriptor)

    async def _serve(self, session: Session, descriptor: int) -> bool:
        """Serve them by an open `descriptor` of /dev/fuse until the kernel has let go of them.

        Return False if it has not: a signal has ended the service, or another process goes on with it.

        What stands on the files is mounted meanwhile, in a thread; what that raises ends the service, and is
        raised. Nothing is answered before signals are.
        """
        raised: list[ImgfsError] = []
        tried, let_go = trio.Event(), False
        succession = self.mount.succession

        def detach() -> None:
            threading.Thread(target=self.driver.detach, daemon=True).start()

        with self._listener() as listener:
            async with trio.open_nursery() as answers, trio.open_nursery() as nursery:
                await nursery.start(end_on_signal, detach, answers.cancel_scope.cancel)
                nursery.start_soon(sync_now_and_then, self.mount.image)
                if succession and succession.is_taken_over:
                    await resume(succession, session, nursery)
                    listener.listen()  # from now on it is this process that answers (unix(7), SO_PEERCRED)
                    tried.set()
                else:
                    nursery.start_soon(_attach, self._attach, raised, tried)
                nursery.start_soon(self._announce, session, descriptor, listener, tried, raised, nursery)
                nursery.start_soon(_tell, listener, session, self.mount.tell, answers)
                await session.serve()
                await tried.wait()
                let_go = succession is None or succession.has_turn
                nursery.cancel_scope.cancel()
                if let_go:
                    answers.cancel_scope.cancel()
        if raised:
            raise raised[0]
        return let_go

    def _attach(self) -> None:
        self.driver.attach(self.mount.options.scratch, raise_read_ahead)

    async def _announce(
        self,
        session: Session,
        descriptor: int,
        listener: trio.socket.SocketType,
        attached: trio.Event,
        raised: list[ImgfsError],
        nursery: trio.Nursery,
    ) -> None:
        """Say that the mount answers, once it is attached."""
        await attached.wait()
        if raised:
            return
        if self.mount.succession:
            kernel = KernelMount(self.directory, self.passthrough.files, listener.fileno())
            self.mount.succession.serves(descriptor, self.mount, session, kernel)
            follow(self.mount, session, nursery)
        self.mount.announce(", by EROFS")

    @contextlib.contextmanager
    def _listener(self) -> Iterator[trio.socket.SocketType]:
        """The socket that tells the status; another process may have made it."""
        path = self.directory.status_socket
        mounted = self.mount.succession.state.kernel if self.mount.succession else None
        listener = socket.socket(fileno=mounted.listener) if mounted else socket.socket(socket.AF_UNIX)
        try:
            if not mounted:
                listener.bind(str(path))
                listener.listen()
            listener.setblocking(False)
            yield trio.socket.from_stdlib_socket(listener)
        except OSError as error:
            raise MountError(f"{path}: {os.strerror(error.errno or 0)}") from error
        finally:
            listener.close()


async def _attach(attach: Callable[[], None], raised: list[ImgfsError], tried: trio.Event) -> None:
    """Attach; what fails has let go of the flat files, so their service ends by itself."""
    try:
        await trio.to_thread.run_sync(attach, abandon_on_cancel=True)
    except ImgfsError as error:
        raised.append(error)
    finally:
        tried.set()


async def _tell(
    listener: trio.socket.SocketType,
    session: Session,
    tell: Callable[[], MountStatus],
    answers: trio.Nursery,
) -> None:
    """Send the status to every client that connects, until another process does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, listener, tell, answers)
        await session.has_ended.wait()
        nursery.cancel_scope.cancel()


async def _accept(
    listener: trio.socket.SocketType, tell: Callable[[], MountStatus], answers: trio.Nursery
) -> None:
    while True:
        asking, _ = await listener.accept()
        answers.start_soon(_answer, trio.SocketStream(asking), encode_status(tell().to_json()))


async def _answer(stream: trio.SocketStream, body: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_PATIENCE):
        async with stream:
            await stream.send_all(body)

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
from typing import TYPE_CHECKING, NamedTuple

from imgfs.errors import ImgfsError, MountError
from imgfs.fuse.operations import Operations
from imgfs.mount.resume import KernelMount, leave
from imgfs.mount.serving import (
    EndSignals,
    ServedMount,
    raise_read_ahead,
    resume,
    serve_on,
    syncing,
)
from imgfs.mounts.status_client import encode_status
from imgfs.starting import start_thread, try_thread

if TYPE_CHECKING:
    from imgfs.fuse.session import Session
    from imgfs.kernel.chunk_index import AssembledDevice
    from imgfs.kernel.driver import KernelDriver, RuntimeDirectory
    from imgfs.kernel.passthrough import Passthrough
    from imgfs.status import MountStatus

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
    from imgfs.mount.erofs_ahead import is_written, write_beside  # here: a successor does without

    try:
        if mount.options.driver == "auto" and not is_written(mount):
            log.info("by FUSE this time: what the kernel needs is written for the next")
            write_beside(mount)
            return False
        _serve_by_kernel(mount)
    except ImgfsError as error:
        if mount.options.driver == "kernel":
            raise
        log.info("by FUSE, not by EROFS: %s", error)
        return False
    return True


def _serve_by_kernel(mount: ServedMount) -> None:
    """Mount EROFS, with a scratch overlayfs over it, and serve it the flat layers. Raises ImgfsError.

    What another process has mounted is only served.
    """
    from imgfs.kernel.driver import (
        KernelDriver,
        check_host,
        mount_attributes,
        remove_inherited,
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
        if mounted:
            directory = mounted.directory
            stack.callback(remove_inherited, directory)
        else:
            directory = stack.enter_context(runtime_directory(image.resolved.reference, erofs.path))
        stack.enter_context(_held_scratch(mount))
        passthrough = _passthrough(mount, mounted)
        where = options.mountpoint, attributes, options.checked
        driver = KernelDriver(directory.link, passthrough.files, len(sizes) + 1, *where)
        stack.callback(driver.close)

        def tell() -> MountStatus:
            return mount.tell()._replace(driver="kernel", passthrough=passthrough.count)

        below = FlatFilesServer(replace(mount, tell=tell), driver, directory, passthrough)
        try:
            has_let_go = below.serve(erofs.assembled)
        except ImgfsError:
            if not mounted:
                driver.detach()
                passthrough.release()
            raise
        finally:
            if mount.succession and not mount.succession.has_turn:
                leave(stack)
        if has_let_go:
            passthrough.release()


def _held_scratch(mount: ServedMount) -> contextlib.AbstractContextManager[None]:
    """Hold the scratch of a mount, if it has one, for overlayfs."""
    scratch = mount.options.scratch
    if scratch is None:
        return contextlib.nullcontext()
    from imgfs.overlay.scratch_opened import held_for_kernel  # here: most mounts have no scratch

    return held_for_kernel(scratch, mount.scratch_terms())


def _passthrough(mount: ServedMount, mounted: KernelMount | None) -> Passthrough:
    """Return what the kernel is to read itself, or reads already."""
    from imgfs.kernel.driver import NO_PASSTHROUGH
    from imgfs.kernel.passthrough import Passthrough

    if mounted:
        return Passthrough(mounted.passthrough)
    is_served = mount.options.record is not None or NO_PASSTHROUGH in mount.options.fuse
    return Passthrough.pin([] if is_served else mount.image.content.layers)


class FlatFilesServer(NamedTuple):
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
            with self._listener() as listener:
                return self._serve(session, listener)
        finally:
            if not is_taken_over:
                os.close(descriptor)

    def _serve(self, session: Session, listener: socket.socket) -> bool:
        """Serve them until the kernel has let go of them.

        Return False if it has not: a signal has ended the service, or another process goes on with it.

        What stands on the files is mounted meanwhile, in a thread; what that raises ends the service, and is
        raised. Nothing is answered before signals are.
        """
        succession, attachment = self.mount.succession, _Attachment(self.mount, self.driver)

        def detach() -> None:
            try_thread(self.driver.detach, "imgfs-detach", level=logging.WARNING)

        with EndSignals(session, detach) as signals, syncing(self.mount.image):
            if succession and succession.is_taken_over:
                resume(succession, session, signals)
                listener.listen()  # from now on it is this process that answers (unix(7), SO_PEERCRED)
                self._announce(session, listener)
            else:
                attachment.begin()
                session.watch(attachment.tried, partial(self._attached, attachment, session, listener))
            session.watch(listener.fileno(), partial(_answer, listener, self.mount.tell))
            session.at_stop.append(partial(session.unwatch, listener.fileno()))
            has_let_go = session.serve()
        if has_let_go:
            attachment.join()
        if attachment.error:
            raise attachment.error
        return has_let_go

    def _attached(self, attachment: _Attachment, session: Session, listener: socket.socket) -> None:
        session.unwatch(attachment.tried)
        if not attachment.error:
            self._announce(session, listener)

    def _announce(self, session: Session, listener: socket.socket) -> None:
        """Say that the mount answers."""
        kernel = KernelMount(self.directory, self.passthrough.files, listener.fileno())
        serve_on(self.mount, session, kernel)
        self.mount.announce(", by EROFS")

    @contextlib.contextmanager
    def _listener(self) -> Iterator[socket.socket]:
        """The socket that tells the status; another process may have made it."""
        path = self.directory.status_socket
        mounted = self.mount.succession.state.kernel if self.mount.succession else None
        number = os.dup(mounted.listener) if mounted else None
        with socket.socket(socket.AF_UNIX, fileno=number) as listener:
            try:
                if not mounted:
                    listener.bind(str(path))
                    listener.listen()
                listener.setblocking(False)
            except OSError as error:
                raise MountError(f"{path}: {os.strerror(error.errno or 0)}") from error
            yield listener


class _Attachment:
    """Attaches what stands on the flat files. What fails lets go of them: so their service ends by itself.

    `tried` can be read once that is done; `error` is what was raised.
    """

    def __init__(self, mount: ServedMount, driver: KernelDriver) -> None:
        self._thread: threading.Thread | None = None
        self._scratch = mount.options.scratch
        self._driver = driver
        self.tried = self._done = -1
        self.error: BaseException | None = None

    def begin(self) -> None:
        """Start it, in a thread. Raises LimitReached."""
        self.tried, self._done = os.pipe()
        self._thread = start_thread(self._attach, "imgfs-attach")

    def join(self) -> None:
        """Wait for its end, if it was begun."""
        if self._thread:
            self._thread.join()

    def _attach(self) -> None:
        try:
            self._driver.attach(self._scratch, raise_read_ahead)
        except BaseException as error:  # noqa: BLE001  (raised when it is joined)
            self.error = error
        finally:
            os.close(self._done)


def _answer(listener: socket.socket, tell: Callable[[], MountStatus]) -> None:
    """Send the status to a client that connects; from a thread, as it may take its time."""
    with contextlib.suppress(OSError):  # it has gone again
        asking, _ = listener.accept()
        with contextlib.ExitStack() as unanswered:
            unanswered.enter_context(asking)
            if try_thread(partial(_send, asking, encode_status(tell().to_json())), "imgfs-status"):
                unanswered.pop_all()


def _send(asking: socket.socket, body: bytes) -> None:
    with asking, contextlib.suppress(OSError):
        asking.settimeout(_PATIENCE)
        asking.sendall(body)

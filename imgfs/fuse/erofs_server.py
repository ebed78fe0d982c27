"""Serving flat files to the kernel for as long as a mount stands on them, and answering for its status.

That mount asks for nothing but their bytes: there is no place in it for a status, so a socket tells that.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from imgfs.errors import ImgfsError, MountError
from imgfs.fuse.erofs_devices import FlatView
from imgfs.fuse.operations import Operations
from imgfs.mounts.status_client import encode_status
from imgfs.status import MountStatus

_PATIENCE = 10.0  # seconds that a client of the status has to take the answer

Task = Callable[..., Awaitable[None]]  # is given what ends the service, and trio's task_status


async def serve_flat_files(
    files: FlatView,
    descriptor: int,
    attach: Callable[[], None],
    tell: Callable[[], MountStatus],
    status_socket: Path,
    tasks: Sequence[Task],
) -> bool:
    """Serve `files` by an open `descriptor` of /dev/fuse until the kernel has let go of them; False if it has
    not, but a task has ended the service.

    `attach` mounts what stands on them, in a thread; what it raises ends the service, and is raised. `tell`
    answers at `status_socket`. The `tasks` run beside; nothing is answered before they have begun.
    """
    raised: list[ImgfsError] = []
    tried, let_go = trio.Event(), False
    session = Operations(files).session(descriptor, stands_below=True)
    try:
        with _listening(status_socket) as listener:
            async with trio.open_nursery() as nursery:
                end = nursery.cancel_scope.cancel
                for task in tasks:
                    await nursery.start(task, end)
                nursery.start_soon(_attach, attach, raised, tried)
                nursery.start_soon(_tell, listener, tell, nursery)
                await session.serve()
                await tried.wait()
                let_go = True
                end()
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
def _listening(path: Path) -> Any:
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

"""A socket that another process listens at for a server: it stays when the server is started anew.

gRPC can listen at a path only, so what connects there is passed on, byte by byte, to a path of gRPC's own. A
client that comes while no server runs waits in the kernel's queue, and is not refused.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from imgfs.errors import LimitReached, describe
from imgfs.starting import start_thread, try_thread

_PIECE = 1 << 16  # bytes
_PAUSE = 0.5  # seconds before a client is taken after one that could not be

log = logging.getLogger(__name__)


@contextmanager
def passing(given: socket.socket, own: Path) -> Iterator[None]:
    """Have a listening socket's clients answered at the path `own`, while the block lasts.

    Those that are connected stay so after it; `given` is not shut down, as others hold it too.
    """
    read, ending = os.pipe()
    thread = start_thread(partial(_accept, given, own, read), "imgfs-passing")
    try:
        yield
    finally:
        os.close(ending)
        thread.join()
        os.close(read)


def _accept(given: socket.socket, own: Path, ended: int) -> None:
    """Take clients until `ended` can be read; one that cannot be passed on does not end that."""
    given.setblocking(False)
    while ended not in select.select([given.fileno(), ended], [], [])[0]:
        try:
            _pass_on(given, own)
        except BlockingIOError:  # the client has gone, or another process was quicker
            continue
        except (OSError, LimitReached) as error:  # no more files or threads, until some clients have ended
            log.warning("%s: a client cannot be passed on: %s", own, describe(error))
            select.select([ended], [], [], _PAUSE)


def _pass_on(given: socket.socket, own: Path) -> None:
    """Take a client, and have threads hand on what it and the server say. Raises OSError, LimitReached."""
    client, _ = given.accept()
    with ExitStack() as unanswered:
        unanswered.enter_context(client)
        client.setblocking(True)
        server = unanswered.enter_context(socket.socket(socket.AF_UNIX))
        server.connect(str(own))
        start_thread(partial(_converse, client, server), "imgfs-passed")
        unanswered.pop_all()


def _converse(client: socket.socket, server: socket.socket) -> None:
    """Hand on what both say until one of them ends; what was sent by then is still read."""
    with client, server:
        if back := try_thread(partial(_hand_on, server, client), "imgfs-passed"):
            _hand_on(client, server)
            back.join()


def _hand_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while body := source.recv(_PIECE):
            target.sendall(body)
    for ending in (source, target):
        with suppress(OSError):
            ending.shutdown(socket.SHUT_RDWR)

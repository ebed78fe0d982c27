"""What a service and systemd tell each other: that it is ready, and where it is to listen."""

from __future__ import annotations

import logging
import os
import socket

from imgfs.errors import describe
from imgfs.variables import has_listening_socket, notify_socket, variables

log = logging.getLogger(__name__)

_FIRST = 3  # the descriptor of the first socket (sd_listen_fds(3))


def tell_systemd(state: bytes) -> None:
    """Tell systemd of a new state, if it waits for that (sd_notify(3))."""
    place = notify_socket(variables())
    if place is None:
        return
    address = f"\0{place[1:]}" if place.startswith("@") else place
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying:
            notifying.sendto(state, address)
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", state.decode(), describe(error))


def given_socket() -> socket.socket | None:
    """Return the socket that systemd listens at for this process, if a socket unit has started it."""
    if not has_listening_socket(variables(), os.getpid()):
        return None
    given = socket.socket(fileno=_FIRST)
    given.set_inheritable(False)
    return given

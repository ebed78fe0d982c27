"""What the commands that engines ask have in common: they run on, and answer at a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.errors import MountError

if TYPE_CHECKING:
    from imgfs.engines.rpc import Forwarded, Service


def run_server(
    address: Path, services: Callable[[], Sequence[Service | Forwarded]], log_level: str
) -> NoReturn:
    """Answer at a socket until a signal comes, and end the process; systemd is told when it answers."""
    from imgfs.config import notify_socket, variables
    from imgfs.daemonize import run_in_foreground
    from imgfs.engines.rpc import serve, tell_systemd

    notify = partial(tell_systemd, notify_socket(variables()))
    run_in_foreground(lambda _: serve(address, services(), notify), log_level.upper())


def mounts_survive() -> bool:
    """Return True if a mount's daemon that is killed can have a successor here."""
    from imgfs.mount.resume import check_kernel

    try:
        check_kernel()
    except MountError:
        return False
    return True

"""What the commands that engines ask have in common: they run on, and answer at a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.errors import MountError, UsageError

if TYPE_CHECKING:
    from imgfs.engines.rpc import Forwarded, Service


def run_server(
    address: Path, services: Callable[[], Sequence[Service | Forwarded]], log_level: str
) -> NoReturn:
    """Answer at a socket until a signal comes, and end the process; systemd is told when it answers."""
    from imgfs.daemonize import run_in_foreground
    from imgfs.engines.rpc import serve
    from imgfs.systemd import tell_systemd

    run_in_foreground(lambda _: serve(address, services(), tell_systemd), log_level.upper())


def socket_path(address: str) -> Path:
    """Return where a Unix socket is: written as its path, or as gRPC has it, unix://PATH or unix:PATH."""
    path = address.removeprefix("unix:")
    path = path.removeprefix("//") if path != address else path
    if "://" in path or not path:
        raise UsageError(f"{address}: this is no Unix socket, like unix:///run/imgfs/name.sock")
    return Path(path).absolute()


def mounts_survive() -> bool:
    """Return True if a mount's daemon that is killed can have a successor here."""
    from imgfs.mount.resume import check_kernel

    try:
        check_kernel()
    except MountError:
        return False
    return True

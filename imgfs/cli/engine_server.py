"""What the commands that engines ask have in common: they run on, and answer at a socket."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from imgfs.cli.prune import ChosenLimit, limit_value, set_limit
from imgfs.errors import ImgfsError, MountError, UsageError, describe
from imgfs.starting import start_thread

if TYPE_CHECKING:
    import argparse

    from imgfs.engines.rpc import Forwarded, Service
    from imgfs.store.store import Store

_SHARE = 80  # per cent of the disk: below where kubelet begins to remove images, and then evicts pods
_LOOK = 10.0  # seconds between looks at the disk: as kubelet's
_BEGINNING, _PAUSE = 5.0, 0.02  # seconds for a fork server to listen, and between looks
_IDLE = "300"  # seconds without a request, after which a mount's daemon ends until the next

log = logging.getLogger(__name__)


def run_server(
    offered: Callable[[], Mapping[Path, Sequence[Service | Forwarded]]], log_level: str
) -> NoReturn:
    """Answer at sockets until a signal comes, and end the process; systemd is told when it answers.

    At one of them systemd may listen already.
    """
    from imgfs.daemonize import run_in_foreground
    from imgfs.engines.rpc import serve
    from imgfs.systemd import given_socket, tell_systemd

    run_in_foreground(lambda _: serve(offered(), tell_systemd, given_socket()), log_level.upper())


def socket_path(address: str) -> Path:
    """Return where a Unix socket is: written as its path, or as gRPC has it, unix://PATH or unix:PATH."""
    path = address.removeprefix("unix:")
    path = path.removeprefix("//") if path != address else path
    if "://" in path or not path:
        raise UsageError(f"{address}: not a Unix socket, like unix:///run/imgfs/name.sock")
    return Path(path).absolute()


def checked_path(path: Path) -> Path:
    """Return a path from the root, which has nothing that ends a word of overlayfs's options."""
    found = path.absolute()
    if any(sign in str(found) for sign in ":,\\"):
        raise UsageError(f"{found}: a colon, a comma or a backslash cannot be in this path")
    return found


@contextmanager
def fork_server(root: Path) -> Iterator[None]:
    """Have the mounts of this server's commands forked from an `imgfs serve` of its own, at ROOT/serve.sock.

    The kernel ends that with this process; the mounts go on. It is waited for: after a restart of the machine
    an engine wants all its containers' mounts at once, and each would load by itself what they could share.
    """
    from imgfs import syscalls
    from imgfs.variables import SERVER, set_variables, variables

    address = root / "serve.sock"
    address.unlink(missing_ok=True)  # of a server that was killed
    mine = {**variables(), SERVER: str(address)}
    for name in ("NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS"):  # what systemd has told this process alone
        mine.pop(name, None)
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "imgfs", "serve", "--log-level", "warning"],
        stdin=subprocess.DEVNULL,
        env=mine,
        cwd="/",
        start_new_session=True,
        preexec_fn=partial(syscalls.set_parent_death_signal, signal.SIGTERM),  # no thread runs yet
    )
    set_variables({**variables(), SERVER: mine[SERVER]})
    try:
        end = time.monotonic() + _BEGINNING
        while not address.exists() and server.poll() is None and time.monotonic() < end:
            time.sleep(_PAUSE)
        yield
    finally:
        server.terminate()
        server.wait()


def words_for_survival() -> list[str]:
    """Return the options of `imgfs mount` by which mounts outlive their daemons, which end while idle."""
    return ["--restart", "--exit-idle", _IDLE] if mounts_survive() else []


def mounts_survive() -> bool:
    """Return True if a mount's daemon that is killed can have a successor here."""
    from imgfs.mount.resume import check_kernel

    try:
        check_kernel()
    except MountError:
        return False
    return True


def limit_option(command: argparse.ArgumentParser) -> None:
    """Add how much the store of a node keeps."""
    command.add_argument(
        "--limit",
        metavar="SIZE|SHARE|none",
        type=limit_value,
        help="how much of images is kept, as by `imgfs store limit` "
        f"(default: what the store has been told, else {_SHARE}%% of its disk)",
    )


def keep_limit(store: Store, wanted: ChosenLimit | None) -> None:
    """Give a node's store a limit, so that its disk does not fill; look at the disk from now on.

    Writers keep a limit by themselves, but a disk is filled by others, too.
    """
    if wanted is not None or store.limit.read() is None:
        set_limit(store, ChosenLimit(percent=_SHARE) if wanted is None else wanted)
    start_thread(partial(_keep_share, store), "imgfs-disk")


def _keep_share(store: Store) -> None:
    said = ""
    while True:
        try:
            if store.limit.share():
                store.limit.keep()
            said = ""
        except (ImgfsError, OSError) as error:
            if said != describe(error):
                said = describe(error)
                log.warning("the store's limit is not kept: %s", said)
        time.sleep(_LOOK)

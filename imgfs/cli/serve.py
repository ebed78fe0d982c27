"""imgfs serve: imgfs kept loaded, and a process forked from it for each mount."""

from __future__ import annotations

import argparse
import importlib
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imgfs.cli.options import Commands, add_command, log_level_option
from imgfs.errors import UsageError

_LOADED = (
    "imgfs.cli.mount",
    "imgfs.cli.selection",
    "imgfs.image.prepare",
    "imgfs.image.profiles",
    "imgfs.mount.daemon",
    "imgfs.mount.successor",
    "imgfs.metrics.endpoint",
    "imgfs.predict.predictor",
)


def add_serve(commands: Commands) -> None:
    """`imgfs serve`."""
    command = add_command(
        commands,
        "serve",
        serve,
        "keep imgfs loaded, so that mounts begin at once and share memory",
        """\
Waits for `imgfs mount` of the same user, and forks a process for each: what a mount takes is loaded already,
and the daemons of all mounts share memory. A mount is as it is without that, and goes on when this ends.
Where it does not run, or the caller's namespaces, groups, capabilities or version are others, `imgfs mount`
does all of it by itself. It ends when another imgfs is installed.

Examples:
  imgfs serve
  systemctl --user enable --now imgfs-serve     (see: imgfs help mounting)
  IMGFS_SERVE=~/serve.sock imgfs serve          commands with the same variable find it (none: no server)
""",
    )
    command.add_argument(
        "--socket",
        metavar="SOCKET",
        help="where to listen (default: $IMGFS_SERVE, else $XDG_RUNTIME_DIR/imgfs/serve.sock, for root "
        "/run/imgfs/serve.sock)",
    )
    log_level_option(command)


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from imgfs.daemonize import log_to_stderr
    from imgfs.forkserver.server import ForkServer
    from imgfs.systemd import tell_systemd

    log_to_stderr(options.log_level.upper())
    os.chdir("/")
    load()
    with _listening(options.socket) as listening:
        goes_on = ForkServer(listening, _mount).serve(lambda: tell_systemd(b"READY=1"))
    tell_systemd(b"STOPPING=1")
    return 0 if goes_on else 1


def _mount(words: Sequence[str]) -> int:
    """Carry out `imgfs mount`: its daemon is forked first, before anything is touched that all share."""
    from imgfs.cli import carry_out
    from imgfs.mount.daemon import Mounting

    with Mounting.fork(writable=True) as mounting:
        return carry_out(words, mounting)


def load() -> None:
    """Load what mounts take."""
    from imgfs.mount.daemon import load_what_serves

    for module in _LOADED:
        importlib.import_module(module)
    load_what_serves()


@contextmanager
def _listening(place: str | None) -> Iterator[socket.socket]:
    """Listen where systemd does already, or at a socket of our own."""
    from imgfs.forkserver.server import listening_at
    from imgfs.systemd import given_socket
    from imgfs.variables import server_socket, variables

    given = given_socket()
    if given:
        with given:
            yield given
        return
    path = place or server_socket(variables(), os.geteuid())
    if path is None:
        raise UsageError("$IMGFS_SERVE says that there is to be no server: --socket names a place for one")
    with listening_at(Path(path).absolute()) as listening:
        yield listening

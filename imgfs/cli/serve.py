"""imgfs serve: imgfs kept loaded, and a process forked from it for each mount and container."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs import syscalls
from imgfs.cli.options import Commands, add_command, log_level_option, open_store, store_option
from imgfs.cli.output import warn
from imgfs.errors import ImgfsError, StoreError, UsageError

if TYPE_CHECKING:
    from imgfs.forkserver.companions import Companion
    from imgfs.peers.server import PeerServer

_POOL = 4  # processes at most, one for each core, that serve the mounts which were idle
_ROOM = 4096  # bytes for a command's words, as ps(1) shows them
_LOADED = (
    "encodings.ascii",
    "encodings.idna",  # by which `socket` looks every host up
    "secrets",
    "imgfs.cli.container",
    "imgfs.cli.container_run",
    "imgfs.cli.container_options",
    "imgfs.cli.container_volumes",
    "imgfs.cli.mount",
    "imgfs.cli.parser",
    "imgfs.cli.run",
    "imgfs.cli.selection",
    "imgfs.cli.tag_question",
    "imgfs.image.prepare",
    "imgfs.image.profiles",
    "imgfs.mount.daemon",
    "imgfs.mount.successor",
    "imgfs.metrics.endpoint",
    "imgfs.registry.config.resolver",
    "imgfs.registry.config.shortnames",
    "imgfs.predict.predictor",
)


def add_serve(commands: Commands) -> None:
    """`imgfs serve`."""
    command = add_command(
        commands,
        "serve",
        serve,
        "keep imgfs loaded, so that mounts and containers begin at once and share memory",
        """\
Waits for `imgfs mount` and `imgfs run` of the same user, and forks a process for each: what they take is
loaded already, and the daemons of all mounts share memory. A mount or container is as it is without that, and
goes on when this ends. Where it does not run, or the caller's namespaces, groups, capabilities or version are
others, or its cgroups cannot be entered for a container, the command does all of it by itself. It ends when
another imgfs is installed.

Examples:
  imgfs serve
  systemctl --user enable --now imgfs-serve     (see: imgfs help mounting)
  IMGFS_SERVE=~/serve.sock imgfs serve          commands with the same variable find it (none: no server)
  imgfs serve --peer 0.0.0.0:7117 --peer-ca ca.crt --peer-cert node.crt --peer-key node.key
                                                (see: imgfs help registries)
""",
    )
    command.add_argument(
        "--socket",
        metavar="SOCKET",
        help="where to listen (default: $IMGFS_SERVE, else $XDG_RUNTIME_DIR/imgfs/serve.sock, for root "
        "/run/imgfs/serve.sock)",
    )
    _peer_options(command)
    store_option(command)
    log_level_option(command)
    command.add_argument("--room", help=argparse.SUPPRESS)


def _peer_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("layers for other machines' imgfs")
    group.add_argument(
        "--peer",
        metavar="ADDRESS",
        help="serve what the store has of layers to other machines: HOST:PORT, or on this one alone PORT or "
        "unix:PATH",
    )
    for name, what in (
        ("ca", "the authorities of their certificates, without which other machines are not answered"),
        ("cert", "this machine's own certificate"),
        ("key", "its key"),
    ):
        variable = f"$IMGFS_PEER_{name.upper()}"
        group.add_argument(f"--peer-{name}", metavar="FILE", help=f"{what}, in PEM (default: {variable})")


def serve(options: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    from imgfs.daemonize import log_to_stderr
    from imgfs.forkserver.command import Commands
    from imgfs.forkserver.companions import Companion
    from imgfs.forkserver.server import ForkServer
    from imgfs.mount.holder_start import WaitingHolder
    from imgfs.systemd import tell_systemd

    if not options.room:  # the words of a process that is forked later are shown where those of this one are
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "--room", " " * _ROOM])
    syscalls.show_words(sys.orig_argv[:-2])  # without that room: systemctl status shows all of it
    log_to_stderr(options.log_level.upper())
    with ExitStack() as stack:
        companions = [_peer_companion(options, stack)] if options.peer else []
        load()
        listening = stack.enter_context(_listening(options.socket))
        companions += _pool(options.socket, stack)
        os.chdir("/")  # what options and variables name is found by now: they may be relative
        waiting = stack.enter_context(closing(WaitingHolder()))
        companions.append(Companion("the process that holders are forked from", waiting.run))
        commands = Commands(_carry_out, _is_bound)
        server = ForkServer(listening, commands, companions, kept=[waiting.fileno()])
        goes_on = server.serve(lambda: tell_systemd(b"READY=1"))
    tell_systemd(b"STOPPING=1")
    return 0 if goes_on else 1


def _carry_out(words: Sequence[str]) -> int:
    """Carry out a command; the daemon of a mount is forked before anything is touched that all share."""
    from imgfs.cli import carry_out
    from imgfs.mount.daemon import Mounting

    if words[:1] != ["mount"]:
        return carry_out(words, has_loaded=True)
    with Mounting.fork(writable=True) as mounting:
        return carry_out(words, mounting, has_loaded=True)


def _is_bound(words: Sequence[str]) -> bool:
    """Return True for a container: the limits of its caller's cgroups hold for it."""
    return words[:1] == ["run"]


def load() -> None:
    """Load what mounts and containers take, and read what is the same for each."""
    from imgfs.cli.parser import describe_ahead
    from imgfs.mount.loading import load_what_serves
    from imgfs.runtime.devices import find_profile
    from imgfs.runtime.security import Security

    for module in _LOADED:
        importlib.import_module(module)
    load_what_serves()
    describe_ahead("mount", "run")
    with suppress(ImgfsError):  # told to the command that it is of
        find_profile(Security())


def _peer_companion(options: argparse.Namespace, stack: ExitStack) -> Companion:
    """Take the address that peers are to be answered at, until `stack` ends; return who answers them."""
    from imgfs.config import Environment
    from imgfs.forkserver.companions import Companion
    from imgfs.listening import parse_address
    from imgfs.peers.server import PeerServer, ServerCertificates

    environment = Environment.read()
    known = environment.peers
    authority, certificate, key = (
        Path(said).absolute() if said else usual
        for said, usual in (
            (options.peer_ca, known.ca_file),
            (options.peer_cert, known.certificate),
            (options.peer_key, known.key),
        )
    )
    try:
        address = parse_address(options.peer)
    except ValueError as error:
        raise UsageError(f"--peer: {error}") from error
    certificates = None
    if authority and certificate:
        certificates = ServerCertificates(authority, certificate, key)
    elif authority or certificate or key:
        raise UsageError("--peer-ca and --peer-cert belong together")
    server = stack.enter_context(closing(PeerServer(open_store(options, environment), address, certificates)))
    return Companion("the process that answers peers", partial(_answer_peers, server, os.getpid()))


def _pool(place: str | None, stack: ExitStack) -> list[Companion]:
    """Take the address that idle mounts are handed over at; return what serves them."""
    from imgfs.forkserver.companions import Companion
    from imgfs.forkserver.server import listening_at
    from imgfs.mount.pool import MountPool
    from imgfs.variables import SERVER, pool_socket, variables

    address = pool_socket({**variables(), **({SERVER: place} if place else {})}, os.geteuid())
    if address is None:
        return []
    try:
        pool = MountPool(stack.enter_context(listening_at(Path(address))))
    except StoreError as error:  # as where the path is too long for a socket (unix(7))
        warn(f"mounts that were idle will share no process: {error}")
        return []
    return [Companion("a process that serves mounts", pool.serve) for _ in range(pool_size())]


def pool_size() -> int:
    """Return how many processes serve the mounts that were idle."""
    return min(_POOL, len(os.sched_getaffinity(0)))


def _answer_peers(server: PeerServer, parent: int) -> None:
    """Answer peers, in a process of its own, for as long as its parent lives."""
    from imgfs.syscalls import set_parent_death_signal

    set_parent_death_signal(signal.SIGTERM, parent)
    server.serve()


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

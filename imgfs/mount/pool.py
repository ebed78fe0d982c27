"""A process that serves many mounts, each in a thread: a further one takes 0.4 MB, where a process takes ten.

It takes mounts whose daemons were idle from their holders, when something is asked of them (`courier`), and
goes by the same rules as the fork server: the same user, rights and namespaces; and the same variables. What
it is told is not read before the holder has shown that it may look into this process.

    holder ──── PROTOCOL, restarts, numbers; the descriptors of these ───► pool
           ◄─── PROVE: what a confined process cannot read ───────────────
           ──── that ─────────────────────────────────────────────────────►
           ◄─── PID/THREAD ───────────────────────────────────────────────
           ──── GO, by the pipe that a daemon is told by ─────────────────►

A mount leaves when it is idle again, unmounted or handed to another version. What it has open stays so: a
thread of it may wait for a registry or in the kernel, and must not find another file by its number. So the
process ends when no mount is left, or after so many (`_LEAVES`) once no reader waits for it. If it dies, too,
all its mounts go on: their holders have each served, by a process of its own, once something is asked of it.

Locks: `MountPool._lock` guards the counts, and is held while a mount is taken.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from imgfs import syscalls
from imgfs.errors import ImgfsError, LimitReached, MountError, describe
from imgfs.forkserver.caller import Differs, check_likeness, check_variables
from imgfs.forkserver.command import check_sight, peer_of
from imgfs.mount.daemon import serve
from imgfs.mount.holder_protocol import GO, PROTOCOL
from imgfs.mount.resume import HolderPipes, Succession, Takeover, load_state, renumbered
from imgfs.starting import start_thread
from imgfs.store.open_files import allow_all_files

log = logging.getLogger("imgfs.mount")

_PATIENCE = 5.0  # seconds for a holder to say what it has to say
_PAUSE = 0.5  # seconds before a mount is taken that could not be
_LOOK = 1.0  # seconds between looks whether it is to end
_LEAVES = 16  # mounts
_LONGEST, _MOST = 1024, 16  # bytes of that, and descriptors


class MountPool:
    """Serves the mounts that holders hand over at `listening`."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._parent = os.getpid()  # of the processes that are forked to serve
        self._lock = threading.Lock()
        self._serving = self._left = 0  # mounts

    def serve(self) -> None:
        """Serve until the parent ends, or the last mount has left."""
        syscalls.set_parent_death_signal(signal.SIGTERM, self._parent)
        allow_all_files()  # of how many mounts is not known
        self._listening.setblocking(False)
        while not self._is_leaving():
            if select.select([self._listening], [], [], _LOOK)[0]:
                with self._lock:
                    self._accept()
        while True:  # the last mount ends it
            time.sleep(_LOOK)

    def _is_leaving(self) -> bool:
        return self._left >= _LEAVES

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except BlockingIOError:  # another process was quicker
            return
        except OSError as error:  # no more files or memory: what it serves is not ended by that
            log.warning("no mount can be taken: %s", describe(error))
            time.sleep(_PAUSE)
            return
        with connection:
            self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        """Take a mount, and begin to serve it; or leave it to a process of its own."""
        try:
            succession = _taken(connection, self._is_leaving)
        except (Differs, ImgfsError, OSError, ValueError) as error:
            log.info("a mount is left to a process of its own: %s", describe(error))
            return
        try:
            thread = start_thread(partial(self._serve, succession), "imgfs-mount")
        except LimitReached as error:  # what this process serves is not ended by that
            log.warning("a mount is left to a process of its own: %s", error)
            succession.close()
            return
        self._serving += 1
        with suppress(OSError):  # the holder did not wait: the thread will notice
            connection.sendall(f"{os.getpid()}/{thread.native_id}".encode())

    def _serve(self, succession: Succession) -> None:
        """Serve a mount until it leaves; end the process with the last one."""
        try:
            _serve_in_turn(succession)
        finally:
            with self._lock:
                self._serving -= 1
                self._left += 1
                succession.close()
                if not self._serving:
                    logging.shutdown()
                    os._exit(0)


def _taken(connection: socket.socket, is_leaving: Callable[[], bool]) -> Succession:
    """Return what a holder hands over. Raises Differs, MountError, OSError, ValueError."""
    connection.settimeout(_PATIENCE)
    given: list[int] = []
    try:
        with peer_of(connection) as pid:
            check_likeness(pid)  # first of all: a sandbox with the socket keeps no holder waiting
            check_variables(pid)
            said, passed, _, _ = socket.recv_fds(connection, _LONGEST, _MOST)
            given += passed
            check_sight(connection)
        return _succession(said.decode().split(), given, is_leaving)
    except BaseException:
        for number in given:
            os.close(number)
        raise


def _succession(words: Sequence[str], given: list[int], is_leaving: Callable[[], bool]) -> Succession:
    """Return what is to be served, whose descriptors are `given` by other numbers in their holder."""
    protocol, *numbers = words
    if protocol != PROTOCOL:
        raise MountError("the holder is of another version")
    restarts, *there = map(int, numbers)
    here = dict(zip(there, given, strict=True))
    descriptor, memory, control, told, *_ = given
    for number in given:
        os.set_inheritable(number, False)
    state = load_state(os.pread(memory, os.fstat(memory).st_size, 0))
    state = renumbered(state, here)
    os.set_blocking(control, False)
    os.close(memory)
    given.remove(memory)
    takeover = Takeover(descriptor, is_pooled=True, is_leaving=is_leaving)
    return Succession(state, HolderPipes(control, told), takeover, restarts)


def _serve_in_turn(succession: Succession) -> None:
    """Serve a mount until it leaves, unless its holder has not waited for that."""
    mountpoint = succession.state.options.mountpoint
    if succession.pipes.take_word() != GO:
        return
    log.info("asked for again: %s", mountpoint)
    try:
        serve(succession.state, lambda: None, succession)
    except ImgfsError as error:
        log.error("%s: %s", mountpoint, error)  # noqa: TRY400  (a line for a person)
    except BaseException:
        log.exception("%s: its service ends", mountpoint)

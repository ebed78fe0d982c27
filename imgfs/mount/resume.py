"""Serving a mount that another process has mounted, and was killed: what is handed on, and how.

The kernel keeps the requests that a killed daemon has read and not answered. Asked to (FUSE_NOTIFY_RESEND,
Linux 6.9, include/uapi/linux/fuse.h) it sends them again to the process that reads /dev/fuse next. That goes
by what the first daemon has agreed to, and gives files the same inode numbers: those of the image's tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from imgfs import __version__, syscalls
from imgfs.errors import MountError
from imgfs.mount.holder_protocol import BEAT, DONE, ENDED, IDLE, NO_ORDER, NO_POOL, SERVES
from imgfs.mount.options import MountOptions, can_resend
from imgfs.mounts.table import mount_at, mounts
from imgfs.owned.inheritance import LockInheritance
from imgfs.variables import pool_socket, variables

if TYPE_CHECKING:
    from imgfs.fuse.opcodes import Opcode
    from imgfs.fuse.session import Session
    from imgfs.image.resolve import Resolved
    from imgfs.kernel.driver import RuntimeDirectory
    from imgfs.mount.serving import ServedMount
    from imgfs.store.store import Store
    from imgfs.transport.source import Source

_LEFT: list[contextlib.ExitStack] = []  # to the end of the process: what nothing refers to is taken down
_START = "import sys; sys.path.insert(0, sys.argv[1]); from imgfs.mount.successor import main; main()"


@dataclass(frozen=True, slots=True)
class KernelMount:
    """What a mount by the kernel's own file systems has beside the flat files that are served.

    `passthrough` are those that it reads itself, `listener` is the descriptor of the socket of the status.
    """

    directory: RuntimeDirectory
    passthrough: tuple[Path | None, ...]
    listener: int


@dataclass(frozen=True, slots=True)
class MountState:
    """What a successor has to know. `connect` is pickled; `device` is the mount's, major:minor.

    `scratch_lock` is the descriptor of the lock on its scratch, `once` that of the memory of `fuse.once`,
    `stats` that of the memory of the statistics (`content.stats_memory`), `locks` those of the locks on its
    layers, which the store does not remove while any process has them open.
    `offered` is what the kernel can do, `agreed` what of that is made use of (InitFlag), `began` when it was
    mounted, in seconds since 1970, `beat` the seconds from one sign of life to the next.
    """

    resolved: Resolved
    connect: bytes
    store: Store
    options: MountOptions
    began: float
    offered: int = 0
    agreed: int = 0
    device: str = ""
    kernel: KernelMount | None = None
    scratch_lock: int = -1
    once: int = -1
    stats: int = -1
    locks: tuple[int, ...] = ()
    beat: float = BEAT

    @property
    def kept(self) -> list[int]:
        """Descriptors that all processes of the mount have by the same numbers."""
        kept = [self.kernel.directory.lock, self.kernel.listener] if self.kernel else []
        return [
            *kept,
            *self.locks,
            *(number for number in (self.scratch_lock, self.once, self.stats) if number >= 0),
        ]


@dataclass(frozen=True, slots=True)
class HolderPipes:
    """A daemon's ends of the pipes to and from its mount's holder (`holder_protocol`); -1 for none."""

    control: int = -1  # is written to
    told: int = -1  # is read from

    def say(self, words: bytes) -> None:
        """Tell the holder something."""
        with contextlib.suppress(BrokenPipeError, BlockingIOError):  # the holder is dead or stopped
            os.write(self.control, words)

    def take_word(self) -> bytes:
        """Return what the holder has said; nothing if it is dead."""
        return os.read(self.told, 1)


@dataclass(frozen=True, slots=True)
class Takeover:
    """How this process serves a mount that another one has mounted: by its open /dev/fuse.

    An heir takes over from a daemon that is alive, in an upgrade. A pooled process serves other mounts, too;
    `is_leaving` says whether it is to end as soon as no reader waits for it.
    """

    descriptor: int
    is_heir: bool = False
    is_pooled: bool = False
    is_leaving: Callable[[], bool] = lambda: False


@dataclass(slots=True)
class Succession:
    """Has another process serve a mount if this one is killed, or is to hand over.

    Without a `takeover` this process has mounted it itself. `restarts` counts its predecessors that were
    killed; the kernel `resends` what the last one left unanswered. An heir `has_turn` once the daemon has
    stopped; a daemon that hands over, or is idle, has it no more. While the mount is idle its holder may
    answer requests by `idle_answers`.
    """

    state: MountState
    pipes: HolderPipes = HolderPipes()
    takeover: Takeover | None = None
    restarts: int = 0
    resends: bool = True
    has_turn: bool = True
    idle_answers: Mapping[Opcode, bytes] | None = None
    lock: LockInheritance = field(init=False)

    def __post_init__(self) -> None:
        self.lock = LockInheritance(self.state.scratch_lock)
        if self.state.stats < 0:
            self.state = replace(self.state, stats=os.memfd_create("imgfs-stats"))

    def memory(self) -> int:
        """Return the descriptor of memory that all processes of the mount have."""
        if self.state.once < 0:
            from imgfs.fuse.once import new_memory  # here: for scratches

            self.state = replace(self.state, once=new_memory())
        return self.state.once

    @property
    def is_taken_over(self) -> bool:
        """Whether another process has mounted it."""
        return self.takeover is not None

    @property
    def descriptor(self) -> int:
        """The open /dev/fuse that was taken over, -1 in the process that has mounted it."""
        return self.takeover.descriptor if self.takeover else -1

    @property
    def is_heir(self) -> bool:
        """Whether this process takes over from a daemon that is alive."""
        return self.takeover is not None and self.takeover.is_heir

    @property
    def is_pooled(self) -> bool:
        """Whether this process serves other mounts, too."""
        return self.takeover is not None and self.takeover.is_pooled

    def is_leaving(self) -> bool:
        """Return whether this process is to end as soon as no reader waits for it."""
        return self.takeover is not None and self.takeover.is_leaving()

    @property
    def is_idle(self) -> bool:
        """Whether no process serves the mount any more, until something is asked of it."""
        return self.idle_answers is not None

    def serves(
        self, descriptor: int, mount: ServedMount, session: Session, kernel: KernelMount | None = None
    ) -> None:
        """Note that this process answers; the first one starts the holder. Raises OSError."""
        if not self.is_taken_over:
            found = mount_at(mount.options.mountpoint)
            self.state = replace(
                self.state,
                options=mount.options,
                offered=session.offered,
                agreed=session.offered & session.offers,
                device=found.device if found else "",
                kernel=kernel,
                scratch_lock=self.lock.fd,
                locks=mount.image.locks,
            )
            self._start_holder(descriptor)
        self.pipes.say(SERVES)

    def check(self, session: Session) -> None:
        """Raise MountError if this process would not do what another has agreed to with the kernel."""
        lacking = self.state.agreed & ~session.understood
        if lacking:
            raise MountError(f"imgfs {__version__} does not do what the kernel was told (INIT: {lacking:#x})")

    def ended(self) -> None:
        """Tell the holder that this process is done: the mount has ended, or it has a successor."""
        if self.pipes.control < 0:
            return
        if self.idle_answers is None:
            self.pipes.say(ENDED if self.has_turn else DONE)
        else:
            words = () if self.is_pooled else self._words_while_idle(self.idle_answers)
            self.pipes.say(IDLE + b" ".join(words))

    def _words_while_idle(self, answers: Mapping[Opcode, bytes]) -> Iterator[bytes]:
        """Yield what the holder has to know (`holder_protocol.IDLE`)."""
        if self.state.kernel:
            yield b"%d" % self.state.kernel.listener
            yield b"+%d" % self.state.kernel.directory.lock
        yield b"+%d" % self.state.stats
        for opcode, body in answers.items():
            yield b"%d:%s" % (opcode, body.hex().upper().encode())

    def rest(self, answers: Mapping[Opcode, bytes]) -> None:
        """Have the holder give these answers, and the mount served again when something else is asked.

        That is after the end of this process, or of what it does for this mount.
        """
        self.has_turn, self.idle_answers = False, answers

    def keep(self) -> contextlib.ExitStack:
        """Return what is closed with the process: what a thread of this mount may use until then."""
        _LEFT.append(contextlib.ExitStack())
        return _LEFT[-1]

    def close(self) -> None:
        """Let go, in a process that goes on, of what the holder has open, too.

        The number of /dev/fuse stays in use: a thread may be about to write to it.
        """
        kernel = self.state.kernel
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self.descriptor, inheritable=False)
        more = (kernel.listener, kernel.directory.lock) if kernel else ()
        for number in (null, self.state.stats, self.pipes.told, self.pipes.control, *more):
            os.close(number)

    def unmount(self) -> None:
        """Detach a mount that was taken over, unless the kernel has let go of it already."""
        polled = select.poll()
        polled.register(self.descriptor, 0)
        if polled.poll(0):  # POLLERR; its number may be another mount's by now
            return
        for mount in [mount for mount in mounts() if mount.device == self.state.device]:
            if os.geteuid() == 0:
                with contextlib.suppress(OSError):
                    syscalls.unmount(str(mount.mountpoint), syscalls.MNT_DETACH)
            else:
                import subprocess  # here and below: few mounts have a successor

                subprocess.run(["fusermount3", "-u", "-z", "--", mount.mountpoint], check=False)

    def _pool(self) -> str:
        """Return where processes that serve many mounts may be found, for one that is idle at times."""
        place = pool_socket(variables(), os.geteuid()) if self.state.options.exit_idle else None
        return place or NO_POOL

    def _start_holder(self, descriptor: int) -> None:
        from imgfs.mount.holder_start import start_holder  # here: many mounts have no holder

        state, outcome = os.memfd_create("imgfs-mount"), os.memfd_create("imgfs-outcome")
        with open(state, "wb", closefd=False) as file:
            file.write(dump_state(self.state))
        control, own_control = os.pipe()
        own_told, told = os.pipe()
        self.pipes = HolderPipes(own_control, own_told)
        read, written = os.pipe()
        orders = os.open(f"/proc/self/fd/{read}", os.O_RDWR)  # so that it never lacks a writer
        os.set_blocking(own_control, False)
        numbers = (descriptor, state, orders, outcome)
        server = f"{os.getpid()}/{os.getpid()}:{control}:{told}:"
        given = *numbers, self.state.beat, 0, NO_ORDER, server, self._pool()
        name = str(self.state.options.mountpoint), self.state.device
        start_holder(
            [*name, *map(str, given), *successor_program()],
            [*numbers, control, told, *self.state.kept],
        )
        for number in (*numbers[1:], control, told, read, written):
            os.close(number)


def renumbered(state: MountState, numbers: Mapping[int, int]) -> MountState:
    """Return a state whose descriptors have other numbers in this process."""
    kernel = state.kernel
    if kernel:
        directory = kernel.directory._replace(lock=numbers[kernel.directory.lock])
        kernel = replace(kernel, directory=directory, listener=numbers[kernel.listener])
    return replace(state, kernel=kernel, stats=numbers[state.stats], locks=())


def successor_program() -> list[str]:
    """Return the program that serves in another's place: this imgfs, and this interpreter."""
    return [sys.executable, "-I", "-c", _START, str(Path(__file__).parents[2])]


def dump_state(state: MountState) -> bytes:
    """Return a mount's state for another process: who has made it and what it is made of, then a pickle."""
    head = json.dumps({"version": __version__, "fields": sorted(_fields_within(state))})
    return head.encode() + b"\n" + pickle.dumps(state)


def load_state(body: bytes) -> MountState:
    """Return what `dump_state` was given, perhaps by another version. Raises MountError if it is no use here.

    A pickle does not say what its values are the values of: so both must have the same fields.
    """
    head, _, pickled = body.partition(b"\n")
    said = json.loads(head)
    try:
        state: MountState = pickle.loads(pickled)
        own = sorted(_fields_within(state))
    except Exception as error:  # whatever the other version has, and this one has not
        raise MountError(_of_another(said["version"], str(error))) from error
    other = [name for name in said["fields"] if name not in own]
    if other or len(own) != len(said["fields"]):
        raise MountError(_of_another(said["version"], f"{(other or own)[0]} differs"))
    return state


def _of_another(version: str, reason: str) -> str:
    return f"imgfs {__version__} cannot go on with a mount of this imgfs {version}: {reason}"


def _fields_within(value: object) -> set[str]:
    """Return the classes and fields that a state is made of, as far as imgfs has made them."""
    if isinstance(value, tuple | list | set | frozenset):
        return {name for each in value for name in _fields_within(each)}
    if not is_dataclass(value):
        return set()
    kind = type(value)
    names = [each.name for each in fields(value)]
    within = {name for each in names for name in _fields_within(getattr(value, each, None))}
    return within | {f"{kind.__module__}.{kind.__qualname__}({' '.join(names)})"}


def leave(stack: contextlib.ExitStack) -> None:
    """Leave to another process what would be taken down at the end of `stack`."""
    _LEFT.append(stack.pop_all())


def check_kernel() -> None:
    """Raise MountError if this kernel does not send again what a killed daemon has left unanswered."""
    if not can_resend():
        release = os.uname().release
        raise MountError(f"--restart: this kernel is Linux {release}, and has to be 6.9 or newer")


def connector(pickled: bytes) -> Callable[[], Source]:
    """Return what opens a source; what that takes is loaded when it is needed."""

    def connect() -> Source:
        source: Source = pickle.loads(pickled)()
        return source

    return connect

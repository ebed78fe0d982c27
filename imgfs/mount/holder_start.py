"""Starting a mount's holder: by a fork of one that waits, where `imgfs serve` runs, or by an interpreter.

A fork takes less than half of the memory. It counts only if it is what a process would be that this one had
started: its rights and namespaces, its variables, and all that is inherited are compared, or given to it,
before it is told to go on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imgfs.errors import describe
from imgfs.mount.holder_protocol import GO, LONGEST, MOST, ROOM
from imgfs.starting import close_all_but
from imgfs.syscalls import set_parent_death_signal

log = logging.getLogger("imgfs.mount")

_HOLDER = Path(__file__).with_name("holder.py")
# As a script its source would be compiled anew for each mount, which takes memory that stays: 1.3 MB. So it
# is imported, from a package that stands for `imgfs.mount` and has its directory: `imgfs` is not loaded.
_IMPORT = (
    'import sys; del sys.argv[0]; package = type(sys)("imgfs.mount"); '
    'package.__path__ = [{directory}]; sys.modules["imgfs.mount"] = package; '
    "from imgfs.mount.{module} import main; sys.exit(main())"
)
_HOLD = _IMPORT.format(directory='sys.argv[0].rpartition("/")[0]', module="holder")
_WAIT = _IMPORT.format(directory="sys.argv[0]", module="waiting_holder")
_PATIENCE = 2.0  # seconds for the waiting process to fork
_INHERITED = (1, 2)  # standard output and error, which a process has that is started; its input is nothing

_started: list[subprocess.Popen[bytes]] = []  # holders that are this process's children
_waiting: list[socket.socket] = []  # where this process, or the server that forked it, asks for a fork


class WaitingHolder:
    """The process that holders are forked from (`waiting_holder`): for a server, and what it forks."""

    def __init__(self) -> None:
        self._asked, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _waiting[:] = [asks]

    def fileno(self) -> int:
        """Return the descriptor by which a process asks for a fork."""
        return _waiting[0].fileno()

    def close(self) -> None:
        """Let no more holders be forked by this process, or by what it forks."""
        _waiting.pop().close()
        self._asked.close()

    def run(self) -> None:
        """Become that process, with nothing open that the server was started with. Raises OSError."""
        set_parent_death_signal(signal.SIGTERM, os.getppid())
        number = self._asked.fileno()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        close_all_but([number])
        self._asked.set_inheritable(True)
        words = [sys.executable, "-ISc", _WAIT, str(_HOLDER.parent), str(number), " " * ROOM]
        os.execv(words[0], words)


def holder_program() -> list[str]:
    """Return the words that a holder of this imgfs is run by (`Orders.HOLDER`)."""
    return [sys.executable, "-ISc", _HOLD, str(_HOLDER)]


def start_holder(arguments: Sequence[str], descriptors: Sequence[int]) -> None:
    """Start a holder with these arguments, and these open by the same numbers. Raises OSError."""
    words = [*holder_program(), *arguments]
    if not (_waiting and _is_forked(words, descriptors)):
        _started.append(
            subprocess.Popen(words, pass_fds=descriptors, stdin=subprocess.DEVNULL, start_new_session=True)
        )


def _is_forked(words: Sequence[str], descriptors: Sequence[int]) -> bool:
    """Have the waiting process fork a holder; return False if there is none that will do."""
    from imgfs.forkserver.caller import Differs  # here and below: where no server runs nothing is forked

    try:
        _fork_holder(words, descriptors)
    except (Differs, OSError, ValueError) as error:
        log.debug("the holder has an interpreter of its own: %s", describe(error))
        return False
    return True


def _fork_holder(words: Sequence[str], descriptors: Sequence[int]) -> None:
    """Have the waiting process fork a holder. Raises Differs, OSError, ValueError: then there is none."""
    from imgfs.forkserver.caller import Differs, check_likeness, check_variables, give_over, own_umask

    numbers = [*_INHERITED, *descriptors]
    head = " ".join(map(str, [own_umask(), *numbers]))
    body = b"\0".join(map(os.fsencode, (head, *words)))
    if len(body) >= LONGEST or len(numbers) >= MOST:
        raise ValueError("too much for the waiting process")
    own, other = socket.socketpair()
    with own:
        own.settimeout(_PATIENCE)
        with other:
            socket.send_fds(_waiting[0], [body], [other.fileno(), *numbers], socket.MSG_DONTWAIT)
        said = own.recv(64)
        if not said:
            raise Differs("the waiting process has forked none")
        pid = int(said)
        check_likeness(pid)
        check_variables(pid)
        give_over(pid)
        own.sendall(GO)

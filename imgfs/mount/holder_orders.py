"""Orders to the holder of a mount: to have it served, and held, by another version of imgfs.

They come by a pipe that processes of the same user (or root) open by /proc. An upgrade goes like this: the
other version's holder is asked whether it understands PROTOCOL, and its program is run as the heir. Once that
is READY, the daemon is told to HAND_OVER; when it has STOPPED_READING, the heir is told to GO, while the
daemon answers what it has under way, and then is DONE. If the heir ends before it is ready, the daemon serves
on. At the end the holder executes that of the other version, in its own place: it stays the parent of the
daemons, and keeps its descriptors.
"""

from __future__ import annotations

import os
import select

from imgfs.mount.holder_protocol import PROTOCOL

TYPE_CHECKING = False  # as that of `typing`, which takes memory
if TYPE_CHECKING:
    from imgfs.mount.watched_server import Server

_PATIENCE = 20.0  # seconds that another version has to say whether it understands this one
_SIGKILL = 9


class Orders:
    """What other processes ask for by the pipe `fd`, and the file `outcome` that they are answered in.

    An order is words that end with NUL, and another NUL: PROTOCOL, a nonce, the HOLDER words that a holder
    is run by, and the program to run. It is written at once, and is short enough for the kernel not to mix it
    with others (pipe(7), PIPE_BUF).
    """

    HOLDER = 4

    def __init__(self, fd: int, outcome: int) -> None:
        self.fd = fd
        self._outcome = outcome
        os.set_blocking(fd, False)
        for number in (fd, outcome):
            os.set_inheritable(number, False)

    def hand_on(self) -> tuple[int, int]:
        """Return both descriptors, for the program that this process is about to execute."""
        for number in (self.fd, self._outcome):
            os.set_inheritable(number, True)
        return self.fd, self._outcome

    def read(self) -> tuple[str, list[str], list[str]] | None:
        """Return the nonce, the holder and the program of an order; none if it is of another protocol."""
        try:
            orders = os.read(self.fd, 1 << 16).decode(errors="surrogateescape").split("\0\0")
        except BlockingIOError:
            return None
        protocol, nonce, *words = [*orders[0].split("\0"), "", ""]
        words = [word for word in words if word] if protocol == PROTOCOL else []
        return nonce, words[: self.HOLDER], words[self.HOLDER :]

    def answer(self, nonce: str, text: str) -> None:
        """Tell what has become of an order; an empty text if it is done."""
        body = f"{nonce} {text}\n".encode(errors="surrogateescape")
        os.pwrite(self._outcome, body, 0)
        os.ftruncate(self._outcome, len(body))


class Upgrade:
    """An order that is being carried out."""

    def __init__(self, nonce: str, holder: list[str], words: list[str], orders: Orders) -> None:
        self.nonce = nonce
        self.holder = holder
        self.words = words
        self.orders = orders
        self.heir: Server | None = None
        self.is_asked = False  # whether the daemon was told to hand over

    def tell(self, text: str) -> None:
        """Tell the process that has given the order what has become of it."""
        self.orders.answer(self.nonce, text)


def is_understood(holder: list[str]) -> bool:
    """Return whether another version's holder, run by these words, says that it can go on from this one."""
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(holder[0], [*holder, PROTOCOL])
        finally:
            os._exit(127)
    child = os.pidfd_open(pid)
    if not select.select([child], [], [], _PATIENCE)[0]:
        os.kill(pid, _SIGKILL)
    os.close(child)
    return os.waitpid(pid, 0)[1] == 0

"""A process that serves a mount, watched by the mount's holder: what it has said, whether it lives, or hangs.

A beat proves that the thread which reads /dev/fuse has come round to it: requests that wait for a registry
wait in other threads. A process without a beat counts as stuck only if it cannot be merely slow.
"""

from __future__ import annotations

import os
import select
import time

from imgfs.mount.holder_protocol import BEATS, READY, REFUSES, SERVES, write_words

STOPPED = 2  # silences of a process that a signal has stopped,
ASLEEP = 5  # or that sleeps although its beat is due, or runs,
LOOPING = 2.0  # and has used so many seconds of the processor since its last beat,
STARTING = 20  # or that has not served yet, before it is killed
_SIGKILL = 9
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A process that serves the mount, or will, and what it says by a pipe. Times are in seconds."""

    def __init__(
        self,
        pid: int,
        control: int,
        told: int,
        said: bytes = b"",
        *,
        thread: int | None = None,
        serves: bool = False,
    ) -> None:
        self.pid = pid
        self._thread = pid if thread is None else thread
        self.control = control
        self._told = told
        self.said = said  # all but beats,
        self.reason = b""  # and why it refuses, which comes last
        self._is_serving = serves
        self._hung_up = False
        self._silences = self._stopped = self._asleep = 0
        self._is_dying = False
        self._heard = time.monotonic()
        self._used = self._processor_time()
        os.set_blocking(control, False)  # a process that it has forked may have it open, and say nothing
        try:
            self.fd = os.pidfd_open(pid)
        except OSError:  # it has ended; or no more files: then it counts as if it had
            self.fd = -1

    @classmethod
    def handed_on(cls, text: str) -> Server:
        """Return the process that another holder has described by `hand_on`."""
        place, control, told, said = text.split(":")
        for number in (control, told):
            os.set_inheritable(int(number), False)
        pid, thread = map(int, place.split("/"))
        return cls(pid, int(control), int(told), said.encode(), thread=thread, serves=True)

    def hand_on(self) -> str:
        """Describe it to the program that this process is about to execute."""
        for number in (self.control, self._told):
            os.set_inheritable(number, True)
        return f"{self.pid}/{self._thread}:{self.control}:{self._told}:{self.said.decode()}"

    def listen(self) -> None:
        """Take what it has said."""
        try:
            words = os.read(self.control, 4096)
        except BlockingIOError:
            return
        self._hung_up = not words
        if words:
            self._heard = time.monotonic()
            self._silences = self._stopped = self._asleep = 0
            self._used = self._processor_time()
            words, refuses, reason = words.partition(REFUSES)
            self.said += words.replace(BEATS, b"") + refuses
            self.reason += reason
            self._is_serving |= SERVES in words or READY in words

    def tell(self, word: bytes) -> None:
        """Tell it something; if it has ended, that will be noticed."""
        write_words(self._told, word)

    def descriptors(self) -> list[int]:
        """Return what is readable once it has said something, or has ended."""
        return [self.fd] if self._hung_up else [self.fd, self.control]

    @property
    def is_shared(self) -> bool:
        """Whether it is a thread of a process that serves other mounts, too."""
        return self._thread != self.pid

    def has_ended(self) -> bool:
        """Return whether it has ended, or all that would still be served by it."""
        is_gone = self.fd < 0 or self._is_dying or (self.is_shared and self._hung_up)
        return is_gone or bool(select.select([self.fd], [], [], 0)[0])

    def is_silent(self, seconds: float) -> bool:
        """Return whether it has said nothing for so long, since it was asked last."""
        now = time.monotonic()
        if now - self._heard < seconds:
            return False
        self._heard = now
        return True

    def is_stuck(self) -> bool:
        """Note a silence; return True if the process does not come round to what it has to do.

        A process that waits for a disk (D) is not judged, nor one that is traced (t). One that wants to run
        and does not get the processor, on a machine that has too much to do, cannot be told from one that
        loops but by the time it has used: a beat takes less than a thousandth of LOOPING.

        Of one that was killed a thread may be left, with what it has open: it waits in the kernel for a page
        that a READ is to fill, which only a successor will answer.
        """
        self._silences += 1
        state = self.state()
        self._is_dying = state == "Z"
        if state == "T":
            self._stopped += 1
        elif state == "S":
            self._asleep += 1
        if not self._is_serving:
            return max(self._stopped, self._asleep) >= STARTING
        loops = self._silences >= ASLEEP and self._processor_time() - self._used >= LOOPING
        return self._stopped >= STOPPED or self._asleep >= ASLEEP or loops

    def kill(self) -> None:
        """End it, whatever it does."""
        if not self.has_ended():
            __import__("_signal").pidfd_send_signal(self.fd, _SIGKILL)  # `signal` takes 0.8 MB

    def state(self) -> str:
        """Return the state of its thread as proc(5) has it, `?` if there is none."""
        return (self._stat() or ["?"])[0]

    def _processor_time(self) -> float:
        """Return the seconds of the processor that the thread which reads /dev/fuse has used."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0

    def _stat(self) -> list[str]:
        """Return the fields of proc(5)'s stat of that thread, from the third on."""
        try:
            with open(f"/proc/{self.pid}/task/{self._thread}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].decode().split()
        except OSError:
            return []

    def close(self) -> bool:
        """Close what was open for a process that has ended; return whether a signal has ended it."""
        self.listen()
        os.close(self.control)
        os.close(self._told)
        if self.fd >= 0:
            os.close(self.fd)
        try:
            return os.WIFSIGNALED(os.waitpid(self.pid, os.WNOHANG if self._is_dying else 0)[1])
        except ChildProcessError:  # the first daemon is no child of the holder
            return False

"""The holder of a mount: it keeps /dev/fuse open, and has the mount served again if its daemon dies or hangs.

A process of its own, run as a script by an interpreter that loads no packages (`python -I -S`): few
megabytes. It reads neither the store nor anything that comes from outside, and so outlives what its daemon
dies of.

    holder.py MOUNTPOINT DEVICE FUSE STATE CONTROL PID BEAT PROGRAM [ARGUMENT…]

MOUNTPOINT and DEVICE (major:minor) say in ps(1) what it holds. FUSE (the open /dev/fuse) and STATE (a file
in memory) are descriptors that each successor of the daemon PID inherits. CONTROL is the reading end of the
daemon's pipe, by which it says that it SERVES, and that the mount has ENDED, and gives a sign of life every
BEAT seconds. PROGRAM is run as the successor, with FUSE, STATE, the writing end of its own pipe, and how many
there have been, as further arguments.

A beat proves that the thread which reads /dev/fuse has come round to it: requests that wait for a registry
wait in other threads. A daemon without a beat is killed if it cannot be merely slow (`Server.is_stuck`).

While no process serves, readers wait. The holder gives up after so many successors, one after the other, that
ended without serving, or were killed before they could: then the connection ends, and readers get ENOTCONN,
as without a holder.
"""

from __future__ import annotations

import os
import select
import sys
import time

SERVES, ENDED, BEATS = b"s", b"e", b"b"
BEAT = 4.0  # seconds from one beat to the next,
_LATE = 1.5  # times that without a word are a silence
TRIES = 5  # successors that end without serving,
KILLS = 40  # or are killed before they serve, one after the other
_AT_ONCE, _PERIOD = 40, 60.0  # restarts in so many seconds without a pause before each further one,
_PAUSE = 1.0  # of so many seconds: what kills the daemon may be a request that is sent again
STOPPED = 2  # silences of a process that a signal has stopped,
ASLEEP = 5  # or that sleeps although its beat is due, or runs,
LOOPING = 2.0  # and has used so many seconds of the processor since its last beat,
STARTING = 20  # or that has not served yet, before it is killed
_SIGKILL = 9
_TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """A process that serves the mount, or will, and what it says by a pipe. Times are in seconds."""

    def __init__(self, pid: int, control: int, *, is_serving: bool = False) -> None:
        self.pid = pid
        self.control = control
        self.said = b""  # all but beats
        self._is_serving = is_serving
        self._hung_up = False
        self._silences = self._stopped = self._asleep = 0
        self._used = _processor_time(pid)
        os.set_blocking(control, False)  # a process that it has forked may have it open, and say nothing
        try:
            self.fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.fd = -1

    def listen(self) -> None:
        """Take what it has said."""
        try:
            words = os.read(self.control, 4096)
        except BlockingIOError:
            return
        self._hung_up = not words
        if words:
            self._silences = self._stopped = self._asleep = 0
            self._used = _processor_time(self.pid)
            self.said += words.replace(BEATS, b"")
            self._is_serving |= SERVES in words

    def wait(self, seconds: float) -> bool:
        """Wait for its end, or for what it says; return whether either has come in time."""
        waited = [self.fd] if self._hung_up else [self.fd, self.control]
        return bool(select.select(waited, [], [], seconds)[0])

    def has_ended(self) -> bool:
        """Return whether it has ended."""
        return self.fd < 0 or bool(select.select([self.fd], [], [], 0)[0])

    def is_stuck(self) -> bool:
        """Note a silence; return True if the process does not come round to what it has to do.

        A process that waits for a disk (D) is not judged, nor one that is traced (t). One that wants to run
        and does not get the processor, on a machine that has too much to do, cannot be told from one that
        loops but by the time it has used: a beat takes less than a thousandth of LOOPING.
        """
        self._silences += 1
        state = _state(self.pid)
        if state == "T":
            self._stopped += 1
        elif state == "S":
            self._asleep += 1
        if not self._is_serving:
            return max(self._stopped, self._asleep) >= STARTING
        loops = self._silences >= ASLEEP and _processor_time(self.pid) - self._used >= LOOPING
        return self._stopped >= STOPPED or self._asleep >= ASLEEP or loops

    def kill(self) -> None:
        """End it, whatever it does."""
        if self.fd >= 0:
            __import__("_signal").pidfd_send_signal(self.fd, _SIGKILL)  # `signal` takes 0.8 MB

    def close(self) -> bool:
        """Close what was open for a process that has ended; return whether a signal has ended it."""
        self.listen()
        os.close(self.control)
        if self.fd >= 0:
            os.close(self.fd)
        try:
            return os.WIFSIGNALED(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # the first daemon is no child of the holder
            return False


class Holder:
    """Has a mount served by `words`, a program, whose processes get `descriptors`."""

    def __init__(self, name: str, descriptors: tuple[int, ...], beat: float, words: list[str]) -> None:
        self._name = name
        self._descriptors = descriptors
        self._beat = beat
        self._words = words
        self._failures = self._kills = self._restarts = 0
        self._moments = [0.0] * _AT_ONCE  # of the last restarts

    def hold(self, server: Server) -> int:
        """Restart the daemon until the mount has ended, or it cannot be served: 0, or 1."""
        while True:
            self._watch(server)
            was_killed = server.close()
            if ENDED in server.said or self._is_unmounted():
                return 0
            if SERVES in server.said:
                self._failures = self._kills = 0
            elif was_killed:
                self._kills += 1
            else:
                self._failures += 1
            if self._failures >= TRIES or self._kills >= KILLS:
                return 1
            server = self._start()

    def _watch(self, server: Server) -> None:
        """Wait for the end of a daemon; end it, should it be stuck."""
        while not server.has_ended():
            if server.wait(self._beat * _LATE):
                server.listen()
            elif server.is_stuck():
                self._log(f"the daemon (pid {server.pid}) is stuck, state {_state(server.pid)}: it is killed")
                server.kill()

    def _is_unmounted(self) -> bool:
        """Return whether the kernel has let go of the mount."""
        polled = select.poll()
        polled.register(self._descriptors[0], 0)
        return bool(polled.poll(0))  # POLLERR

    def _start(self) -> Server:
        """Start a successor."""
        self._restarts += 1
        number = self._restarts % _AT_ONCE
        if self._restarts > _AT_ONCE and time.monotonic() - self._moments[number] < _PERIOD:
            time.sleep(_PAUSE)
        self._moments[number] = time.monotonic()
        control, written = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.set_inheritable(written, True)
                given = map(str, (*self._descriptors, written, self._restarts))
                os.execv(self._words[0], [*self._words, *given])
            finally:
                os._exit(127)
        os.close(written)
        return Server(pid, control)

    def _log(self, text: str) -> None:
        """Add a line to the daemon's log."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(2, f"{moment},000 WARNING imgfs.mount.holder: {self._name}: {text}\n".encode())


def _state(pid: int) -> str:
    """Return the state of a process as proc(5) has it, `?` if there is none."""
    return (_stat(pid) or ["?"])[0]


def _processor_time(pid: int) -> float:
    """Return the seconds of the processor that the first thread of a process has used: it reads /dev/fuse."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _stat(pid: int) -> list[str]:
    """Return the fields of proc(5)'s stat of the first thread of a process, from the third on."""
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def main() -> int:
    """Hold what the arguments say."""
    name, _device, fuse, state, control, pid, beat, *words = sys.argv[1:]
    holder = Holder(name, (int(fuse), int(state)), float(beat), words)
    return holder.hold(Server(int(pid), int(control), is_serving=True))


if __name__ == "__main__":
    sys.exit(main())

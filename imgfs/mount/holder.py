"""The holder of a mount: it keeps /dev/fuse open, and has the mount served again if its daemon dies or hangs.

A process of its own, run by an interpreter that loads no packages (`python -I -S`): three megabytes. It reads
neither the store nor anything that comes from outside, and so outlives what its daemon dies of.

    holder.py MOUNTPOINT DEVICE FUSE STATE ORDERS OUTCOME BEAT RESTARTS NONCE SERVERS POOL PROGRAM [ARG…]
    holder.py PROTOCOL

MOUNTPOINT and DEVICE (major:minor) say in ps(1) what it holds. FUSE (the open /dev/fuse) and STATE (a file
in memory) are descriptors that each successor of a daemon inherits, as it does others that are open here.
SERVERS are the daemons that live, PID/THREAD:CONTROL:TOLD:SAID each; the first of them serves, in that
thread. CONTROL is the reading end of its pipe, by which it says that it SERVES, and that the mount has ENDED,
and gives a sign of life every BEAT seconds; TOLD is the writing end of the one by which it is told; it has
SAID so much already. PROGRAM is run as the successor, with further arguments: PROTOCOL, FUSE, STATE, its ends
of two such pipes, how often it was restarted, its role. Its own last word is where imgfs is.

POOL is the socket of processes that serve many mounts each (`pool`), or `-`. Where an idle mount is asked for
something, one of them is given the descriptors, in the place of PROGRAM. If it dies, the mount is as an idle
one again, and the next request is PROGRAM's, which so cannot take others with it.

ORDERS is a pipe that processes of the same user (or root) open by /proc, for an upgrade: `Orders`. It names
another program, which is run as heir. Once that is READY, the daemon is told to HAND_OVER; when it has
STOPPED to read, the heir is told to GO, while the daemon answers what it has under way, and then is DONE. If
the heir ends before it is ready, the daemon serves on. What came of it is written to the file OUTCOME.

At the end of an upgrade the holder executes that of the other version, in its own place: it stays the parent
of the daemons, and keeps its descriptors. NONCE is the order that is to be answered then. Before all that it
has been asked whether it understands PROTOCOL: with no further argument it ends at once, with 0 if so.

A beat proves that the thread which reads /dev/fuse has come round to it: requests that wait for a registry
wait in other threads. A daemon without a beat is killed if it cannot be merely slow (`Server.is_stuck`).

While a daemon is idle, the holder takes what the kernel says without wanting an answer: that it has forgotten
files, which means nothing to a daemon that starts anew. It answers what is the same for ever, as the daemon
has told it: so whatever looks at all mounts, as df(1) does, has none started. Any other request has, and the
kernel sends it again.

While no process serves, readers wait. The holder gives up after so many successors, one after the other, that
ended without serving, or were killed before they could: then the connection ends, and readers get ENOTCONN,
as without a holder.
"""

from __future__ import annotations

import os
import select
import sys
import time

PROTOCOL = "4"  # of all that is said here, of arguments, and of orders
BEATS, READY, SERVES, STOPPED_READING, DONE, ENDED = b"b", b"r", b"s", b"q", b"d", b"e"
NO_ORDER = NO_POOL = "-"  # in the place of a nonce, of a socket
# It ends until something is asked: by FUSE, or at a socket. Words follow (none from a process of the pool, as
# they stay the same): NUMBER of such a socket, +NUMBER of what else a successor has open, OPCODE:ANSWER to
# such requests of the root, in hexadecimal digits (STATFS: of any file).
IDLE = b"i"
REFUSES = b"!"  # and why, as text, to the end
HAND_OVER, GO, GO_AGAIN = b"h", b"g", b"a"  # GO_AGAIN: what was left unanswered is to be sent again
SUCCESSOR, HEIR, WOKEN = "successor", "heir", "woken"  # roles
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
_PATIENCE = 20.0  # seconds that another version has to say whether it understands this one,
_TAKING = 10.0  # and a pool to take a mount
_SIGKILL = 9
_RESEND = (16).to_bytes(4, sys.byteorder) + (7).to_bytes(12, sys.byteorder)  # fuse_out_header: length, code
_FORGETS = 2, 42  # FUSE_FORGET, FUSE_BATCH_FORGET
_STATFS, _ROOT = 17, 1  # FUSE_STATFS, FUSE_ROOT_ID
REQUEST = (1 << 20) + 4096  # bytes of a request at most, less than which the kernel does not hand out
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
        except ProcessLookupError:
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
        _write(self._told, word)

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


class Holder:
    """Has a mount (`name`, of a device) served by `words`, a program, whose processes get `descriptors`.

    `servers` are all that live, the first of which serves.
    """

    def __init__(
        self,
        name: tuple[str, str],
        descriptors: tuple[int, int],
        *,
        beat: float,
        servers: list[Server],
        pool: str,
        words: list[str],
        restarts: int = 0,
    ) -> None:
        self._name = name
        self._descriptors = descriptors
        self._beat = beat
        self._silence = beat * _LATE
        self._pool = pool
        self._words = words
        self._failures = self._kills = 0
        self._restarts = restarts
        self._moments = [0.0] * _AT_ONCE  # of the last restarts
        self._servers = servers
        self._serving: Server | None = servers[0]
        self._upgrade: Upgrade | None = None
        self._wakers: list[int] = []  # what can be read once something is asked, while no process serves
        self._idle: list[str] = []  # the words of the last process that was not of a pool
        self._has_died_in_pool = False

    def hold(self, orders: Orders) -> int:
        """Restart the daemon until the mount has ended, or it cannot be served: 0, or 1."""
        while True:
            order = self._wait(orders)
            if self._wakers and self._is_asked():
                if self._is_unmounted():
                    return 0
                self._wakers = []
                self._serving = self._start_pooled() or self._start(self._words, WOKEN)
            for server in [server for server in self._servers if server.has_ended()]:
                code = self._bury(server)
                if code is not None:
                    self._kill_all()
                    return code
            if order:
                self._begin(Upgrade(*order, orders))
            self._go_on()

    def _wait(self, orders: Orders) -> tuple[str, list[str], list[str]] | None:
        """Wait until something is to be done: a process has ended or said something, or an order has come.

        A process that is stuck is killed.
        """
        if any(server.fd < 0 for server in self._servers):
            return None
        waited = [fd for server in self._servers for fd in server.descriptors()]
        patience = self._silence if self._servers else None
        ready = select.select([orders.fd, *waited, *self._wakers], [], [], patience)[0]
        for server in self._servers:
            if server.control in ready:
                server.listen()
            elif server.is_silent(self._silence) and server.is_stuck():
                self._log(f"the daemon (pid {server.pid}) is stuck, state {server.state()}: it is killed")
                server.kill()
        return orders.read() if orders.fd in ready else None

    def _is_asked(self) -> bool:
        """Return whether a process has to answer; drop what wants no answer."""
        ready = select.select(self._wakers, [], [], 0)[0]
        fuse = self._descriptors[0]
        return any(waker != fuse for waker in ready) or (fuse in ready and _is_asked_by(fuse, self._idle))

    def _bury(self, server: Server) -> int | None:
        """Do what the end of a process asks for; return what the holder ends with, if it is to end."""
        self._servers.remove(server)
        was_killed = server.close()
        if ENDED in server.said or self._is_unmounted():
            return 0
        if server is self._serving and IDLE in server.said and not self._upgrade:
            self._has_died_in_pool &= server.is_shared
            self._idle = server.said.partition(IDLE)[2].decode().split() or self._idle
            self._rest()
            return None
        self._go_on()  # by its last words
        upgrade = self._upgrade
        is_heir = upgrade is not None and server is upgrade.heir
        if upgrade and is_heir:
            reason = server.reason.decode(errors="replace")
            upgrade.tell(reason or "it was killed" * was_killed or "it has failed: see the log")
            self._upgrade = None
        if server is self._serving:
            self._serving = None
            if self._gives_up(server, was_killed):
                return 1
        elif not is_heir and DONE not in server.said:
            self._resend()
        if self._serving is None and self._upgrade is None and server.is_shared:
            self._has_died_in_pool = True
            self._rest()
            self._resend()
        elif self._serving is None and self._upgrade is None:
            self._serving = self._start(self._words, SUCCESSOR)
        return None

    def _rest(self) -> None:
        """Have the mount served by no process, until something is asked."""
        self._serving = None
        self._wakers = [self._descriptors[0], *(int(word) for word in self._idle if word.isdecimal())]

    def _gives_up(self, server: Server, was_killed: bool) -> bool:
        """Count how the process that served has ended; return whether that was once too often."""
        self._restarts += 1
        if SERVES in server.said:
            self._failures = self._kills = 0
        elif was_killed:
            self._kills += 1
        else:
            self._failures += 1
        return self._failures >= TRIES or self._kills >= KILLS

    def _begin(self, upgrade: Upgrade) -> None:
        """Begin an upgrade to another program, and its holder."""
        serves = self._wakers or (self._serving and SERVES in self._serving.said)
        if self._upgrade or not serves:
            upgrade.tell("it is just being restarted, or upgraded: try again")
        elif not (upgrade.words and _is_understood(upgrade.holder)):
            upgrade.tell("its holder is of another version, which does not understand this one")
        else:
            self._upgrade, self._wakers = upgrade, []
            upgrade.heir = self._start(upgrade.words, HEIR)

    def _go_on(self) -> None:
        """Go on with an upgrade: each of the two processes is told what the other has come to."""
        upgrade, serving = self._upgrade, self._serving
        heir = upgrade.heir if upgrade else None
        if upgrade is None or heir is None or READY not in heir.said:
            return
        if serving is heir:
            if SERVES in heir.said:
                self._words, self._upgrade = upgrade.words, None
                self._become(upgrade)
        elif serving is None or STOPPED_READING in serving.said:
            heir.tell(GO if serving else GO_AGAIN)
            self._serving = heir
        elif not upgrade.is_asked:
            upgrade.is_asked = True
            serving.tell(HAND_OVER)

    def _become(self, upgrade: Upgrade) -> None:
        """Execute the holder of the version that serves now, which goes on, and tells that all is done."""
        servers = sorted(self._servers, key=lambda server: server is not self._serving)
        given = [*self._descriptors, *upgrade.orders.hand_on(), self._beat, self._restarts, upgrade.nonce]
        try:
            handed_on = ",".join(server.hand_on() for server in servers)
            words = [*upgrade.holder, *self._name, *map(str, given), handed_on, self._pool, *self._words]
            os.execv(words[0], words)
        except OSError as error:
            self._log(f"the holder stays what it is: {error.strerror}")
            upgrade.tell("")

    def _kill_all(self) -> None:
        for server in self._servers:
            server.kill()

    def _resend(self) -> None:
        """Have the kernel send again what a process has left unanswered while another one serves."""
        _write(self._descriptors[0], _RESEND)

    def _is_unmounted(self) -> bool:
        """Return whether the kernel has let go of the mount."""
        polled = select.poll()
        polled.register(self._descriptors[0], 0)
        return bool(polled.poll(0))  # POLLERR

    def _start(self, words: list[str], role: str) -> Server:
        """Start a process that is to serve."""
        number = self._restarts % _AT_ONCE
        if self._restarts > _AT_ONCE and time.monotonic() - self._moments[number] < _PERIOD:
            time.sleep(_PAUSE)
        self._moments[number] = time.monotonic()
        control, written = os.pipe()
        read, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for descriptor in (written, read):
                    os.set_inheritable(descriptor, True)
                given = PROTOCOL, *self._descriptors, written, read, self._restarts, role
                os.execv(words[0], [*words, *map(str, given)])
            finally:
                os._exit(127)
        os.close(written)
        os.close(read)
        server = Server(pid, control, told)
        self._servers.append(server)
        return server

    def _start_pooled(self) -> Server | None:
        """Have a process of the pool serve; None if there is none that does."""
        if self._pool == NO_POOL or self._has_died_in_pool:
            return None
        control, written = os.pipe()
        read, told = os.pipe()
        answer, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                sys.path.insert(0, self._words[-1])
                from imgfs.mount.courier import deliver  # here: this process is of no use afterwards

                more = [int(word.lstrip("+")) for word in self._idle if ":" not in word]
                given = [*self._descriptors, written, read, *more]
                os.write(said, deliver(self._pool, PROTOCOL, self._restarts, given))
            finally:
                os._exit(0)
        for number in (written, read, said):
            os.close(number)
        place = os.read(answer, 64) if select.select([answer], [], [], _TAKING)[0] else b""
        os.close(answer)
        os.kill(pid, _SIGKILL)
        os.waitpid(pid, 0)
        if not place or not _write(told, GO):
            os.close(control)
            os.close(told)
            return None
        number, thread = map(int, place.split(b"/"))
        server = Server(number, control, told, thread=thread)
        self._servers.append(server)
        return server

    def _log(self, text: str) -> None:
        """Add a line to the daemon's log."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(2, f"{moment},000 WARNING imgfs.mount.holder: {self._name[0]}: {text}\n".encode())


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


def _is_understood(holder: list[str]) -> bool:
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


def _is_asked_by(fuse: int, words: list[str]) -> bool:
    """Read requests from /dev/fuse until one wants an answer that `words` do not have (IDLE).

    Return whether there is one: it is as one that a killed process has left unanswered. Return True also if
    it is unmounted.
    """
    from mmap import mmap  # here: few daemons are idle

    told = [word.partition(":") for word in words]
    answers = {int(opcode): bytes.fromhex(body) for opcode, is_answer, body in told if is_answer}
    os.set_blocking(fuse, False)
    with mmap(-1, REQUEST) as room:  # of which only what is read takes memory
        while True:
            try:
                os.readv(fuse, (room,))
            except BlockingIOError:
                return False
            except OSError:  # unmounted; or the request was aborted: then there may be another
                return True
            # fuse_in_header: length, opcode, the request's number, the file's
            opcode, ino = (int.from_bytes(room[at:end], sys.byteorder) for at, end in ((4, 8), (16, 24)))
            answer = answers.get(opcode) if ino == _ROOT or opcode == _STATFS else None
            if answer:  # fuse_out_header: length, no errno, the request's number
                _write(fuse, (16 + len(answer)).to_bytes(4, sys.byteorder) + bytes(4) + room[8:16] + answer)
            elif opcode not in _FORGETS:
                return True


def _write(fd: int, words: bytes) -> bool:
    """Write to a process that may have ended, or a mount that may be gone; return whether it was not."""
    try:
        return os.write(fd, words) == len(words)
    except OSError:
        return False


def main() -> int:
    """Hold what the arguments say."""
    if len(sys.argv) == 2:
        return int(sys.argv[1] != PROTOCOL)
    mountpoint, device, *numbers = sys.argv[1:7]
    fuse, state, *pipes = map(int, numbers)
    beat, restarts, nonce, handed_on, pool, *words = sys.argv[7:]
    servers = [Server.handed_on(text) for text in handed_on.split(",")]
    orders = Orders(*pipes)
    if nonce != NO_ORDER:
        orders.answer(nonce, "")
    holder = Holder(
        (mountpoint, device),
        (fuse, state),
        beat=float(beat),
        servers=servers,
        pool=pool,
        words=words,
        restarts=int(restarts),
    )
    return holder.hold(orders)


if __name__ == "__main__":
    sys.exit(main())

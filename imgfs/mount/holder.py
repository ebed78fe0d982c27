"""The holder of a mount: it keeps /dev/fuse open, and has the mount served again if its daemon dies or hangs.

A process of its own, run by an interpreter that loads no packages: three megabytes. It reads neither the
store nor anything that comes from outside, and so outlives what its daemon dies of. It loads four modules of
this directory and no others (`holder_start.holder_program`): each mount's holder has them in memory.

    watched_server   a process that serves the mount: what it has said, whether it hangs
    holder_orders    an upgrade, ordered by another process
    idle_requests    what is asked of a mount that no daemon serves
    holder_protocol  the words that go between all of these

Its arguments:

    holder.py MOUNTPOINT DEVICE FUSE STATE ORDERS OUTCOME BEAT RESTARTS NONCE SERVERS POOL PROGRAM [ARG…]
    holder.py PROTOCOL      ends at once, with 0 if it understands that version

    MOUNTPOINT, DEVICE  what it holds, for ps(1) and `mounts.holders`; DEVICE is major:minor
    FUSE, STATE         descriptors of /dev/fuse, and of a file in memory, that each successor inherits, as it
                        does others that are open here
    ORDERS, OUTCOME     descriptors of a pipe, and of the file that answers are written to (`holder_orders`)
    BEAT                seconds between a daemon's signs of life
    RESTARTS            how often the mount was restarted before
    NONCE               the order that is to be answered first of all, after an upgrade, or `-`
    SERVERS             the daemons that live, PID/THREAD:CONTROL:TOLD:SAID each (`Server.hand_on`); the first
                        of them serves, in that thread
    POOL                the socket of processes that serve many mounts each (`pool`), or `-`
    PROGRAM, ARG…       is run as a successor, with further arguments: PROTOCOL, FUSE, STATE, its ends of two
                        pipes, RESTARTS, its role; the last ARG is the directory that imgfs is imported from

Where an idle mount is asked for something, a process of the pool is given the descriptors, in the place of
PROGRAM. If it dies, the mount is as an idle one again, and the next request is PROGRAM's, which so cannot
take other mounts with it.

While no process serves, readers wait. The holder gives up after so many successors, one after the other, that
ended without serving (`TRIES`), or were killed before they could (`KILLS`): then the connection ends, and
readers get ENOTCONN, as without a holder.
"""

from __future__ import annotations

import os
import select
import sys
import time

from imgfs.mount.holder_orders import Orders, Upgrade, is_understood
from imgfs.mount.holder_protocol import (
    DONE,
    ENDED,
    GO,
    GO_AGAIN,
    HAND_OVER,
    HEIR,
    IDLE,
    NO_ORDER,
    NO_POOL,
    PROTOCOL,
    READY,
    SERVES,
    STOPPED_READING,
    SUCCESSOR,
    WOKEN,
    idle_words,
    place_in,
    write_words,
)
from imgfs.mount.watched_server import Server

TRIES = 5  # successors that end without serving,
KILLS = 40  # or are killed before they serve, one after the other
_LATE = 1.5  # times BEAT without a word are a silence
_AT_ONCE, _PERIOD = 40, 60.0  # restarts in so many seconds without a pause before each further one,
_PAUSE = 1.0  # of so many seconds: what kills the daemon may be a request that is sent again
_TAKING = 10.0  # seconds that a pool has to take a mount
_SIGKILL = 9
_RESEND = (16).to_bytes(4, sys.byteorder) + (7).to_bytes(12, sys.byteorder)  # fuse_out_header: length, code


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
        try:
            return self._hold(orders)
        except OSError as error:  # neither process nor memory for a long time
            self._log(f"the mount ends: no process can serve it: {error.strerror}")
            self._kill_all()
            return 1

    def _hold(self, orders: Orders) -> int:
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
        if ready != [fuse]:
            return bool(ready)
        from imgfs.mount.idle_requests import wants_daemon  # here: few daemons are idle

        return wants_daemon(fuse, self._idle)

    def _bury(self, server: Server) -> int | None:
        """Do what the end of a process asks for; return what the holder ends with, if it is to end."""
        self._servers.remove(server)
        was_killed = server.close()
        if ENDED in server.said or self._is_unmounted():
            return 0
        if server is self._serving and IDLE in server.said and not self._upgrade:
            self._has_died_in_pool &= server.is_shared
            self._note_idle(server.said)
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

    def _note_idle(self, said: bytes) -> None:
        """Note the words of a process that has become idle; what makes no sense is logged, and not heeded."""
        try:
            self._idle = idle_words(said) or self._idle
        except (ValueError, OSError):
            self._log(f"what an idle process has said makes no sense: {said[:80]!r}")

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
        try:
            if self._upgrade or not serves:
                upgrade.tell("it is just being restarted, or upgraded: try again")
            elif not (upgrade.words and is_understood(upgrade.holder)):
                upgrade.tell("its holder is of another version, which does not understand this one")
            else:
                upgrade.heir = self._start(upgrade.words, HEIR)
                self._upgrade, self._wakers = upgrade, []
        except OSError as error:
            upgrade.tell(f"no process can be started: {error.strerror}")

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
        write_words(self._descriptors[0], _RESEND)

    def _is_unmounted(self) -> bool:
        """Return whether the kernel has let go of the mount."""
        polled = select.poll()
        polled.register(self._descriptors[0], 0)
        return bool(polled.poll(0))  # POLLERR

    def _start(self, words: list[str], role: str) -> Server:
        """Start a process that is to serve, an heir at once or not at all. Raises OSError."""
        number = self._restarts % _AT_ONCE
        if self._restarts > _AT_ONCE and time.monotonic() - self._moments[number] < _PERIOD:
            time.sleep(_PAUSE)
        self._moments[number] = time.monotonic()
        control, written = os.pipe()
        read, told = os.pipe()
        try:
            pid = os.fork() if role == HEIR else self._fork()
        except OSError:
            for descriptor in (control, written, read, told):
                os.close(descriptor)
            raise
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

    def _fork(self) -> int:
        """Fork, as often as the system refuses that as processes may be killed. Raises OSError."""
        for left in reversed(range(KILLS)):
            try:
                return os.fork()
            except OSError as error:
                if not left or self._is_unmounted():
                    raise
                if left == KILLS - 1:
                    self._log(f"no process can be started, which is tried again: {error.strerror}")
                time.sleep(_PAUSE)
        raise AssertionError

    def _start_pooled(self) -> Server | None:
        """Have a process of the pool serve; None if there is none that does."""
        if self._pool == NO_POOL or self._has_died_in_pool:
            return None
        control, written = os.pipe()
        read, told = os.pipe()
        answer, said = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            for number in (control, written, read, told, answer, said):
                os.close(number)
            return None
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
        answered = os.read(answer, 64) if select.select([answer], [], [], _TAKING)[0] else b""
        os.close(answer)
        os.kill(pid, _SIGKILL)
        os.waitpid(pid, 0)
        place = place_in(answered)
        if answered and not place:
            self._log(f"the pool's answer names no thread that could serve: {answered!r}")
        if not place or not write_words(told, GO):
            os.close(control)
            os.close(told)
            return None
        server = Server(place[0], control, told, thread=place[1])
        self._servers.append(server)
        return server

    def _log(self, text: str) -> None:
        """Add a line to the daemon's log, if the disk has room for it."""
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        write_words(2, f"{moment},000 WARNING imgfs.mount.holder: {self._name[0]}: {text}\n".encode())


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

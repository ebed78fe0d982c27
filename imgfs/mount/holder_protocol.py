"""What the holder of a mount, the daemons that serve it and `imgfs upgrade` say to each other.

A daemon and its holder have two pipes: the daemon writes the first group of words here to its CONTROL, the
holder the second to what the daemon calls `told`. Each word is a byte. PROTOCOL is the version of all of
this: of these words, of a holder's and a successor's arguments, and of orders (`holder_orders`).
"""

from __future__ import annotations

import os

PROTOCOL = "4"
# A daemon to its holder. BEATS is a sign of life, READY an heir's: it could take over now.
BEATS, READY, SERVES, STOPPED_READING, DONE, ENDED = b"b", b"r", b"s", b"q", b"d", b"e"
# The daemon ends until something is asked: by FUSE, or at a socket. Words follow (none from a process of the
# pool, as they stay the same): NUMBER of such a socket, +NUMBER of what else a successor has open,
# OPCODE:ANSWER to such requests of the root, in hexadecimal digits (STATFS: of any file).
IDLE = b"i"
REFUSES = b"!"  # and why, as text, to the end
# The holder to a daemon.
HAND_OVER, GO, GO_AGAIN = b"h", b"g", b"a"  # GO_AGAIN: what was left unanswered is to be sent again
SUCCESSOR, HEIR, WOKEN = "successor", "heir", "woken"  # roles of a process that takes over
NO_ORDER = NO_POOL = "-"  # arguments of a holder: in the place of a nonce, of a socket
# A daemon to the process that holders are forked from: bytes of a request, descriptors with it (of which the
# kernel takes 253: unix(7), SCM_RIGHTS); bytes for the holder's words, which have two paths.
LONGEST, MOST, ROOM = 1 << 15, 250, 1 << 13
BEAT = 4.0  # seconds from one beat to the next


def write_words(fd: int, words: bytes) -> bool:
    """Write to a process that may have ended, or a mount that may be gone; return whether it was not."""
    try:
        return os.write(fd, words) == len(words)
    except OSError:
        return False


def place_in(answer: bytes) -> tuple[int, int] | None:
    """Return the process and the thread that a pool's answer names, PID/THREAD; None if there is none."""
    words = answer.split(b"/")
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return None
    pid, thread = map(int, words)
    is_there = pid != os.getpid() and os.path.exists(f"/proc/{pid}/task/{thread}")
    return (pid, thread) if is_there else None


def idle_words(said: bytes) -> list[str]:
    """Return the words that an idle process has said (IDLE). Raises ValueError, OSError for any others."""
    words = said.partition(IDLE)[2].decode("ascii").split()
    for word in words:
        opcode, is_answer, body = word.partition(":")
        if is_answer:
            int(opcode), bytes.fromhex(body)
        else:
            os.fstat(int(word.lstrip("+")))
    return words

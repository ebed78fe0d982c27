"""Requests to a mount while no daemon serves it: dropped, answered by the holder, or left for a daemon.

The kernel says without wanting an answer that it has forgotten files: that means nothing to a daemon that
starts anew. What is the same for ever the daemon has told before it ended (`holder_protocol.IDLE`), and the
holder answers: so a program that looks at all mounts, as df(1) does, has no daemon started.
"""

from __future__ import annotations

import os
import sys
from mmap import mmap

from imgfs.mount.holder_protocol import write_words

_FORGETS = 2, 42  # FUSE_FORGET, FUSE_BATCH_FORGET
_STATFS, _ROOT = 17, 1  # FUSE_STATFS, FUSE_ROOT_ID
_REQUEST = (1 << 20) + 4096  # bytes of a request at most, less than which the kernel does not hand out


def wants_daemon(fuse: int, words: list[str]) -> bool:
    """Read requests from /dev/fuse until one wants an answer that `words` do not have (IDLE).

    Return whether there is one: it is as one that a killed process has left unanswered. Return True also if
    the mount has ended.
    """
    told = [word.partition(":") for word in words]
    answers = {int(opcode): bytes.fromhex(body) for opcode, is_answer, body in told if is_answer}
    os.set_blocking(fuse, False)
    with mmap(-1, _REQUEST) as room:  # of which only what is read takes memory
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
            # fuse_out_header: length, no errno, the request's number
            head = (16 + len(answer or b"")).to_bytes(4, sys.byteorder) + bytes(4) + room[8:16]
            if not (answer and write_words(fuse, head + answer)) and opcode not in _FORGETS:
                return True

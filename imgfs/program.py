"""Other programs that are asked something: they get little time, and little room for their answer.

Whatever they have started ends with them.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

_CHUNK = 64 << 10


class ProgramOutput(NamedTuple):
    """A program's exit code, and what it wrote to standard output and standard error."""

    code: int
    out: bytes
    error: bytes


def ask_program(
    words: Sequence[str],
    request: bytes = b"",
    *,
    seconds: float,
    limit: int,
    environment: Mapping[str, str] | None = None,
) -> ProgramOutput:
    """Run a program to its end, with `request`, of at most a pipe's size, on its standard input.

    Raises TimeoutError after `seconds`, OverflowError past `limit` bytes of one output, another OSError if it
    cannot be run. `environment` replaces that of this process.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    )
    with process:
        try:
            return _converse(process, request, limit, time.monotonic() + seconds)
        finally:
            if process.returncode is None:  # not waited for yet, so that its group cannot be another's
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _converse(process: subprocess.Popen[bytes], request: bytes, limit: int, ends: float) -> ProgramOutput:
    """Write the request, and read until both outputs are closed and the program has ended."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with suppress(BrokenPipeError):  # a program may not read it; the request fits into a pipe
        process.stdin.write(request)
        process.stdin.close()
    output = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in output:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            if not (ready := selector.select(max(0.0, ends - time.monotonic()))):
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK)
                output[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                if len(output[key.fd]) > limit:
                    raise OverflowError
    try:
        code = process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    return ProgramOutput(code, *map(bytes, output.values()))

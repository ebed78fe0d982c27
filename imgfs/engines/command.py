"""imgfs's own commands, run in processes of their own: mounts outlive the server that has made them."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from imgfs.engines.refusal import Code, Refusal
from imgfs.errors import describe
from imgfs.quoting import printable
from imgfs.variables import variables

_LONGEST = 500  # characters of a reason

log = logging.getLogger(__name__)


def run_imgfs(words: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command of imgfs, with variables beside this process's, and return what it prints.

    What else it says is logged. Raises Refusal with its last line if it fails.
    """
    log.info("imgfs %s", " ".join(map(printable, words)))
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as said,
    ):  # no pipes: this process may end first
        try:
            code = subprocess.run(
                [sys.executable, "-P", "-m", "imgfs", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                cwd="/",
                env={**variables(), **(environment or {})},
                start_new_session=True,
                check=False,
            ).returncode
        except OSError as error:
            raise Refusal(Code.UNKNOWN, f"imgfs cannot be started: {describe(error)}") from error
        lines = _text(said).strip().splitlines()
        for line in lines[:-1] if code else lines:
            log.warning("%s", printable(line))
        if code:
            reason = printable(lines[-1].removeprefix("imgfs: ") if lines else _ending(code))
            raise Refusal(Code.UNKNOWN, reason[:_LONGEST])
        return _text(out)


def _ending(code: int) -> str:
    """Return how a process has ended that said nothing: by a signal, as when memory is short, or a code."""
    with suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")

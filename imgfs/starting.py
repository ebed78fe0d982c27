"""Threads and processes started, where the system may refuse one: at a limit (RLIMIT_NPROC, pids.max), or
without memory.

Python tells of it by a RuntimeError for a thread, and by an OSError that names no file for a process. Both
are LimitReached here, one line for a person. Threads are started here only; pools of them are in `parallel`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable

from imgfs.errors import LimitReached, describe

log = logging.getLogger(__name__)

_HIGHEST = 1 << 20  # descriptor


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Run `work` in a thread that does not hold up the end of the process. Raises LimitReached."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise LimitReached from error
    return thread


def try_thread(
    work: Callable[[], object], name: str, *, level: int = logging.INFO
) -> threading.Thread | None:
    """Run `work`, which can be done without, in such a thread; None, which is logged, if there is none."""
    try:
        return start_thread(work, name)
    except LimitReached as error:
        log.log(level, "%s is left undone: %s", name, error)
        return None


def fork() -> int:
    """Fork this process, as os.fork. Raises LimitReached."""
    try:
        return os.fork()
    except OSError as error:
        raise LimitReached(f"no further process can be started: {describe(error)}") from error


def close_all_but(kept: Iterable[int]) -> None:
    """Close what a process has open that was forked, but the standard files and these descriptors."""
    bounds = sorted({2, *kept})
    for number, following in zip(bounds, (*bounds[1:], _HIGHEST), strict=True):
        os.closerange(number + 1, following)

"""Several long pieces of work side by side, ended together by the first error or an impatient user."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

_FAREWELL = 1.0  # seconds for work under way to tidy up when the user interrupts it


def run_parallel(
    works: Iterable[Callable[[], object]], workers: int, name: str, cancelled: threading.Event
) -> None:
    """Do all of `works`, at most `workers` at once, in threads named `name`; raises the first error there is.

    `cancelled` is set then, for the others to look at; those that have not begun do not begin.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    futures = [pool.submit(work) for work in works]
    try:
        for future in as_completed(futures):
            future.result()
    except KeyboardInterrupt:  # the process is about to end: a registry that hangs must not hold it up
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], _FAREWELL)
        raise
    except BaseException:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()

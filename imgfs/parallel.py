"""Several long tasks in parallel, ended together by the first error or an interrupt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

_GRACE = 1.0  # seconds for tasks under way to clean up after an interrupt


def run_parallel(
    works: Iterable[Callable[[], object]], workers: int, name: str, cancelled: threading.Event
) -> None:
    """Run all of `works`, at most `workers` at once, in threads named `name`; raise the first error.

    `cancelled` is set then, for tasks under way to check; those that have not begun are dropped.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    futures = [pool.submit(work) for work in works]
    try:
        for future in as_completed(futures):
            future.result()
    except KeyboardInterrupt:  # the process is about to end: a registry that hangs must not hold it up
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], _GRACE)
        raise
    except BaseException:
        cancelled.set()
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()

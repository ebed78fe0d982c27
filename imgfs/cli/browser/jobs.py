"""Work in threads: each job can be given up, and hands what it finds to the screen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeAlias

from imgfs.cli.output import words_of
from imgfs.errors import ImgfsError, LimitReached
from imgfs.starting import start_thread

Work: TypeAlias = "Callable[[BrowserJob], None]"


class BrowserJob:
    """A piece of work under way. `given_up` is settled when its result is not wanted any more."""

    def __init__(self, group: str, text: str, post: Callable[[BrowserJob, Callable[[], None]], None]) -> None:
        self.group = group
        self.text = text  # what it does, for the status line
        self.given_up: Future[None] = Future()
        self._post = post

    @property
    def is_wanted(self) -> bool:
        """Return True until it is given up."""
        return not self.given_up.done()

    def give_up(self) -> None:
        """Have reads and listings end soon."""
        if self.given_up.set_running_or_notify_cancel():
            self.given_up.set_result(None)

    def show(self, change: Callable[[], None]) -> None:
        """Have the screen's thread change what is shown, unless the job has been given up by then."""
        self._post(self, change)


class Jobs:
    """All jobs under way; a new one of a group takes the place of the one before, which is given up.

    `post` hands a change to the screen's thread, `failed` an error's line.
    """

    def __init__(
        self,
        post: Callable[[BrowserJob, Callable[[], None]], None],
        failed: Callable[[BrowserJob, str], None],
    ) -> None:
        self._post = post
        self._failed = failed
        self._lock = threading.Lock()
        self._running: dict[BrowserJob, threading.Thread] = {}

    def start(self, group: str, text: str, work: Work) -> BrowserJob:
        """Begin work in a thread of its own."""
        self.stop(group)
        job = BrowserJob(group, text, self._post)
        with self._lock:  # which it needs to end
            try:
                self._running[job] = start_thread(partial(self._run, job, work), f"browse {group}")
            except LimitReached as error:
                self._failed(job, str(error))
        return job

    def stop(self, group: str) -> None:
        """Give up the job of a group."""
        self._give_up(lambda job: job.group == group)

    def give_up(self, *, but: str = "") -> bool:
        """Give up all jobs but those of a group; return True if there were any."""
        return self._give_up(lambda job: job.group != but)

    def texts(self) -> list[str]:
        """Return what is being done."""
        with self._lock:
            return [job.text for job in self._running if job.is_wanted and job.text]

    def end(self, seconds: float) -> bool:
        """Give up everything; return True if all threads have ended within that time each."""
        self.give_up()
        with self._lock:
            threads = list(self._running.values())
        for thread in threads:
            thread.join(seconds)
        return not any(thread.is_alive() for thread in threads)

    def _give_up(self, meant: Callable[[BrowserJob], bool]) -> bool:
        with self._lock:
            jobs = [job for job in self._running if job.is_wanted and meant(job)]
            for job in jobs:
                job.give_up()
        return bool(jobs)

    def _run(self, job: BrowserJob, work: Work) -> None:
        try:
            work(job)
        except InterruptedError:
            pass
        except ImgfsError as error:
            self._failed(job, str(error))
        except OSError as error:
            self._failed(job, words_of(error))
        finally:
            with self._lock:
                self._running.pop(job, None)

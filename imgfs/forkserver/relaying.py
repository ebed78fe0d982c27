"""Signals that a process passes on to the one that works for it: which ones, and how none is waited past."""

from __future__ import annotations

import os
from contextlib import suppress


def relayed_signals() -> tuple[int, ...]:
    """Return the signals that a process passes on to the one that works for it."""
    import signal  # here: what hands a command over loads little until it is accepted

    ending = signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM
    more = signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT
    # init systems are told to end by a real-time one
    return (*ending, *more, *range(signal.SIGRTMIN, signal.SIGRTMAX + 1))


class WakeUps:
    """A descriptor, `fd`, that can be read once a signal has come, until `clear`.

    Python runs a signal's handler between two of its instructions. For one that comes right before poll(2) or
    waitpid(2) that is after the call has returned, unless the call waits for this descriptor, too.
    """

    def __init__(self) -> None:
        import signal

        self.fd, self._written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)

    def clear(self) -> None:
        """Forget the signals that have come."""
        with suppress(BlockingIOError):
            os.read(self.fd, 512)

    def close(self) -> None:
        """Have signals noted where they were before."""
        import signal

        signal.set_wakeup_fd(self._before)
        os.close(self.fd)
        os.close(self._written)

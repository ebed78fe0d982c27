"""Signals that imgfs passes on to a process that it waits for."""

from __future__ import annotations

import signal
import subprocess
import threading

import pytest

from imgfs.runtime.signals import Ended, SignalRelay


def test_a_signal_is_passed_on_though_no_call_is_interrupted_by_it() -> None:
    """As one that comes right before the call that waits: another thread takes it and sets a flag alone."""
    script = "trap 'exit 9' USR1; echo up; while :; do sleep 0.02; done"
    with (
        SignalRelay() as relay,
        subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as process,
        relay.to(process.pid),
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        taker = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1))
        taker.start()
        assert relay.wait_for_end() == []
        assert process.wait() == 9
        taker.join()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_ends_work_that_may_take_long_and_no_other() -> None:
    with SignalRelay() as relay:
        with relay.ends_work():
            signal.raise_signal(signal.SIGWINCH)
        with pytest.raises(Ended), relay.ends_work():
            signal.raise_signal(signal.SIGINT)
        assert relay.ending == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)  # only kept, for the process that the work was for
        with pytest.raises(Ended), relay.ends_work():
            pytest.fail("it begins")

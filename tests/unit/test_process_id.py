"""A container's first process is known by whose child it is: its pid alone is any process's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.runtime.process_id import first_process
from imgfs.runtime.stdio import _wait_for_end
from imgfs.runtime.teardown import Stopper


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child that has a child, whose pid it writes to a file, and waits for it as a runtime does."""
    script = "sleep 60 & echo $! >$0.new; mv $0.new $0; wait; read -r line"
    with subprocess.Popen(["sh", "-c", script, str(tmp_path / "pid")], stdin=subprocess.PIPE) as process:
        while not (tmp_path / "pid").exists():
            assert process.poll() is None
        yield process
        process.kill()


def test_it_gets_the_signal(runtime: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with first_process(tmp_path / "pid") as process:
        assert not process.has_ended()
        Stopper(tmp_path / "pid", "TERM", patience=0)()
        signal.alarm(0)
        process.wait()
        assert process.has_ended()
    _wait_for_end(tmp_path / "pid")
    with pytest.raises(ProcessLookupError), first_process(tmp_path / "pid"):
        pass
    assert runtime.poll() is None


@pytest.mark.parametrize("other", ["child", "init", "itself", "orphan"])
def test_another_process_with_its_pid_does_not(tmp_path: Path, other: str) -> None:
    pid_file = tmp_path / "pid"
    with subprocess.Popen(["sleep", "60"]) as child:
        orphan = int(subprocess.check_output(["sh", "-c", "sleep 60 >&- & echo $!"]))
        pids = {"child": child.pid, "init": 1, "itself": os.getpid(), "orphan": orphan}
        pid_file.write_text(f"{pids[other]}")
        stopper = Stopper(pid_file, "KILL", patience=1)
        assert not stopper._send(signal.SIGKILL)
        with pytest.raises(ProcessLookupError), first_process(pid_file):
            pass
        _wait_for_end(pid_file)  # does not wait for it
        assert child.poll() is None
        os.kill(orphan, signal.SIGKILL)
        child.kill()


@pytest.mark.parametrize("text", [None, "", "x", "-1x"])
def test_without_a_whole_pid_it_has_not_begun(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "pid").write_text(text)
    with pytest.raises(FileNotFoundError), first_process(tmp_path / "pid"):
        pass
    assert not Stopper(tmp_path / "pid", "TERM")._send(signal.SIGTERM)

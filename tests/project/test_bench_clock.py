"""What the bench counts of processes: CPU seconds and turns given away, while they run and after."""

from __future__ import annotations

import subprocess
import sys

from scripts.benchmark.clock import Effort, effort_of, effort_of_children

WAITS = (
    "import sys, time; [time.sleep(0.001) for _ in range(50)]; print(); sys.stdout.flush(); sys.stdin.read()"
)


def test_waits_of_a_process_and_its_cpu_are_counted_while_it_runs_and_after() -> None:
    before = effort_of_children()
    with subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
        running = effort_of(child.pid)
        child.stdin.close()
    ended = effort_of_children() - before
    assert running.switches >= 50
    assert ended.switches >= running.switches
    assert ended.cpu >= running.cpu - 0.01  # which is told in ticks
    assert running + Effort(1.0, 2) == Effort(running.cpu + 1.0, running.switches + 2)

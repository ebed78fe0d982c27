"""What waits for the end of a container's daemon."""

from __future__ import annotations

import subprocess
import sys

_ENDS = """\
import os, time
from imgfs.runtime import teardown

looks, waitpid = [], os.waitpid

def looked(*words):
    looks.append(words)
    return waitpid(*words)

os.waitpid = looked
children = []
for seconds in {seconds}:
    children.append(os.fork())
    if not children[-1]:
        time.sleep(seconds)
        os._exit(0)
print(teardown._children_end({patience}), len(looks))
for child in children:
    try:
        os.kill(child, 9)
    except ProcessLookupError:
        pass
"""


def _children_end(seconds: tuple[float, ...], patience: float) -> tuple[bool, int]:
    """Return whether children that live so long have ended in time, and how often that was looked at."""
    code = _ENDS.format(seconds=seconds, patience=patience)
    said = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    return said[0] == "True", int(said[1])


def test_the_end_of_children_is_waited_for_without_looking_again_and_again() -> None:
    has_ended, looks = _children_end((0.3, 0.6), 60)
    assert has_ended
    assert looks <= 5  # one runs, one has ended, the other runs, it has ended, there is none


def test_a_child_that_does_not_end_is_not_waited_for_any_longer() -> None:
    assert not _children_end((30.0,), 0.1)[0]

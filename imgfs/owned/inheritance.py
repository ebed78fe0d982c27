"""A lock that several processes have, one after the other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class LockInheritance:
    """A lock that a process leaves to the next one: the descriptor of what is locked, -1 if it is not yet.

    It is held for as long as any process has that open (flock(2)).
    """

    fd: int = -1

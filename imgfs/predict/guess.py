"""The steps of a guess: a generator without I/O, which `predictor` drives."""

from __future__ import annotations

from collections.abc import Generator
from enum import IntEnum
from typing import NamedTuple, TypeAlias

from imgfs.content.stats import Cause

LARGEST_LOOK = 1 << 20  # bytes of a file that a guess sees at once at most


class Rank(IntEnum):
    """How soon bytes are likely to be read, the soonest first."""

    NOW = 0  # the dynamic linker is about to read them
    SOON = 1  # modules beside one that is imported
    LATER = 2  # what may be used, or not


class Want(NamedTuple):
    """The bytes `[start, end)` of a file are likely to be read, for a reason."""

    ino: int
    start: int
    end: int
    rank: Rank
    cause: Cause


class Look(NamedTuple):
    """The guess must see the bytes `[start, end)` of a file. It is sent what there is; b"" on failure."""

    ino: int
    start: int
    end: int
    cause: Cause


class Also(NamedTuple):
    """Another guess, to be made beside this one, unless the one of that key has been made before.

    One that is ranked last begins once nothing else is wanted.
    """

    key: tuple[str, int]
    guess: Guess
    rank: Rank


class Watch(NamedTuple):
    """A large range of a file that is mapped: once it is read here and there, all of it is likely to be."""

    ino: int
    start: int
    end: int
    cause: Cause


Step: TypeAlias = Want | Look | Also | Watch
Guess: TypeAlias = Generator[Step, bytes, None]

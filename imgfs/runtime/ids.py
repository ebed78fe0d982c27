"""The ids of a user namespace: which users and groups an ordinary user's container can have (subuid(5))."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

_FIRST_IDS = 65_536  # as many ids as an image is expected to use


class IdRange(NamedTuple):
    """A range of ids of a user namespace: `size` of them from `inside` on, which are others outside."""

    inside: int
    outside: int
    size: int


IdMaps: TypeAlias = "tuple[tuple[IdRange, ...], tuple[IdRange, ...]]"  # of users, and of groups


def has_single_id(maps: IdMaps) -> bool:
    """Return True if a user namespace has one id only, which needs no newuidmap(1)."""
    return all(len(ids) == 1 and ids[0].size == 1 for ids in maps)


def has(ids: Sequence[IdRange], number: int) -> bool:
    """Whether a user or group of the container is among them."""
    return any(one.inside <= number < one.inside + one.size for one in ids)


def id_maps() -> IdMaps:
    """The ids of a user namespace for this user: himself as root, then what subuid(5) and subgid(5) give him.

    Without ranges, or without newuidmap(1) to use them, he is alone in it.
    """
    uid, gid = os.geteuid(), os.getegid()
    alone = ((IdRange(0, uid, 1),), (IdRange(0, gid, 1),))
    if not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        return alone
    uids = id_ranges(_read("/etc/subuid"), _names(uid))
    gids = id_ranges(_read("/etc/subgid"), _names(uid))
    return ((*alone[0], *uids), (*alone[1], *gids)) if uids and gids else alone


def id_ranges(text: str, names: Sequence[str]) -> tuple[IdRange, ...]:
    """The ranges of a subuid(5) that a user of these names has, laid end to end from 1 on inside."""
    found: list[IdRange] = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and all(map(str.isdecimal, fields[1:])):
            inside = found[-1].inside + found[-1].size if found else 1
            count = min(int(fields[2]), _FIRST_IDS - inside + 1)
            if count > 0:
                found.append(IdRange(inside, int(fields[1]), count))
    return tuple(found)


def _names(uid: int) -> tuple[str, ...]:
    try:
        return (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        return (str(uid),)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

"""The user a container runs as: that of the image's config or --user, looked up in its passwd and group.

USER, UID, USER:GROUP, UID:GID and mixtures (OCI image-spec config.md, `User`). Without a group, a user known
to the passwd has the group and the supplementary groups that the two files give; any other has group 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from imgfs.errors import UsageError

_LAST_ID = (1 << 31) - 1  # as runc and podman have it
_DIGITS = 20  # of a number, zeros in front of it included


@dataclass(frozen=True, slots=True)
class User:
    """A user by numbers; `groups` are supplementary, `home` is where the passwd says, else `/`."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


class _Account(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: list[str]


def find_user(text: str, passwd: bytes, group: bytes, more: Sequence[str] = ()) -> User:
    """Return the user that `text` names, an empty one being root.

    Raises UsageError if the image does not know it.

    `passwd` and `group` are the contents of the image's files, empty where it has none; `more` are further
    groups by name or number.
    """
    user, listed = _user(text, passwd, group), list(_groups(group))
    added = (_gid(name, listed) for name in more)
    return replace(user, groups=tuple(dict.fromkeys((*user.groups, *added))))


def _user(text: str, passwd: bytes, group: bytes) -> User:
    user, _, wanted = text.partition(":")
    number = _id(user or "0", "user")
    accounts = (
        one for one in _accounts(passwd) if one.uid == number or (number is None and one.name == user)
    )
    account = next(accounts, None)
    if number is None and account is None:
        raise UsageError(f"user {user!r} is not in the image's /etc/passwd")
    uid = account.uid if account else number or 0
    home = account.home if account else ""
    groups = list(_groups(group))
    if wanted:
        gid = _gid(wanted, groups)
        return User(uid, gid, (gid,), home or "/")
    name = account.name if account else None
    gid = account.gid if account else 0
    also = (one.gid for one in groups if name in one.members)
    return User(uid, gid, tuple(dict.fromkeys((*((gid,) if text else ()), *also))), home or "/")


def _gid(wanted: str, groups: list[_Group]) -> int:
    number = _id(wanted, "group")
    if number is not None:
        return number
    found = next((one for one in groups if one.name == wanted), None)
    if found is None:
        raise UsageError(f"group {wanted!r} is not in the image's /etc/group")
    return found.gid


def _id(text: str, what: str) -> int | None:
    """Return a number, None for a name; raises UsageError for a number that is none of an id."""
    if not (text.isascii() and text.isdecimal()):
        return None
    if not _is_id(text):
        raise UsageError(f"{what} {text[:20]} is larger than any (at most {_LAST_ID})")
    return int(text)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS and int(text) <= _LAST_ID


def _accounts(passwd: bytes) -> Iterator[_Account]:
    """Yield the lines of a passwd(5) that make sense."""
    for fields in _lines(passwd, 4):
        if _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if len(fields) > 5 else ""
            yield _Account(fields[0], int(fields[2]), int(fields[3]), home)


def _groups(group: bytes) -> Iterator[_Group]:
    """Yield the lines of a group(5) that make sense."""
    for fields in _lines(group, 3):
        if _is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), fields[3].split(",") if len(fields) > 3 else [])


def _lines(body: bytes, least: int) -> Iterator[list[str]]:
    for line in body.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= least and fields[0] and not line.startswith("#"):
            yield fields

"""Ids of containers and names for those that are given none, as podman has them."""

from __future__ import annotations

import re

CONTAINERS = "containers"  # the directory of a store that has one for each container
SHORT = 12  # digits of an id that lists show
_ID = re.compile(r"[0-9a-f]{1,64}")
_FIRST = (
    "able bold brave bright brisk calm clever eager early fair fine fresh glad grand keen kind lively loyal "
    "merry mild neat nimble open patient plain proud quick quiet ready sharp silent smart steady sunny swift"
)
_SECOND = (
    "adder badger beaver bison crane curlew dipper eider falcon finch gannet hare heron ibex jackdaw kestrel "
    "lark linnet lynx marten merlin newt osprey otter petrel pipit plover raven robin seal siskin snipe stoat"
)


def new_id() -> str:
    """Return a new container's id: 64 hexadecimal digits."""
    import secrets  # here and below: lists of containers do without

    return secrets.token_hex(32)


def random_name() -> str:
    """Return a name for a container that is given none: two words and two digits."""
    import secrets

    return f"{secrets.choice(_FIRST.split())}_{secrets.choice(_SECOND.split())}{secrets.randbelow(90) + 10}"


def is_id_prefix(text: str) -> bool:
    """Return whether an id may begin so."""
    return _ID.fullmatch(text) is not None

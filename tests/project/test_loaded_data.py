"""What modules of tests make when they are loaded: each worker loads all, and its forks copy page tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

MOST = 20 << 20  # bytes of one module's data: what is larger is made when a test asks (functools.cache)


def size_of(data: object, seen: set[int], depth: int = 0) -> int:
    """Return how many bytes there are in data, each counted once; a function has those of its parameters."""
    if id(data) in seen or depth > 10:
        return 0
    seen.add(id(data))
    if isinstance(data, bytes | str):
        return len(data)
    return sum(size_of(part, seen, depth + 1) for part in _parts(data))


def _parts(data: object) -> Iterator[object]:
    if isinstance(data, dict):
        yield from data.values()
    elif isinstance(data, list | tuple | set | frozenset):
        yield from data
    elif isinstance(data, pytest.Mark):
        yield from (data.args, data.kwargs)
    else:
        yield getattr(data, "pytestmark", ())


def loaded() -> dict[str, ModuleType]:
    """Return the modules of tests that this process has: of a whole run, all."""
    return {name: module for name, module in sys.modules.items() if name.startswith("tests.")}


def test_no_module_has_made_more_than_it_may() -> None:
    large = {name: size_of(dict(vars(module)), set()) for name, module in loaded().items()}
    assert {name: size for name, size in large.items() if size > MOST} == {}


def test_what_is_large_is_seen_wherever_it_is() -> None:
    body, other = bytes(1000), bytes(500)

    @pytest.mark.parametrize("one", [{"a": other}])
    def parametrized() -> None:
        pass

    assert size_of({"BODY": body, "SAME": [body]}, set()) == 1000
    assert 500 <= size_of({"parametrized": parametrized}, set()) < 1000

"""A directory being listed in replies of any size, without a kernel."""

from __future__ import annotations

from collections.abc import Iterator

from imgfs.fuse.operations import Listing
from imgfs.tree.database import Node

FILE = Node(2, 0o100644, 0, 0, 0, 0, 1, 0, 0, 0, 0)


def listed(count: int) -> list[int]:
    """List a directory of `count` files in small replies; returns where each query for them began."""
    begun: list[int] = []

    def query(_directory: int, after: int) -> Iterator[tuple[int, bytes, Node]]:
        begun.append(after)
        for position in range(after + 1, count + 1):
            yield position, b"%d" % position, FILE

    listing, position, names = Listing(query, 1), 0, []
    while True:
        got = 0
        for number, name, node in listing.read_from(position):
            if got == 3:  # the reply is full
                listing.put_back(number, name, node)
                break
            got, position = got + 1, number
            names.append(name)
        if not got:
            break
    assert names == [b".", b"..", *(b"%d" % number for number in range(1, count + 1))]
    return begun


def test_every_entry_comes_once_and_in_order_however_small_the_replies() -> None:
    for count in (0, 1, 2, 3, 10):
        listed(count)


def test_a_huge_directory_is_one_query_and_as_quick_at_its_end() -> None:
    assert len(listed(300_000)) <= 2  # the last reply, which is empty, may ask anew

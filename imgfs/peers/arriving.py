"""What a peer tells of a blob that it downloads: JSON, as

    {"name": "0123456789abcdef0123456789abcdef", "growing": true, "size": 9000000,
     "present": [[0, 262144]], "claimed": [[262144, 4194304]]}

`name` is that of the download: no other has it. `present` are the ranges of the blob that the peer has
fetched itself, and sends; `claimed` those that it is about to fetch. What other peers have brought to it is
in neither: so wrong bytes are the fault of the peer that has sent them. A download that is not `growing`
fetches no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.peers.presence import LARGEST_TEXT, MOST_RANGES, Presence
from imgfs.store.partial import CLAIMED, FETCHED, UNIT

LARGEST_ARRIVING = 2 * LARGEST_TEXT  # bytes of the JSON
_NAME = re.compile(r"[0-9a-f]{32}")


class Arriving(NamedTuple):
    """A download of a blob, on another machine or here."""

    name: str
    is_growing: bool
    present: Presence = Presence()
    claimed: Presence = Presence()

    @classmethod
    def of_marks(cls, name: str, is_growing: bool, marks: bytes, size: int) -> Arriving:
        """Return what the marks of a partial download of `size` bytes tell (`store.partial`)."""
        return cls(name, is_growing, _of(marks, FETCHED, size), _of(marks, CLAIMED, size))

    def to_json(self, size: int) -> bytes:
        """Return what is told of a blob of `size` bytes."""
        told = {
            "name": self.name,
            "growing": self.is_growing,
            "size": size,
            "present": self.present.longest(),
            "claimed": self.claimed.longest(),
        }
        return json.dumps(told, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, body: bytes, size: int) -> Arriving | None:
        """Parse what a peer tells; None if its blob is of another size. Raises InvalidImage."""
        if (
            body.count(b"[") > 2 * MOST_RANGES + 2
            or body.count(b",") > 5 * MOST_RANGES
            or body.count(b"{") > 1
        ):
            raise InvalidImage(f"a download of more than {MOST_RANGES} ranges", where="peer")
        try:
            told = json.loads(body)
            name, growing, its_size = told["name"], told["growing"], told["size"]
            present, claimed = Presence.of(told["present"]), Presence.of(told["claimed"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidImage(f"a download that makes no sense: {error}", where="peer") from error
        if not isinstance(name, str) or not _NAME.fullmatch(name) or type(growing) is not bool:
            raise InvalidImage("a download that has no name, or does not say if it grows", where="peer")
        return cls(name, growing, present, claimed) if its_size == size else None


def _of(marks: bytes, mark: int, size: int) -> Presence:
    bounds = ((unit * UNIT, min(size, (unit + 1) * UNIT)) for unit in _units(marks, mark))
    return Presence.of_spans(bounds)


def _units(marks: bytes, mark: int) -> Sequence[int]:
    return [unit for unit, found in enumerate(marks) if found == mark]

"""Times of change (st_ctime) as programs have seen them, although the disk has others.

They outlive the mount in a file beside the upper directory: programs such as backups take a file for changed
when its time of change has moved. A time is shown only while the disk has the one that it was noted with: so
whatever changes a file afterwards, or copies the scratch, is seen, and a lost or old file does no harm.
"""

from __future__ import annotations

import struct

from imgfs.overlay.node import UpperNode

_CTIMES = 65_536  # files that are remembered
_RECORD = struct.Struct("<Q2q")  # ino of the upper directory, nanoseconds on disk, shown
LARGEST = _CTIMES * _RECORD.size  # bytes


class ShownCtimes:
    """Times of change that are shown otherwise than the disk has them, of the last files.

    On disk the time of change cannot be set, and it moves with all that imgfs does: copying up, and setting
    the times of what a kernel that gathers writes has written before.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, int]] = {}  # by ino of the upper directory: on disk, shown

    @classmethod
    def load(cls, body: bytes) -> ShownCtimes:
        """Return what `dump` has given; nothing if it is cut off."""
        ctimes = cls()
        if len(body) % _RECORD.size == 0:
            ctimes._kept = {ino: (on_disk, shown) for ino, on_disk, shown in _RECORD.iter_unpack(body)}
        return ctimes

    def dump(self) -> bytes:
        """Return them as bytes, `LARGEST` at most: for the next mount."""
        return b"".join(_RECORD.pack(ino, *times) for ino, times in self._kept.items())

    def shown(self, node: UpperNode, on_disk_ns: int) -> int:
        """Return the time that is shown of a file: the disk's, if that has moved since `keep`."""
        on_disk, shown = self._kept.get(node.upper_ino, (0, 0))
        return shown if on_disk == on_disk_ns else on_disk_ns

    def on_disk(self, node: UpperNode, shown_ns: int) -> int:
        """Return the disk's time of a file of which `shown_ns` is shown now."""
        on_disk, shown = self._kept.get(node.upper_ino, (0, 0))
        return on_disk if shown == shown_ns else shown_ns

    def keep(self, node: UpperNode, on_disk_ns: int, shown_ns: int) -> None:
        """Have `shown_ns` be shown while the disk has `on_disk_ns`: until a program changes the file."""
        self._kept.pop(node.upper_ino, None)
        if on_disk_ns != shown_ns:
            self._kept[node.upper_ino] = on_disk_ns, shown_ns
        if len(self._kept) > _CTIMES:
            del self._kept[next(iter(self._kept))]

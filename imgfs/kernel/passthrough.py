"""Layers that the kernel reads from the store's own files, no process of ours in between.

A layer that is here whole, and whose index is verified, needs nobody to serve it. Its flat file is pinned for
as long as the kernel may read it (`store.pin`), whatever becomes of us: bytes that are evicted meanwhile stay
until it is unmounted. Nobody counts then what is read, or records it.
"""

from __future__ import annotations

from collections.abc import Sequence

from imgfs.content.layer import LayerContent


class Passthrough:
    """`files` are the flat files of `layers` that the kernel may read itself, None for the others.

    `release` them once it does not any more. What is not released is found and forgotten by evictions.
    """

    def __init__(self, layers: Sequence[LayerContent]) -> None:
        self.files = [None if layer.index.summary.word else layer.flat.pin() for layer in layers]

    @property
    def count(self) -> int:
        """How many layers the kernel reads itself."""
        return sum(file is not None for file in self.files)

    def release(self) -> None:
        """The kernel reads them no more."""
        for file in self.files:
            if file:
                file.unlink(missing_ok=True)

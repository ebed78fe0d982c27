"""What images have in common: layers, and files of the same contents at the same path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.image.compare import same_content
from imgfs.image.files import Found, ImageFiles
from imgfs.image.resolve import Resolved
from imgfs.oci.descriptor import Digest


class SharedLayer(NamedTuple):
    """A layer that several images have; it may be stored as several blobs, compressed differently."""

    diff_id: Digest
    blobs: dict[Digest, int]  # their sizes in bytes
    images: tuple[int, ...]  # from 1

    @property
    def saved(self) -> int:
        """Return the bytes that need not be stored again: only images of the same blob share it."""
        return max(self.blobs.values()) if len(self.blobs) == 1 else 0


def shared_layers(images: Sequence[Resolved]) -> list[SharedLayer]:
    """Return the layers that at least two images have, in the order of the first image that has them."""
    blobs: dict[Digest, dict[Digest, int]] = {}
    owners: dict[Digest, list[int]] = {}
    for number, image in enumerate(images, 1):
        for layer, diff_id in image.layers.values():
            blobs.setdefault(diff_id, {})[layer.digest] = layer.size
            if number not in owners.setdefault(diff_id, []):
                owners[diff_id].append(number)
    return [
        SharedLayer(diff_id, blobs[diff_id], tuple(numbers))
        for diff_id, numbers in owners.items()
        if len(numbers) > 1
    ]


def shared_files(images: Sequence[ImageFiles], *, reads: bool = False) -> Iterator[Found]:
    """Yield the regular files of the first image that all others have with the same bytes at the same path.

    Without `reads`, nothing is read: equal files of different layers do not count. With it, files of the same
    size are read where that is needed to tell. Raises as `ImageFiles.read`.
    """
    pending = [[files.at(b"/") for files in images]]
    while pending:
        found = [one for one in pending.pop() if one is not None]
        if len(found) < len(images):
            continue
        if all(one.is_directory for one in found):
            pending += list(_children(images, found))[::-1]
        elif all(one.is_regular for one in found) and _are_same(images, found, reads=reads):
            yield found[0]


def _children(images: Sequence[ImageFiles], found: Sequence[Found]) -> Iterator[list[Found | None]]:
    """Yield the children of one directory in all images side by side; only names that all may have."""
    first, *others = (
        {child.path: child for child in files.children(one)} for files, one in zip(images, found, strict=True)
    )
    for path, child in first.items():
        yield [child, *(other.get(path) for other in others)]


def _are_same(images: Sequence[ImageFiles], found: Sequence[Found], *, reads: bool) -> bool:
    files, first = images[0], found[0]
    others = list(zip(images[1:], found[1:], strict=True))
    if any(other.node.size != first.node.size for _, other in others):
        return False
    if reads:
        return all(same_content(files, first, their_files, other) for their_files, other in others)
    origin = files.origin(first) if first.node.size and others else None
    return origin is None or all(their_files.origin(other) == origin for their_files, other in others)

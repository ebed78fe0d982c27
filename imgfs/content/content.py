"""An image's files: reads mapped to ranges of flat layers; background work begins and ends here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from imgfs.buffers import buffer
from imgfs.content.background import BackgroundFetch, BackgroundFetchOptions
from imgfs.content.layer import LayerContent
from imgfs.content.profile import (
    MAX_TOUCHES,
    RECORDER_SIZE,
    AccessProfile,
    FlatRange,
    ProfileLayer,
    ProfileRecorder,
    joined,
)
from imgfs.content.requests import Request, waves
from imgfs.content.scheduler import Priority
from imgfs.content.stats import Cause
from imgfs.content.stats_memory import WORD, StatsMemory, words_of
from imgfs.content.timeline import TIMELINE_SIZE, Timeline
from imgfs.content.treewalk import FilesAfter, TreeWalkPrefetch
from imgfs.errors import InvalidImage
from imgfs.layer.entry import Extent

if TYPE_CHECKING:
    from imgfs.status import FillStatus, LayerStatus, TimelineStatus


class ContentSnapshot(NamedTuple):
    """Bytes handed out, spans recorded, the background fetch if there is one; over time; each layer."""

    served: int
    recorded: int
    fill: FillStatus | None
    timeline: TimelineStatus
    layers: tuple[LayerStatus, ...]


class Follower(Protocol):
    """What is told of readers, so as to guess what they read next; it must not wait."""

    def missed(self, ino: int) -> None:
        """Note a read of a file that is not all in the store."""

    def touched(self, layer: int, span: int) -> None:
        """Note the first read of a span. Called under the layer's lock."""


class FileSegment(NamedTuple):
    """`length` bytes of a file: those at `flat` in the flat layer, or zeros if that is None."""

    flat: int | None
    length: int


def segments_of(extents: Sequence[Extent], offset: int, length: int) -> Iterable[FileSegment]:
    """Return the segments of a file's bytes `[offset, offset+length)`, which must lie inside the file."""
    if len(extents) == 1 and length:  # nearly all files are in one piece
        ((at, size, flat),) = extents
        if at <= offset and offset + length <= at + size:
            return (FileSegment(flat + offset - at, length),)
    return _segments(extents, offset, length)


def _segments(extents: Sequence[Extent], offset: int, length: int) -> Iterator[FileSegment]:
    end = offset + length
    for extent in extents:
        if extent.offset + extent.length <= offset:
            continue
        if offset >= end or extent.offset >= end:
            break
        if extent.offset > offset:
            yield FileSegment(None, extent.offset - offset)
            offset = extent.offset
        skipped = offset - extent.offset
        taken = min(extent.length - skipped, end - offset)
        yield FileSegment(extent.flat + skipped, taken)
        offset += taken
    if offset < end:
        yield FileSegment(None, end - offset)


_LARGEST = 1 << 20  # bytes the kernel asks for at once at most (FUSE_MAX_MAX_PAGES, 256)
_FIRST_WAVE = 1 << 20  # compressed bytes that a replay begins with
_SERVED, _REQUESTS, _BYTES, _WORDS = range(4)  # words: bytes handed out; sent and received by the source


def _unknown(_ino: int) -> Iterator[tuple[int, Sequence[Extent]]]:
    return iter(())


class Content:
    """The bytes of an image's files. Any thread may use it.

    `files_after` yields (layer, extents) of every file that follows an ino in the tree. What is counted and
    recorded goes on in the file `stats`, if there is one: in the place of another process.
    """

    def __init__(
        self, layers: Sequence[LayerContent], files_after: FilesAfter = _unknown, stats: int = -1
    ) -> None:
        self.layers = layers
        memory = _memory(layers, stats)
        self._tree_walk = TreeWalkPrefetch(layers, files_after)
        self._words = words_of(memory.parts[0], _WORDS)
        self._scratch = buffer(_LARGEST)
        self._background: BackgroundFetch | None = None
        self._follower: Follower | None = None
        size = sum(layer.table.size for layer in layers)
        self._recorder = ProfileRecorder(size, memory.parts[1])
        self._timeline = Timeline(memory=memory.parts[2])
        for number, layer in enumerate(layers):
            layer.count_in(memory.parts[3 + number])
            layer.counts.on_landed = self._timeline.fetched
            layer.usage.on_touch = partial(self._touched, number, layer)
        requests = sum(layer.counts.requests for layer in layers)
        received = sum(layer.counts.received + layer.counts.windows for layer in layers)
        self._before = max(self._words[_REQUESTS], requests), max(self._words[_BYTES], received)

    def walk_by(self, files_after: FilesAfter) -> None:
        """Know the tree by `files_after` from now on."""
        self._tree_walk.files_after = files_after

    def opened(self, ino: int) -> None:
        """Note that a file is read from its beginning: cheap; always called from the same thread."""
        self._tree_walk.opened(ino)

    def missed(self, ino: int) -> None:
        """Note that a file is read of which not all is here: cheap."""
        if self._follower and not self._tree_walk.is_running:
            self._follower.missed(ino)

    def follow(self, follower: Follower) -> None:
        """Have all that readers do told to `follower`, from now on."""
        self._follower = follower

    @property
    def is_followed(self) -> bool:
        """Return True if readers are told to a follower."""
        return self._follower is not None

    def start(
        self, touches: Sequence[tuple[int, int]] = (), fill: BackgroundFetchOptions | None = None
    ) -> None:
        """Begin to fetch in the background the spans `touches`, (layer, span), and, with `fill`, then all."""
        self._replay(touches)
        if fill:
            self._background = BackgroundFetch(self.layers, touches, fill)
            self._background.start()

    def stop(self) -> None:
        """Stop the background work; waits for its threads, not for requests under way."""
        self._tree_walk.stop()
        if self._background:
            self._background.stop()

    def recorded(self) -> list[tuple[int, int]]:
        """Return the spans that readers have touched so far, in order, as (layer, span)."""
        return self._recorder.touches()

    def profile_of(self, touches: Iterable[tuple[int, int]]) -> AccessProfile:
        """Return a profile of spans, (layer, span) in order."""
        layers = tuple(ProfileLayer.of(layer.index.summary) for layer in self.layers)
        ranges = (FlatRange(number, *self.layers[number].table.flat_range(span)) for number, span in touches)
        return AccessProfile(layers, tuple(joined(ranges)))

    def spans_in(self, ranges: Iterable[FlatRange]) -> list[tuple[int, int]]:
        """Return the spans, (layer, span), that ranges lie in, each once; without what is beyond a layer."""
        return list(dict.fromkeys(islice(self._spans_in(ranges), MAX_TOUCHES)))

    def _spans_in(self, ranges: Iterable[FlatRange]) -> Iterator[tuple[int, int]]:
        for number, start, length in ranges:
            with suppress(InvalidImage):
                first, last = self.layers[number].table.holding(start, length)
                yield from ((number, span) for span in range(first, last + 1))

    def requests_of(self, touches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, Request]]:
        """Yield the requests, (layer, request), by which a replay fetches spans, (layer, span) in order."""
        return waves(touches, [layer.table for layer in self.layers], first=_FIRST_WAVE)

    def snapshot(self) -> ContentSnapshot:
        """Return the counters of the image and of each layer."""
        fill = self._background.snapshot() if self._background else None
        layers = tuple(layer.snapshot() for layer in self.layers)
        return ContentSnapshot(
            self._words[_SERVED], self._recorder.count, fill, self._timeline.snapshot(), layers
        )

    def traffic(self, requests: int, received: int) -> tuple[int, int]:
        """Note what the source has sent and received; return that with what earlier processes had noted.

        Of what a killed one had not noted yet only requests for layers are known.
        """
        total = self._before[0] + requests, self._before[1] + received
        self._words[_REQUESTS], self._words[_BYTES] = total
        return total

    def cached(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        flags: int = os.RWF_NOWAIT,
    ) -> memoryview | None:
        """Return a file's bytes if they are in the page cache, else None; also None for more than 1 MiB.

        Without RWF_NOWAIT in `flags` it waits for the disk, and returns None if some are not in the store.

        The buffer is reused by the next call, which must come from the same thread: fresh memory each time
        would cost twice the time of the read itself.
        """
        if length > _LARGEST:
            return None
        at = 0
        for flat, size in segments_of(extents, offset, length):
            into = self._scratch[at : at + size]
            at += size
            if flat is None:
                into[:] = bytes(size)
            elif not self.layers[layer].read_into(into, flat, extents, flags):
                return None
        self._words[_SERVED] += length
        return self._scratch[:length]

    def read(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        given_up: Future[None] | None = None,
    ) -> bytes:
        """Read a file's bytes; waits for the network. Raises ImgfsError.

        Once `given_up` is settled it raises InterruptedError instead of waiting; requests under way go on.
        """
        parts = [
            bytes(size) if flat is None else self.layers[layer].read(flat, size, extents, given_up)
            for flat, size in segments_of(extents, offset, length)
        ]
        self._words[_SERVED] += length
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def copy(
        self,
        layer: int,
        extents: Sequence[Extent],
        offset: int,
        length: int,
        target: int,
        at: int,
        given_up: Future[None] | None = None,
    ) -> None:
        """Copy a file's bytes, among which is no hole, to `at` in the open file `target`.

        Raises as `read`, and OSError.
        """
        for flat, size in segments_of(extents, offset, length):
            if flat is not None:
                self.layers[layer].copy(flat, size, target, at, extents, given_up)
            at += size
        self._words[_SERVED] += length

    def is_complete(self) -> bool:
        """Return True if all bytes of all layers are in the store."""
        return all(layer.is_complete() for layer in self.layers)

    def is_here(self, layer: int, extents: Sequence[Extent], offset: int, length: int) -> bool:
        """Return True if a file's bytes can be read without the network."""
        segments = segments_of(extents, offset, length)
        return all(self.layers[layer].is_here(flat, size) for flat, size in segments if flat is not None)

    def bytes_here(self, layer: int, extents: Sequence[Extent], size: int) -> int:
        """Return how many bytes of a file of `size` bytes can be read without the network; holes can."""
        return sum(
            length if flat is None else self.layers[layer].bytes_here(flat, length)
            for flat, length in segments_of(extents, 0, size)
        )

    def is_refused(self, layer: int) -> bool:
        """Return True if a layer was found not to match its DiffID: its reads fail."""
        return bool(self.layers) and self.layers[layer].is_refused

    def sync(self) -> None:
        """Sync all that has been fetched to the disk."""
        for layer in self.layers:
            layer.flat.sync()

    def _touched(self, number: int, layer: LayerContent, span: int) -> None:
        size = layer.table.size_of(span)
        self._recorder.touched(number, span, size)
        self._timeline.read(size)
        if self._follower:
            self._follower.touched(number, span)

    def _replay(self, touches: Sequence[tuple[int, int]]) -> list[Future[None]]:
        futures: list[Future[None]] = []
        named: dict[int, list[int]] = {}
        for number, span in touches:
            named.setdefault(number, []).append(span)
        for number, spans in named.items():
            self.layers[number].expect(spans)
        absent = {(number, span) for number, layer in enumerate(self.layers) for span in layer.missing()}
        missing = [touch for touch in touches if touch in absent]
        for number, request in self.requests_of(missing):
            layer = self.layers[number]
            started = layer.fetch_in_background([request], Priority.REPLAY, Cause.REPLAY)
            layer.fetch_pool.note_replay(started)
            futures += started
        return futures


def _memory(layers: Sequence[LayerContent], stats: int) -> StatsMemory:
    """Return the memory for the statistics of layers, after what all of them share; `stats` is its file."""
    shared = _WORDS * WORD, RECORDER_SIZE, TIMELINE_SIZE
    digests = " ".join(str(layer.layer.digest) for layer in layers)
    return StatsMemory([*shared, *(layer.stats_size for layer in layers)], stats, digests)

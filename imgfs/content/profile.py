"""Access profiles: what a workload reads, in order; recorded in one mount, replayed in the next.

A profile names ranges of flat layers, and these by DiffID: so it holds for every index of a layer, however
that is packed and wherever it is. It has the paths of the files that lie there, too: where another image,
such as the next tag of the same repository, has another layer, they say what of it is likely to be read.

It may come from a registry, so every field is checked; the worst that a wrong one can do is to have the wrong
bytes of the image's own layers fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from imgfs.content.stats_memory import WORD, words_of
from imgfs.errors import InvalidImage
from imgfs.layer.schema import Summary
from imgfs.layer.sqlite import LARGEST
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import words_of_json

MAX_JSON = 8 << 20  # bytes
_MAX_LAYERS = 1024
MAX_TOUCHES = 250_000
_MAX_FILES = 50_000
_MAX_PATH = 4096  # bytes
_BYTES, _COUNT, _TOUCHES = range(3)  # words of a recorder's memory
RECORDER_SIZE = (_TOUCHES + MAX_TOUCHES) * WORD  # bytes
_SMALL = 64 << 20  # compressed bytes that are always recorded: of a small image maybe everything is needed
_VERSION = 2
_ORIGIN = "origin"  # in the store: the repository it was published in; absent if it was recorded here


class ProfileLayer(NamedTuple):
    """A flat layer: by DiffID, by what its offsets count in (`Summary.space`), and by its size."""

    diff_id: str
    space: str
    size: int

    @classmethod
    def of(cls, summary: Summary) -> ProfileLayer:
        """Return the flat layer of an index."""
        return cls(summary.diff_id, summary.space, summary.flat_size)


class FlatRange(NamedTuple):
    """`length` bytes from `start` on of the flat layer number `layer`."""

    layer: int
    start: int
    length: int


class ProfileFile(NamedTuple):
    """`length` bytes from `start` on of a file of `size` bytes, which lie in the touch `touch`."""

    touch: int
    path: bytes
    start: int
    length: int
    size: int


FindFile = Callable[[ProfileFile], Iterable[FlatRange]]  # where these bytes are in an image


class AccessProfile(NamedTuple):
    """Ranges of `layers` in the order of their first touch, and the files that lie there."""

    layers: tuple[ProfileLayer, ...]
    touches: tuple[FlatRange, ...]
    files: tuple[ProfileFile, ...] = ()

    def to_json(self) -> bytes:
        """Return the profile as a document.

        {"version": 2, "layers": [{"diff_id", "space", "size"}, ...],
        "touches": [[layer, start, length], ...], "files": [[touch, path, start, length, size], ...]}
        """
        files = [[file.touch, file.path.decode(errors="surrogateescape"), *file[2:]] for file in self.files]
        layers = [layer._asdict() for layer in self.layers]
        document = {"version": _VERSION, "layers": layers, "touches": self.touches, "files": files}
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, body: bytes) -> AccessProfile:
        """Read a document of `to_json`. Raises InvalidImage for anything else."""
        if len(body) > MAX_JSON:
            raise InvalidImage(f"{len(body)} bytes; at most {MAX_JSON} are allowed", where="profile")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InvalidImage(f"not JSON: {words_of_json(error)}", where="profile") from error
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise InvalidImage(f"not of version {_VERSION}", where="profile")
        listed = _list(document.get("layers"), "layers", _MAX_LAYERS)
        layers = tuple(_layer(layer, number) for number, layer in enumerate(listed))
        touches = tuple(_touches(document.get("touches"), layers))
        return cls(layers, touches, tuple(_files(document.get("files", []), len(touches))))

    def resolve(self, layers: Sequence[ProfileLayer], find: FindFile) -> Iterator[FlatRange]:
        """Yield the touches as ranges of an image's `layers`; of others, what `find` says of their files."""
        numbers = {layer: number for number, layer in reversed(list(enumerate(layers)))}
        known = [numbers.get(layer) for layer in self.layers]
        files: dict[int, list[ProfileFile]] = {}
        for file in self.files:
            files.setdefault(file.touch, []).append(file)
        for at, touch in enumerate(self.touches):
            number = known[touch.layer]
            if number is not None:
                yield touch._replace(layer=number)
            else:
                for file in files.get(at, ()):
                    yield from find(file)


def published_profile(body: bytes) -> bytes:
    """Return a profile as it is published: beside its image, whose layers it knows. Raises InvalidImage."""
    return AccessProfile.from_json(body)._replace(files=()).to_json()


def vouched_profile(body: bytes, origin: str) -> bytes:
    """Return a published profile with the repository it comes from. Raises InvalidImage.

    What is published has no files: those of a stranger's may be made to be looked for without end.
    """
    return json.dumps(
        {**json.loads(published_profile(body)), _ORIGIN: origin}, separators=(",", ":")
    ).encode()


def origin_of(body: bytes) -> str:
    """Return the repository it comes from; "" if it was recorded here, or is not a profile."""
    try:
        return str(json.loads(body).get(_ORIGIN, ""))
    except (ValueError, AttributeError, RecursionError):
        return ""


class ProfileRecorder:
    """Records touches of spans while readers make them; threads may call it at once.

    It stops for good when more than half of the image's compressed bytes have been touched, and at least
    64 MiB: a reader of that much, such as `find -exec` or `tar`, shows nothing that helps the next mount.
    What was touched before that remains: the first touches are the most useful.

    It is kept in `memory` of RECORDER_SIZE bytes, or goes on with what is there: the bytes touched, how many
    touches there are, and each of them, its layer in the upper half and its span in the lower.
    """

    def __init__(self, size: int, memory: memoryview | None = None) -> None:
        self._most = max(size // 2, _SMALL)
        self._words = words_of(memory, RECORDER_SIZE // WORD)

    @property
    def count(self) -> int:
        """Return the number of touches."""
        return min(self._words[_COUNT], MAX_TOUCHES)

    def touched(self, layer: int, span: int, size: int) -> None:
        """Note that a reader is at a span of `size` compressed bytes for the first time."""
        words, count = self._words, self._words[_COUNT]
        if words[_BYTES] < self._most and count < MAX_TOUCHES:
            words[_BYTES] += size
            words[_TOUCHES + count] = layer << 32 | span
            words[_COUNT] = count + 1

    def touches(self) -> list[tuple[int, int]]:
        """Return what has been touched so far, as (layer, span)."""
        touches = self._words[_TOUCHES : _TOUCHES + self.count]
        return [(touch >> 32, touch & 0xFFFFFFFF) for touch in touches]


def joined(ranges: Iterable[FlatRange]) -> Iterator[FlatRange]:
    """Yield ranges in this order, those that adjoin in their layer joined to one."""
    current: FlatRange | None = None
    for each in ranges:
        if current and (each.layer, each.start) == (current.layer, current.start + current.length):
            current = current._replace(length=current.length + each.length)
            continue
        if current:
            yield current
        current = each
    if current:
        yield current


def _layer(value: object, number: int) -> ProfileLayer:
    where = f"profile: layers[{number}]"
    if not isinstance(value, dict) or not isinstance(value.get("diff_id"), str):
        raise InvalidImage("no DiffID", where=where)
    space = value.get("space")
    if not isinstance(space, str) or len(space) > _MAX_PATH:
        raise InvalidImage("no flat space", where=where)
    diff_id = Digest.parse(value["diff_id"], where=where)
    return ProfileLayer(str(diff_id), space, _number(value.get("size"), LARGEST, where))


def _touches(value: object, layers: Sequence[ProfileLayer]) -> Iterator[FlatRange]:
    for at, touch in enumerate(_list(value, "touches", MAX_TOUCHES)):
        where = f"profile: touches[{at}]"
        layer, start, length = (
            _number(field, LARGEST, where) for field in _list(touch, f"touches[{at}]", 3, 3)
        )
        if layer >= len(layers) or not length or start + length > layers[layer].size:
            raise InvalidImage("no such bytes", where=where)
        yield FlatRange(layer, start, length)


def _files(value: object, touches: int) -> Iterator[ProfileFile]:
    for at, file in enumerate(_list(value, "files", _MAX_FILES)):
        where = f"profile: files[{at}]"
        touch, path, *numbers = _list(file, f"files[{at}]", 5, 5)
        start, length, size = (_number(field, LARGEST, where) for field in numbers)
        number = _number(touch, LARGEST, where)
        if number >= touches or start + length > size:
            raise InvalidImage("no such bytes", where=where)
        yield ProfileFile(number, _path(path, where), start, length, size)


def _path(value: object, where: str) -> bytes:
    try:
        path = str(value).encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidImage("no path", where=where) from error
    if not isinstance(value, str) or len(path) > _MAX_PATH or b"\0" in path:
        raise InvalidImage("no path", where=where)
    return path


def _list(value: object, name: str, most: int, least: int = 0) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise InvalidImage(f"not a list of {least} to {most} elements", where=f"profile: {name}")
    return value


def _number(value: object, most: int, where: str) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidImage(f"{str(value)[:40]!r} is not a number from 0 to {most}", where=where)
    return value

"""Access profiles: the spans that a workload touches, in order; recorded in one mount, replayed in the next.

A profile names layers by digest and by their number of spans: an index that cuts a layer differently has
other spans under the same numbers. It may come from a registry, so every field is checked; the worst that a
wrong one can do is to have the wrong bytes of the image's own layers fetched.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import words_of_json

MEDIA_TYPE = "application/vnd.imgfs.profile.v1+json"
MAX_JSON = 8 << 20  # bytes
_MAX_LAYERS = 1024
_MAX_TOUCHES = 250_000
_MAX_SPANS = 1 << 24  # of a layer
_SMALL = 64 << 20  # compressed bytes that are always recorded: of a small image maybe everything is needed
_VERSION = 1
_ORIGIN = "origin"  # in the store: the repository it was published in; absent if it was recorded here


class ProfileLayer(NamedTuple):
    """A layer by its blob's digest, cut into so many spans."""

    digest: str
    spans: int


class AccessProfile(NamedTuple):
    """Spans in the order of their first touch, as (number of the layer in `layers`, number of the span)."""

    layers: tuple[ProfileLayer, ...]
    touches: tuple[tuple[int, int], ...]

    def to_json(self) -> bytes:
        """The profile as a document.

        {"version": 1, "layers": [{"digest", "spans"}, ...], "touches": [[layer, first span, count], ...]}
        """
        layers = [layer._asdict() for layer in self.layers]
        runs = [list(run) for run in _runs(self.touches)]
        document = {"version": _VERSION, "layers": layers, "touches": runs}
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
        return cls(layers, tuple(_touches(document.get("touches"), layers)))

    def resolve(self, layers: Sequence[ProfileLayer]) -> list[tuple[int, int]]:
        """The touches, each once, as (number in `layers`, span); those of layers that differ are left out."""
        numbers = {layer: number for number, layer in reversed(list(enumerate(layers)))}
        known = [numbers.get(layer) for layer in self.layers]
        pairs = ((known[layer], span) for layer, span in self.touches)
        return list(dict.fromkeys((number, span) for number, span in pairs if number is not None))


def vouched_profile(body: bytes, origin: str) -> bytes:
    """Return an imported profile, which `from_json` has accepted, with the repository it comes from."""
    return json.dumps({**json.loads(body), _ORIGIN: origin}, separators=(",", ":")).encode()


def origin_of(body: bytes) -> str:
    """Return the repository it comes from; "" if it was recorded here, or is not a profile."""
    try:
        return str(json.loads(body).get(_ORIGIN, ""))
    except (ValueError, AttributeError, RecursionError):
        return ""


class ProfileRecorder:
    """Records touches while readers make them; threads may call it at once.

    It stops for good when more than half of the image's compressed bytes have been touched, and at least
    64 MiB: a reader of that much, such as `find -exec` or `tar`, shows nothing that helps the next mount.
    What was touched before that remains: the first touches are the most useful.
    """

    def __init__(self, layers: Sequence[ProfileLayer], size: int) -> None:
        self.layers = tuple(layers)
        self._left = max(size // 2, _SMALL)
        self._touches = array("Q")  # layer in the upper half, span in the lower

    @property
    def count(self) -> int:
        """Return the number of touches."""
        return len(self._touches)

    def touched(self, layer: int, span: int, size: int) -> None:
        """Note that a reader is at a span of `size` compressed bytes for the first time."""
        if self._left > 0 and len(self._touches) < _MAX_TOUCHES:
            self._left -= size
            self._touches.append(layer << 32 | span)

    def profile(self) -> AccessProfile:
        """Return what has been recorded so far."""
        touches = self._touches[:]
        return AccessProfile(self.layers, tuple((touch >> 32, touch & 0xFFFFFFFF) for touch in touches))


def _runs(touches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(layer, first span, count) of touches that follow each other."""
    run: tuple[int, int, int] | None = None
    for layer, span in touches:
        if run and (layer, span) == (run[0], run[1] + run[2]):
            run = (*run[:2], run[2] + 1)
            continue
        if run:
            yield run
        run = layer, span, 1
    if run:
        yield run


def _layer(value: object, number: int) -> ProfileLayer:
    where = f"profile: layers[{number}]"
    if not isinstance(value, dict) or not isinstance(value.get("digest"), str):
        raise InvalidImage("no digest", where=where)
    digest = Digest.parse(value["digest"], where=where)
    return ProfileLayer(str(digest), _number(value.get("spans"), _MAX_SPANS, where))


def _touches(value: object, layers: Sequence[ProfileLayer]) -> Iterator[tuple[int, int]]:
    total = 0
    for at, run in enumerate(_list(value, "touches", _MAX_TOUCHES)):
        where = f"profile: touches[{at}]"
        layer, first, count = (
            _number(field, _MAX_SPANS, where) for field in _list(run, f"touches[{at}]", 3, 3)
        )
        total += count
        if layer >= len(layers) or first + count > layers[layer].spans:
            raise InvalidImage("no such span", where=where)
        if total > _MAX_TOUCHES:
            raise InvalidImage(f"more than {_MAX_TOUCHES} spans", where=where)
        yield from ((layer, span) for span in range(first, first + count))


def _list(value: object, name: str, most: int, least: int = 0) -> list[object]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise InvalidImage(f"not a list of {least} to {most} elements", where=f"profile: {name}")
    return value


def _number(value: object, most: int, where: str) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidImage(f"{str(value)[:40]!r} is no number from 0 to {most}", where=where)
    return value

"""What a mount's daemon says of itself: frozen types, and their JSON.

The daemon fills a MountStatus; `imgfs status` and the Prometheus text read it. Its JSON is also that of
`imgfs status --json`, so names of fields are names that users see. Sizes and counts of bytes are as their
names say, durations in seconds, times in seconds since 1970. A daemon may be of another version than the
command that asks it: what it does not say has a default, what it says beyond is ignored.

Annotations are types here, not texts, as in most modules: they say what JSON is decoded to, and to evaluate
texts takes longer than all else that `imgfs status` does.
"""

from collections.abc import Mapping
from types import MappingProxyType, UnionType
from typing import Any, NamedTuple, Self, TypeVar, get_args, get_origin

T = TypeVar("T")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class BroughtStatus(NamedTuple):
    """Spans and compressed bytes fetched for one cause, and how much of them has been read."""

    spans: int = 0
    bytes: int = 0
    spans_used: int = 0
    bytes_used: int = 0


class FirstByteStatus(NamedTuple):
    """How long requests that a reader waited for took until their first byte."""

    requests: int = 0
    seconds: float = 0.0
    longest: float = 0.0


class ErrorStatus(NamedTuple):
    """The last error: when it happened, and what it said."""

    time: float = 0.0
    text: str = ""


class FillStatus(NamedTuple):
    """The state of the background fetch; `missing` in compressed bytes."""

    state: str = ""
    missing: int = 0


class ScratchStatus(NamedTuple):
    """The scratch over an image; it is `kept` when the mount ends, or goes with it."""

    directory: str = ""
    name: str = ""
    kept: bool = True


class EndpointStatus(NamedTuple):
    """A registry or mirror; `since` when it has been failing, None if it answers."""

    endpoint: str = ""
    state: str = ""
    since: float | None = None
    error: str | None = None
    tries: int = 0
    left_alone_until: float | None = None


class LayerStatus(NamedTuple):
    """What serving one layer has cost, in compressed bytes, if not said otherwise.

    `index` is "verified", or the repository that is trusted for it. `needed` are the spans that readers have
    touched, of which `needed_fetched` came by this mount and `needed_here` were in the store before.
    `fetched` is what `brought` has, and what was `discarded`; `from_peers` of it came from other machines'
    imgfs, and not from the registry; `untouched` is what `brought` has and no reader
    has touched yet. `flat_size` and `needed_flat` are decompressed.
    """

    digest: str = ""
    format: str = ""
    size: int = 0
    flat_size: int = 0
    index: str = "verified"  # type: ignore[assignment]  # a name that tuples have, too
    bytes_fetched: int = 0
    hits: int = 0
    misses: int = 0
    needed: int = 0
    needed_flat: int = 0
    needed_fetched: int = 0
    needed_here: int = 0
    fetched: int = 0
    from_peers: int = 0
    discarded: int = 0
    untouched: int = 0
    windows: int = 0
    requests: int = 0
    errors: int = 0
    last_error: ErrorStatus | None = None
    failing_since: float | None = None
    first_byte: FirstByteStatus = FirstByteStatus()
    brought: Mapping[str, BroughtStatus] = _NOTHING
    spans: int = 0
    spans_present: int = 0
    spans_touched: int = 0


class TimelineStatus(NamedTuple):
    """Compressed bytes since the mount began, for each `stretch` of so many seconds.

    `read` are those that readers came to for the first time, `fetched` what came from the network, by cause.
    """

    stretch: float = 0.0
    read: tuple[int, ...] = ()
    fetched: Mapping[str, tuple[int, ...]] = _NOTHING


class MountStatus(NamedTuple):
    """A mount; `passthrough` counts the layers that the kernel reads itself, None by the FUSE driver.

    `restarts` counts how often its daemon was killed and has a successor; `version` is the daemon's imgfs.
    """

    image: str = ""
    digest: str = ""
    platform: str = ""
    mountpoint: str = ""
    store: str = ""
    scratch: ScratchStatus | None = None
    tree: str = "verified"
    metrics: str | None = None
    endpoints: tuple[EndpointStatus, ...] = ()
    driver: str = "fuse"
    pid: int = 0
    restarts: int = 0
    version: str = ""
    began: float = 0.0
    seconds: float = 0.0
    requests_fetched: int = 0
    bytes_fetched: int = 0
    bytes_served: int = 0
    spans_recorded: int = 0
    fill: FillStatus | None = None
    timeline: TimelineStatus | None = None
    layers: tuple[LayerStatus, ...] = ()
    passthrough: int | None = None

    @classmethod
    def from_json(cls, found: object) -> Self:
        """Parse what a daemon says of its mount."""
        return decode(cls, found) or cls()

    def to_json(self) -> dict[str, object]:
        """Return the status as JSON has it; without `passthrough` by the FUSE driver."""
        found: dict[str, object] = plain(self)
        if self.passthrough is None:
            del found["passthrough"]
        return found


def plain(found: Any) -> Any:
    """Return a value of the types above as JSON has it: tuples with names are objects."""
    if isinstance(found, tuple):
        names = getattr(found, "_fields", None)
        values = [plain(each) for each in found]
        return dict(zip(names, values, strict=True)) if names else values
    return {name: plain(each) for name, each in found.items()} if isinstance(found, Mapping) else found


def decode(kind: type[T], found: object) -> T | None:
    """Make a `kind`, one of the types above, of what JSON has; None if that is no object.

    Fields that are not given, or are of another type, have their defaults.
    """
    if not isinstance(found, Mapping):
        return None
    given = {name: _value(hint, found[name]) for name, hint in kind.__annotations__.items() if name in found}
    return kind(**{name: value for name, value in given.items() if value is not _ABSENT})


_ABSENT = object()
_LARGEST = 1 << 63  # of a number: a larger one is no size, count or time


def _value(hint: object, found: object) -> object:
    """Return a field's value, of the type `hint`; _ABSENT if `found` is of another."""
    outer, inner = get_origin(hint), get_args(hint)
    if outer is UnionType:
        values = [_value(each, found) for each in inner]
        return next((value for value in values if value is not _ABSENT), _ABSENT)
    if outer is tuple:
        return _several(inner[0], found)
    if outer is Mapping:
        pairs = found.items() if isinstance(found, Mapping) else ()
        kept = {name: value for name, each in pairs if (value := _value(inner[1], each)) is not _ABSENT}
        return kept if isinstance(found, Mapping) else _ABSENT
    if not isinstance(hint, type):
        return _ABSENT
    if issubclass(hint, tuple):
        decoded = decode(hint, found)
        return _ABSENT if decoded is None else decoded
    if hint is float and isinstance(found, int) and not isinstance(found, bool):
        return float(found) if abs(found) <= _LARGEST else _ABSENT
    if hint is int and isinstance(found, int) and abs(found) > _LARGEST:
        return _ABSENT
    return found if type(found) is hint else _ABSENT


def _several(kind: object, found: object) -> object:
    if not isinstance(found, list | tuple):
        return _ABSENT
    values = [_value(kind, each) for each in found]
    return tuple(value for value in values if value is not _ABSENT)

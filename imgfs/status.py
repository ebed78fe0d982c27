"""What a mount's daemon says of itself: frozen types, and their JSON.

The daemon fills a MountStatus; `imgfs status` and the Prometheus text read it. Its JSON is also that of
`imgfs status --json`, so names of fields are names that users see. Sizes and counts of bytes are as their
names say, durations in seconds, times in seconds since 1970. A daemon may be of another version than the
command that asks it: what it does not say has a default, what it says beyond is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


@dataclass(frozen=True, slots=True)
class BroughtStatus:
    """Spans and compressed bytes fetched for one cause, and how much of them has been read."""

    spans: int = 0
    bytes: int = 0
    spans_used: int = 0
    bytes_used: int = 0


@dataclass(frozen=True, slots=True)
class FirstByteStatus:
    """How long requests that a reader waited for took until their first byte."""

    requests: int = 0
    seconds: float = 0.0
    longest: float = 0.0


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """The last error: when it happened, and what it said."""

    time: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class FillStatus:
    """The state of the background fetch; `missing` in compressed bytes."""

    state: str = ""
    missing: int = 0


@dataclass(frozen=True, slots=True)
class ScratchStatus:
    """The scratch over an image; it is `kept` when the mount ends, or goes with it."""

    directory: str = ""
    name: str = ""
    kept: bool = True


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """A registry or mirror; `since` when it has been failing, None if it answers."""

    endpoint: str = ""
    state: str = ""
    since: float | None = None
    error: str | None = None
    tries: int = 0
    left_alone_until: float | None = None


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """What serving one layer has cost. `index` is "verified", or the repository that is trusted for it."""

    digest: str = ""
    format: str = ""
    size: int = 0
    flat_size: int = 0
    index: str = "verified"
    bytes_fetched: int = 0
    hits: int = 0
    misses: int = 0
    needed: int = 0
    needed_flat: int = 0
    fetched: int = 0
    discarded: int = 0
    untouched: int = 0
    windows: int = 0
    requests: int = 0
    errors: int = 0
    last_error: ErrorStatus | None = None
    failing_since: float | None = None
    first_byte: FirstByteStatus = FirstByteStatus()
    brought: Mapping[str, BroughtStatus] = field(default_factory=dict)
    spans: int = 0
    spans_present: int = 0
    spans_touched: int = 0

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> LayerStatus:
        """Parse what a daemon says of a layer."""
        brought = {cause: _known(BroughtStatus, each) for cause, each in found.get("brought", {}).items()}
        last = found.get("last_error")
        return _known(
            cls,
            {
                **found,
                "last_error": _known(ErrorStatus, last) if last else None,
                "first_byte": _known(FirstByteStatus, found.get("first_byte", {})),
                "brought": brought,
            },
        )


@dataclass(frozen=True, slots=True)
class MountStatus:
    """A mount; `passthrough` counts the layers that the kernel reads itself, None by the FUSE driver."""

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
    began: float = 0.0
    seconds: float = 0.0
    requests_fetched: int = 0
    bytes_fetched: int = 0
    bytes_served: int = 0
    spans_recorded: int = 0
    fill: FillStatus | None = None
    layers: tuple[LayerStatus, ...] = ()
    passthrough: int | None = None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> MountStatus:
        """Parse what a daemon says of its mount."""
        scratch, fill = found.get("scratch"), found.get("fill")
        return _known(
            cls,
            {
                **found,
                "scratch": _known(ScratchStatus, scratch) if scratch else None,
                "fill": _known(FillStatus, fill) if fill else None,
                "endpoints": tuple(_known(EndpointStatus, each) for each in found.get("endpoints", ())),
                "layers": tuple(map(LayerStatus.from_json, found.get("layers", ()))),
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The status as JSON has it; without `passthrough` by the FUSE driver."""
        found = asdict(self)
        if self.passthrough is None:
            del found["passthrough"]
        return found


def _known(kind: type[T], found: Mapping[str, Any]) -> T:
    """Make a `kind`, one of the dataclasses above, of those of its fields that are given."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in found.items() if name in names})

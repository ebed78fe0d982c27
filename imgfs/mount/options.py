"""How to mount: what the caller tells the daemon. Loads nothing of what serves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from imgfs.content.background import BackgroundFetchOptions
    from imgfs.image.resolve import Resolved
    from imgfs.image.trust import Trust
    from imgfs.metrics.endpoint import MetricsAddress
    from imgfs.mounts.mountpoint import DirectoryId
    from imgfs.overlay.scratch import Scratch
    from imgfs.store.store import Store
    from imgfs.transport.ahead import AheadRange

_RESENDS = (6, 9)  # the kernel from which on FUSE_NOTIFY_RESEND is there


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `fuse` are options for libfuse and the kernel, `owner` the (uid, gid) that all files are
    shown with, `log_level` a name of the logging module's; with a `scratch` the mount can be written to.
    With `write_through` what is written is here at once, instead of waiting in the kernel for more. `record`
    names the profile that what is read is kept as, `replay` the one that is fetched ahead; with a `fill`
    everything is fetched; with `predict` what
    is guessed from what is opened. `metrics` is where Prometheus may ask for the status. `driver` is `fuse`,
    `kernel`, or `auto` for the kernel where it can. `trust` is whose indexes count: those of the reference's
    repository by default. `checked` is the directory that was found at the mount point before. With
    `history` the
    image's earlier states are shown, too; with `restart` a killed daemon has a successor,
    once it has served for `restart_after` seconds. With `exit_idle` the daemon ends once nothing was asked
    for so many seconds, until something is."""

    mountpoint: Path
    fuse: frozenset[str] = frozenset()
    owner: tuple[int, int] | None = None
    log_level: str = "INFO"
    foreground: bool = False
    scratch: Scratch | None = None
    write_through: bool = False
    record: str | None = None
    replay: str | None = None
    fill: BackgroundFetchOptions | None = None
    predict: bool = True
    metrics: MetricsAddress | None = None
    driver: str = "fuse"
    trust: Trust | None = None
    checked: DirectoryId | None = None
    history: bool = False
    restart: bool = False
    restart_after: float = 0.0
    exit_idle: float = 0.0


class OpenOrder(NamedTuple):
    """An image to be opened before it is known to be the one to mount; `connect` is as for a replay."""

    resolved: Resolved
    connect: bytes
    store: Store
    trust: Trust


class ReplayOrder(NamedTuple):
    """The profile to replay, as `--replay` names it, of an image that has all but its tree.

    `connect` opens its source, and is pickled.
    """

    resolved: Resolved
    connect: bytes
    store: Store
    trust: Trust
    profile: str | None


class AheadOrder(NamedTuple):
    """What is likely to be read first of an image, to be fetched before it is known what is there."""

    ranges: tuple[AheadRange, ...]


def can_resend() -> bool:
    """Return True if this kernel can send again what a killed daemon has left unanswered."""
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    return numbers >= _RESENDS

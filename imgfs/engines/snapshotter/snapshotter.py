"""The ten operations that containerd asks for (core/snapshots), on rows, directories and mounts.

A layer of an image in a registry is never unpacked: its row is made at once, committed, and the answer is
ALREADY_EXISTS, as containerd has it for what need not be fetched. The image begins to be mounted with its
first layer, and is waited for with its topmost: so a pull fails with the reason why no container could start.

What is below a container: directories down to the next layer that is mounted, which shows all below itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from imgfs import syscalls
from imgfs.engines.refusal import Code, Refusal, already_exists
from imgfs.engines.snapshotter.directories import SnapshotDirectories
from imgfs.engines.snapshotter.filters import parse_filters
from imgfs.engines.snapshotter.image_mounts import ImageMounts, mounted_reference
from imgfs.engines.snapshotter.labels import LAYER, TARGET, IdMaps, OfferedLayer, id_maps, offered_layer
from imgfs.engines.snapshotter.messages import (
    CommitRequest,
    ListRequest,
    MountWord,
    NamedRequest,
    PrepareRequest,
    UpdateRequest,
)
from imgfs.engines.snapshotter.reserve import Reserve
from imgfs.engines.snapshotter.rows import ImageChain, Snapshot, SnapshotKind, SnapshotRows, SnapshotUsage
from imgfs.engines.stored_image import remove_image
from imgfs.errors import StoreError
from imgfs.oci.descriptor import Digest
from imgfs.store.store import Store

_SWEEP = 60.0  # seconds
_SOON = 1.0  # seconds in which a daemon that has just been unmounted may end
_INDEX = "/sys/module/overlay/parameters/index"


class Snapshotter:
    """Snapshots, kept as `rows`; safe in threads. Every operation raises Refusal, StoreError."""

    def __init__(
        self,
        rows: SnapshotRows,
        directories: SnapshotDirectories,
        mounts: ImageMounts,
        store: Store,
        reserve: Reserve,
    ) -> None:
        self._rows = rows
        self._directories = directories
        self._mounts = mounts
        self._store = store
        self._reserve = reserve
        self._reserve.keep()
        self._more = ["index=off"] if os.path.exists(_INDEX) else []
        if syscalls.is_in_user_namespace():  # else no directory could be removed: trusted.* is not its root's
            self._more.append("userxattr")
        self._pause = _SOON
        self._cleaning = threading.Lock()
        self._removed = threading.Event()
        self._removed.set()  # perhaps: by a process before this one, which was killed then

    def claim(self, plugin: str) -> None:
        """Hear the name by which containerd asks: what was made before names were told apart is its own."""
        self._rows.claim(plugin)

    def prepare(self, request: PrepareRequest) -> list[MountWord]:
        """Make an active snapshot, and return what to mount for it. A layer that is shown: ALREADY_EXISTS."""
        if offered := offered_layer(request.labels):
            self._show(offered, request)
        return self._create(SnapshotKind.ACTIVE, request)

    def view(self, request: PrepareRequest) -> list[MountWord]:
        """Make a read-only snapshot, and return what to mount for it."""
        return self._create(SnapshotKind.VIEW, request)

    def mounts(self, request: NamedRequest) -> list[MountWord]:
        """Return the same as when it was made; a mount that has died meanwhile is replaced."""
        row = self._rows.get(*request)
        if row.kind == SnapshotKind.COMMITTED:
            raise Refusal(Code.FAILED_PRECONDITION, f"snapshot {row.name}: is neither active nor a view")
        with self._below(row.plugin, row.parent) as below:
            return self._words(row, below, id_maps(row.labels))

    def commit(self, request: CommitRequest) -> None:
        """Make an active snapshot a layer."""
        row = self._rows.get(request.plugin, request.key)
        usage = self._directories.usage(row) if row.mounted is None else SnapshotUsage()
        with self._rows.changing():
            row = self._rows.get(request.plugin, request.key)
            self._rows.commit(row, request.name, request.labels, usage, request.parent)

    def remove(self, request: NamedRequest) -> None:
        """Remove a snapshot, on a full disk too; what it took is freed in a sweep."""
        try:
            self._remove(request)
        except StoreError:
            if not self._reserve.give():
                raise
            self._remove(request)
        self._removed.set()

    def _remove(self, request: NamedRequest) -> None:
        with self._rows.changing():
            self._rows.remove(*request)

    def stat(self, request: NamedRequest) -> Snapshot:
        """Return a snapshot."""
        return self._rows.get(*request)

    def update(self, request: UpdateRequest) -> Snapshot:
        """Change labels."""
        with self._rows.changing():
            return self._rows.update(*request)

    def matching(self, request: ListRequest) -> list[Snapshot]:
        """Return the plugin's snapshots that pass one of the filters, or all if there are none."""
        return list(filter(parse_filters(request.filters), self._rows.of_plugin(request.plugin)))

    def usage(self, request: NamedRequest) -> SnapshotUsage:
        """Return what a snapshot takes itself; of a layer that is mounted what is cached of it."""
        row = self._rows.get(*request)
        if row.mounted:
            return self._cached(row.labels)
        return self._directories.usage(row) if row.kind == SnapshotKind.ACTIVE else row.usage

    def clean_up(self) -> None:
        """Remove directories, mounts and what the store has of images, where no snapshot needs them.

        All of that is done when this ends, also by another thread: kubelet looks at the disk right after.
        """
        with self._cleaning:
            self._removed.clear()
            self._mounts.sweep(self._is_needed)
            with self._rows.changing():  # no row is being made, whose directory would be one too many
                ids = {row.id for row in self._rows.all() if row.mounted is None}
                self._directories.set_aside(ids.__contains__)
            self._directories.remove_aside()
            self._free_images()
            self._reserve.keep()

    def clean_up_when_removed(self) -> None:
        """Wait until a snapshot is removed, or a mount that was begun is there, and clean up.

        After a minute it is done all the same: a mount that a killed process had begun may be there only now.
        It is done again soon, and then ever later, while removed images are still in use.
        """
        if self._removed.wait(self._pause):
            self._pause = _SOON / 2
        self.clean_up()
        self._pause = min(2 * self._pause, _SWEEP) if self._rows.removed_images() else _SWEEP

    def _free_images(self) -> None:
        """Remove from the store what containerd has removed: kubelet does that to have space on the disk."""
        for image in self._rows.removed_images():
            with self._mounts.kept_away(image) as is_away:
                if not is_away or self._rows.has_layer_of(image.manifest):
                    continue
                if remove_image(mounted_reference(image), Digest.parse(image.manifest), self._store):
                    self._rows.forget_image(image)

    def _show(self, offered: OfferedLayer, request: PrepareRequest) -> None:
        """Make a layer that is mounted, unless it is there, and refuse to have it fetched."""
        shown = self._rows.find_shown(request.plugin, TARGET, offered.target, request.parent)
        chain = shown.mounted if shown and shown.mounted else self._chain(offered, request)
        if offered.is_topmost:
            self._rows.note_image(chain)
            with self._mounts.used(chain):
                self._add_shown(shown, offered, request, chain)
        else:
            self._add_shown(shown, offered, request, chain)
            if shown is None:
                self._mounts.begin(ImageChain(offered.manifest, 0, offered.image), self._removed.set)
        raise already_exists(offered.target)

    def _add_shown(
        self, shown: Snapshot | None, offered: OfferedLayer, request: PrepareRequest, chain: ImageChain
    ) -> None:
        if shown is None:
            with self._rows.changing():
                plugin, parent, labels = request.plugin, request.parent, request.labels
                taken = self._rows.find(plugin, offered.target)  # upon another layer, unpacked
                name = f"{offered.target} {request.key}" if taken else offered.target
                self._rows.add(plugin, name, parent, SnapshotKind.COMMITTED, labels, chain)

    def _chain(self, offered: OfferedLayer, request: PrepareRequest) -> ImageChain:
        """Return what shows a layer. It is counted: the digest of a layer may be in an image twice."""
        below = self._rows.ancestors(request.plugin, request.parent)
        depth = 0 if offered.is_topmost else 1 + sum(1 for _ in below)
        return ImageChain(offered.manifest, depth, offered.image)

    def _create(self, kind: SnapshotKind, request: PrepareRequest) -> list[MountWord]:
        maps = id_maps(request.labels)
        with self._below(request.plugin, request.parent) as below:
            with self._rows.changing():
                row = self._rows.add(request.plugin, request.key, request.parent, kind, request.labels)
                owner = maps.root() if maps else None
                self._directories.make(row, below[0] if below else None, owner)
            return self._words(row, below, maps)

    @contextmanager
    def _below(self, plugin: str, parent: str) -> Iterator[list[Path]]:
        """Yield the directories below a snapshot upon `parent`, the uppermost first; mounts stay so long."""
        directories: list[Path] = []
        for row in self._rows.ancestors(plugin, parent):
            if row.mounted:
                with self._mounts.used(row.mounted) as mounted:
                    yield [*directories, mounted]
                return
            directories.append(self._directories.upper(row))
        yield directories

    def _words(self, row: Snapshot, below: list[Path], maps: IdMaps | None) -> list[MountWord]:
        """Return how containerd mounts a snapshot (as plugins/snapshots/overlay has it)."""
        options = maps.options() if maps else []
        is_active = row.kind == SnapshotKind.ACTIVE
        if not below or (len(below) == 1 and not is_active):
            source = below[0] if below else self._directories.upper(row)
            return [MountWord("bind", str(source), [*options, "rw" if is_active else "ro", "rbind"])]
        if is_active:
            options.append(f"workdir={self._directories.work(row)}")
            options.append(f"upperdir={self._directories.upper(row)}")
        options.append(f"lowerdir={':'.join(map(str, below))}")
        return [MountWord("overlay", "overlay", [*options, *self._more])]

    def _is_needed(self, chain: ImageChain, begun: bool) -> bool:
        """Return True if a mount stays: an image's while it is there, another while it is stood upon."""
        if chain.depth:
            return self._rows.is_stood_upon(chain)
        return self._rows.shows(chain) or (begun and self._rows.has_layer_of(chain.manifest))

    def _cached(self, labels: Mapping[str, str]) -> SnapshotUsage:
        if LAYER not in labels:
            return SnapshotUsage()
        layer = self._store.layer(Digest.parse(labels[LAYER]))
        return SnapshotUsage(layer.cached(), 1)

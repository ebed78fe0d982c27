"""The images that are looked at: their trees after each layer, their steps, and what is said of a file."""

from __future__ import annotations

import argparse
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import NamedTuple

from imgfs.cli.format import moment, size
from imgfs.cli.history import shortened
from imgfs.cli.paths import KINDS
from imgfs.cli.progress import Progress
from imgfs.cli.selection import ImageSelection, select_image
from imgfs.image.files import Found, ImageFiles
from imgfs.image.image import Image
from imgfs.image.marked import FileView, Item, LayerView
from imgfs.image.prepare import prepare
from imgfs.image.trust import is_ready
from imgfs.image.versions import Step, steps_of, versions_of
from imgfs.quoting import printable, printable_path


class FetchedSum(NamedTuple):
    """What an image has cost since it was opened."""

    size: int
    requests: int


class OpenedImage:
    """An image to look at; any thread may use it. `notes` is told what a person may want to know."""

    def __init__(self, name: str, selection: ImageSelection, image: Image) -> None:
        self.name = name
        self.files = ImageFiles(image)
        self.steps = steps_of(image.resolved)
        self.count = len(image.resolved.manifest.layers)
        self.notes: Callable[[str], None] = lambda _: None
        self._selection = selection
        self._image = image
        self._states = {self.count: self.files}
        self._lock = threading.Lock()

    def after(self, layers: int) -> ImageFiles:
        """Return the files as they were after so many layers, whose trees are merged when first asked for."""
        with self._lock:
            if layers not in self._states:
                self._merge(layers)
                self._states[layers] = ImageFiles(self._image, self._image.tree_after(layers))
            return self._states[layers]

    def layer_view(self, layer: int) -> FileView:
        """Return what a layer does."""
        return LayerView(self.after(layer - 1) if layer > 1 else None, self.after(layer), layer)

    def step(self, layer: int) -> Step | None:
        """Return the step that made a layer."""
        return next((step for step in self.steps if step.layer == layer), None)

    def fetched(self) -> FetchedSum:
        """Return what has been fetched."""
        layers = self._image.content.snapshot().layers
        return FetchedSum(sum(layer.fetched for layer in layers), sum(layer.requests for layer in layers))

    def versions(self, path: bytes) -> Iterator[str]:
        """Yield a line for each version of a path, the uppermost first."""
        for version in versions_of(path, self.count, lambda count: nullcontext(self.after(count))):
            node = version.found.node if version.found else None
            what = f"{stat.filemode(node.mode)} {node.uid}:{node.gid} {size(node.size)}" if node else ""
            yield f"{version.change[0].upper()} layer {version.layer}  {what}".rstrip()

    def _merge(self, layers: int) -> None:
        part, selection = self._image.resolved.up_to(str(layers)), self._selection
        if not is_ready(part, selection.store, selection.trust):
            with closing(Progress(_Notes(self.notes))) as progress:
                prepare(part, self._image.source, selection.store, progress, selection.trust)


class _Notes(io.StringIO):
    """Takes the lines that are written for a log, as notes."""

    def __init__(self, notes: Callable[[str], None]) -> None:
        super().__init__()
        self._notes = notes

    def write(self, text: str) -> int:
        if line := text.strip().removeprefix("imgfs: "):
            self._notes(line)
        return len(text)


@contextmanager
def open_image(options: argparse.Namespace) -> Iterator[OpenedImage]:
    """Prepare and open the image that the options name."""
    selection = select_image(options)
    resolved = selection.prepare()
    with (
        closing(selection.connect()) as source,
        Image(resolved, source, selection.store, selection.trust) as image,
    ):
        yield OpenedImage(options.image, selection, image)


class Detail(NamedTuple):
    """A thing that is said of a file."""

    label: str
    text: str


def details_of(image: OpenedImage, files: ImageFiles, item: Item) -> list[Detail]:
    """Return what is said of a file; nothing is fetched for it."""
    found, node = item.found, item.found.node
    layer = files.layer(found)
    step = image.step(layer)
    details = [
        Detail("path", printable_path(found.path or b"/")),
        Detail("kind", _kind(found)),
        Detail("mode", f"{stat.filemode(node.mode)}  {stat.S_IMODE(node.mode):04o}"),
        Detail("owner", f"{node.uid}:{node.gid}"),
        Detail("size", f"{size(node.size)}  {node.size:,} bytes"),
        Detail("time", moment(node.mtime_ns // 1_000_000_000)),
        Detail("layer", f"{layer} of {image.count}"),
        Detail("step", printable(shortened(step.command if step else ""))),
    ]
    target = files.target(found)
    if target is not None:
        details.insert(2, Detail("target", printable_path(target)))
    if node.nlink > 1 and not found.is_directory:
        details.append(Detail("names", str(node.nlink)))
    if names := files.xattrs(found):
        details.append(Detail("xattrs", ", ".join(printable_path(name) for name in names)))
    if item.change:
        what = f": {', '.join(item.what)}" if item.what else ""
        details.insert(0, Detail("change", item.change + what))
    return details


def _kind(found: Found) -> str:
    node = found.node
    kind = KINDS[stat.S_IFMT(node.mode)]
    if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
        return f"{kind} {os.major(node.device)}:{os.minor(node.device)}"
    return kind

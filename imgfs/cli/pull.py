"""imgfs pull: fetch an image whole, to use it without its registry."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from imgfs.cli.format import counted, size
from imgfs.cli.options import Commands, add_command, image_options, rate
from imgfs.cli.output import complain, say
from imgfs.cli.progress import Progress
from imgfs.errors import ImgfsError

if TYPE_CHECKING:
    from imgfs.cli.selection import ImageSelection
    from imgfs.image.resolve import Resolved
    from imgfs.oci.descriptor import Descriptor


def add_pull(commands: Commands) -> None:
    """`imgfs pull`."""
    command = add_command(
        commands,
        "pull",
        pull,
        "fetch an image whole, to use it offline",
        """\
Fetches all of IMAGE into the store: documents, indexes, tree, and every byte of every layer, verified.
Bytes in the store are not fetched again: a pull that was interrupted goes on where it stopped. Writes IMAGE
with its digest to standard output. Afterwards no command needs the registry for it.

Examples:
  imgfs pull debian:12
  imgfs mount --offline debian:12 /mnt
  imgfs pull --quiet --platform linux/arm64 registry.example.com/team/app:v2
  imgfs pull --limit-rate 2M debian:12
  imgfs pull --index verified debian:12    and rely on no index but those its digest covers
""",
    )
    image_options(command, offline=False)
    command.set_defaults(offline=False)  # it asks the registry, although all may be in the store
    command.add_argument(
        "--limit-rate", metavar="RATE", type=rate, help="bytes per second: 500k, 2M (default: none)"
    )
    command.add_argument("-q", "--quiet", action="store_true", help="show no progress and no summary")


def pull(options: argparse.Namespace) -> int:
    """Fetch an image whole into the store."""
    from imgfs.cli.selection import select_image

    image = select_image(options)
    with closing(_Arrivals(quiet=options.quiet)) as arrivals:
        resolved = _fetch(image, arrivals)
    if not options.quiet:
        complain(arrivals.summary(resolved))
    say(replace(image.reference, digest=resolved.digest))
    return 0


class _Arrivals(Progress):
    """Draws bytes as they arrive, in whichever order, rather than as they are indexed."""

    def __init__(self, *, quiet: bool) -> None:
        super().__init__(doing="pulling", done="pulled", quiet=quiet)
        self._since = time.monotonic()
        self._bytes = 0

    def arrived(self, blob: Descriptor, count: int) -> None:
        """Note that `count` bytes of a layer, or of a document, have come from the network."""
        with self._lock:
            self._bytes += count
            has_line = blob.digest in self._under_way
        if has_line:
            super().layer_advances(blob, count)

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """Ignore progress of indexing: its bytes have arrived before."""

    def layer_ends(self, layer: Descriptor) -> None:
        """Note that a layer is indexed. One without its bytes, by an imported index, is still to begin."""
        if layer.digest in self._under_way:
            super().layer_ends(layer)

    def summary(self, resolved: Resolved) -> str:
        """Return what was fetched, and how fast."""
        seconds = max(1e-3, time.monotonic() - self._since)
        layers = resolved.layers.values()
        verb = "is" if len(layers) == 1 else "are"
        total = size(sum(layer.size for layer, _ in layers))
        there = f"{counted(len(layers), 'layer')} of {total} {verb} in the store"
        if not self._bytes:
            return f"{there}: nothing was missing"
        return f"{size(self._bytes)} fetched in {seconds:.1f} s, {size(self._bytes / seconds)}/s; {there}"


def _fetch(image: ImageSelection, arrivals: _Arrivals) -> Resolved:
    from imgfs.cli.selection import requiring_registry
    from imgfs.image.pull import MeteredSource, pull_image
    from imgfs.kernel.erofs_image import write_now

    options = image.options
    with ExitStack() as stack:
        source = stack.enter_context(
            closing(MeteredSource(image.connect(), arrivals.arrived, options.limit_rate))
        )
        resolved, is_away = image.resolve_with(source, arrivals)  # all of it may be here
        with requiring_registry() if is_away else nullcontext():
            pull_image(resolved, source, image.store, arrivals, image.trust)
    with suppress(ImgfsError):  # a mount reports the error
        write_now(resolved, image.store)
    return resolved

"""The first request of a mount whose image is new here: sent before what its answer is needed for is loaded.

To load what opens stores, trees and indexes takes longer than a round trip. So what speaks HTTP is loaded
first. Then the daemon is forked, which loads the rest by itself, and so does this process, while the registry
answers.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imgfs.cli.connection import Connection, connect_to_registry
from imgfs.cli.options import store_root
from imgfs.config import Environment
from imgfs.errors import ImgfsError
from imgfs.mounts.mountpoint import DirectoryId, checked_mountpoint
from imgfs.oci.reference import RegistryReference
from imgfs.registry.config.shortnames import candidates
from imgfs.transport.connect import DeferredSource, load_http

if TYPE_CHECKING:
    import argparse

_AT_ONCE = 3  # requests for an image's config and, by API and by tag, for what refers to it
_MOST = 100  # references in a store that are looked through
# Options that are checked before a registry is asked, and more of them than are worth it here.
_CHECKED = ("fuse_options", "record", "replay", "scratch", "restart", "exit_idle", "metrics", "upto_layer")


class FirstRequest(NamedTuple):
    """What is to be asked first, of a `source` that is used on, for a mount on `directory`."""

    reference: RegistryReference
    source: DeferredSource
    directory: DirectoryId

    @classmethod
    def of(cls, options: argparse.Namespace, stack: ExitStack) -> FirstRequest | None:
        """Load what sends the request that a mount begins with; None if that is not certain, or not worth it.

        On a single processor nothing is loaded beside it. The directory is held open until `stack` ends.
        """
        is_checked = any(getattr(options, name) for name in _CHECKED)
        if is_checked or options.offline or options.index not in ("auto", "any"):
            return None
        if len(os.sched_getaffinity(0)) < 2:
            return None
        environment = Environment.read()
        with suppress(ImgfsError):  # raised again where it is told
            mountpoint = Path(os.path.abspath(options.mountpoint))
            directory = stack.enter_context(checked_mountpoint(mountpoint, nonempty=False))
            meant = candidates(options.image, environment.registry_files.registries)
            if len(meant) == 1 and _may_be_new(meant[0], store_root(options, environment)):
                reference = meant[0]
                assert isinstance(reference, RegistryReference)
                if options.question:
                    options.question.end()  # it would have asked about an image that is here
                load_http()
                how = Connection.of(options, reference.registry)
                source = DeferredSource(partial(connect_to_registry, reference, how, environment))
                return cls(reference, source, directory)
        return None

    def send(self) -> None:
        """Send it, in a thread; the answer, or an error, comes of `source.resolve`."""
        self.source.ask_ahead(_AT_ONCE)


def _may_be_new(reference: object, store: Path) -> bool:
    """Return True if a tag is meant that a store knows nothing of."""
    if not isinstance(reference, RegistryReference) or reference.pinned:
        return False
    wanted = json.dumps(str(reference)).encode()
    try:
        with os.scandir(store / "references") as found:
            names = [each.path for each in found]
        return len(names) <= _MOST and not any(wanted in _read(name) for name in names)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()

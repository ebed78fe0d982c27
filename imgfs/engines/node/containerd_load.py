"""What containerd makes of its configuration and of the files that it imports: one document.

Of what a later file says, containerd 1.x takes each plugin's section as a whole; 2.x takes value by value,
and a list in the place of a list. Both take a proxy plugin's section as a whole (containerd, server/config,
LoadConfig, mergeConfig). What older versions call CRI's, 2.x moves to where version 3 has it: of all files
together until 2.3, and since 2.4 of each by itself (plugins/cri, configMigration).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy

from imgfs.engines.node.toml_edit import Document, table

CRI = {1: "cri", 2: "io.containerd.grpc.v1.cri"}  # the plugin's name, by the version
IMAGES, RUNTIME = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
PLUGINS, PROXIES = "plugins", "proxy_plugins"
_OF_IMAGES = (  # keys of CRI that are the images' in version 3
    "registry",
    "max_concurrent_downloads",
    "image_pull_with_sync_fs",
)
_OF_IMAGES_IN_CONTAINERD = "snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"


def merged(documents: Iterable[Document], major: int) -> Document:
    """Return what files say, in the order in which they are read, as containerd 1.x or 2.x merges it."""
    found: Document = {}
    for one in documents:
        result = _merged(found, one)
        for kind in (PLUGINS, PROXIES) if major == 1 else (PROXIES,):
            result[kind] = {**table(found, kind), **table(one, kind)}
        found = result
    return found


def migrated(documents: Sequence[Document]) -> list[Document]:
    """Return what containerd 2.x makes of them, in the words of version 3: each that a release of it may."""
    return [_in_3(merged(documents, 2)), merged(map(_in_3, documents), 2)]


def _merged(found: Document, later: Document) -> Document:
    """Return both in one, value by value: tables are merged, and of all else the later counts."""
    result = dict(found)
    for key, value in later.items():
        if isinstance(value, dict) and key in found:
            value = _merged(table(found, key), value)
        result[key] = value
    return result


def _in_3(document: Document) -> Document:
    """Return a document as containerd 2.x has it, what is CRI's put where version 3 has it."""
    found = deepcopy(document)
    plugins = table(found, PLUGINS)
    if CRI[1] in plugins:
        plugins[CRI[2]] = plugins.pop(CRI[1])
    cri = table(plugins, CRI[2])
    if not cri:
        return found
    _move_images(cri, plugins)
    _move_runtimes(cri, plugins)
    return found


def _move_images(cri: Document, plugins: Document) -> None:
    """Have what CRI says of images count for them, over what is there; of some only if it names a runtime."""
    containerd = table(cri, "containerd")
    moved = {key: cri[key] for key in _OF_IMAGES if key in cri}
    if "runtimes" in containerd:
        moved |= {key: containerd[key] for key in _OF_IMAGES_IN_CONTAINERD if key in containerd}
    plugins[IMAGES] = {**table(plugins, IMAGES), **moved}


def _move_runtimes(cri: Document, plugins: Document) -> None:
    """Have what CRI says of runtimes count where nothing else does."""
    there = table(plugins, RUNTIME)
    moved = {
        key: value for key, value in table(cri, "containerd").items() if key not in _OF_IMAGES_IN_CONTAINERD
    }
    plugins[RUNTIME] = {**there, "containerd": {**moved, **table(there, "containerd")}}

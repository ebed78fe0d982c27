"""What containerd's configuration has to say of imgfs, by the version of its format.

Versions 3 and 4 are containerd's 2.x, versions 1 and 2 those of 1.6 and 1.7. A file without a version is of
version 1, whose plugins have short names. Either all images are imgfs's, or those alone of pods whose
RuntimeClass has the handler `imgfs`.

One rule: what imgfs needs is decided by what all files say together, set in one of them, and has to hold of
all together in the end, as containerd merges them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imgfs.engines.node.config_places import FilesBeside
from imgfs.engines.node.containerd_load import CRI, IMAGES, PLUGINS, PROXIES, RUNTIME, merged, migrated
from imgfs.engines.node.toml_edit import Document, Keys, TomlEdit, Value, parsed_toml, table, undone
from imgfs.errors import UsageError

NAME = "imgfs"  # of the plugin, and of the runtime's handler
VERSIONS = (1, 2, 3, 4)
_OTHERS = "overlayfs"
_IMAGES, _RUNTIME = (PLUGINS, IMAGES), (PLUGINS, RUNTIME, "containerd")
_TRANSFER, _UNPACK = (PLUGINS, "io.containerd.transfer.v1.local"), "unpack_config"
_RUNC = "io.containerd.runc.v2"
_RUNTIMES, _SNAPSHOTTER, _NO_LABELS = "runtimes", "snapshotter", "disable_snapshot_annotations"
_FOR_RUNTIMES = (*_IMAGES, "runtime_platforms")
_ONLY_BY_ITSELF = "use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs"
_DOWNLOADS = 3  # at once, unless told
_ROOT = Path("/var/lib/containerd")
ALONE = FilesBeside()


@dataclass(frozen=True, slots=True)
class NodeSetup:
    """How this machine is to use imgfs: where its snapshotter answers and keeps what it has, for which pods.

    `platform` is the machine's, like linux/amd64; `version` the format that its containerd writes.
    """

    address: str
    root: str
    platform: str
    by_runtime_class: bool
    version: int

    def major(self, version: int) -> int:
        """Return which containerd reads a file of this version: 1.x, or 2.x."""
        return 1 if self.version in CRI and version in CRI else 2


class _Setting(NamedTuple):
    """A value that a table has to have."""

    keys: Keys
    key: str
    value: Value

    def holds(self, document: Document) -> bool:
        return table(document, *self.keys).get(self.key) == self.value


def with_imgfs(text: str, setup: NodeSetup, where: str, beside: FilesBeside = ALONE) -> str:
    """Return a configuration that has imgfs; one that has it already comes back as it is.

    `beside` is what containerd reads beside this file. Raises UsageError, naming `where` or one of those, for
    what cannot be changed, or would not count in the end.
    """
    edit = TomlEdit(undone(text), where)
    before, later = ([one.document for one in files] for files in beside)
    version = _version(edit, setup, where, merged([*before, edit.document], 2))
    major = setup.major(version)
    found = merged([*before, edit.document, *later], major)
    if not edit.document or before:
        edit.set((), "version", version)
    for each in [*_of_plugin(setup), *_of_pulls(found, setup, version), *_for_2(edit, found, setup, version)]:
        edit.set(*each)
    if version not in CRI and not _unpacks(found):
        _add_unpacking(edit, found, setup.platform)
    _check_in_the_end(edit.document, setup, where, beside)
    return edit.text


def root_of(text: str, where: str) -> Path:
    """Return where containerd keeps what it has, its own snapshotters' too. Raises UsageError."""
    root = parsed_toml(text, where).get("root")
    return Path(root) if isinstance(root, str) and root.startswith("/") else _ROOT


def _version(edit: TomlEdit, setup: NodeSetup, where: str, found: Document) -> int:
    """Return the version of a file; `found` is what it says, and what is read before it."""
    version = found.get("version", 1 if edit.document or table(found, PLUGINS) else setup.version)
    if type(version) is not int or version not in VERSIONS:  # no bool
        raise UsageError(f"{where}: version {version}; imgfs knows {', '.join(map(str, VERSIONS))}")
    if "version" not in found and any("." in name for name in table(found, PLUGINS)):
        raise UsageError(f"{where}: has no version, so containerd knows none of its plugins' long names")
    return version


def _check_in_the_end(document: Document, setup: NodeSetup, where: str, beside: FilesBeside) -> None:
    """Raise UsageError, naming the file that undoes it, if what imgfs needs does not count in the end."""
    read, culprit = [*(one.document for one in beside.before), document], where
    lost = _lost(read, setup)
    for one in beside.later:
        read.append(one.document)
        before, lost = lost, _lost(read, setup)
        if lost and not before:
            culprit = str(one.path)
    if not lost:
        return
    if culprit == where:
        raise UsageError(f"{where}: what it says of {lost} cannot be changed by imgfs: do it by hand")
    raise UsageError(
        f"{culprit}: is read after {where}, and what it says of {lost} counts: name it by --containerd"
    )


def _lost(documents: list[Document], setup: NodeSetup) -> str | None:
    """Return the key of which the files, as containerd merges them, do not say what imgfs needs."""
    found = merged(documents, 2)
    version = found.get("version", 1)
    if isinstance(version, int) and setup.major(version) == 1:
        ends, version = [merged(documents, 1)], min(version, 2)
    else:
        ends, version = migrated(documents), 3
    for end in ends:
        for each in [*_of_plugin(setup), *_of_pulls(end, setup, version)]:
            if not each.holds(end):
                return ".".join((*each.keys, each.key))
        if version == 3 and not _pulls_by_itself(end) and not _unpacks(end):
            return ".".join((*_TRANSFER, _UNPACK))
    return None


def _of_plugin(setup: NodeSetup) -> Iterator[_Setting]:
    """Yield what the plugin has, for 2.x with a file of version 2 too: 1.x passes over what it lacks."""
    plugin = (PROXIES, NAME)
    yield _Setting(plugin, "type", "snapshot")
    yield _Setting(plugin, "address", setup.address)
    yield _Setting(plugin, "capabilities", ["remap-ids"])
    # else containerd passes no labels, from 2.1 on; and where the kubelet looks for free space
    yield _Setting((*plugin, "exports"), "enable_remote_snapshot_annotations", "true")
    yield _Setting((*plugin, "exports"), "root", setup.root)


def _of_pulls(found: Document, setup: NodeSetup, version: int) -> Iterator[_Setting]:
    """Yield what CRI has, by the version; `found` is what it has already, of all files."""
    cri = (PLUGINS, CRI.get(version, ""), "containerd")
    pulls, runtimes = (cri, cri) if version in CRI else (_IMAGES, _RUNTIME)
    if setup.by_runtime_class:
        yield from _of_runtime(found, (*runtimes, _RUNTIMES))
        yield _Setting((*_FOR_RUNTIMES, NAME), _SNAPSHOTTER, NAME)
    else:
        yield _Setting(pulls, _SNAPSHOTTER, NAME)
        default = str(table(found, *runtimes).get("default_runtime_name") or "runc")
        for places in ((*runtimes, _RUNTIMES), _FOR_RUNTIMES):  # what is said of one runtime counts more
            if table(found, *places, default).get(_SNAPSHOTTER):
                yield _Setting((*places, default), _SNAPSHOTTER, NAME)
    if version in CRI or _pulls_by_itself(found):
        yield _Setting(pulls, _NO_LABELS, False)


def _for_2(edit: TomlEdit, found: Document, setup: NodeSetup, version: int) -> Iterator[_Setting]:
    """Yield what else a file of version 1 or 2 has: without a runtime containerd 2.x passes over all of it.

    (plugins/cri/images, migrateConfig)
    """
    if version not in CRI or setup.by_runtime_class:
        return
    runtimes = (PLUGINS, CRI[version], "containerd", _RUNTIMES)
    if not table(edit.document, *runtimes):
        yield _Setting((*runtimes, "runc"), "runtime_type", _kind(table(found, *runtimes, "runc")))


def _of_runtime(found: Document, runtimes: Keys) -> Iterator[_Setting]:
    """Yield a runtime like runc's, options included: how cgroups are made is among them."""
    ours, runc = (*runtimes, NAME), table(found, *runtimes, "runc")
    yield _Setting(ours, "runtime_type", _kind(runc))
    yield _Setting(ours, _SNAPSHOTTER, NAME)
    for key, value in table(runc, "options").items():
        yield _Setting((*ours, "options"), key, value if isinstance(value, str | bool | int) else str(value))


def _kind(runtime: Document) -> str:
    kind = runtime.get("runtime_type")
    return kind if isinstance(kind, str) and kind else _RUNC


def _add_unpacking(edit: TomlEdit, found: Document, platform: str) -> None:
    """Have the transfer service unpack for imgfs, too: a list replaces what was read before, or is usual."""
    listed = table(found, *_TRANSFER).get(_UNPACK)
    others = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    ours = {"platform": platform, _SNAPSHOTTER: NAME}
    if not others:
        added = [ours, {**ours, _SNAPSHOTTER: _OTHERS}]
    else:
        added = [ours] if _UNPACK in table(edit.document, *_TRANSFER) else [*others, ours]
    for each in added:
        edit.append((*_TRANSFER, _UNPACK), each)


def _unpacks(found: Document) -> bool:
    """Return True if the transfer service is to unpack for imgfs."""
    listed = table(found, *_TRANSFER).get(_UNPACK)
    entries = listed if isinstance(listed, list) else []
    return any(isinstance(one, dict) and one.get(_SNAPSHOTTER) == NAME for one in entries)


def _pulls_by_itself(found: Document) -> bool:
    """Return True if CRI is to pull without containerd's transfer service, and by itself says no labels.

    It does so if told, and for what that service cannot do (internal/cri/config, CheckLocalImagePullConfigs).
    """
    images, registry = table(found, *_IMAGES), table(found, *_IMAGES, "registry")
    return (
        any(images.get(key) is True for key in _ONLY_BY_ITSELF)
        or images.get(_NO_LABELS) is False
        or images.get("max_concurrent_downloads", _DOWNLOADS) != _DOWNLOADS
        or any(registry.get(key) for key in ("mirrors", "configs", "auths"))
    )

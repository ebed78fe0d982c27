"""What containerd's configuration has to say of imgfs, by the version of its format.

Versions 3 and 4 are containerd's 2.x, versions 1 and 2 those of 1.6 and 1.7. A file without a version is of
version 1, whose plugins have short names. Either all images are imgfs's, or those alone of pods whose
RuntimeClass has the handler `imgfs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imgfs.engines.node.toml_edit import Keys, TomlEdit, Value, undone
from imgfs.errors import UsageError

NAME = "imgfs"  # of the plugin, and of the runtime's handler
VERSIONS = (1, 2, 3, 4)
_OTHERS = "overlayfs"
_CRI = {1: "cri", 2: "io.containerd.grpc.v1.cri"}  # the plugin's name, by the version
_IMAGES = ("plugins", "io.containerd.cri.v1.images")
_RUNTIMES = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")
_UNPACK = ("plugins", "io.containerd.transfer.v1.local", "unpack_config")
_RUNC = "io.containerd.runc.v2"
_SNAPSHOTTER, _NO_LABELS = "snapshotter", "disable_snapshot_annotations"
_PULLS_FOR_RUNTIME = (*_IMAGES, "runtime_platforms", NAME), _SNAPSHOTTER, NAME
_ONLY_BY_ITSELF = "use_local_image_pull", "discard_unpacked_layers", "image_pull_with_sync_fs"
_DOWNLOADS = 3  # at once, unless told
_ROOT = Path("/var/lib/containerd")
NOTHING: Mapping[Path, str] = {}
_PLUGINS, _PROXIES = "plugins", "proxy_plugins"


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


def with_imgfs(
    text: str, setup: NodeSetup, where: str, importing: str = "", later: Mapping[Path, str] = NOTHING
) -> str:
    """Return a configuration that has imgfs; one that has it already comes back as it is.

    `importing` is the text of another one, which imports this; `later` are the files that containerd reads
    after this one. Raises UsageError, naming `where`, for one that cannot be changed, or would not count.
    """
    edit = TomlEdit(undone(text), where, importing)
    is_new = not edit.known()
    version = edit.known().get("version", setup.version if is_new else 1)
    if type(version) is not int or version not in VERSIONS:  # no bool
        raise UsageError(f"{where}: version {version}; imgfs knows {', '.join(map(str, VERSIONS))}")
    if "version" not in edit.known() and any("." in name for name in edit.known(_PLUGINS)):
        raise UsageError(f"{where}: has no version, so containerd knows none of its plugins' long names")
    if is_new or importing:
        edit.set((), "version", version)
    _set_plugin(edit, setup)
    if version in _CRI:
        _set_cri(edit, setup, ("plugins", _CRI[version], "containerd"))
    else:
        _set_images(edit, setup)
    for path, body in later.items():
        if lost := _lost_to(TomlEdit(body, str(path)), edit, replaces=setup.version == 2):
            raise UsageError(
                f"{path}: is read after {where}, and what it says of {lost} counts: name it by --containerd"
            )
    return edit.text


def root_of(text: str, where: str) -> Path:
    """Return where containerd keeps what it has, its own snapshotters' too. Raises UsageError."""
    root = TomlEdit(text, where).known().get("root")
    return Path(root) if isinstance(root, str) and root.startswith("/") else _ROOT


def _lost_to(other: TomlEdit, edit: TomlEdit, *, replaces: bool) -> str | None:
    """Return the section in a file that is read later by which something that was set is lost.

    Of a file that is imported, a plugin's section takes the place of the one before as a whole (containerd
    1.x: then it `replaces`), or value by value (2.x); that of a proxy plugin always as a whole.
    """
    for keys, key, value in edit.settings:
        section = keys[:2]
        is_replaced = bool(keys and other.known(*section)) and (replaces or keys[0] == _PROXIES)
        if keys and other.known(*keys).get(key, None if is_replaced else value) != value:
            return ".".join(section)
    return None


def _set_plugin(edit: TomlEdit, setup: NodeSetup) -> None:
    """Set the plugin, for 2.x with a file of version 2 too: containerd 1.x passes over what it lacks."""
    plugin = (_PROXIES, NAME)
    edit.set(plugin, "type", "snapshot")
    edit.set(plugin, "address", setup.address)
    edit.set(plugin, "capabilities", ["remap-ids"])
    # else containerd passes no labels, from 2.1 on; and where the kubelet looks for free space
    edit.set((*plugin, "exports"), "enable_remote_snapshot_annotations", "true")
    edit.set((*plugin, "exports"), "root", setup.root)


def _set_images(edit: TomlEdit, setup: NodeSetup) -> None:
    """Versions 3 and 4."""
    if setup.by_runtime_class:
        _set_runtime(edit, _RUNTIMES)
        edit.set(*_PULLS_FOR_RUNTIME)
    else:
        edit.set(_IMAGES, _SNAPSHOTTER, NAME)
    if _pulls_by_itself(edit):
        edit.set(_IMAGES, _NO_LABELS, False)
    known = edit.known(*_UNPACK[:-1]).get(_UNPACK[-1])
    entries = [one for one in known if isinstance(one, dict)] if isinstance(known, list) else []
    if any(one.get(_SNAPSHOTTER) == NAME for one in entries):
        return
    for name in (NAME, *(() if entries else (_OTHERS,))):  # what is listed replaces the default
        edit.append(_UNPACK, {"platform": setup.platform, _SNAPSHOTTER: name})


def _pulls_by_itself(edit: TomlEdit) -> bool:
    """Return True if CRI is to pull without containerd's transfer service, and by itself says no labels.

    It does so if told, and for what that service cannot do (internal/cri/config, CheckLocalImagePullConfigs).
    """
    images, registry = edit.known(*_IMAGES), edit.known(*_IMAGES, "registry")
    return (
        any(images.get(key) is True for key in _ONLY_BY_ITSELF)
        or images.get(_NO_LABELS) is False
        or images.get("max_concurrent_downloads", _DOWNLOADS) != _DOWNLOADS
        or any(registry.get(key) for key in ("mirrors", "configs", "auths"))
    )


def _set_cri(edit: TomlEdit, setup: NodeSetup, cri: Keys) -> None:
    """Set it for versions 1 and 2.

    containerd 2.x reads none of it without a runtime (plugins/cri/images, migrateConfig).
    """
    runtimes = (*cri, "runtimes")
    if setup.by_runtime_class:  # containerd 1.7
        _set_runtime(edit, runtimes)
        edit.set(*_PULLS_FOR_RUNTIME)  # of which 2.x makes nothing out of the runtime's own snapshotter there
    else:
        edit.set(cri, _SNAPSHOTTER, NAME)
        if not edit.known(*runtimes):
            edit.set((*runtimes, "runc"), "runtime_type", _RUNC)
    edit.set(cri, _NO_LABELS, False)


def _set_runtime(edit: TomlEdit, runtimes: Keys) -> None:
    """Add a runtime like runc's, options included: how cgroups are made is among them."""
    ours, runc = (*runtimes, NAME), edit.known(*runtimes, "runc")
    kind = runc.get("runtime_type")
    edit.set(ours, "runtime_type", kind if isinstance(kind, str) and kind else _RUNC)
    edit.set(ours, _SNAPSHOTTER, NAME)
    options = runc.get("options")
    for key, value in options.items() if isinstance(options, dict) else ():
        edit.set((*ours, "options"), key, _plain(value))


def _plain(value: object) -> Value:
    return value if isinstance(value, str | bool | int) else str(value)

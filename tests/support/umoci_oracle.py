"""What umoci makes of layers, and how to compare trees: umoci's, a merged one, a mounted one.

`walk_directory` and `walk_tree` describe either kind of tree as a dict of `Seen` by path; `differences` says
in lines where two of them differ. `unpack` has umoci unpack layers. It knows the rules, except these, which
callers must keep out of the layers or out of the comparison:

- a directory no layer describes gets the date of unpacking, and 0777 less the umask; so does the one it is
  made in: `undated` finds both. All other directories' mtimes are kept as the layers have them
- the root has the attributes that its last entry says, not only the time
- an xattr with an empty value is dropped, and a file (type 0) whose name ends in a slash is still a file: so
  reads Go 1.19's archive/tar
- a hard link to itself removes the file; one to a later entry or to a path that is whited out is an error
- a directory whited out after an entry below it, in one layer, stays, with its lower attributes
- a loop of symlinks above a whiteout or a hard link's target is an error
- a whiteout's path is resolved when its turn comes, not in the view of the layers below
- a lower symlink that the layer replaces by a directory still leads entries before that directory's astray
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

from imgfs.oci.descriptor import Digest
from imgfs.tree.database import ROOT, Node
from imgfs.tree.reader import Tree

Read = Callable[[int, int, int], bytes]  # (layer, flat, length) -> that many bytes of the layer's flat layer
_PIECE = 1 << 20
_IMPLIED = stat.S_IFDIR | 0o755
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class UmociError(Exception):
    """umoci does not unpack the image."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be seen of a file. A directory has no size or nlink here: file systems count them variously.

    `group` is the first path, in byte order, of a file with several hard links.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    nlink: int = 0
    device: int = 0
    target: bytes = b""
    content: bytes = b""  # its sha256
    group: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def walk_directory(root: Path, *, lists_whiteouts: bool = False) -> dict[bytes, Seen]:
    """Return everything below a directory, and itself as the empty path, read through the kernel.

    `lists_whiteouts` is for overlayfs, which lists those of a directory that is in one layer only.
    """
    top = os.fsencode(root)
    groups: dict[tuple[int, int], bytes] = {}
    seen = {}
    for path in _paths_below(top):
        full = os.path.join(top, path) if path else top
        if lists_whiteouts and not os.path.lexists(full):
            continue
        found = os.lstat(full)
        is_shared = _is_shared(found.st_mode, found.st_nlink)
        group = groups.setdefault((found.st_dev, found.st_ino), path) if is_shared else b""
        seen[path] = seen_on_disk(full, found, group)
    return seen


def walk_tree(tree: Tree, read: Read) -> dict[bytes, Seen]:
    """Return everything in a merged tree, the root as the empty path."""
    groups: dict[int, bytes] = {}
    contents: dict[int, bytes] = {}  # of files with several links, so each is read once
    seen = {}
    for path, node in sorted(_nodes_below(tree)):
        group = groups.setdefault(node.ino, path) if _is_shared(node.mode, node.nlink) else b""
        content = contents.get(node.ino) or (_content(tree, node, read) if stat.S_ISREG(node.mode) else b"")
        if group:
            contents[node.ino] = content
        seen[path] = _seen_in_tree(tree, node, content, group)
    return seen


def differences(
    expected: Mapping[bytes, Seen],
    actual: Mapping[bytes, Seen],
    *,
    ignoring_mtime: Collection[bytes] = (),
    limit: int = 20,
) -> list[str]:
    """One line for each difference, by path, at most `limit`; some paths' mtimes are not compared."""
    return list(islice(_differences(expected, actual, ignoring_mtime), limit))


def undated(seen: Mapping[bytes, Seen]) -> set[bytes]:
    """Return the directories of a merged tree to which umoci gives the date of unpacking, perhaps."""
    made = {path for path, it in seen.items() if (it.mode, it.mtime_ns) == (_IMPLIED, 0)}
    return made | {os.path.dirname(path) for path in made}


def unpack(directory: Path, layers: Sequence[bytes]) -> Path:
    """Have umoci unpack layers, tar streams, the lowest first; return the root directory it makes.

    Raises UmociError with what umoci says.
    """
    write_layout(directory / "layout", layers)
    return unpack_layout(directory / "layout", "test", directory / "bundle")


def unpack_layout(layout: Path, tag: str, bundle: Path) -> Path:
    """Have umoci unpack an image of an OCI layout to the new directory `bundle`; return its root."""
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    command = ["umoci", "unpack", *rootless, "--image", f"{layout}:{tag}", str(bundle)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise UmociError(done.stderr.strip())
    return bundle / "rootfs"


def write_layout(layout: Path, layers: Sequence[bytes]) -> None:
    """Write an image of `layers`, tagged `test`, as an OCI layout (image-spec image-layout.md)."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _put(layout, _CONFIG, json.dumps(config).encode()),
        "layers": [_put(layout, _LAYER, gzip.compress(layer, 1, mtime=0)) for layer in layers],
    }
    tagged = _put(layout, _MANIFEST, json.dumps(manifest).encode())
    tagged["annotations"] = {"org.opencontainers.image.ref.name": "test"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))


def reader(layers: Sequence[bytes]) -> Read:
    """Reads flat layers held in memory."""
    return lambda layer, flat, length: layers[layer][flat : flat + length]


def _put(layout: Path, media_type: str, body: bytes) -> dict[str, object]:
    digest = Digest.of(body)
    (layout / "blobs" / "sha256" / digest.hex).write_bytes(body)
    return {"mediaType": media_type, "digest": str(digest), "size": len(body)}


def _is_shared(mode: int, nlink: int) -> bool:
    return nlink > 1 and not stat.S_ISDIR(mode)


def _paths_below(top: bytes) -> Iterator[bytes]:
    """Yield the paths below `top`, relative to it, in byte order."""
    paths, ahead = [b""], [b""]
    while ahead:
        directory = ahead.pop()
        with os.scandir(os.path.join(top, directory)) as found:
            for item in found:
                path = os.path.join(directory, item.name)
                paths.append(path)
                if item.is_dir(follow_symlinks=False):
                    ahead.append(path)
    return iter(sorted(paths))


def seen_on_disk(full: bytes, found: os.stat_result, group: bytes) -> Seen:
    is_directory, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
    names = map(os.fsencode, os.listxattr(full, follow_symlinks=False))
    return Seen(
        mode=found.st_mode,
        uid=found.st_uid,
        gid=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        size=0 if is_directory else found.st_size,
        nlink=0 if is_directory else found.st_nlink,
        device=found.st_rdev,
        target=os.readlink(full) if stat.S_ISLNK(found.st_mode) else b"",
        content=_file_content(full) if is_file else b"",
        group=group,
        xattrs=tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in sorted(names)),
    )


def _file_content(full: bytes) -> bytes:
    with open(full, "rb") as body:
        return hashlib.file_digest(body, "sha256").digest()


def _nodes_below(tree: Tree) -> Iterator[tuple[bytes, Node]]:
    root = tree.node(ROOT)
    assert root is not None
    ahead = [(b"", root)]
    while ahead:
        path, node = ahead.pop()
        yield path, node
        if stat.S_ISDIR(node.mode):
            ahead += [(os.path.join(path, name), child) for _, name, child in tree.children(node.ino)]


def _seen_in_tree(tree: Tree, node: Node, content: bytes, group: bytes) -> Seen:
    is_directory = stat.S_ISDIR(node.mode)
    return Seen(
        mode=node.mode,
        uid=node.uid,
        gid=node.gid,
        mtime_ns=node.mtime_ns,
        size=0 if is_directory else node.size,
        nlink=0 if is_directory else node.nlink,
        device=node.device,
        target=tree.target(node.ino) if stat.S_ISLNK(node.mode) else b"",
        content=content,
        group=group,
        xattrs=tuple(sorted(tree.xattrs(node.ino).items())) if node.has_xattrs else (),
    )


def _content(tree: Tree, node: Node, read: Read) -> bytes:
    """Return the sha256 of a file's bytes, its holes as zeros."""
    layer, extents = tree.extents(node.ino)
    digest, at = hashlib.sha256(), 0
    for extent in extents:
        _hash_zeros(digest.update, extent.offset - at)
        for start in range(0, extent.length, _PIECE):
            digest.update(read(layer, extent.flat + start, min(_PIECE, extent.length - start)))
        at = extent.offset + extent.length
    _hash_zeros(digest.update, node.size - at)
    return digest.digest()


def _hash_zeros(update: Callable[[bytes], None], length: int) -> None:
    for start in range(0, length, _PIECE):
        update(bytes(min(_PIECE, length - start)))


def _differences(
    expected: Mapping[bytes, Seen], actual: Mapping[bytes, Seen], ignoring_mtime: Collection[bytes]
) -> Iterator[str]:
    for path in sorted(expected.keys() | actual.keys()):
        name = path.decode("utf-8", "backslashreplace") or "/"
        if path not in actual:
            yield f"{name}: missing"
        elif path not in expected:
            yield f"{name}: too much"
        else:
            yield from _field_differences(name, expected[path], actual[path], path in ignoring_mtime)


def _field_differences(name: str, expected: Seen, actual: Seen, ignores_mtime: bool) -> Iterator[str]:
    for field in fields(Seen):
        wanted, found = getattr(expected, field.name), getattr(actual, field.name)
        if wanted != found and not (ignores_mtime and field.name == "mtime_ns"):
            form = oct if field.name == "mode" else repr
            yield f"{name}: {field.name} is {form(found)}, expected {form(wanted)}"

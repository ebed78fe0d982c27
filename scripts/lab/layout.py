"""Write container images as OCI layouts, the way a plain builder does: tar, gzip level 6 or none, JSON.

Deliberately apart from `imgfs.oci` and `imgfs.layer`: what is measured or tested must not have been written
by the code under test.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MODIFIED = 1_700_000_000  # every file the recipes make themselves carries this time: builds repeat
RECORD = "image.json"  # our own record beside `index.json`; its presence says that the layout is whole

Member = tuple[tarfile.TarInfo, Path | None]  # a header, and the file with its bytes if it has any


@dataclass(frozen=True)
class Layer:
    """A layer in a layout: `size` is the blob's, `tar_size` the uncompressed tar's, in bytes."""

    digest: str
    diff_id: str
    size: int
    tar_size: int
    entries: int = 0
    media_type: str = LAYER


@dataclass(frozen=True)
class Image:
    """An image in an OCI layout directory; `digest` is its manifest's."""

    layout: Path
    tag: str
    digest: str
    layers: tuple[Layer, ...]

    @property
    def reference(self) -> str:
        return f"oci:{self.layout}:{self.tag}"

    @property
    def size(self) -> int:
        return sum(layer.size for layer in self.layers)

    @property
    def tar_size(self) -> int:
        return sum(layer.tar_size for layer in self.layers)

    @property
    def entries(self) -> int:
        return sum(layer.entries for layer in self.layers)

    def blob(self, digest: str) -> Path:
        """Say where the blob `digest` lies (image-spec image-layout.md, Blobs)."""
        return blob_path(self.layout, digest)


def blob_path(layout: Path, digest: str) -> Path:
    """Say where a layout keeps the blob `digest`."""
    return layout / "blobs" / Path(*digest.split(":"))


def pack_members(layout: Path, members: Iterable[Member], *, is_plain: bool = False) -> Layer:
    """Write `members`, in their order, as one layer of `layout`: gzip, or `is_plain`, the tar itself."""
    numbers = itertools.count()
    tar = _tar_of(member for member, _ in zip(members, numbers, strict=False))
    layer = _pack(layout, tar, is_plain=is_plain)
    return replace(layer, entries=next(numbers))


def pack_tar(layout: Path, path: Path) -> Layer:
    """Take an uncompressed tar as it is for one gzip layer of `layout`."""
    with tarfile.open(path, "r:") as tar:
        entries = sum(1 for _ in tar)
    return replace(_pack(layout, _pieces(path)), entries=entries)


def _tar_of(members: Iterable[Member]) -> Iterator[bytes]:
    for info, source in members:
        yield info.tobuf(tarfile.PAX_FORMAT)
        if source is not None and info.isreg():
            yield from _pieces(source)
            yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)  # the end of an archive is two blocks of zeros (POSIX ustar)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(1 << 20):
            yield data


def _pack(layout: Path, tar: Iterable[bytes], *, is_plain: bool = False) -> Layer:
    """Compress `tar`, unless told not to, into a blob of `layout`; entries are not counted."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31 = the largest window, in a gzip wrapper
    diff_id, digest = hashlib.sha256(), hashlib.sha256()
    tar_size = 0
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    unfinished = blobs / "unfinished"
    with unfinished.open("wb") as blob:
        for data in tar:
            diff_id.update(data)
            tar_size += len(data)
            packed = data if is_plain else deflate.compress(data)
            digest.update(packed)
            blob.write(packed)
        packed = b"" if is_plain else deflate.flush()
        digest.update(packed)
        blob.write(packed)
        size = blob.tell()
    unfinished.rename(blobs / digest.hexdigest())
    digests = f"sha256:{digest.hexdigest()}", f"sha256:{diff_id.hexdigest()}"
    return Layer(*digests, size, tar_size, media_type=PLAIN_LAYER if is_plain else LAYER)


def tree_members(root: Path, at: str = "", *, parents: bool = True) -> Iterator[Member]:
    """Yield the tree below `root` as members below `at`, sorted, owned by 0:0, `at` and its parents first.

    Sockets, devices, pipes and what cannot be read are left out.
    """
    parts = [part for part in at.split("/") if part]
    for depth in range(1, len(parts) + 1 if parents else 0):
        yield directory("/".join(parts[:depth])), None
    yield from _children(root, "".join(part + "/" for part in parts))


def _children(root: Path, prefix: str) -> Iterator[Member]:
    for found in sorted(os.scandir(root), key=lambda found: found.name):
        path, name = Path(found.path), prefix + found.name
        if found.is_symlink():
            yield _dated(symlink(name, str(path.readlink())), path), None
        elif found.is_dir() and os.access(path, os.R_OK | os.X_OK):
            yield _dated(directory(name), path), None
            yield from _children(path, name + "/")
        elif found.is_file() and os.access(path, os.R_OK):
            status = path.stat()
            mode = 0o755 if status.st_mode & 0o100 else 0o644
            yield _dated(regular(name, status.st_size, mode), path), path


def _dated(info: tarfile.TarInfo, source: Path) -> tarfile.TarInfo:
    info.mtime = int(source.lstat().st_mtime)  # a fraction would cost a PAX header for every file
    return info


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, MODIFIED
    return info


def directory(name: str) -> tarfile.TarInfo:
    """Make the header of a directory, 0755 root."""
    return _entry(name, tarfile.DIRTYPE, 0o755)


def symlink(name: str, target: str) -> tarfile.TarInfo:
    """Make the header of a symbolic link."""
    info = _entry(name, tarfile.SYMTYPE, 0o777)
    info.linkname = target
    return info


def regular(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    """Make the header of a regular file of `size` bytes."""
    info = _entry(name, tarfile.REGTYPE, mode)
    info.size = size
    return info


def whiteout(name: str) -> tarfile.TarInfo:
    """Make the header that hides `name` of the layers below (image-spec layer.md, Whiteouts)."""
    parent, _, base = name.rpartition("/")
    return regular(f"{parent}/.wh.{base}" if parent else f".wh.{base}", 0)


def write_image(
    layout: Path, tag: str, layers: Iterable[Layer], command: Iterable[str] = ("/bin/sh",)
) -> Image:
    """Write config, manifest, index and `oci-layout` around layers already packed into `layout`."""
    layers = tuple(layers)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": list(command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put_json(layout, config, CONFIG),
        "layers": [
            {"mediaType": each.media_type, "digest": each.digest, "size": each.size} for each in layers
        ],
    }
    found = _put_json(layout, manifest, MANIFEST)
    named = found | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    image = Image(layout, tag, str(found["digest"]), layers)
    (layout / RECORD).write_text(json.dumps(asdict(image) | {"layout": "."}))
    return image


def _put_json(layout: Path, document: object, media_type: str) -> dict[str, object]:
    data = json.dumps(document, separators=(",", ":")).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob_path(layout, digest).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def open_image(layout: Path) -> Image:
    """Read back the record of an image that `write_image` wrote; FileNotFoundError if it is not whole."""
    record = json.loads((layout / RECORD).read_text())
    layers = tuple(Layer(**layer) for layer in record["layers"])
    return Image(layout, record["tag"], record["digest"], layers)


def cached_image(cache: Path, name: str, build: Callable[[Path], Image]) -> Image:
    """Return the image `name` from `cache`, built there by `build(layout)` if it is not yet whole.

    Of several builders in one cache one builds, and the others wait: what they want may be what it makes. The
    directory appears by one rename.
    """
    layout = cache / name
    if not (layout / RECORD).exists():
        cache.mkdir(parents=True, exist_ok=True)
        lock = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (layout / RECORD).exists():
                _build(layout, build)
        finally:
            os.close(lock)
    return open_image(layout)


def _build(layout: Path, build: Callable[[Path], Image]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f"{layout.name}.", dir=layout.parent))
    try:
        scratch.chmod(0o755)
        build(scratch)
        shutil.rmtree(layout, ignore_errors=True)  # the torso of an older format, never a whole image
        scratch.rename(layout)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def copied_layer(image: Image, layout: Path) -> Layer:
    """Copy the lowest layer of an image into a layout."""
    layer = image.layers[0]
    target = blob_path(layout, layer.digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image.blob(layer.digest), target)
    return layer

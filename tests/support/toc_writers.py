"""Real writers of tables of contents: skopeo's zstd:chunked, and stargz-snapshotter's `ctr-remote`.

with containerd() as convert:
    made = convert(tar, "--estargz")

`ctr-remote` works in a containerd of its own: root, a few hundred milliseconds, no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_CONFIG, OCI_MANIFEST, Manifest, parse_document
from imgfs.transport.layout_writer import Layout
from tests.support.docker_registry import as_json
from tests.support.patience import allowed
from tests.support.tocmake import Made

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_TIMEOUT = allowed(60)
_NAME = "test.invalid/image"
_UNWANTED = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",  # makes /opt/containerd
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
needs_ctr_remote = pytest.mark.skipif(
    not (shutil.which("ctr-remote") and shutil.which("containerd")) or os.geteuid() != 0,
    reason="ctr-remote or containerd is not installed, or they are not run as root",
)

Convert = Callable[..., Made]  # (tar, *options of `ctr-remote images convert`, first=paths to prefetch)


def skopeo_chunked(tar: bytes, scratch: Path) -> Made:
    """Return the zstd:chunked layer that skopeo makes of a tar; `scratch` is an empty directory."""
    _write_layout(scratch / "plain", tar)
    words = ["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd:chunked"]
    _run([*words, f"oci:{scratch}/plain:v1", f"oci:{scratch}/chunked:v1"])
    return _layer_in(lambda name: (scratch / "chunked" / name).read_bytes())


@contextmanager
def containerd() -> Iterator[Convert]:
    """Run a containerd while the block lasts: what makes other layers of a tar with it."""
    with tempfile.TemporaryDirectory(prefix="imgfs-containerd-") as name:  # short: sockets' names are limited
        home = Path(name)
        (home / "config.toml").write_text(_config(home))
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                ["containerd", "-c", str(home / "config.toml")], stdout=log, stderr=log
            )
            try:
                _wait(process, home)
                yield lambda tar, *options, first=(): _convert(home, tar, options, first)
            finally:
                process.terminate()
                process.wait(_TIMEOUT)


def _convert(home: Path, tar: bytes, options: Sequence[str], first: Sequence[str]) -> Made:
    scratch = Path(tempfile.mkdtemp(dir=home))
    manifest = _write_layout(scratch / "plain", tar)
    with tarfile.open(scratch / "plain.tar", "w") as archive:
        archive.add(scratch / "plain", ".")
    records = [{"path": path, "manifestDigest": str(manifest.digest), "layerIndex": 0} for path in first]
    (scratch / "record").write_text("".join(json.dumps(record) + "\n" for record in records))
    recorded = ["--estargz-record-in", str(scratch / "record")] if first else []
    ctr = ["ctr-remote", "--address", str(home / "socket"), "images"]
    made = f"{_NAME}:{scratch.name}"
    _run([*ctr, "import", "--no-unpack", "--base-name", _NAME, str(scratch / "plain.tar")])
    _run([*ctr, "convert", "--oci", *options, *recorded, f"{_NAME}:v1", made])
    _run([*ctr, "export", str(scratch / "made.tar"), made])
    with tarfile.open(scratch / "made.tar") as archive:
        return _layer_in(lambda name: _member(archive, name))


def _config(home: Path) -> str:
    unwanted = json.dumps(_UNWANTED)
    return f"""
        version = 2
        root = "{home}/root"
        state = "{home}/state"
        disabled_plugins = {unwanted}
        [grpc]
          address = "{home}/socket"
        [ttrpc]
          address = "{home}/ttrpc"
    """


def _wait(process: subprocess.Popen[bytes], home: Path) -> None:
    ask = ["ctr-remote", "--address", str(home / "socket"), "version"]
    for _ in range(200):
        if process.poll() is not None:
            break
        if (home / "socket").exists() and subprocess.run(
            ask, capture_output=True, check=False
        ).returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"containerd does not answer: {(home / 'log').read_text()[-500:]}")


def _write_layout(path: Path, tar: bytes) -> Descriptor:
    """Write an image of one layer, not compressed, tagged v1; its manifest."""
    layout = Layout(path)
    rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar))]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    parts = [_put(layout, config, OCI_CONFIG), _put(layout, tar, _LAYER)]
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": as_json(parts[0])}
    manifest = _put(layout, json.dumps(fields | {"layers": [as_json(parts[1])]}).encode(), OCI_MANIFEST)
    layout.tag(manifest, "v1")
    return manifest


def _put(layout: Layout, body: bytes, media_type: str) -> Descriptor:
    descriptor = Descriptor(media_type, Digest.of(body), len(body))
    layout.put_blob(descriptor.digest, [body])
    return descriptor


def _layer_in(read: Callable[[str], bytes]) -> Made:
    """Return the one layer of the one image in a layout, whose files are read by name."""

    def blob(digest: object) -> bytes:
        return read(f"blobs/{digest}".replace(":", "/"))

    entry = json.loads(read("index.json"))["manifests"][0]
    manifest = parse_document(blob(entry["digest"]), OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    (layer,) = manifest.layers
    return Made(blob(layer.digest), layer, b"")


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file, f"{name} is not a file"
    return file.read()


def _run(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-500:]}"

"""A real registry: Debian's `docker-registry` on a free port, and how to push to it.

with docker_registry(tmp_path) as host:
    pushed = push_image(host, "ns/app", "v1", [layer_blob], diff_ids=[diff_id])
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import pytest
import requests

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from tests.support.patience import allowed

PROGRAM = "docker-registry"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_TIMEOUT = allowed(60.0)

needs_docker_registry = pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")


class Pushed(NamedTuple):
    """An image as it is in the registry now."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]


@contextmanager
def docker_registry(
    directory: Path,
    *,
    htpasswd: str | None = None,
    mirrors: str | None = None,
    token: Mapping[str, str] | None = None,
    tls: tuple[Path, Path] | None = None,
    port: int | None = None,
    logs_requests: bool = False,
) -> Iterator[str]:
    """Run a registry that keeps its data under `directory`: its `host:port`.

    `htpasswd` is the text of an htpasswd file (bcrypt): the registry then wants Basic authentication.
    `mirrors` is the `host:port` of another: the registry is then a pull-through cache of it.
    `token` is what it is to know of a token server, `tls` its certificate and key. With `logs_requests` there
    is a line for each in `directory`/log. A registry that was ended can be run again, in another way, on what
    it has kept.
    """
    host = f"127.0.0.1:{port or free_port()}"
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.yml"
    configuration = _configuration(directory, host, htpasswd, mirrors, token, tls)
    configuration["log"]["accesslog"]["disabled"] = not logs_requests
    config.write_text(json.dumps(configuration))  # JSON is YAML
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "serve", str(config)], stdout=log, stderr=log)
        try:
            _wait_until_it_listens(process, host, directory / "log")
            yield host
        finally:
            process.kill()
            process.wait()


def push_blob(
    host: str,
    repository: str,
    body: bytes,
    media_type: str = LAYER_GZIP,
    *,
    auth: tuple[str, str] | None = None,
) -> Descriptor:
    """Push a blob in one piece (distribution-spec, "POST then PUT")."""
    digest = Digest.of(body)
    with requests.Session() as session:
        session.auth = auth
        begun = session.post(f"http://{host}/v2/{repository}/blobs/uploads/", timeout=_TIMEOUT)
        begun.raise_for_status()
        place = urljoin(begun.url, begun.headers["Location"])
        url = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        session.put(url, data=body, headers=headers, timeout=_TIMEOUT).raise_for_status()
    return Descriptor(media_type, digest, len(body))


def push_manifest(
    host: str,
    repository: str,
    tag: str | None,
    document: Mapping[str, Any],
    media_type: str = OCI_MANIFEST,
    *,
    auth: tuple[str, str] | None = None,
) -> Descriptor:
    """Push a manifest or index under `tag`, or by its digest alone."""
    body = json.dumps(document).encode()
    digest = Digest.of(body)
    url = f"http://{host}/v2/{repository}/manifests/{tag or digest}"
    requests.put(
        url, data=body, headers={"Content-Type": media_type}, auth=auth, timeout=_TIMEOUT
    ).raise_for_status()
    return Descriptor(media_type, digest, len(body))


def push_image(
    host: str,
    repository: str,
    tag: str | None,
    layers: Sequence[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    diff_ids: Sequence[str] | None = None,
    media_types: Sequence[str] | None = None,
    layer_annotations: Sequence[Mapping[str, str]] | None = None,
    annotations: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> Pushed:
    """Push an image of layer blobs as they are stored.

    `diff_ids` may be left out for gzip and uncompressed layers: they are computed. `config` adds to, or
    replaces, the fields of a minimal linux/amd64 config.
    """
    types = media_types or [LAYER_GZIP] * len(layers)
    pushed = [
        push_blob(host, repository, body, kind, auth=auth) for body, kind in zip(layers, types, strict=True)
    ]
    rootfs = {"type": "layers", "diff_ids": list(diff_ids or map(diff_id, layers))}
    fields = {"os": "linux", "architecture": "amd64", "rootfs": rootfs, **(config or {})}
    stored = push_blob(host, repository, json.dumps(fields).encode(), OCI_CONFIG, auth=auth)
    notes = layer_annotations or [{}] * len(layers)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": as_json(stored),
        "layers": [
            as_json(layer) | ({"annotations": dict(note)} if note else {})
            for layer, note in zip(pushed, notes, strict=True)
        ],
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return Pushed(push_manifest(host, repository, tag, document, auth=auth), stored, tuple(pushed))


def push_index(
    host: str, repository: str, tag: str | None, manifests: Sequence[tuple[Descriptor, Mapping[str, Any]]]
) -> Descriptor:
    """Push an index of (manifest, further fields such as `platform`)."""
    entries = [as_json(manifest) | dict(more) for manifest, more in manifests]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return push_manifest(host, repository, tag, document, OCI_INDEX)


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    """Return a descriptor's three required fields."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def diff_id(blob: bytes) -> str:
    """Return the DiffID of a layer that is gzip or not compressed."""
    try:
        tar = gzip.decompress(blob)
    except (OSError, EOFError, zlib.error):
        tar = blob
    return f"sha256:{hashlib.sha256(tar).hexdigest()}"


def _configuration(
    directory: Path,
    host: str,
    htpasswd: str | None,
    mirrors: str | None,
    token: Mapping[str, str] | None,
    tls: tuple[Path, Path] | None,
) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": host},
    }
    if htpasswd:
        path = directory / "htpasswd"
        path.write_text(htpasswd)
        configuration["auth"] = {"htpasswd": {"realm": "test", "path": str(path)}}
    if mirrors:
        configuration["proxy"] = {"remoteurl": f"http://{mirrors}"}
    if token:
        configuration["auth"] = {"token": dict(token)}
    if tls:
        configuration["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
    return configuration


def free_port() -> int:
    """Return a port of loopback that no server listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_listens(process: subprocess.Popen[bytes], host: str, log: Path) -> None:
    name, port = host.split(":")
    for _ in range(200):
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            pass
        else:
            raise RuntimeError(f"{PROGRAM} ended at once: {log.read_text()[-500:]}")
        with socket.socket() as probe:
            if probe.connect_ex((name, int(port))) == 0:
                return
    raise RuntimeError(f"{PROGRAM} does not listen: {log.read_text()[-500:]}")

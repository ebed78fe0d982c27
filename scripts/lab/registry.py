"""Debian's docker-registry on loopback, and pushing a layout to a registry.

As a program, for the quickstart:
    python -m scripts.lab.registry start ROOT                      prints HOST:PORT and the process's id
    python -m scripts.lab.registry push LAYOUT HOST:PORT REPOSITORY    prints the reference
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from scripts.lab.layout import MANIFEST, Image, open_image

INDEX = "application/vnd.oci.image.index.v1+json"
Document = dict[str, Any]  # JSON

CONFIG = """version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{root}"}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class RegistryFailed(Exception):
    """docker-registry is missing, does not start, or refuses what is pushed."""


def free_port() -> int:
    """Find a loopback port that no server listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@dataclass
class Registry:
    """A docker-registry over the directory `root` on a loopback `port`, while its `with` block lasts."""

    root: Path
    port: int = field(default_factory=free_port)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._server.pid

    def __enter__(self) -> Registry:
        self.start()
        return self

    def start(self) -> None:
        """Start the server and return when it answers; RegistryFailed if it does not. It outlives Ctrl-C."""
        program = shutil.which("docker-registry")
        if not program:
            raise RegistryFailed("docker-registry is not installed: scripts/install --test brings it")
        self.root.mkdir(parents=True, exist_ok=True)
        config = self.root / f"registry-{self.port}.yml"
        config.write_text(CONFIG.format(root=self.root, port=self.port))
        with (self.root / "registry.log").open("wb") as log:
            self._server = subprocess.Popen(
                [program, "serve", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._config = config
        try:
            self._await_answer(time.monotonic() + 20)
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server; a second call does nothing."""
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._config.unlink(missing_ok=True)

    def _await_answer(self, deadline: float) -> None:
        while self._server.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return _answer(self.host)
            time.sleep(0.05)
        said = (self.root / "registry.log").read_text(errors="replace").strip().splitlines()
        raise RegistryFailed(f"docker-registry does not answer on {self.host}: {' '.join(said[-1:])}")

    def push(self, image: Image, repository: str) -> str:
        """Push `image`; return its reference, `127.0.0.1:PORT/repository:tag`."""
        return push(image, self.host, repository)

    def holds(self, repository: str, tag: str) -> bool:
        """Say whether a repository has a tag."""
        return (self._store / "repositories" / repository / "_manifests/tags" / tag).exists()

    def blobs(self, repository: str) -> list[Path]:
        """List the files that hold what was pushed to a repository: layers, configs, manifests."""
        links = (self._store / "repositories" / repository).glob("_*/**/sha256/*/link")
        digests = {link.parent.name for link in links}
        paths = (self._store / "blobs/sha256" / digest[:2] / digest / "data" for digest in digests)
        return sorted(path for path in paths if path.exists())

    @property
    def _store(self) -> Path:
        return self.root / "docker/registry/v2"  # as docker-registry's file system driver lays it out


def _answer(host: str) -> None:
    with contextlib.closing(http.client.HTTPConnection(host, timeout=1)) as connection:
        connection.request("GET", "/v2/")
        connection.getresponse().read()


def push(image: Image, host: str, repository: str) -> str:
    """Push `image` to the plain-http registry `host` (HOST:PORT): the blobs it lacks, then the manifest.

    Returns the reference, HOST:PORT/repository:tag. Monolithic uploads: distribution-spec, Pushing blobs.
    """
    manifest = image.blob(image.digest).read_bytes()
    blobs = sorted((image.layout / "blobs" / "sha256").iterdir())
    with contextlib.closing(http.client.HTTPConnection(host, timeout=300)) as connection:
        for path in blobs:
            if path.name not in image.digest:
                _push_blob(connection, repository, path)
        place = f"/v2/{repository}/manifests/{image.tag}"
        _expect(connection, 201, "PUT", place, manifest, {"Content-Type": MANIFEST})
    return f"{host}/{repository}:{image.tag}"


@dataclass
class Repository:
    """Documents of a repository in the plain-http registry `host`; RegistryFailed if it refuses."""

    host: str
    name: str

    def __enter__(self) -> Repository:
        self._connection = http.client.HTTPConnection(self.host, timeout=300)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def manifest(self, reference: str) -> Document:
        """Read the manifest, or the image index, that a tag or a digest names."""
        accepted = {"Accept": f"{MANIFEST}, {INDEX}, application/vnd.docker.distribution.manifest.v2+json"}
        return self._read(f"manifests/{reference}", accepted)

    def blob(self, digest: str) -> Document:
        """Read a blob that is a document, like an image's config."""
        return self._read(f"blobs/{digest}", {})

    def put_blob(self, document: Document) -> Document:
        """Upload a document as a blob; the digest and the size by which it is described."""
        data, found = _packed(document)
        _upload_blob(self._connection, self.name, found["digest"], data, len(data))
        return found

    def put_manifest(self, document: Document, tag: str = "") -> Document:
        """Put a manifest, or an image index, as a tag or by its digest alone; how it is described."""
        data, found = _packed(document)
        place = f"/v2/{self.name}/manifests/{tag or found['digest']}"
        _expect(self._connection, 201, "PUT", place, data, {"Content-Type": document["mediaType"]})
        return {"mediaType": document["mediaType"], **found}

    def _read(self, place: str, headers: dict[str, str]) -> Document:
        self._connection.request("GET", f"/v2/{self.name}/{place}", None, headers)
        answer = self._connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RegistryFailed(f"GET {self.name}/{place}: {answer.status} {said[:500]!r}")
        found: Document = json.loads(said)
        return found


def _packed(document: Document) -> tuple[bytes, Document]:
    data = json.dumps(document, separators=(",", ":")).encode()
    return data, {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)}


def _push_blob(connection: http.client.HTTPConnection, repository: str, path: Path) -> None:
    with path.open("rb") as stream:
        _upload_blob(connection, repository, f"sha256:{path.name}", stream, path.stat().st_size)


def _upload_blob(
    connection: http.client.HTTPConnection, repository: str, digest: str, body: object, size: int
) -> None:
    connection.request("HEAD", f"/v2/{repository}/blobs/{digest}")
    found = connection.getresponse()
    found.read()
    if found.status == 200:
        return
    started = _expect(connection, 202, "POST", f"/v2/{repository}/blobs/uploads/")
    upload = urlsplit(started["Location"])
    query = f"{upload.query}&digest={digest}" if upload.query else f"digest={digest}"
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    _expect(connection, 201, "PUT", f"{upload.path}?{query}", body, headers)


def _expect(
    connection: http.client.HTTPConnection,
    status: int,
    method: str,
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
) -> http.client.HTTPMessage:
    connection.request(method, path, body, headers or {})  # type: ignore[arg-type]  # bytes or a file, both allowed
    answer = connection.getresponse()
    said = answer.read(500).decode(errors="replace")
    if answer.status != status:
        raise RegistryFailed(f"{method} {path.partition('?')[0]}: {answer.status} {said}")
    return answer.headers


def main(arguments: list[str]) -> int:
    """Run one of the commands of the module's docstring."""
    match arguments:
        case ["start", root]:
            registry = Registry(Path(root))
            registry.start()
            print(registry.host, registry.pid)
        case ["push", layout, host, repository]:
            print(push(open_image(Path(layout)), host, repository))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RegistryFailed, OSError) as failed:
        sys.exit(f"registry: {failed}")

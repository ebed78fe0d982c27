"""Requests to a docker, or a podman that speaks its API, on a socket of this machine (Docker Engine API).

GET /_ping                the version of the API that it speaks
GET /images/NAME/json     an image: its id
GET /images/json          all images: their names
GET /images/ID/get        the image as `docker save` writes it
GET /libpod/images/ID/get likewise, of podman alone, in another format (its own API)
"""

from __future__ import annotations

import http.client
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from imgfs.errors import (
    ImgfsError,
    InvalidImage,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
    UsageError,
    describe,
)
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import list_in, object_at, parse_json, text_in
from imgfs.quoting import printable
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.registry.sockets import Deadline, PlainSocket
from imgfs.transport.engine_names import usual_name
from imgfs.transport.engine_socket import SECONDS, connect_engine

_PREPARED = (
    900.0  # seconds until an export begins: docker to version 24 and podman write all of it to disk first
)
_CHUNK = 256 << 10  # bytes of an export, within SECONDS
_MAX_HEAD = 64 << 10  # bytes of the head of an answer
_MAX_ERROR = 16 << 10
_MAX_TEXT = 300
_VERSION = re.compile(r"\d{1,3}\.\d{1,3}(?:\.\d{1,3})?")
_UNIX = "unix://"
_VARIABLE = "DOCKER_HOST"
_ID = re.compile(r"[0-9a-f]{64}")


class EngineImage(NamedTuple):
    """An image: its id, the digest of its config or, if containerd keeps it, manifest; its bytes, about."""

    id: Digest
    size: int


class DockerEngine:
    """A docker on this machine, at the first of `sockets` that is there. Safe in threads."""

    def __init__(self, sockets: Sequence[str]) -> None:
        for socket in sockets:
            if not socket.startswith(_UNIX):
                raise UsageError(f"${_VARIABLE} is {socket!r}: imgfs asks a docker at unix:///PATH only")
        paths = [Path(socket.removeprefix(_UNIX)) for socket in sockets]
        self._path = next((path for path in paths if os.path.exists(path)), paths[0])
        self._version: str | None = None
        self._podman = ""  # where its own API is

    def identify(self, name: str) -> EngineImage:
        """Return an image; raises NotFound."""
        where = f"{self._path}: image {name}"
        try:
            fields = object_at(self._document(f"/images/{_quoted(usual_name(name))}/json", where), where)
        except NotFound as error:
            raise NotFound(f"docker-daemon:{name}: {error}") from error
        identity = text_in(fields, "Id", where)
        if _ID.fullmatch(identity):
            identity = f"sha256:{identity}"
        size = fields.get("size")  # `Size`, as `parse_json` names it
        about = size if isinstance(size, int) and 0 <= size < 1 << 62 else 0
        return EngineImage(Digest.parse(identity, where=f"{where}: Id"), about)

    def names(self) -> list[str]:
        """Return the names of all images, sorted."""
        where = f"{self._path}: images"
        listed = self._document("/images/json", where)
        if not isinstance(listed, list):
            raise InvalidImage("not a list", where=where)
        images = [object_at(image, where) for image in listed]
        tags = (list_in(image, "RepoTags", where) for image in images if image.get("RepoTags"))
        return sorted({str(tag) for some in tags for tag in some} - {"<none>:<none>"})

    def export(self, image: Digest) -> Iterator[bytes]:
        """Yield an image as `docker save` writes it; a pause of more than SECONDS ends it.

        podman makes a docker-archive of no image with a zstd layer, and says so before the first byte (500):
        it is asked for an OCI layout then, by its own API.
        """
        try:
            yield from self._exported(self._versioned(f"/images/{image}/get"))
        except Unavailable as error:
            if error.status != http.client.INTERNAL_SERVER_ERROR or not self._podman:
                raise
            yield from self._exported(f"{self._podman}/images/{image.hex}/get?format=oci-archive")

    def _exported(self, target: str) -> Iterator[bytes]:
        with self._get(target, _PREPARED) as (answer, deadline):
            deadline.begin(_PREPARED)
            while chunk := _read(answer, _CHUNK):
                deadline.begin(SECONDS)
                yield chunk

    def _document(self, target: str, where: str) -> object:
        with self._get(self._versioned(target), SECONDS) as (answer, _):
            body = _read(answer, MAX_DOCUMENT + 1)
        if len(body) > MAX_DOCUMENT:
            raise InvalidImage(f"an answer of more than {MAX_DOCUMENT} bytes", where=where)
        return parse_json(body, where)

    def _versioned(self, target: str) -> str:
        """Return what to ask for: with the version that the engine says it speaks, as docker's CLI does."""
        if self._version is None:
            with self._get("/_ping", SECONDS) as (answer, _):
                said = answer.headers.get("API-Version", "")
                podmans = answer.headers.get("Libpod-API-Version", "")
            self._podman = f"/v{podmans}/libpod" if _VERSION.fullmatch(podmans) else ""
            self._version = f"/v{said}" if _VERSION.fullmatch(said) else ""
        return self._version + target

    @contextmanager
    def _get(self, target: str, seconds: float) -> Iterator[tuple[http.client.HTTPResponse, Deadline]]:
        """Yield an answer, read within so many seconds, and what bounds it. Raises RegistryError."""
        connection = _UnixConnection(self._path)
        with closing(connection), self._errors(target):
            deadline = connection.begin(seconds, _MAX_HEAD)
            connection.request("GET", target, headers={"Connection": "close"})
            with closing(connection.getresponse()) as answer:
                deadline.begin(seconds)
                if answer.status != http.client.OK:
                    raise _refusal(answer.status, answer.read(_MAX_ERROR), self._path)
                yield answer, deadline

    @contextmanager
    def _errors(self, target: str) -> Iterator[None]:
        try:
            yield
        except (http.client.HTTPException, OSError) as error:
            reason = "timed out" if isinstance(error, TimeoutError) else _reason(error)
            raise Unavailable(f"{self._path}: {target}: no answer: {reason}") from error


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a socket file."""

    sock: PlainSocket

    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Connect; raises RegistryError."""
        self.sock = connect_engine(self._path, "docker", _VARIABLE)

    def begin(self, seconds: float, allowed: int) -> Deadline:
        """Connect, and bound the head of the answer; returns what bounds it."""
        self.connect()
        assert self.sock.deadline
        self.sock.settimeout(seconds)
        self.sock.deadline.begin(seconds, allowed)
        return self.sock.deadline


def _read(answer: http.client.HTTPResponse, count: int) -> bytes:
    """Return up to so many bytes of a body, none at its end, whose place http.client does not check."""
    body = answer.read(count)
    if not body and answer.length:
        raise http.client.IncompleteRead(body, answer.length)
    return body


def _quoted(name: str) -> str:
    return quote(name, safe="/:@")


def _reason(error: http.client.HTTPException | OSError) -> str:
    return describe(error) if isinstance(error, OSError) else "not in HTTP, or cut short"


def _refusal(status: int, body: bytes, path: Path) -> ImgfsError:
    """Return the exception for an error response: its words are in `message`, or podman's `cause`."""
    try:
        said = str(json.loads(body.decode())["message"])
    except (ValueError, RecursionError, LookupError, TypeError):
        said = ""
    text = f"{path}: {status}{': ' if said else ''}{printable(said[:_MAX_TEXT])}"
    if status == http.client.NOT_FOUND:
        return NotFound(text, status=status)
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return Unauthorized(text, status=status)
    return (Unavailable if status >= http.client.INTERNAL_SERVER_ERROR else RegistryError)(
        text, status=status
    )

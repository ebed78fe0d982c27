"""A small registry on 127.0.0.1 that serves and takes what it is given, and misbehaves on request.

    with FaultServer() as server:
        layer = server.add_blob(b"...")
        server.add_manifest("app", "latest", body, media_type)
        server.inject(Fault(cut_after=900), on="/blobs/")
        Client(server.host, "app").blob(layer)
        assert server.seen("/blobs/")[1].headers["Range"] == "bytes=900-..."

Every request is logged with its headers. A stalled response waits until the client, or the server, is gone.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX, OCI_MANIFEST
from tests.support.web_server import Handler, WebServer

_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]+)")
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. What is None stays right.

    `cut_after` and `stall_after` count bytes of the body actually sent, of which `flip_at` is one to have
    other bits; `reset` ends the connection as a crash does. The answer comes after a `pause` in seconds, its
    body at `rate` bytes per second. `drop` closes the connection without an answer. `ignore_range` answers
    200 with everything. `headers` replace the right ones; None takes one away. `chunked` sends the body in
    chunks, its length unsaid. `take` is how many bytes of the request's body are read, and kept, before the
    connection is reset; `undone` leaves the request undone, whatever is answered, and `unanswered` does it
    and then hangs up. `meanwhile` is called when the request has been done and before it is answered.
    """

    status: int | None = None
    body: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    flip_at: int | None = None
    reset: bool = False
    pause: float = 0.0
    rate: float | None = None
    drop: bool = False
    ignore_range: bool = False
    chunked: bool = False
    take: int | None = None
    undone: bool = False
    unanswered: bool = False
    meanwhile: Callable[[], object] | None = None


class Seen(NamedTuple):
    """A request that came in. `headers` by their name in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    form: Mapping[str, str]
    body: bytes = b""


class Begun(NamedTuple):
    """An upload on its way."""

    repository: str
    got: bytearray


class _Planned(NamedTuple):
    fault: Fault
    on: str
    method: str | None


class FaultServer(WebServer):
    """A registry in this process: a context manager. Set the attributes freely.

    `token_server`: the base URL of a server whose `/token` issues tokens this one wants (may be itself).
    `basic`: (user, password) that `/token`, or without a token server the registry itself, wants.
    `blob_host`: where requests for blobs are redirected to, with a signature in the query.
    `signatures`: which of those this server takes, None for any.
    `grants`: what tokens are given for, such as {"repository:app": {"pull", "push"}}; None: for anything.
    `mounts`: repositories that blobs may be mounted from. `chunk_minimum`: of all chunks but the last.
    `upload_host`: another server, by its URL, that blobs are to be uploaded to. `takes`: of each PATCH only
    so many bytes; `stuck_range`: what a PATCH is answered with in place of the truth; `forgetful`: an upload
    that is cut is gone.
    `referrers_api`: whether there is one, and `OCI-Subject`; `referrers_filter`: whether it filters;
    `referrers_page`: how many it gives at once. `deletes`: whether manifests can be deleted;
    `keeps_tags`: whether their tags stay, and serve them, as those of `crane registry serve`; `conditional`:
    whether there are ETags, and conditions with them are minded; `strict`: whether an index must not name
    what is not there.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__(_Handler, address)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.tags: dict[str, list[str]] = {}
        self.catalog: Sequence[str] | None = None  # the repositories, sorted, if they are listed
        self.log: list[Seen] = []
        self.token_server: str | None = None
        self.valid_tokens: set[str] = set()
        self.token_reply: dict[str, Any] = {}
        self.identity_token: str | None = None
        self.basic: tuple[str, str] | None = None
        self.blob_host: str | None = None
        self.signature = "1"
        self.signatures: set[str] | None = None
        self.with_digest_header = True
        self.grants: dict[str, set[str]] | None = None
        self.scopes: dict[str, dict[str, set[str]]] = {}  # what the tokens issued are good for
        self.mounts: set[str] = set()
        self.chunk_minimum = 0
        self.upload_host: str | None = None
        self.stuck_range: str | None = None
        self.takes: int | None = None
        self.forgetful = False
        self.referrers_api = False
        self.referrers_filter = True
        self.referrers_page: int | None = None
        self.deletes = True
        self.keeps_tags = False
        self.conditional = False
        self.strict = False
        self.uploads: dict[str, Begun] = {}
        self.cancelled: list[str] = []
        self._begun = 0
        self._issued = 0
        self._faults: list[_Planned] = []
        self._lock = threading.Lock()

    def add_blob(self, body: bytes, media_type: str = LAYER) -> Descriptor:
        """Serve `body`, in every repository."""
        digest = Digest.of(body)
        self.blobs[str(digest)] = body
        return Descriptor(media_type, digest, len(body))

    def add_manifest(
        self, repository: str, tag: str | None, body: bytes, media_type: str = OCI_MANIFEST
    ) -> Descriptor:
        """Serve a manifest or index by its digest and, if there is one, by `tag`."""
        digest = Digest.of(body)
        self.manifests[repository, str(digest)] = (media_type, body)
        if tag:
            self.manifests[repository, tag] = (media_type, body)
            self.tags.setdefault(repository, []).append(tag)
        return Descriptor(media_type, digest, len(body))

    def inject(self, fault: Fault, *, on: str = "/", method: str | None = None, times: int = 1) -> None:
        """Let the next `times` requests whose path contains `on` go wrong; faults queue up."""
        with self._lock:
            self._faults += [_Planned(fault, on, method)] * times

    def behave(self) -> None:
        """Forget the faults that are still planned."""
        with self._lock:
            self._faults.clear()

    def seen(self, part: str, method: str | None = None) -> list[Seen]:
        """Return the requests so far whose path contains `part`."""
        with self._lock:
            return [one for one in self.log if part in one.path and method in (None, one.method)]

    def next_fault(self, method: str, path: str) -> Fault:
        """Return the fault planned for this request, used up by it."""
        with self._lock:
            for planned in self._faults:
                if planned.on in path and planned.method in (None, method):
                    self._faults.remove(planned)
                    return planned.fault
        return Fault()

    def note(self, seen: Seen) -> None:
        """Log a request."""
        with self._lock:
            self.log.append(seen)

    def issue_token(self, asked: str = "") -> str:
        """Return a new token, from now on valid, for as much of the scope `asked` as there are grants for."""
        with self._lock:
            token = f"token-{self._issued}-{self.host}"
            self._issued += 1
            self.valid_tokens.add(token)
            self.scopes[token] = {
                resource: actions if self.grants is None else actions & self.grants.get(resource, set())
                for resource, actions in parse_scope(asked).items()
            }
        return token

    def found(self, seen: Seen, fault: Fault) -> Reply:
        """Return what there is for a request that is not refused. An OSError hangs up on the client."""
        return _found(self, seen, fault)

    def keep(self, seen: Seen) -> None:
        """Keep what came of a request that was cut, if the upload is known."""
        with self._lock:
            name = urlsplit(seen.path).path.rsplit("/", 1)[1]
            if self.forgetful:
                self.uploads.pop(name, None)
            elif name in self.uploads:
                self.uploads[name].got.extend(seen.body)

    def upload(self, seen: Seen) -> Reply:
        """Answer a request about an upload (distribution-spec, "Pushing Blobs")."""
        parts = urlsplit(seen.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        repository, _, name = parts.path.removeprefix("/v2/").partition("/blobs/uploads/")
        with self._lock:
            if seen.method == "POST":
                return self._begin_upload(repository, query)
            begun = self.uploads.get(name)
            if begun is None or query.get("state") != "a/b c":
                return registry_error(404, "BLOB_UPLOAD_UNKNOWN")
            if seen.method == "GET":
                return self._place(name, 204)
            if seen.method == "DELETE":
                del self.uploads[name]
                self.cancelled.append(name)
                return Reply(204)
            if seen.method == "PATCH":
                return self._append(name, seen)
            return self._finish_upload(name, query["digest"], seen.body)

    def _begin_upload(self, repository: str, query: Mapping[str, str]) -> Reply:
        if query.get("from") in self.mounts and query.get("mount") in self.blobs:
            return Reply(201, b"", {"Location": f"/v2/{repository}/blobs/{query['mount']}"})
        self._begun += 1
        name = f"upload-{self._begun}"
        self.uploads[name] = Begun(repository, bytearray())
        return self._place(name, 202)

    def _place(self, name: str, status: int) -> Reply:
        begun = self.uploads[name]
        minimum = {"OCI-Chunk-Min-Length": str(self.chunk_minimum)} if self.chunk_minimum else {}
        place = f"{self.upload_host or ''}/v2/{begun.repository}/blobs/uploads/{name}?state=a%2Fb%20c"
        span = f"0-{max(0, len(begun.got) - 1)}"
        return Reply(status, b"", {"Location": place, "Range": span, **minimum})

    def _append(self, name: str, seen: Seen) -> Reply:
        got = self.uploads[name].got
        first, last = map(int, seen.headers["content-range"].split("-"))
        if first != len(got) or last + 1 - first != len(seen.body):
            return self._place(name, 416)
        got.extend(seen.body[: self.takes])
        reply = self._place(name, 202)
        return reply._replace(headers={**reply.headers, "Range": self.stuck_range or reply.headers["Range"]})

    def _finish_upload(self, name: str, digest: str, body: bytes) -> Reply:
        whole = bytes(self.uploads.pop(name).got) + body
        if str(Digest.of(whole)) != digest:
            return registry_error(400, "DIGEST_INVALID")
        self.blobs[digest] = whole
        return Reply(201, b"", {"Docker-Content-Digest": digest})


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class _Handler(Handler):
    def answer(self) -> None:
        registry: FaultServer = self.owner
        fault = registry.next_fault(self.command, self.path)
        seen = self._read(fault)
        registry.note(seen)
        if fault.drop:
            self.close_connection = True
            return
        if fault.take is not None:
            registry.keep(seen)
            self._reset()
            return
        reply = Reply(200) if fault.undone else _route(registry, seen, fault)
        if fault.meanwhile:
            fault.meanwhile()
        if fault.unanswered:
            self._reset()
            return
        registry.closing.wait(fault.pause)
        self._send(reply, fault)

    def _read(self, fault: Fault) -> Seen:
        """Return the request, its body as far as the fault and the client let it come."""
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length if fault.take is None else min(length, fault.take))
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_form = headers.get("content-type") == "application/x-www-form-urlencoded"
        fields = parse_qs(body.decode() if is_form else "")
        return Seen(self.command, self.path, headers, {name: fields[name][0] for name in fields}, body)

    def _reset(self) -> None:
        """End the connection at once, as a crash does."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _send(self, reply: Reply, fault: Fault) -> None:
        body = _flipped(reply.body if fault.body is None else fault.body, fault.flip_at)
        headers: dict[str, str | None] = {"Content-Length": str(len(body)), **reply.headers}
        if fault.chunked:
            headers.update({"Content-Length": None, "Transfer-Encoding": "chunked"})
        self.send_response(fault.status or reply.status)
        for name, value in {**headers, **fault.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or (fault.status or reply.status) == 204:
            return
        stop = min(len(body) if at is None else at for at in (fault.cut_after, fault.stall_after))
        self._write(body[:stop], fault)
        if fault.stall_after is not None:
            self.connection.recv(1)  # until the client, or the server's end, hangs up
        if fault.stall_after is not None or fault.cut_after is not None:
            self.close_connection = True
        if fault.reset:
            self._reset()

    def _write(self, body: bytes, fault: Fault) -> None:
        if fault.rate is not None:
            self._trickle(body, fault.rate)
            return
        if not fault.chunked:
            self.wfile.write(body)
            return
        for at in range(0, len(body), 50_000):
            piece = body[at : at + 50_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if fault.cut_after is None:
            self.wfile.write(b"0\r\n\r\n")

    def _trickle(self, body: bytes, rate: float) -> None:
        """Send a body slowly, a twentieth of a second's worth at a time."""
        size = max(1, int(rate / 20))
        for at in range(0, len(body), size):
            if self.owner.closing.wait(size / rate):
                return
            self.wfile.write(body[at : at + size])


def _flipped(body: bytes, at: int | None) -> bytes:
    """Return the body with other bits in one byte, if it has that."""
    if at is None or at >= len(body):
        return body
    return body[:at] + bytes([body[at] ^ 0x20]) + body[at + 1 :]


def _route(registry: FaultServer, seen: Seen, fault: Fault) -> Reply:
    path = urlsplit(seen.path).path
    if path == "/token":
        return _token(registry, seen)
    refused = _refuse(registry, seen)
    if not refused and seen.method in ("GET", "HEAD") and "/blobs/" in path and "/uploads/" not in path:
        refused = _sent_elsewhere(registry, seen)
    return refused or registry.found(seen, fault)


def _found(registry: FaultServer, seen: Seen, fault: Fault) -> Reply:
    path = urlsplit(seen.path).path
    if "/blobs/uploads/" in path:
        return registry.upload(seen)
    if "/blobs/" in path:
        return _blob(registry, seen, fault)
    if "/manifests/" in path:
        if seen.method == "DELETE":
            return _delete_manifest(registry, path)
        return _take_manifest(registry, seen) if seen.method == "PUT" else _manifest(registry, path)
    if "/referrers/" in path and registry.referrers_api:
        return _referrers(registry, seen)
    if path.endswith("/tags/list"):
        return _tag_list(registry, seen)
    if path == "/v2/_catalog" and registry.catalog is not None:
        return _catalog(registry.catalog, seen)
    return registry_error(404, "NOT_HERE")


def registry_error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    """Return an error in the words of the distribution-spec."""
    body = json.dumps({"errors": [{"code": code, "message": f"about {code}"}]}).encode()
    return Reply(status, body, {"Content-Type": "application/json", **(headers or {})})


def _refuse(registry: FaultServer, seen: Seen) -> Reply | None:
    given = seen.headers.get("authorization", "")
    if registry.token_server:
        scope = _needed(seen)
        token = given.removeprefix("Bearer ")
        if token in registry.valid_tokens and _covers(registry.scopes.get(token), scope):
            return None
        offer = f'Bearer realm="{registry.token_server}/token",service="test, quoted",scope="{scope}"'
    elif registry.basic:
        if given == _basic(*registry.basic):
            return None
        offer = 'Basic realm="test"'
    else:
        return None
    return registry_error(401, "UNAUTHORIZED", {"WWW-Authenticate": offer})


def _token(registry: FaultServer, seen: Seen) -> Reply:
    if seen.method == "POST":
        if registry.identity_token is None:
            return Reply(404)
        if seen.form.get("refresh_token") != registry.identity_token:
            return Reply(401)
    elif registry.basic and seen.headers.get("authorization") != _basic(*registry.basic):
        return Reply(401)
    asked = seen.form.get("scope") or " ".join(parse_qs(urlsplit(seen.path).query).get("scope", []))
    return Reply(200, json.dumps({"token": registry.issue_token(asked), **registry.token_reply}).encode())


def parse_scope(text: str) -> dict[str, set[str]]:
    """`type:name:actions …` as actions by resource."""
    parts = [scope.rpartition(":") for scope in text.split()]
    return {resource: set(actions.split(",")) for resource, _, actions in parts}


def _needed(seen: Seen) -> str:
    """Return the scope that a request needs: that of its repository, and of another to mount from."""
    if seen.path.startswith("/v2/_catalog"):
        return "registry:catalog:*"
    repository = re.split("/(?:blobs|manifests|tags|referrers)/", seen.path.removeprefix("/v2/"))[0]
    actions = "pull" if seen.method in ("GET", "HEAD") and "/uploads/" not in seen.path else "pull,push"
    if seen.method == "DELETE" and "/uploads/" not in seen.path:
        actions = "delete"
    lent = parse_qs(urlsplit(seen.path).query).get("from", [])
    return " ".join([f"repository:{repository}:{actions}", *(f"repository:{name}:pull" for name in lent)])


def _covers(granted: dict[str, set[str]] | None, needed: str) -> bool:
    """Return whether a token is good for a scope; one that was not asked for with a scope is good for all."""
    return not granted or all(
        actions <= granted.get(name, set()) for name, actions in parse_scope(needed).items()
    )


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _sent_elsewhere(registry: FaultServer, seen: Seen) -> Reply | None:
    """Return the redirect to where the blobs are, or the refusal of one who comes with a wrong signature."""
    parts = urlsplit(seen.path)
    if registry.blob_host:
        target = f"http://{registry.blob_host}{parts.path}?sig={registry.signature}"
        return Reply(307, b"elsewhere", {"Location": target})
    signature = parse_qs(parts.query).get("sig", [""])[0]
    if registry.signatures is not None and signature not in registry.signatures:
        return Reply(403, b"<Error>expired</Error>")
    return None


def _blob(registry: FaultServer, seen: Seen, fault: Fault) -> Reply:
    digest = urlsplit(seen.path).path.rsplit("/", 1)[1]
    body = registry.blobs.get(digest)
    if body is None:
        return registry_error(404, "BLOB_UNKNOWN")
    return _ranged(body, None if fault.ignore_range else seen.headers.get("range"))


def _ranged(body: bytes, asked: str | None) -> Reply:
    match = _RANGE.fullmatch(asked or "")
    if not match:
        return Reply(200, body)
    first, last = int(match[1]), min(int(match[2]), len(body) - 1)
    if first >= len(body):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
    return Reply(206, body[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(body)}"})


def _manifest(registry: FaultServer, path: str) -> Reply:
    repository, _, name = path.removeprefix("/v2/").partition("/manifests/")
    found = registry.manifests.get((repository, name))
    if found is None:
        return registry_error(404, "MANIFEST_UNKNOWN")
    media_type, body = found
    digest = {"Docker-Content-Digest": str(Digest.of(body))} if registry.with_digest_header else {}
    tag = {"ETag": _etag(body)} if registry.conditional else {}
    return Reply(200, body, {"Content-Type": media_type, **digest, **tag})


def _etag(body: bytes) -> str:
    return f'"{Digest.of(body).hex}"'


def _take_manifest(registry: FaultServer, seen: Seen) -> Reply:
    repository, _, name = seen.path.removeprefix("/v2/").partition("/manifests/")
    there = registry.manifests.get((repository, name))
    if registry.conditional and not _holds(seen.headers, there and there[1]):
        return registry_error(412, "PRECONDITION_FAILED")
    fields = json.loads(seen.body) if seen.body.startswith(b"{") else {}
    named = [entry["digest"] for entry in fields.get("manifests", [])]
    if registry.strict and any((repository, digest) not in registry.manifests for digest in named):
        return registry_error(404, "MANIFEST_BLOB_UNKNOWN")
    taken = registry.add_manifest(
        repository, None if ":" in name else name, seen.body, seen.headers["content-type"]
    )
    subject = fields.get("subject") if registry.referrers_api else None
    processed = {"OCI-Subject": subject["digest"]} if subject else {}
    return Reply(201, b"", {"Docker-Content-Digest": str(taken.digest), **processed})


def _holds(headers: Mapping[str, str], there: bytes | None) -> bool:
    """Return whether the conditions of a request hold for what is there (RFC 9110, 13.1)."""
    if "if-match" in headers:
        return there is not None and headers["if-match"] == _etag(there)
    return there is None or headers.get("if-none-match") != "*"


def _delete_manifest(registry: FaultServer, path: str) -> Reply:
    """Delete a manifest by its digest, and the tags that name it."""
    repository, _, digest = path.removeprefix("/v2/").partition("/manifests/")
    if not registry.deletes:
        return registry_error(405, "UNSUPPORTED")
    found = registry.manifests.get((repository, digest))
    if found is None:
        return registry_error(404, "MANIFEST_UNKNOWN")
    for key in [key for key, value in registry.manifests.items() if key[0] == repository and value == found]:
        if key[1] == digest or not registry.keeps_tags:
            del registry.manifests[key]
    return Reply(202)


def _referrers(registry: FaultServer, seen: Seen) -> Reply:
    """Return the list of what refers to a manifest (distribution-spec, "Listing Referrers")."""
    parts = urlsplit(seen.path)
    repository, _, subject = parts.path.removeprefix("/v2/").partition("/referrers/")
    query = {key: values[0] for key, values in parse_qs(parts.query).items()}
    found = list(_entries(registry, repository, subject))
    headers = {"Content-Type": OCI_INDEX}
    if registry.referrers_filter and "artifactType" in query:
        found = [entry for entry in found if entry["artifactType"] == query["artifactType"]]
        headers["OCI-Filters-Applied"] = "artifactType"
    first = int(query.get("after", "0"))
    end = first + (registry.referrers_page or len(found))
    if end < len(found):
        headers["Link"] = f'<{parts.path}?{urlencode({**query, "after": end})}>; rel="next"'
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found[first:end]}
    return Reply(200, json.dumps(body).encode(), headers)


def _entries(registry: FaultServer, repository: str, subject: str) -> Iterator[dict[str, Any]]:
    for (name, digest), (media_type, body) in registry.manifests.items():
        fields = json.loads(body) if name == repository and ":" in digest and body.startswith(b"{") else {}
        if fields.get("subject", {}).get("digest") == subject:
            kind = fields.get("artifactType") or fields["config"]["mediaType"]
            notes = {"annotations": fields["annotations"]} if "annotations" in fields else {}
            entry = {"mediaType": media_type, "digest": digest, "size": len(body), "artifactType": kind}
            yield entry | notes


def _catalog(repositories: Sequence[str], seen: Seen) -> Reply:
    query = parse_qs(urlsplit(seen.path).query)
    count, last = int(query.get("n", ["100"])[0]), query.get("last", [""])[0]
    if count > 1000:
        return registry_error(400, "PAGINATION_NUMBER_INVALID")
    after = [name for name in repositories if name > last]
    page = after[:count]
    link = {"Link": f'</v2/_catalog?n={count}&last={page[-1]}>; rel="next"'} if len(page) < len(after) else {}
    return Reply(200, json.dumps({"repositories": page}).encode(), link)


def _tag_list(registry: FaultServer, seen: Seen) -> Reply:
    parts = urlsplit(seen.path)
    repository = parts.path.removeprefix("/v2/").removesuffix("/tags/list")
    tags = registry.tags.get(repository)
    if tags is None:
        return registry_error(404, "NAME_UNKNOWN")
    query = parse_qs(parts.query)
    last = query.get("last", [""])[0]
    after = tags[tags.index(last) + 1 :] if last else tags
    page = after[: int(query.get("n", ["1000"])[0])][:100]
    following = f'<{parts.path}?n=100&last={page[-1]}>; rel="next"' if len(page) < len(after) else None
    body = json.dumps({"name": repository, "tags": page}).encode()
    return Reply(200, body, {"Link": following} if following else {})

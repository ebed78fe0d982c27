"""The manifests of one repository, by tag or digest (distribution-spec, "Pulling manifests" and on)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import INDEX_TYPES, MANIFEST_TYPES
from imgfs.registry.amounts import MAX_MANIFEST
from imgfs.registry.refusal import delete_refusal, push_refusal
from imgfs.registry.retry import Busy
from imgfs.registry.session import Answer, Session
from imgfs.registry.upload import check_stored

_KEPT = 4  # manifests at hand
_ACCEPT = {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}


class Fetched(NamedTuple):
    """A manifest or index as it came; `etag` names this state of a tag, "" if the registry does not say."""

    descriptor: Descriptor
    body: bytes
    etag: str = ""


class Manifests:
    """The manifests of `name`, `registry/repository`. Safe in threads.

    `pushing` and `deleting` are the scopes that a token needs for it.
    """

    def __init__(self, session: Session, name: str, *, pushing: str, deleting: str) -> None:
        self._session = session
        self._name = name
        self._pushing = pushing
        self._deleting = deleting
        self._known: dict[Digest, Fetched] = {}  # the latest
        self._lock = threading.Lock()

    def head(self, name: str | Digest) -> Descriptor:
        """What a tag or digest names now, by HEAD; by GET if the answer to that is an error or does not tell.

        HEAD is a hint: registries and what stands before them answer it with 404, 401 or 403 where GET is
        answered well, and with another length: its length is never held against what GET brings.
        """
        try:
            headers = self._session.ask("HEAD", self._url(name), _ACCEPT).headers
        except Unavailable as error:
            if error.status is None or isinstance(error, Busy):
                raise
            return self.fetch(name).descriptor
        except RegistryError:
            return self.fetch(name).descriptor
        digest = name if isinstance(name, Digest) else _digest_in(headers)
        media_type, length = media_type_in(headers), headers.get("Content-Length", "")
        if digest is None or not length.isdecimal() or media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
            return self.fetch(name).descriptor
        return Descriptor(media_type, digest, int(length[:18]), size_is_hint=True)

    def fetch(self, name: str | Digest) -> Fetched:
        """A manifest or index, at most 4 MiB; raises IntegrityError if the bytes are not the digest's.

        One that has come already is not asked for again by its digest.
        """
        with self._lock:
            known = self._known.get(name) if isinstance(name, Digest) else None
        return known or self._keep(self._fetch(name))

    def _fetch(self, name: str | Digest) -> Fetched:
        def promised(answer: Answer) -> Digest:
            return name if isinstance(name, Digest) else _digest_in(answer.headers) or Digest.of(answer.body)

        def check(answer: Answer) -> None:
            promised(answer).verify(answer.body, f"digest of the manifest {self._name} {name}")

        answer = self._session.ask("GET", self._url(name), _ACCEPT, limit=MAX_MANIFEST, check=check)
        _, headers, body = answer
        descriptor = Descriptor(media_type_in(headers), promised(answer), len(body))
        return Fetched(descriptor, body, headers.get("ETag", "").strip())

    def _keep(self, fetched: Fetched) -> Fetched:
        with self._lock:
            self._known.pop(fetched.descriptor.digest, None)
            self._known[fetched.descriptor.digest] = fetched
            while len(self._known) > _KEPT:
                del self._known[next(iter(self._known))]
        return fetched

    def push(
        self,
        name: str | Digest,
        media_type: str,
        body: bytes,
        conditions: Mapping[str, str] | None = None,
    ) -> Mapping[str, str]:
        """Put a manifest or index under a tag or its digest: the answer's headers ("Pushing Manifests").

        `conditions` are headers such as If-Match: a registry that minds them may refuse with 412.
        """
        headers = {"Content-Type": media_type, **(conditions or {})}
        try:
            answer = self._session.ask("PUT", self._url(name), headers, body=body, scope=self._pushing)
        except RegistryError as error:
            raise push_refusal(error, self._name) from error
        check_stored(answer.headers, Digest.of(body))
        return answer.headers

    def delete(self, digest: Digest) -> None:
        """Delete a manifest, if it is there ("Deleting Manifests"); raises RegistryError."""
        with self._lock:
            self._known.pop(digest, None)
        try:
            self._session.ask("DELETE", self._url(digest), {}, scope=self._deleting)
        except NotFound:
            return
        except RegistryError as error:
            raise delete_refusal(error, self._name) from error

    def _url(self, name: str | Digest) -> str:
        return self._session.at(f"manifests/{name}")


def media_type_in(headers: Mapping[str, str]) -> str:
    """The media type of a body, without its parameters."""
    return headers.get("Content-Type", "").partition(";")[0].strip()


def _digest_in(headers: Mapping[str, str]) -> Digest | None:
    try:
        return Digest.parse(headers.get("Docker-Content-Digest"))
    except InvalidImage:
        return None

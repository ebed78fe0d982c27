"""What refers to the manifests of a repository (distribution-spec 1.1, "Listing Referrers").

A registry with the referrers API makes the lists itself. For one without, the client that pushes or deletes
keeps a list under a tag; several who do so at once may undo each other's changes, unless the registry minds
If-Match: so the list is read again after it was written.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial

from imgfs.errors import InvalidImage, LimitReached, NotFound, RegistryError, Unavailable
from imgfs.oci.artifact import (
    is_empty,
    of_type,
    parse_referrers,
    referrers_tag,
    with_referrer,
    without_referrer,
)
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import OCI_INDEX
from imgfs.parallel import begun
from imgfs.registry.manifests import Fetched, Manifests, media_type_in, pages
from imgfs.registry.session import Answer, HttpSession

_MOST = 10_000  # referrers of one manifest that are looked at; each takes half a kilobyte of memory
_REFUSALS = 3  # by the API after which it is given up: what stands before a registry may refuse it always
_ROUNDS = 3  # of reading and writing a list that others write, too

_Change = Callable[[bytes | None], bytes | None]  # a list's body, None if there is no list


class Referrers:
    """The referrers in the session's repository, whose manifests are `manifests`. Safe in threads."""

    def __init__(self, session: HttpSession, manifests: Manifests) -> None:
        self._session = session
        self._manifests = manifests
        self._has_api: bool | None = None  # None until the registry has shown it
        self._writing = threading.Lock()

    def of(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests that refer to `subject`, with their artifact types and annotations.

        Perhaps none.

        The first time the API and the tag are asked at once: a registry without the API costs no second round
        trip. Raises RegistryError, InvalidImage for a list whose later pages are broken.
        """
        tagged: Future[list[Descriptor]] | None = None
        if self._has_api is None:
            with contextlib.suppress(LimitReached):
                tagged = begun(partial(self._tagged, subject), "imgfs-referrers")
        found = None if self._has_api is False else self._listed(subject, artifact_type)
        self._has_api = found is not None
        if found is None:
            found = tagged.result() if tagged else self._tagged(subject)
        return of_type(found, artifact_type)

    def add(self, subject: Digest, entry: Descriptor) -> None:
        """Have `entry` in the list under the subject's tag ("Pushing Manifests with Subject").

        Raises InvalidImage if that tag names something else.
        """
        try:
            self._change(subject, lambda body: with_referrer(body, entry))
        except InvalidImage as error:
            raise InvalidImage(
                f"the tag {referrers_tag(subject)} is not a list of referrers: {error}"
            ) from error

    def remove(self, subject: Digest, digest: Digest) -> None:
        """Have `digest` not in the list under the subject's tag, if there is one ("Deleting Manifests")."""
        with contextlib.suppress(InvalidImage):  # the tag of something else
            self._change(subject, lambda body: body and without_referrer(body, digest))

    def _listed(self, subject: Digest, artifact_type: str | None) -> list[Descriptor] | None:
        """Return what the API says; None if there is none: a refusal, or an answer that is no index.

        Registries without it answer with 404, 400 or 405, or with the page of a website.
        """
        query = {"artifactType": artifact_type} if artifact_type else {}
        found: dict[Digest, Descriptor] = {}
        first = True
        try:
            url = self._session.at(f"referrers/{subject}", **query)
            for answer in pages(self._session, url, {"Accept": OCI_INDEX}, refusals=_REFUSALS):
                found |= {entry.digest: entry for entry in _page(answer)}
                first = False
                if len(found) >= _MOST:
                    break
        except Unavailable:
            raise
        except (RegistryError, InvalidImage):
            if first:
                return None
            raise
        return list(found.values())[:_MOST]

    def _tagged(self, subject: Digest) -> list[Descriptor]:
        """Return what the list under the subject's tag says; what is no list has no referrers in it."""
        try:
            return parse_referrers(self._manifests.fetch(referrers_tag(subject)).body)
        except (NotFound, InvalidImage):
            return []

    def _change(self, subject: Digest, change: _Change) -> None:
        """Change the list under a tag until it is, when read again, as `change` would have it.

        go-containerregistry's registry deletes a list by its digest, and has it by its tag all the same.
        """
        tag = referrers_tag(subject)
        before: Fetched | None = None
        with self._writing:
            for left in reversed(range(_ROUNDS)):
                kept = self._kept(tag)
                body = change(kept.body if kept else None)
                if body is None or (kept and kept.body == body):
                    return
                stayed = kept is not None and before is not None and kept.body == before.body
                if stayed or kept is None or not is_empty(body) or not self._deleted(kept):
                    self._write(tag, body, _unchanged(kept) if left else {})
                before = kept

    def _kept(self, tag: str) -> Fetched | None:
        try:
            return self._manifests.fetch(tag)
        except NotFound:
            return None

    def _deleted(self, kept: Fetched) -> bool:
        """Delete a list; False where nothing may be deleted: an empty one says the same."""
        try:
            self._manifests.delete(kept.descriptor.digest)
        except Unavailable:
            raise
        except RegistryError:
            return False
        return True

    def _write(self, tag: str, body: bytes, conditions: Mapping[str, str]) -> None:
        """Write a list, unless another was faster and the registry says so."""
        try:
            self._manifests.push(tag, OCI_INDEX, body, conditions)
        except RegistryError as error:
            if error.code == "MANIFEST_BLOB_UNKNOWN":  # an entry outlived its manifest
                self._manifests.push(tag, OCI_INDEX, self._living(body), conditions)
            elif error.status != 412:
                raise

    def _living(self, body: bytes) -> bytes:
        """Return a list without the entries whose manifests are not there any more."""
        for entry in parse_referrers(body):
            try:
                self._manifests.head(entry.digest)
            except NotFound:
                body = without_referrer(body, entry.digest)
        return body


def _page(answer: Answer) -> list[Descriptor]:
    if media_type_in(answer.headers) != OCI_INDEX:
        raise InvalidImage("not an OCI image index", where="referrers")
    return parse_referrers(answer.body)


def _unchanged(kept: Fetched | None) -> Mapping[str, str]:
    """Return the condition that a tag is still as it was read (RFC 9110, 13.1).

    Weak tags never match there.
    """
    if kept is None:
        return {"If-None-Match": "*"}
    return {"If-Match": kept.etag} if kept.etag.startswith('"') else {}

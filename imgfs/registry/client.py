"""One repository at one endpoint: its manifests, blobs, tags and referrers (OCI distribution-spec).

What comes out is what a digest promised, or an error: documents are checked here; of blobs the length is, and
the digest of a range is for its reader to check. What goes in is checked on its way. Safe in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from imgfs.errors import ImgfsError, NotFound, RegistryError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.registry.auth import KnownAuth
from imgfs.registry.blobs import Blobs
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import RegistryEndpoint, Traffic
from imgfs.registry.errors import push_refusal
from imgfs.registry.manifests import NO_REPOSITORY, Manifests, existing_tags, list_tags
from imgfs.registry.messages import CheckedBlob
from imgfs.registry.referrers import Referrers
from imgfs.registry.retry import Timeouts
from imgfs.registry.session import HttpSession
from imgfs.registry.upload import Upload


class Client:
    """Reads and fills the repository of an endpoint.

    `credentials` is asked again whenever the registry wants to know; `ca_bundle` is a PEM file to trust
    instead of the usual certificates. `noted` is told of every try that failed.
    """

    def __init__(
        self,
        endpoint: RegistryEndpoint,
        *,
        credentials: Callable[[], Credentials | None] = lambda: None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        ca_bundle: Path | None = None,
        noted: Callable[[ImgfsError], None] = lambda error: None,  # noqa: ARG005
    ) -> None:
        self._name = f"{endpoint.host}/{endpoint.repository}"
        self._session = HttpSession(
            endpoint, credentials=credentials, timeouts=timeouts, ca_bundle=ca_bundle, noted=noted
        )
        self._pushing = f"repository:{endpoint.repository}:pull,push"
        self._blobs = Blobs(self._session, self._name)
        self._manifests = Manifests(
            self._session, self._name, pushing=self._pushing, deleting=f"{self._pushing},delete"
        )
        self._referrers = Referrers(self._session, self._manifests)

    @property
    def traffic(self) -> Traffic:
        """Requests sent and body bytes received so far."""
        return self._session.traffic

    @property
    def known_auth(self) -> KnownAuth | None:
        """What the endpoint is known to want; secret."""
        return self._session.known_auth

    def learn_auth(self, known: KnownAuth) -> None:
        """Begin with what another process knows of the endpoint."""
        self._session.learn_auth(known)

    def connect_ahead(self, count: int) -> None:
        """Have so many connections made, for requests to come."""
        self._session.connect_ahead(count)

    def head_manifest(self, name: str | Digest) -> Descriptor:
        """Return what a tag or digest names now, by HEAD, which registries do not count as a pull.

        A registry whose answer lacks the digest, or is an error, is asked with GET; the size is a hint (see
        `Manifests.head`). Raises NotFound naming the tags there are.
        """
        try:
            return self._manifests.head(name)
        except NotFound as error:
            self._explain_missing(name, error)

    def tagged(self, tag: str | Digest) -> Descriptor:
        """Return what a tag that may well be missing names now: NotFound costs two requests."""
        return self._manifests.head(tag)

    def manifest(self, name: str | Digest, *, brief: bool = False) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest: its descriptor and its bytes, at most 4 MiB.

        Raises NotFound naming the tags there are, unless that is to be `brief`, IntegrityError if the bytes
        are not the digest's.
        """
        try:
            fetched = self._manifests.fetch(name)
        except NotFound as error:
            if brief:
                raise
            self._explain_missing(name, error)
        return fetched.descriptor, fetched.body

    def blob_document(self, digest: Digest) -> bytes:
        """Fetch a small blob whole, such as a config, at most 8 MiB; its digest is checked."""
        return self._blobs.document(digest)

    def blob(
        self, descriptor: Descriptor, start: int = 0, end: int | None = None, *, url: str | None = None
    ) -> Iterator[bytes]:
        """Yield exactly the bytes `[start, end)` of a blob; see `Blobs.read`."""
        return self._blobs.read(descriptor, start, end, url=url)

    def ignores_ranges(self, digest: Digest) -> bool:
        """Return True if a range of this blob was answered with all of it; see `Blobs.ignores_ranges`."""
        return self._blobs.ignores_ranges(digest)

    def doubt(self, digest: Digest) -> None:
        """Note that a blob's bytes were wrong: the last target of its redirects is not asked again."""
        self._blobs.doubt(digest)

    def has_blob(self, digest: Digest) -> bool:
        """Ask by HEAD whether a blob is there; a refusal means no, and the push will be told why."""
        return self._blobs.exists(digest, scope=self._pushing)

    def push_blob(self, blob: CheckedBlob, *, mount_from: str | None = None) -> bool:
        """Bring a blob in; whether it had to be uploaded, rather than taken from the repository `mount_from`.

        Raises IntegrityError, and leaves nothing behind, if the blob's bytes do not have its digest.
        """
        digest = blob.descriptor.digest
        upload = Upload(
            self._session,
            self._session.at("blobs/uploads/"),
            blob,
            scope=self._pushing,
            exists=lambda: self.has_blob(digest),
        )
        if mount_from and upload.mount(mount_from):
            return False
        try:
            upload.run()
        except RegistryError as error:
            if error is blob.failure:
                raise
            raise push_refusal(error, self._name) from error
        return True

    def push_manifest(self, name: str | Digest, media_type: str, body: bytes) -> None:
        """Put a manifest or index under a tag or its digest ("Pushing Manifests")."""
        self._manifests.push(name, media_type, body)

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests that refer to `subject`, perhaps only those of one artifact type.

        Two requests at once the first time, and one from then on: whether it has the referrers API is known.
        """
        return self._referrers.of(subject, artifact_type)

    def push_referrer(self, subject: Digest, entry: Descriptor, body: bytes) -> None:
        """Put a manifest about `subject` under its digest; list it if the registry does not say that it does.

        `entry` is what the list is to have ("Pushing Manifests with Subject").
        """
        headers = self._manifests.push(entry.digest, entry.media_type, body)
        if headers.get("OCI-Subject", "").strip() != str(subject):
            self._referrers.add(subject, entry)

    def delete_referrer(self, subject: Digest, digest: Digest) -> None:
        """Take a manifest out of the list of what is about `subject`, if clients keep that, and delete it.

        In this order, so that no list names what is not there: some registries take no such list. Raises
        RegistryError saying that the registry does not allow deletion: then it is no longer listed, at least.
        """
        self._referrers.remove(subject, digest)
        self._manifests.delete(digest)

    def tags(self, limit: int) -> list[str]:
        """Up to `limit` of the repository's tags, in the registry's order ("Listing Tags").

        Raises NotFound that names the repository.
        """
        try:
            return list_tags(self._session, limit)
        except NotFound as error:
            text = f"{self._name}: {NO_REPOSITORY}"
            raise NotFound(text, status=error.status, code=error.code, url=error.url) from error

    def close(self) -> None:
        """Close the connections; pauses before another try end at once."""
        self._session.close()

    def _explain_missing(self, name: str | Digest, error: NotFound) -> NoReturn:
        if isinstance(name, Digest):
            text = f"{self._name} has no manifest {name}"
        else:
            text = f"{self._name} has no tag {name!r}; {existing_tags(self._session)}"
        raise NotFound(text, status=error.status, code=error.code, url=error.url) from error


def check_login(
    endpoint: RegistryEndpoint,
    credentials: Credentials,
    *,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> bool:
    """Ask for the registry's root with `credentials` (distribution-spec, "Determining Support").

    Return True if the registry asked for them; one that allows anonymous requests does not check them. Raises
    Unauthorized if they are refused, RegistryError if there is no registry.
    """
    wanted = False

    def show() -> Credentials:
        nonlocal wanted
        wanted = True
        return credentials

    root = replace(endpoint, repository="")
    with closing(HttpSession(root, credentials=show, timeouts=timeouts, ca_bundle=ca_bundle)) as session:
        try:
            session.ask("GET", f"{endpoint.url}/", {})
        except NotFound as error:
            text = f"{endpoint.host} is not a registry: {error}"
            raise RegistryError(text, status=error.status, url=error.url) from error
    return wanted

"""One blob's way into a repository (OCI distribution-spec, "Pushing Blobs").

An upload is begun by POST, filled by one PUT or by PATCHes, and closed by PUT with the digest. One that is
cut goes on where the registry says it stands; one that the registry has forgotten begins anew; one that is
given up is cancelled.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import NamedTuple
from urllib.parse import urlencode

from imgfs.errors import IntegrityError, InvalidImage, RegistryError, Unavailable
from imgfs.oci.descriptor import Digest
from imgfs.registry.messages import Body, CheckedBlob, Response
from imgfs.registry.retry import Busy
from imgfs.registry.session import HttpSession
from imgfs.registry.ssrf import upload_target
from imgfs.registry.urls import redact

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")  # some registries write it as a request's
_OCTETS = {"Content-Type": "application/octet-stream"}
_UNTAKEN = 64 << 20  # bytes that are sent again of any blob, beside as many as it has
_LONGEST_MINIMUM = 1 << 30  # bytes; a larger minimum for chunks is nonsense
# what registries say of a chunk that is no news of the blob: no chunks here, or none of this size (GHCR: 416
# for more than 4 MiB, while a whole blob may have any size)
_NO_CHUNKS = (400, 405, 411, 413, 415, 416)


class ChunkSizes(NamedTuple):
    """How many bytes go in one request: a blob of up to `whole` bytes, or `chunk` bytes of a larger one."""

    whole: int = 32 << 20
    chunk: int = 16 << 20


class UploadLocation(NamedTuple):
    """An upload that has been begun: where its next bytes go, and how many it has got.

    `minimum` is the size in bytes that all chunks but the last must have ("OCI-Chunk-Min-Length").
    """

    url: str
    offset: int = 0
    minimum: int = 0

    def chunk_end(self, size: int, chunk: int) -> int:
        """Return where the next chunk, of `chunk` bytes if so few will do, of a blob of `size` bytes ends."""
        return min(size, self.offset + max(chunk, self.minimum))


def location_of(url: str, headers: Mapping[str, str], status: int, *, verify: bool = True) -> UploadLocation:
    """Return where the answer to the POST at `url` says that the upload is; raises RegistryError.

    Refused is a location out of TLS if certificates are to be verified (`upload_target`).
    """
    location = headers.get("Location")
    if not location:
        raise RegistryError(f"{redact(url)}: {status}, but no place to upload to", url=redact(url))
    minimum = headers.get("OCI-Chunk-Min-Length", "").strip()
    given = int(minimum[:19]) if minimum.isascii() and minimum.isdigit() else 0
    return UploadLocation(upload_target(url, location, verify=verify), 0, min(given, _LONGEST_MINIMUM))


def received(headers: Mapping[str, str]) -> int | None:
    """Return how many bytes `Range: 0-N` says that an upload has; None if it does not say.

    `0-0` says nothing: one byte by the specification, none by distribution's registry.
    """
    match = _RANGE.fullmatch(headers.get("Range", "").strip())
    return int(match[1]) + 1 if match and int(match[1]) else None


def with_query(url: str, **fields: str) -> str:
    """`url` with `fields` added to whatever query it has: a registry keeps its state there."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(fields, safe=':/')}"


class Upload:
    """The upload of `blob` to the repository whose uploads begin at `begin_url`.

    `scope` is what a token must allow; `exists` asks whether the repository has the blob meanwhile.
    """

    def __init__(
        self,
        session: HttpSession,
        begin_url: str,
        blob: CheckedBlob,
        *,
        scope: str,
        exists: Callable[[], bool],
        sizes: ChunkSizes = ChunkSizes(),  # noqa: B008 - frozen
    ) -> None:
        self._session = session
        self._begin_url = begin_url
        self._blob = blob
        self._size = blob.descriptor.size
        self._digest = blob.descriptor.digest
        self._scope = scope
        self._exists = exists
        self._sizes = sizes
        self._patience = session.patience()
        self._at: UploadLocation | None = None
        self._farthest = 0  # bytes that the registry had at most: what is sent again is no progress
        self._sent = 0  # bytes of this upload that have left
        self._untaken = 0  # bytes of chunks that were taken in part, without those that were taken
        self._in_chunks = True  # until the registry refuses the first one
        self._resumed = 0  # the offset at which the upload was resumed last

    def mount(self, repository: str) -> bool:
        """Ask for the blob out of another repository of the registry ("Mounting a blob from another").

        A registry that does not do it has begun an upload instead, or refuses: then the blob is to be sent.
        """
        url = with_query(self._begin_url, mount=str(self._digest), **{"from": repository})
        scope = f"{self._scope} repository:{repository}:pull"
        try:
            with closing(self._session.follow("POST", url, {}, self._patience, scope=scope)) as response:
                if response.status == 201:
                    return True
                self._at = self._location_in(response)
        except RegistryError:  # not allowed, not known or not now: no reason not to upload
            self._at = None
        return False

    def run(self) -> None:
        """Upload the blob. Raises RegistryError, IntegrityError, or what `open_at` of the blob raises."""
        self._blob.check_empty()
        done = False
        try:
            while not done:
                try:
                    done = self._advance()
                except RegistryError as error:
                    done = self._recover(error)
        finally:
            if not done:
                self._cancel()

    def _advance(self) -> bool:
        """Take the next step; whether it was the last."""
        at = self._at
        if at is None:
            self._begin()
        elif at.offset == 0 and (self._size <= self._sizes.whole or not self._in_chunks):
            self._close(at, self._size)
            return True
        elif at.offset < self._size:
            self._send_chunk(at)
        else:
            self._close(at, 0)
            return True
        return False

    def _begin(self) -> None:
        with closing(self._follow("POST", self._begin_url, {})) as response:
            self._at = self._location_in(response)
            self._sent = self._resumed = 0

    def _location_in(self, response: Response) -> UploadLocation:
        return location_of(response.url, response.headers, response.status, verify=self._session.verifies)

    def _send_chunk(self, at: UploadLocation) -> None:
        """PATCH the next chunk. Its range is `first-last`, without a unit ("Pushing a blob in chunks").

        A 202 means all of it, unless the registry names an offset within the chunk: the `Range` of some stays
        behind what they have (Amazon ECR). One that took a byte of each chunk would never end otherwise.
        """
        end = at.chunk_end(self._size, self._sizes.chunk)
        headers = {**_OCTETS, "Content-Range": f"{at.offset}-{end - 1}"}
        with closing(self._follow("PATCH", at.url, headers, at.offset, end)) as response:
            known = received(response.headers)
            offset = known if known and at.offset < known < end else end
            self._untaken += end - offset
            if self._untaken > self._size + _UNTAKEN:
                raise RegistryError(f"{redact(at.url)}: takes only parts of what is sent, again and again")
            self._moved(at, offset, response.headers)

    def _close(self, at: UploadLocation, length: int) -> None:
        """PUT what is left of the blob and its digest; check the digest that the registry found."""
        url = with_query(at.url, digest=str(self._digest))
        with closing(self._follow("PUT", url, _OCTETS, self._size - length, self._size)) as response:
            check_stored(response.headers, self._digest)

    def _follow(
        self, method: str, url: str, headers: Mapping[str, str], start: int = 0, end: int = 0
    ) -> Response:
        """Send a request with the bytes `[start, end)`.

        Storing takes its time, which each step on the socket bounds: it is not held against the deadline.
        """
        began = time.monotonic()
        self._sent = max(self._sent, end)
        body = Body(self._blob, start, end)
        try:
            return self._session.follow(method, url, headers, self._patience, body=body, scope=self._scope)
        finally:
            if method in ("PATCH", "PUT"):
                self._patience.suspend(time.monotonic() - began)

    def _recover(self, error: RegistryError) -> bool:
        """After a refusal: see to it that there is a next step, or raise; whether none is needed."""
        if error is self._blob.failure:
            raise error
        at = self._at
        if at and self._takes_no_chunks(error):
            self._in_chunks = False
            self._begin_anew()
            return False
        lost = at is not None and error.status in (404, 416)  # the upload is gone, or stands elsewhere
        if not lost and not isinstance(error, Unavailable):
            raise error
        self._patience.pause(error)
        return at is not None and self._look_up(at, error)

    def _takes_no_chunks(self, error: RegistryError) -> bool:
        """Return whether `error` refuses the first chunk of a blob that can still be sent as a whole."""
        first = self._size > self._sizes.whole and not self._farthest
        return first and self._in_chunks and error.status in _NO_CHUNKS

    def _look_up(self, at: UploadLocation, error: RegistryError) -> bool:
        """Go on where the upload stands, or begin anew; whether the blob is there: an answer may be lost.

        An upload that refuses what goes on at the offset it has named itself begins anew: Gitea names one too
        many, and takes nothing more after a chunk that was cut.
        """
        headers = self._ask_where(at)
        if headers is None:  # distribution's registry forgets an upload that was cut within a request
            self._at = None
            return self._exists()
        offset = received(headers)
        is_stuck = offset == self._resumed and error.status is not None and not isinstance(error, Busy)
        if offset and not is_stuck and self._in_chunks and offset <= min(self._sent, self._size):
            self._resumed = offset
            self._moved(at, offset, headers)
        else:
            self._begin_anew()
        return False

    def _ask_where(self, at: UploadLocation) -> Mapping[str, str] | None:
        """Return what the registry says of an upload; None if it does not know it (any more)."""
        while True:
            try:
                with closing(self._follow("GET", at.url, {})) as response:
                    return response.headers
            except Unavailable as error:
                self._patience.pause(error)
            except RegistryError:
                return None

    def _begin_anew(self) -> None:
        self._cancel()
        self._at = None

    def _moved(self, at: UploadLocation, offset: int, headers: Mapping[str, str]) -> None:
        """Note that the upload has `offset` bytes, and where the next ones go."""
        location = headers.get("Location")
        url = upload_target(at.url, location, verify=self._session.verifies) if location else at.url
        self._at = UploadLocation(url, offset, at.minimum)
        self._patience.progressed(max(0, offset - self._farthest))
        self._farthest = max(self._farthest, offset)

    def _cancel(self) -> None:
        """DELETE the upload ("Cancel a blob upload"), as far as the registry cares."""
        if self._at:
            with contextlib.suppress(RegistryError, InvalidImage):
                self._follow("DELETE", self._at.url, {}).close()


def check_stored(headers: Mapping[str, str], digest: Digest) -> None:
    """Raise IntegrityError if the registry says that what it has stored has another digest.

    A digest of another algorithm says nothing: some registries answer in their own.
    """
    try:
        stored = Digest.parse(headers.get("Docker-Content-Digest"))
    except InvalidImage:
        return
    if stored.algorithm == digest.algorithm and stored != digest:
        raise IntegrityError("digest of what the registry stored", expected=digest, actual=stored)

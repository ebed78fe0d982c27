"""Signatures by OpenPGP, which a registry keeps beside an image, or a web server in its place.

containers/image, docs/signature-protocols.md: the extension of the registry's API, which it announces by a
header, and the lookaside store, files called signature-1, signature-2 and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, Unauthorized, UsageError
from imgfs.oci.descriptor import Digest
from imgfs.oci.fields import decode_base64, object_at, objects_in, parse_json, text_in
from imgfs.registry.candidates import short_timeouts
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.mirrors import FindCredentials
from imgfs.registry.retry import Timeouts
from imgfs.registry.session import HttpSession
from imgfs.registry.urls import UrlError, parse_url, redact, shown

MOST_SIGNATURES = 128  # of a manifest; as in containers/image
LARGEST_SIGNATURE = 4 << 20  # bytes, and of a list of them; as there
_LARGEST_TOGETHER = 32 << 20  # bytes
_HEADER = "X-Registry-Supports-Signatures"
_VERSION, _TYPE = 2, "atomic"


class StoredSignature(NamedTuple):
    """The bytes of a signature as they were found, and where."""

    body: bytes
    where: str


class SignatureClient:
    """Asks registries, and the web servers that stand in for them, for the signatures of manifests.

    The arguments are those of `Mirrored`. Raises RegistryError, InvalidImage.
    """

    def __init__(
        self, find_credentials: FindCredentials, *, timeouts: Timeouts, ca_bundle: Path | None = None
    ) -> None:
        self._find_credentials = find_credentials
        self._timeouts = timeouts
        self._ca_bundle = ca_bundle

    def by_extension(
        self, endpoint: RegistryEndpoint, digest: Digest, *, is_last: bool = True
    ) -> list[StoredSignature] | None:
        """Ask a registry for the messages that sign a manifest; None if it does not say that it keeps any.

        One that is not the last to be asked has less time.
        """
        credentials = partial(self._find_credentials, endpoint.host, endpoint.repository)
        timeouts = self._timeouts if is_last else short_timeouts(self._timeouts)
        with closing(self._session(endpoint, credentials, timeouts)) as session:
            try:
                headers = session.ask("GET", f"{endpoint.url}/", {}).headers
            except (NotFound, Unauthorized):  # what answers for repositories alone has no extension either
                return None
            if headers.get(_HEADER) != "1":
                return None
            root = endpoint.url.removesuffix("/v2")
            url = f"{root}/extensions/v2/{endpoint.repository}/signatures/{digest}"
            body = session.ask("GET", url, {}, limit=LARGEST_SIGNATURE).body
        return [StoredSignature(one, redact(url)) for one in parse_signature_list(body, redact(url))]

    def at(self, base: str, endpoint: RegistryEndpoint) -> Iterator[StoredSignature]:
        """Yield the signatures below a URL of the web; certificates are verified as those of `endpoint`.

        Credentials are sent nowhere, the client certificate to the registry's host only. Raises UsageError
        for a URL that cannot be asked.
        """
        try:
            url = parse_url(base)
        except UrlError as error:
            raise UsageError(f"the lookaside store {shown(base)}: a URL {error}") from error
        is_own = url.origin == parse_url(redact(endpoint.url)).origin
        tls = endpoint.tls if is_own else endpoint.tls._replace(clients=())
        place = RegistryEndpoint(f"{url.scheme}://{url.netloc}", url.netloc, "", tls=tls)
        with closing(self._session(place, lambda: None, self._timeouts)) as session:

            def read(name: str) -> StoredSignature:
                answer = session.ask("GET", f"{url}/{name}", {}, limit=LARGEST_SIGNATURE)
                return StoredSignature(answer.body, f"{url}/{name}")

            yield from numbered(read, base)

    def _session(
        self,
        endpoint: RegistryEndpoint,
        credentials: Callable[[], Credentials | None],
        timeouts: Timeouts,
    ) -> HttpSession:
        return HttpSession(endpoint, credentials=credentials, timeouts=timeouts, ca_bundle=self._ca_bundle)


def parse_signature_list(body: bytes, where: str) -> list[bytes]:
    """Return the signatures in an answer of the extension; those of other kinds are passed over."""
    found = []
    for entry in objects_in(object_at(parse_json(body, where), where), "signatures", where):
        if entry.get("schemaVersion") == _VERSION and entry.get("type") == _TYPE:
            found.append(decode_base64(text_in(entry, "content", where, default=""), f"{where}: content"))
    if len(found) > MOST_SIGNATURES:
        raise InvalidImage(f"more than {MOST_SIGNATURES} signatures", where=where)
    return found


def numbered(read: Callable[[str], StoredSignature], where: str) -> Iterator[StoredSignature]:
    """Yield what `read` returns for signature-1, signature-2 and so on, until it raises NotFound.

    Raises InvalidImage for more than there should be, in number or bytes.
    """
    together = 0
    for number in range(1, MOST_SIGNATURES + 1):
        try:
            found = read(f"signature-{number}")
        except NotFound:
            return
        together += len(found.body)
        if together > _LARGEST_TOGETHER:
            break
        yield found
    raise InvalidImage("too many signatures, or too large ones", where=where)

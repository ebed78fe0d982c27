"""Single HTTP requests over kept connections: timeouts on everything, bodies undecoded, traffic counted.

Redirects, authentication and further tries are the client's. Only this module imports requests, and only when
the first request is made: a command that needs no registry does not pay for it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from imgfs import __version__
from imgfs.errors import InvalidImage, RegistryError, Unavailable
from imgfs.registry.body import Body
from imgfs.registry.refusal import MAX_ERROR_BODY, redact, refusal
from imgfs.registry.retry import Patience, Timeouts

if TYPE_CHECKING:
    import requests
    from requests.adapters import HTTPAdapter

_READ = 256 << 10  # bytes asked of a socket at once
_CONNECTIONS = 32  # kept per host
_STORING = ("PUT", "PATCH")
# identity: a blob is its bytes as stored; an encoding on the way would hide them
_HEADERS = {"User-Agent": f"imgfs/{__version__}", "Accept-Encoding": "identity"}
_NEVER_BETTER = (
    "CERTIFICATE_VERIFY_FAILED",
    "WRONG_VERSION_NUMBER",
)  # OpenSSL's reasons; trying again is vain


class Traffic(NamedTuple):
    """Requests sent and body bytes received so far."""

    requests: int
    bytes: int


class Response:
    """An answer whose body is still on the wire; close it."""

    def __init__(self, response: requests.Response, url: str, transport: Transport) -> None:
        self._response = response
        self._transport = transport
        self._broken = False
        self.url = url
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    def chunks(self, patience: Patience) -> Iterator[bytes]:
        """The body as it arrives, undecoded; raises Unavailable when it is cut short or `patience` ends."""
        from urllib3.exceptions import HTTPError

        while True:
            try:
                chunk = self._response.raw.read1(_READ, decode_content=False)
            except (HTTPError, OSError) as error:
                self._broken = True
                raise Unavailable(f"{redact(self.url)}: the body was cut short: {_reason(error)}") from error
            if not chunk:
                return
            self._transport.count(0, len(chunk))
            patience.progressed(len(chunk))
            if patience.expired:
                self._broken = True
                raise Unavailable(f"{redact(self.url)}: too slow: given up")
            yield chunk

    def read(self, limit: int, patience: Patience) -> bytes:
        """The whole body; raises InvalidImage, without reading it, if it is longer than `limit` bytes."""
        announced = self.headers.get("Content-Length", "")
        body = bytearray()
        if not announced.isdecimal() or int(announced[:19]) <= limit:
            for chunk in self.chunks(patience):
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        size = announced or f"more than {limit}"
        raise InvalidImage(f"{redact(self.url)}: a document of {size} bytes; at most {limit} are allowed")

    def refusal(self, patience: Patience) -> RegistryError:
        """This error response as an exception, with what its body says if that is short."""
        body = b""
        with contextlib.suppress(Unavailable, InvalidImage):  # the status says enough
            body = self.read(MAX_ERROR_BODY, patience)
        return refusal(self.status, self.headers, body, self.url)

    def close(self) -> None:
        """Give the connection back: what is left of the body is read if that costs less than a new one."""
        from urllib3.exceptions import HTTPError

        left = self._response.raw.length_remaining
        if not self._broken and left is not None and left <= MAX_ERROR_BODY:
            with contextlib.suppress(HTTPError, OSError):
                self._response.raw.read(MAX_ERROR_BODY, decode_content=False)
        self._response.close()


class Transport:
    """Sends requests, from any number of threads. `ca_bundle` is a PEM file to trust instead of the usual."""

    def __init__(self, timeouts: Timeouts, *, ca_bundle: Path | None = None) -> None:
        self._timeouts = timeouts
        self._verify: str | bool = str(ca_bundle) if ca_bundle else True
        self._lock = threading.Lock()
        self._adapter: HTTPAdapter | None = None
        self._requests = 0
        self._bytes = 0

    @property
    def traffic(self) -> Traffic:
        """What went over the wire so far."""
        with self._lock:
            return Traffic(self._requests, self._bytes)

    def count(self, requests: int, received: int) -> None:
        """Add to the traffic."""
        with self._lock:
            self._requests += requests
            self._bytes += received

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, form: str | bytes | Body | None = None
    ) -> Response:
        """Send one request and read the answer's head; redirects are not followed.

        The answer to a PUT or PATCH may take up to the deadline: the registry moves and hashes what it has.
        Raises Unavailable if there is no answer, RegistryError if there cannot be one.
        """
        from requests import Request
        from requests.exceptions import InvalidHeader, InvalidSchema, InvalidURL, RequestException
        from urllib3.exceptions import HTTPError

        self.count(1, 0)
        timeouts = self._timeouts
        wait = max(timeouts.read, timeouts.deadline) if method in _STORING else timeouts.read
        try:
            # the adapter alone: a Session would read the bodies of redirects, however long, and add ~/.netrc
            response = self._opened().send(
                Request(method, url, headers={**_HEADERS, **headers}, data=form or None).prepare(),
                stream=True,
                timeout=(timeouts.connect, wait),
                verify=self._verify,
                proxies=_proxies(url),
            )
        except (InvalidURL, InvalidSchema, InvalidHeader) as error:
            raise RegistryError(f"{redact(url)}: cannot be asked for: {type(error).__name__}") from error
        except (RequestException, HTTPError, OSError) as error:
            raise _no_answer(url, error) from error
        return Response(response, url, self)

    def close(self) -> None:
        """Close every connection that is not in use."""
        with self._lock:
            adapter, self._adapter = self._adapter, None
        if adapter:
            adapter.close()

    def _opened(self) -> HTTPAdapter:
        from requests.adapters import HTTPAdapter

        with self._lock:
            if self._adapter is None:
                self._adapter = HTTPAdapter(pool_connections=_CONNECTIONS, pool_maxsize=_CONNECTIONS)
            return self._adapter


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _proxies(url: str) -> dict[str, str]:
    """The proxies that $HTTP_PROXY and its kin ask for; never one for this machine."""
    from requests.utils import get_environ_proxies

    return {} if is_loopback(urlsplit(url).netloc.rpartition("@")[2]) else dict(get_environ_proxies(url))


def _no_answer(url: str, error: Exception) -> RegistryError:
    text = f"{redact(url)}: no answer: {_reason(error)}"
    tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if tls and tls.reason in _NEVER_BETTER:
        hint = " (no TLS there? --plain-http)" if tls.reason == "WRONG_VERSION_NUMBER" else ""
        return RegistryError(f"{text}{hint}", url=redact(url))
    return Unavailable(text, url=redact(url))


def _reason(error: BaseException) -> str:
    """The innermost cause in the system's words: those of requests and urllib3 quote the URL's secrets."""
    for cause in reversed(list(_causes(error))):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, TimeoutError):
            return "timed out"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__

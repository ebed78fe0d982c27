"""An answer to a request: its head, and its body as it comes, undecoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from imgfs.errors import InvalidImage, RegistryError, Unavailable
from imgfs.registry.failure import reason_of
from imgfs.registry.refusal import MAX_ERROR_BODY, redact, refusal
from imgfs.registry.retry import Patience

if TYPE_CHECKING:
    import requests

_READ = 256 << 10  # bytes asked of a socket at once


class Slot:
    """The right to have one more request under way, taken; or, without `slots`, one that needs none."""

    def __init__(self, slots: threading.Semaphore | None) -> None:
        self._slots = slots

    def give_back(self) -> None:
        """Once, however often it is said."""
        slots, self._slots = self._slots, None
        if slots:
            slots.release()


class Response:
    """An answer whose body is still on the wire; close it. `slot` is given back then.

    `count` is told of the bytes that arrive.
    """

    def __init__(
        self, response: requests.Response, url: str, count: Callable[[int], None], slot: Slot
    ) -> None:
        self._response = response
        self._count = count
        self._slot = slot
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
                raise Unavailable(
                    f"{redact(self.url)}: the body was cut short: {reason_of(error)}"
                ) from error
            if not chunk:
                return
            self._count(len(chunk))
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

        try:
            left = self._response.raw.length_remaining
            if not self._broken and left is not None and left <= MAX_ERROR_BODY:
                with contextlib.suppress(HTTPError, OSError):
                    self._response.raw.read(MAX_ERROR_BODY, decode_content=False)
            self._response.close()
        finally:
            self._slot.give_back()

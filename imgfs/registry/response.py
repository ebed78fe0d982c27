"""An answer to a request: its head, and its body as it comes, undecoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from imgfs.errors import InvalidImage, RegistryError, Unavailable
from imgfs.registry.errors import MAX_ERROR_BODY, reason_of, refusal
from imgfs.registry.retry import Patience
from imgfs.registry.urls import redact

if TYPE_CHECKING:
    from urllib3.response import BaseHTTPResponse

    from imgfs.registry.sockets import Deadline

_READ = 256 << 10  # bytes asked of a socket at once
_DRAIN = 0.25  # seconds for the end of a body that is not wanted: a new connection takes no longer


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

    `count` is told of the bytes that arrive. `deadline` is the connection's: whatever comes between two bytes
    of the body (lines of chunks, their extensions, trailers) has `step` seconds in all.
    """

    def __init__(
        self,
        response: BaseHTTPResponse,
        url: str,
        count: Callable[[int], None],
        slot: Slot,
        deadline: Deadline,
        step: float,
    ) -> None:
        self._raw = response
        self._count = count
        self._slot = slot
        self._deadline = deadline
        self._step = step
        self._broken = False
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    def chunks(self, patience: Patience) -> Iterator[bytes]:
        """The body as it arrives, undecoded; raises Unavailable when it is cut short or `patience` ends."""
        for chunk in self._arriving(patience):
            patience.progressed(len(chunk))
            self._check_pace(patience)
            yield chunk

    def _arriving(self, patience: Patience) -> Iterator[bytes]:
        from urllib3.exceptions import HTTPError

        while True:
            self._deadline.begin(min(self._step, patience.left))
            try:
                chunk = self._raw.read1(_READ, decode_content=False)
            except (HTTPError, OSError) as error:
                self._broken = True
                raise Unavailable(
                    f"{redact(self.url)}: the body was cut short: {reason_of(error)}"
                ) from error
            if not chunk:
                return
            self._count(len(chunk))
            yield chunk

    def _check_pace(self, patience: Patience) -> None:
        if patience.expired:
            self._broken = True
            raise Unavailable(f"{redact(self.url)}: too slow: given up")

    def read(self, limit: int, patience: Patience) -> bytes:
        """The whole body; raises InvalidImage, without reading it, if it is longer than `limit` bytes.

        A document is not a stream: that it goes on coming does not begin its deadline anew.
        """
        announced = self.headers.get("Content-Length", "")
        body = bytearray()
        if not announced.isdecimal() or int(announced[:19]) <= limit:
            for chunk in self._arriving(patience):
                body += chunk
                patience.grown(len(body))
                self._check_pace(patience)
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
            left = self._raw.length_remaining
            if not self._broken and left is not None and left <= MAX_ERROR_BODY:
                self._deadline.begin(_DRAIN)
                with contextlib.suppress(HTTPError, OSError):
                    self._raw.read(MAX_ERROR_BODY, decode_content=False)
            self._raw.close()
            self._raw.release_conn()
        finally:
            self._slot.give_back()

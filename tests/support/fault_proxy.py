"""A proxy before a real registry that misbehaves by a script, or as somebody decides for each request.

    with docker_registry(tmp_path) as host, FaultProxy(host) as proxy:
        push_image(host, "app", "v1", [blob])
        proxy.script(Step(CUT, skip=2), Step(Fault(status=503, body=b""), after=1 << 20, times=3))
        ...  # read f"{proxy.host}/app:v1"
        assert proxy.troubled == 4

What can go wrong with one request is a `Fault`. Tokens, credentials and signed redirects are asked for as
`FaultServer` does it, before a request is passed on: `token_server`, `basic`, `blob_host`, `signatures`.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from tests.support.fault_server import Fault, FaultServer, Reply, Seen
from tests.support.patience import allowed

_TIMEOUT = allowed(30.0)  # seconds for the registry behind
# what is said of one connection or message only (RFC 9110, 7.6.1)
_HOP = ("connection", "transfer-encoding", "keep-alive", "content-length")
_CREDENTIALS = ("authorization",)  # the proxy's to check
BLOBS = "/blobs/sha256:"
Decide = Callable[[str, str], Fault | None]  # (method, path): what goes wrong


@dataclass
class Step:
    """Something to go wrong with requests whose path `on`, a pattern, is found in.

    The first `skip` of them are spared, and all until `after` bytes of blobs have been sent; then `times` go
    wrong, None for every one of them.
    """

    fault: Fault
    on: str = BLOBS
    skip: int = 0
    after: int = 0
    times: int | None = 1

    def takes(self, path: str, sent: int) -> bool:
        """Return whether this request is one to go wrong; it is counted."""
        if self.times == 0 or sent < self.after or not re.search(self.on, path):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultProxy(FaultServer):
    """A proxy before the registry at `target`, `host:port`: a context manager.

    `decide` is asked about every request that the script says nothing of. `sent` counts bytes of blobs,
    `troubled` the requests that went wrong.
    """

    def __init__(self, target: str, decide: Decide | None = None) -> None:
        super().__init__()
        self.target = target
        self.decide = decide
        self.sent = 0
        self.troubled = 0
        self._steps: list[Step] = []

    def script(self, *steps: Step) -> None:
        """Have these go wrong from now on, and nothing else; the first that takes a request has it."""
        with self._lock:
            self._steps = list(steps)
            self.sent = 0
            self.troubled = 0

    def next_fault(self, method: str, path: str) -> Fault:
        """Return what goes wrong with this request."""
        with self._lock:
            taken = next((step.fault for step in self._steps if step.takes(path, self.sent)), None)
            taken = taken or (self.decide and self.decide(method, path)) or None
            self.troubled += taken is not None
        return taken or super().next_fault(method, path)

    def found(self, seen: Seen, fault: Fault) -> Reply:
        """Return what the registry answers; hangs up on the client if there is no answer."""
        hidden = {*_HOP, *_CREDENTIALS, *(("range",) if fault.ignore_range else ())}
        headers = {name: text for name, text in seen.headers.items() if name not in hidden}
        try:
            answer = _ask(self.target, seen, headers)
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        with self._lock:
            self.sent += len(answer.body) if re.search(BLOBS, seen.path) else 0
        return answer


def _ask(target: str, seen: Seen, headers: Mapping[str, str]) -> Reply:
    with closing(http.client.HTTPConnection(target, timeout=_TIMEOUT)) as connection:
        connection.request(seen.method, seen.path, seen.body or None, dict(headers))
        answer = connection.getresponse()
        body = answer.read()
        kept = {name: text for name, text in answer.getheaders() if name.lower() not in _HOP}
        if seen.method == "HEAD":  # the length of what was not sent
            kept["Content-Length"] = answer.getheader("Content-Length", "0")
        return Reply(answer.status, body, kept)


# -- what the world does -------------------------------------------------------------------------------------


def refusal(status: int, code: str, headers: Mapping[str, str] = MappingProxyType({})) -> Fault:
    """Return a refusal in the words of the distribution-spec."""
    body = json.dumps({"errors": [{"code": code, "message": "the proxy says so"}]}).encode()
    return Fault(status=status, body=body, headers={"Content-Type": "application/json", **headers})


class Trouble(NamedTuple):
    """A fault by its name, and a pattern of what is said of it when it lasts.

    Trouble that raises doubts about the bytes themselves is tried again once, other trouble several times.
    """

    name: str
    fault: Fault
    says: str
    doubted: bool = False


PASSING = (
    Trouble("no answer", Fault(drop=True), "no answer"),
    Trouble("reset", Fault(unanswered=True), "no answer"),
    Trouble("reset in mid-body", Fault(cut_after=5_000, reset=True), "cut short"),
    Trouble("cut at the first byte", Fault(cut_after=0), "cut short"),
    Trouble("cut in mid-body", Fault(cut_after=5_000), "cut short"),
    Trouble("cut in mid-body, in chunks", Fault(cut_after=5_000, chunked=True), "cut short"),
    Trouble("429", refusal(429, "TOOMANYREQUESTS", {"Retry-After": "1"}), "429"),
    Trouble("429 without Retry-After", refusal(429, "TOOMANYREQUESTS"), "429"),
    Trouble("500", refusal(500, "UNKNOWN"), "500"),
    Trouble("502 in HTML", Fault(status=502, body=b"<html>Bad Gateway</html>"), "502"),
    Trouble("503", refusal(503, "UNAVAILABLE", {"Retry-After": "0"}), "503"),
    Trouble("a flipped bit", Fault(flip_at=1_234), "expected [0-9a-f]+, got", doubted=True),
    Trouble(
        "wrong Content-Range", Fault(headers={"Content-Range": "bytes 7-8/9"}), "Content-Range", doubted=True
    ),
    Trouble(
        "416", Fault(status=416, body=b"", headers={"Content-Range": "bytes */7"}), "length", doubted=True
    ),
)
"""What a registry does in a bad minute, and a reader does not notice."""

HARMLESS = (
    Trouble("late", Fault(pause=0.3), ""),
    Trouble("slow", Fault(rate=3e6), ""),
    Trouble("200 for 206", Fault(ignore_range=True), ""),
)
"""What costs time and nothing else, even if it lasts."""

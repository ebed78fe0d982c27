"""Where metrics are served: `[HOST:]PORT`, on loopback if no host is given, or `unix:PATH`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_LOOPBACK = "127.0.0.1"
_TCP = re.compile(r"(?:(\[[0-9A-Fa-f:.%\w]+\]|[^:\[\]/]+):)?([0-9]{1,5})")
_LONGEST_PATH = 107  # bytes of a socket's path, without the NUL that ends it (unix(7), sun_path)


class Address(NamedTuple):
    """A TCP address, or, with a `path`, a socket in the file system. Port 0 is any that is free."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        """As a client is told it."""
        if self.path:
            return f"unix:{self.path}"
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/metrics"


def parse_address(text: str) -> Address:
    """Read what people write; a path is taken from here. Raises ValueError, saying what would do."""
    scheme, colon, path = text.partition(":")
    if scheme == "unix" and colon:
        whole = os.path.abspath(path)
        if not path or len(os.fsencode(whole)) > _LONGEST_PATH:
            raise ValueError(f"{text!r} is no socket: unix:PATH, of at most {_LONGEST_PATH} bytes")
        return Address(path=Path(whole))
    found = _TCP.fullmatch(text)
    if found is None or int(found[2]) > 0xFFFF:
        raise ValueError(f"{text!r} is no address: PORT, HOST:PORT or unix:PATH")
    return Address((found[1] or _LOOPBACK).strip("[]"), int(found[2]))

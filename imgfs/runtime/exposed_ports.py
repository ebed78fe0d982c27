"""The ports that an image exposes (image-spec config.md, `ExposedPorts`), published at free ones here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from imgfs.oci.reference import LAST_PORT
from imgfs.runtime.request import ContainerRequest, ImageDefaults, Network, PortMapping
from imgfs.runtime.rootfs import Refused

_EXPOSED = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/(tcp|udp))?", re.IGNORECASE)
_MOST = 1_024  # ports of an image that are published: each takes a socket of pasta's


def with_exposed_ports(request: ContainerRequest, defaults: ImageDefaults) -> ContainerRequest:
    """Return the request with the image's ports published, if it says so.

    Raises Refused for what is no port.
    """
    if not request.publish_all or request.network is not Network.PASTA:
        return request
    done = {(one.container, one.protocol) for one in request.ports}
    exposed = dict.fromkeys(port for text in defaults.exposed for port in _parse(text))
    missing = [port for port in exposed if port not in done]
    if len(missing) > _MOST:
        raise Refused(f"the image exposes {len(missing)} ports: at most {_MOST} are published")
    found = zip(free_ports("", [protocol for _, protocol in missing]), missing, strict=True)
    more = (PortMapping("", host, container, protocol) for host, (container, protocol) in found)
    return replace(request, ports=(*request.ports, *more))


def free_ports(address: str, protocols: Sequence[str]) -> list[int]:
    """Return a port of each protocol that no process has now, as podman chooses where none is given."""
    import socket  # here: few containers publish ports, and all know this module

    with contextlib.ExitStack() as stack:
        found = []
        for protocol in protocols:
            kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            free = stack.enter_context(socket.socket(family, kind))
            free.bind((address, 0))
            found.append(int(free.getsockname()[1]))
        return found


def _parse(text: str) -> Iterator[tuple[int, str]]:
    """PORT[-PORT][/PROTOCOL]."""
    match = _EXPOSED.fullmatch(text)
    first = int(match[1]) if match else 0
    last = int(match[2] or first) if match else 0
    if not match or not 1 <= first <= last <= LAST_PORT:
        raise Refused(f"the image exposes {text!r}: not a port of TCP or UDP (publish others with -p)")
    for port in range(first, last + 1):
        yield port, (match[3] or "tcp").lower()

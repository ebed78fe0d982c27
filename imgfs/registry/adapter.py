"""How requests connects: with a TLS context made here, and noticing when the other side is gone.

Only `transport` imports this module, when the first request is made.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

# A connection lies idle for hours between two reads. Probes keep it in the tables of what is on the way, and
# end it after a minute without an echo (tcp(7)).
_KEEP_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class Adapter(HTTPAdapter):
    """Keeps up to `connections` to each host. `context` is for those with TLS, None if there are none."""

    def __init__(self, context: ssl.SSLContext | None, connections: int) -> None:
        self._ours: dict[str, Any] = {
            "socket_options": [*HTTPConnection.default_socket_options, *_KEEP_ALIVE],
            **({"ssl_context": context} if context else {}),
        }
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **more: Any) -> None:
        """Give the context to what makes connections."""
        super().init_poolmanager(connections, maxsize, block, **more, **self._ours)

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        """Give it to what makes connections through a proxy, too."""
        return super().proxy_manager_for(proxy, **more, **self._ours)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave it to the context: requests would have it believe its own list as well."""

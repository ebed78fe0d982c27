"""A peer of this process: the server of a store, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imgfs.listening import ListenAddress
from imgfs.peers.server import PeerServer, ServerCertificates
from imgfs.store.store import Store

HERE = ListenAddress("127.0.0.1", 0)


@contextmanager
def peer(
    store: Path, address: ListenAddress = HERE, certificates: ServerCertificates | None = None
) -> Iterator[str]:
    """Serve the layers of a store; what clients are told."""
    server = PeerServer(Store(store), address, certificates)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        scheme = "" if address.path else "https://" if certificates else "http://"
        yield f"{scheme}{server.address}"
    finally:
        server.shutdown()
        thread.join()

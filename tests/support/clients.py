"""Clients of registries that tests run on this machine; fixtures: two registries, and a client of the first.

    server, other, client = clients.server, clients.other, clients.client

has a test module use the fixtures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from imgfs.registry.client import Client
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.retry import Timeouts
from tests.support.fault_server import FaultServer

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)


def endpoint_of(host: str, repository: str, **more: Any) -> RegistryEndpoint:
    """A repository of the registry at `host:port`, which speaks plain HTTP."""
    return RegistryEndpoint(f"http://{host}/v2", host, repository, **more)


def client_of(host: str, repository: str, **more: Any) -> Client:
    """A client of it."""
    return Client(endpoint_of(host, repository), **more)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def client(server: FaultServer) -> Iterator[Client]:
    client = client_of(server.host, "ns/app", timeouts=FAST)
    yield client
    client.close()

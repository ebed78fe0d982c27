"""Fixtures: a second registry beside `server`, and a client of a repository of `server`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from imgfs.registry.client import Client
from tests.support.clients import FAST, client_of
from tests.support.fault_server import FaultServer


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def client(server: FaultServer) -> Iterator[Client]:
    with closing(client_of(server.host, "ns/app", timeouts=FAST)) as client:
        yield client

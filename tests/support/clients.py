"""Clients of registries that tests run on this machine."""

from __future__ import annotations

from typing import Any

from imgfs.registry.client import Client
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.retry import Timeouts

FAST = Timeouts(connect=5.0, read=5.0, deadline=10.0, backoff=0.001)


def endpoint_of(host: str, repository: str, **more: Any) -> RegistryEndpoint:
    """Return a repository of the registry at `host:port`, which speaks plain HTTP."""
    return RegistryEndpoint(f"http://{host}/v2", host, repository, **more)


def client_of(host: str, repository: str, **more: Any) -> Client:
    """Return a client of it."""
    return Client(endpoint_of(host, repository), **more)

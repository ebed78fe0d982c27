"""Credentials are tried at the registry before they are kept."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

from imgfs.errors import NotFound, RegistryError
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.retry import Timeouts
from imgfs.registry.session import HttpSession


def check_login(
    endpoint: RegistryEndpoint,
    credentials: Credentials,
    *,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> bool:
    """Ask for the registry's root with `credentials` (distribution-spec, "Determining Support").

    Return True if the registry asked for them; one that allows anonymous requests does not check them. Raises
    Unauthorized if they are refused, RegistryError if there is no registry.
    """
    wanted = False

    def show() -> Credentials:
        nonlocal wanted
        wanted = True
        return credentials

    root = replace(endpoint, repository="")
    with closing(HttpSession(root, credentials=show, timeouts=timeouts, ca_bundle=ca_bundle)) as session:
        try:
            session.ask("GET", f"{endpoint.url}/", {})
        except NotFound as error:
            text = f"{endpoint.host} is no registry: {error}"
            raise RegistryError(text, status=error.status, url=error.url) from error
    return wanted

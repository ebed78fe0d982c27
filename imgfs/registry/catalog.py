"""The list of a registry's repositories (distribution's api.md, "Listing Repositories"): `GET /v2/_catalog`.

The OCI's specification does not have it, and many registries do not allow it, least of all public ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, RegistryError
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.endpoint import RegistryEndpoint
from imgfs.registry.errors import catalog_refusal
from imgfs.registry.manifests import has_next, pages
from imgfs.registry.retry import Timeouts
from imgfs.registry.session import HttpSession

_SCOPE = "registry:catalog:*"  # of a token (distribution's scope.md)
_PAGE = 1000  # names that are asked for at once; distribution refuses to give more, if not configured
_MOST_PAGES = 200
_LONGEST = 512  # characters of a name: twice what registries take
_TOO_MANY = 400  # the answer to a number of names that is larger than a page may have


class Catalog(NamedTuple):
    """Repositories, in the registry's order; not all of them unless it `is_whole`."""

    repositories: list[str]
    is_whole: bool


def list_repositories(
    endpoint: RegistryEndpoint,
    limit: int,
    *,
    credentials: Callable[[], Credentials | None] = lambda: None,
    timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ca_bundle: Path | None = None,
) -> Catalog:
    """List up to `limit` repositories of an endpoint's registry, in at most 200 pages.

    Raises RegistryError, which says if the registry does not allow it, InvalidImage for what is no list.
    """
    root = replace(endpoint, repository="")
    session = HttpSession(root, credentials=credentials, timeouts=timeouts, ca_bundle=ca_bundle)
    with closing(session):
        try:
            return _list(session, session.at("_catalog", n=str(max(1, min(limit, _PAGE)))), limit)
        except RegistryError as error:
            if error.status != _TOO_MANY:
                raise catalog_refusal(error, endpoint.host) from error
        try:
            return _list(session, session.at("_catalog"), limit)
        except RegistryError as error:
            raise catalog_refusal(error, endpoint.host) from error


def _list(session: HttpSession, url: str, limit: int) -> Catalog:
    found: list[str] = []
    more = False
    for answer in pages(session, url, {}, scope=_SCOPE, most=_MOST_PAGES):
        found += _names_in(answer.body)
        more = has_next(answer.headers)
        if len(found) >= limit:
            break
    return Catalog(found[:limit], not more and len(found) <= limit)


def _names_in(body: bytes) -> list[str]:
    try:
        names = json.loads(body.decode())["repositories"] or []
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise InvalidImage("the registry's list of repositories is not in JSON") from error
    if not isinstance(names, list):
        raise InvalidImage("the registry's list of repositories is none")
    return [name for name in names if isinstance(name, str) and len(name) <= _LONGEST and name.isprintable()]

"""A repository's tags: their list, and what is said of them (distribution-spec, "Listing Tags")."""

from __future__ import annotations

import json

from imgfs.errors import InvalidImage, NotFound, RegistryError
from imgfs.registry.pages import pages
from imgfs.registry.session import Session

_FEW_TAGS = 10
_ENOUGH = 1000  # tags to tell a person of


def list_tags(session: Session, limit: int) -> list[str]:
    """Up to `limit` tags of the session's repository, in the registry's order."""
    found: list[str] = []
    for answer in pages(session, session.at("tags/list", n=str(limit)), {}):
        found += _tags_in(answer.body)
        if len(found) >= limit:
            break
    return found[:limit]


def existing_tags(session: Session) -> str:
    """The tags of a repository, or why they are not known, for a message."""
    try:
        return describe_tags(list_tags(session, _ENOUGH))
    except NotFound:
        return "there is no such repository"
    except (RegistryError, InvalidImage):
        return "the registry does not list its tags"


def describe_tags(tags: list[str]) -> str:
    """The tags there are, for a message: all if they are few, else how many and some."""
    if not tags:
        return "there are none"
    if len(tags) <= _FEW_TAGS:
        return f"there are: {', '.join(tags)}"
    return f"there are {len(tags)}, such as {', '.join(tags[:_FEW_TAGS])}"


def _tags_in(body: bytes) -> list[str]:
    try:
        tags = json.loads(body.decode())["tags"] or []
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise InvalidImage("the registry's list of tags is not in JSON") from error
    return (
        [tag for tag in tags if isinstance(tag, str) and tag.isprintable()] if isinstance(tags, list) else []
    )

"""Challenges of a registry (RFC 9110, 11.6.1) and the scopes of its tokens (distribution's `scope.md`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')  # RFC 9110, 11.2
_SCHEME = re.compile(_TOKEN)


class Challenge(NamedTuple):
    """One way in that a 401 offers: the scheme in lower case and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Read a `WWW-Authenticate` header, or several joined by commas (RFC 9110, 11.6.1)."""
    challenges: list[tuple[str, dict[str, str]]] = []
    at = 0
    while at < len(header):
        parameter = _PARAMETER.match(header, at)
        scheme = None if parameter else _SCHEME.match(header, at)
        if parameter and challenges:
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenges[-1][1].setdefault(parameter[1].lower(), value)
        elif scheme:
            challenges.append((scheme[0].lower(), {}))
        found = parameter or scheme
        at = found.end() if found else at + 1
    return [Challenge(*challenge) for challenge in challenges]


def join_scopes(*scopes: str) -> str:
    """What all of `scopes` allow, each resource once: `type:name:actions` (distribution's `scope.md`)."""
    actions: dict[str, dict[str, None]] = {}
    for scope in " ".join(scopes).split():
        resource, colon, allowed = scope.rpartition(":")
        actions.setdefault(f"{resource}{colon}", {}).update(dict.fromkeys(allowed.split(",")))
    return " ".join(f"{resource}{','.join(allowed)}" for resource, allowed in actions.items())

"""The page: its parts put together, with the facts as JSON in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files

# In a script element nothing but `</script` and `<!--` ends or changes what it is (HTML, 13.2.5.4, 13.2.6.2).
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_PLACES = ("@POLICY@", "@TITLE@", "@STYLE@", "@FACTS@", "@SCRIPT@")


def page_of(facts: Mapping[str, object]) -> str:
    """Return the page of some facts; `image` is its title. ASCII only."""
    style, script = _part("page.css"), _part("page.js")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}"
    body = json.dumps(facts, separators=(",", ":"), allow_nan=False)
    for sign, escaped in _ESCAPED.items():
        body = body.replace(sign, escaped)
    policy += "; base-uri 'none'; form-action 'none'"
    title = html.escape(str(facts["image"])).encode("ascii", "xmlcharrefreplace").decode()
    values = dict(zip(_PLACES, (policy, title, style, body, script), strict=True))
    return "".join(values.get(piece, piece) for piece in _pieces(_part("page.html")))


def _pieces(template: str) -> list[str]:
    """Split the template at its places, each of which it has once, in their order."""
    pieces = []
    for place in _PLACES:
        before, _, template = template.partition(place)
        pieces += [before, place]
    return [*pieces, template]


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="ascii")


def _hash(text: str) -> str:
    """Return the source of an inline element in a policy (CSP3, "hash-source")."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

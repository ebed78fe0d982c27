"""Reading the fields of a JSON document: the right type, or InvalidImage with the JSON path.

Documents are written and read by programs in Go, so what its encoding/json accepts is accepted: null for any
value is its zero value ("" in a list or map of strings), and bytes that are not UTF-8 and halves of surrogate
pairs become U+FFFD. The digest of a document is that of its bytes as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from imgfs.errors import InvalidImage

_SURROGATES = re.compile("[\ud800-\udfff]")


def parse_json(body: bytes, where: str) -> object:
    """Return `body` as JSON, or raise InvalidImage: not JSON, or nested too deep. Texts can be encoded."""
    try:
        value: object = json.loads(body.decode(errors="replace"))
        if b"\\u" in body:  # an escape can be half a surrogate pair, which has no UTF-8
            text = json.dumps(value, ensure_ascii=False)
            if _SURROGATES.search(text):
                value = json.loads(_SURROGATES.sub("\ufffd", text))
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"not JSON: {error}", where=where) from error
    return value


def object_at(value: object, where: str) -> dict[str, Any]:
    """`value` as a JSON object, or InvalidImage."""
    if not isinstance(value, dict):
        raise InvalidImage("expected an object", where=where)
    return value


def list_in(fields: Mapping[str, Any], name: str, where: str) -> list[Any]:
    """The array `fields[name]`, empty if absent or null, or InvalidImage."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidImage("expected an array", where=f"{where}.{name}")
    return value


def text_in(fields: Mapping[str, Any], name: str, where: str, *, default: str | None = None) -> str:
    """The string `fields[name]`, `default` if absent or null, or InvalidImage."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InvalidImage("expected a string", where=f"{where}.{name}")
    return value


def texts_in(fields: Mapping[str, Any], name: str, where: str) -> list[str]:
    """Return the array of strings `fields[name]`, "" for null in it; or raise InvalidImage."""
    values = ["" if value is None else value for value in list_in(fields, name, where)]
    if not all(isinstance(value, str) for value in values):
        raise InvalidImage("expected strings", where=f"{where}.{name}")
    return values


def annotations_in(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the map of strings `fields["annotations"]`, empty if absent or null; or raise InvalidImage."""
    value = fields.get("annotations")
    if value is None:
        return {}
    if isinstance(value, dict):
        texts = {name: "" if text is None else text for name, text in value.items()}
        if all(isinstance(text, str) for text in texts.values()):
            return texts
    raise InvalidImage("expected an object of strings", where=f"{where}.annotations")

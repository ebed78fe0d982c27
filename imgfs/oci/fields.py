"""Reading the fields of a JSON document strictly: the right type, or InvalidImage with the JSON path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from imgfs.errors import InvalidImage


def parse_json(body: bytes, where: str) -> object:
    """`body` as JSON, or InvalidImage: not UTF-8, not JSON, nested too deep, or text no file could hold."""
    try:
        value: object = json.loads(body.decode())
        if b"\\u" in body:  # an escape can smuggle in half a surrogate pair, which has no UTF-8
            json.dumps(value, ensure_ascii=False).encode()
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
    """The array of strings `fields[name]`, or InvalidImage."""
    values = list_in(fields, name, where)
    if not all(isinstance(value, str) for value in values):
        raise InvalidImage("expected strings", where=f"{where}.{name}")
    return values


def annotations_in(fields: Mapping[str, Any], where: str) -> dict[str, str]:
    """The map of strings `fields["annotations"]`, empty if absent, or InvalidImage."""
    value = fields.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidImage("expected an object of strings", where=f"{where}.annotations")
    return value

"""Reading the fields of a JSON document: the right type, or InvalidImage with the JSON path.

Documents are written and read by programs in Go, so what its encoding/json accepts is accepted: null for
any value is its zero value ("" in a list or map of strings), bytes that are not UTF-8 and halves of surrogate
pairs become U+FFFD, and a known field in other letters (`Layers`) is that field. The digest of a document is
that of its bytes as they came.

What programs read differently is refused, or one digest would name two images: a name that an object has
twice, or as a field in two ways (`layers`, `Layers`). Go takes the last, with leftovers of those before it.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping

from imgfs.errors import InvalidImage

_SURROGATES = re.compile("[\ud800-\udfff]")
# the fields of manifests, indexes, descriptors, platforms, configs and their histories (image-spec)
_NAMES = (
    "schemaVersion mediaType artifactType config layers manifests subject annotations fsLayers "
    "digest size urls data platform architecture os os.version os.features variant "
    "created author rootfs type diff_ids history created_by comment empty_layer "
    "User ExposedPorts Env Entrypoint Cmd Volumes WorkingDir Labels StopSignal Shell Healthcheck"
)
_FIELDS = frozenset(_NAMES.split())
# those whose values have fields, too; keys of maps (`annotations`, `Labels`, …) are data
_WITHIN = frozenset({"config", "layers", "manifests", "subject", "platform", "rootfs", "history"})
_BY_FOLDED = {name.lower(): name for name in _FIELDS}
_MORE_LETTERS = str.maketrans("\u017f\u212a", "sk")  # what Go's folding takes for letters of ASCII


class _Ambiguous(ValueError):
    """JSON that programs read differently."""


def parse_json(body: bytes, where: str) -> object:
    """Return `body` as JSON, texts in it encodable; InvalidImage: no JSON, ambiguous, nested too deep."""
    try:
        value = _loads(body.decode(errors="replace"))
        if b"\\u" in body:  # an escape can be half a surrogate pair, which has no UTF-8
            text = json.dumps(value, ensure_ascii=False)
            if _SURROGATES.search(text):
                value = _loads(_SURROGATES.sub("\ufffd", text))
        _rename_fields(value)
    except _Ambiguous as error:
        raise InvalidImage(f"ambiguous JSON: {error}", where=where) from error
    except (ValueError, RecursionError) as error:
        what = "a web page, not JSON" if _is_markup(body) else f"not JSON: {words_of_json(error)}"
        raise InvalidImage(what, where=where) from error
    return value


def _is_markup(body: bytes) -> bool:
    """Return True for what a proxy, or a page to log in at, answers in a document's place."""
    return body[:100].lstrip().startswith(b"<")


def _loads(text: str) -> object:
    found: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _Ambiguous(f"{twice[:40]!r} is there twice")
    return found


def _no_constant(text: str) -> object:
    raise _Ambiguous(f"{text} is not a number of JSON")  # which Python takes, and Go does not


def _rename_fields(document: object) -> None:
    """Give known fields in other letters their names, in a document and in what has fields within it."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            for name in [name for name in value if name not in _FIELDS]:
                field = _BY_FOLDED.get(name.translate(_MORE_LETTERS).lower())
                if field in value:
                    raise _Ambiguous(f"{field!r} is there as {name[:40]!r}, too")
                if field:
                    value[field] = value.pop(name)
            pending += [value[name] for name in _WITHIN & value.keys()]


def words_of_json(error: ValueError | RecursionError) -> str:
    """Return what is wrong with a text that is no JSON, without Python's words for it."""
    if isinstance(error, json.JSONDecodeError):
        return f"wrong at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 at byte {error.start}"
    return "nested too deep" if isinstance(error, RecursionError) else "a number has too many digits"


def object_at(value: object, where: str) -> dict[str, object]:
    """`value` as a JSON object, or InvalidImage."""
    if not isinstance(value, dict):
        raise InvalidImage("expected an object", where=where)
    return value


def list_in(fields: Mapping[str, object], name: str, where: str) -> list[object]:
    """Return the array `fields[name]`, empty if absent or null, or InvalidImage."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidImage("expected an array", where=f"{where}.{name}")
    return value


def objects_in(fields: Mapping[str, object], name: str, where: str) -> list[dict[str, object]]:
    """Return the array of objects `fields[name]`, empty if absent or null, or InvalidImage."""
    values = list_in(fields, name, where)
    return [object_at(value, f"{where}.{name}[{number}]") for number, value in enumerate(values)]


def text_in(fields: Mapping[str, object], name: str, where: str, *, default: str | None = None) -> str:
    """Return the string `fields[name]`, `default` if absent or null, or InvalidImage."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InvalidImage("expected a string", where=f"{where}.{name}")
    return value


def decode_base64(text: str, where: str) -> bytes:
    """Return the bytes of standard base64, as Go's encoding/json writes them; or raise InvalidImage."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidImage("not base64", where=where) from error


def texts_in(fields: Mapping[str, object], name: str, where: str) -> list[str]:
    """Return the array of strings `fields[name]`, "" for null in it; or raise InvalidImage."""
    values = ["" if value is None else value for value in list_in(fields, name, where)]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        raise InvalidImage("expected strings", where=f"{where}.{name}")
    return texts


def annotations_in(fields: Mapping[str, object], where: str) -> dict[str, str]:
    """Return the map of strings `fields["annotations"]`, empty if absent or null; or raise InvalidImage."""
    value = fields.get("annotations")
    if value is None:
        return {}
    if isinstance(value, dict):
        texts = {name: "" if text is None else text for name, text in value.items()}
        if all(isinstance(text, str) for text in texts.values()):
            return texts
    raise InvalidImage("expected an object of strings", where=f"{where}.annotations")

"""Go templates of --format, as docker and podman have them: fields, `json` and `index`, nothing else.

`{{.State.Status}}`, `{{json .Config}}`, `{{index .RepoDigests 0}}`, `{{index .Config.Labels "a.b"}}`. Values
are shown as Go's fmt does it: a list as `[a b]`, an object as `map[key:value]`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from imgfs.errors import UsageError

_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}")
_PATH = r"\.(?:[A-Za-z]\w*(?:\.[A-Za-z]\w*)*)?"
_KEY = r'(?:"[^"]*"|`[^`]*`|[0-9]{1,6})'
_KNOWN = re.compile(rf"\s*(?:(json)\s+({_PATH})|index\s+({_PATH})((?:\s+{_KEY})+)|({_PATH}))\s*")
_ESCAPES = {r"\t": "\t", r"\n": "\n"}


def check_format(template: str) -> None:
    """Raise UsageError for a template that nothing can fill."""
    if template.count("{{") != template.count("}}"):
        raise UsageError(f"--format: {template!r} has an action without an end")


def filled(template: str, found: Mapping[str, object]) -> str:
    """Return a template with the fields of one thing; raises UsageError for a field there is not."""
    check_format(template)
    text = template.removeprefix("table ")
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return _ACTION.sub(lambda action: _value(action[1], found), text)


def dumped(found: object) -> str:
    """Return JSON as podman prints it."""
    return json.dumps(found, indent=4, ensure_ascii=False)


def _value(action: str, found: Mapping[str, object]) -> str:
    match = _KNOWN.fullmatch(action)
    if not match:
        known = "{{.Field}}, {{json .Field}} or {{index .Field KEY}}"
        raise UsageError(f"--format: {{{{{action}}}}} is not {known}; --json has all, for programs like jq")
    as_json, dumped_path, indexed_path, keys, path = match.groups()
    value = _field(dumped_path or indexed_path or path, found)
    for key in re.findall(_KEY, keys or ""):
        value = _indexed(value, key)
    return json.dumps(value, ensure_ascii=False) if as_json else _shown(value)


def _field(path: str, found: Mapping[str, object]) -> object:
    value: object = found
    for name in filter(None, path.split(".")):
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(sorted(value)) if isinstance(value, Mapping) else "none"
            raise UsageError(f"--format: there is no field {name!r}; there are: {known}")
        value = value[name]
    return value


def _indexed(value: object, key: str) -> object:
    """Return what an object has at a quoted key ("" if nothing, as Go), or a list at a number."""
    if key.isdecimal():
        if isinstance(value, list) and int(key) < len(value):
            return value[int(key)]
    elif isinstance(value, Mapping):
        return value.get(key[1:-1], "")
    raise UsageError(f"--format: there is nothing at the index {key}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{_shown(value[key])}' for key in sorted(value))}]"
    if isinstance(value, list):
        return f"[{' '.join(map(_shown, value))}]"
    return "" if value is None else str(value)

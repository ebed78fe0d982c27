"""Reading the fields of a TOML file strictly: the right type, or UsageError with the file and the key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from imgfs.errors import UsageError


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the file `path`; `at` is its own key with a dot, "" for the file's root."""

    path: Path
    at: str
    fields: dict[str, Any]

    @classmethod
    def parse(cls, path: Path, body: bytes) -> Table:
        """A whole file; raises UsageError if it is not UTF-8, not TOML or nested too deep."""
        try:
            return cls(path, "", tomllib.loads(body.decode()))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not TOML: {' '.join(str(error).split())[:200]}") from error

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raise UsageError about the field `name`."""
        key = f"{self.at}{name}"[:200]
        raise UsageError(f"{self.path}: {key if key.isprintable() else repr(key)}: {why}")

    def text(self, name: str, default: str = "") -> str:
        """A string."""
        value = self.fields.get(name, default)
        if not isinstance(value, str) or not value.isprintable():
            self.refuse(name, "expected a string without control characters")
        return value

    def flag(self, name: str) -> bool:
        """A boolean, false if absent."""
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            self.refuse(name, "expected true or false")
        return value

    def values(self, name: str) -> list[Any]:
        """An array, empty if absent."""
        value = self.fields.get(name, [])
        if not isinstance(value, list):
            self.refuse(name, "expected an array")
        return value

    def texts(self, name: str) -> list[str]:
        """An array of strings, empty if absent."""
        values = self.values(name)
        if not all(isinstance(value, str) and value.isprintable() for value in values):
            self.refuse(name, "expected strings without control characters")
        return values

    def table(self, name: str) -> Table:
        """A table, empty if absent."""
        return self._below(name, self.fields.get(name, {}))

    def tables(self, name: str) -> Iterator[Table]:
        """An array of tables, empty if absent."""
        for number, value in enumerate(self.values(name)):
            yield self._below(f"{name}[{number}]", value)

    def _below(self, name: str, value: object) -> Table:
        if not isinstance(value, dict):
            self.refuse(name, "expected a table")
        return Table(self.path, f"{self.at}{name}.", value)

"""What was measured, as Markdown tables for people and as JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | int | float | None


@dataclass
class Table:
    """A titled table; its first column names the rows. A column says its unit.

    `raw` keeps what the medians were made of. `load` is the machine's load average when the table was begun:
    what else is running spoils the figures.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    def add(self, *cells: Cell) -> None:
        """Add a row; a cell for each column."""
        self.rows.append(list(cells))

    def target(self, what: str, value: float, limit: float) -> None:
        """Note what is aimed at, and whether it is reached."""
        verdict = "reached" if value <= limit else "NOT reached"
        self.notes.append(f"target: {what} at most {limit:g}: {value:.2f}, {verdict}")

    def __str__(self) -> str:
        lines = [list(self.columns), *([_text(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[number]) for line in lines) for number in range(len(self.columns))]
        head, *body = [_line(line, widths) for line in lines]
        rule = "|" + "|".join("-" * (width + 1) + ("-" if n == 0 else ":") for n, width in enumerate(widths))
        notes = [*self.notes, f"load average before: {self.load:.1f}"]
        return "\n".join([f"## {self.title}", "", head, rule + "|", *body, "", *(f"- {n}" for n in notes)])

    def as_json(self) -> dict[str, object]:
        """Say the same in types that JSON has."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": self.notes,
            "load": self.load,
            "raw": self.raw,
        }


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    placed = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return "| " + " | ".join(placed) + " |"


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 1 else f"{cell:.2f}" if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def ratio(value: float, base: float | None) -> float | None:
    """Say how many times `base` the value is; None where there is nothing to compare with."""
    return round(value / base, 2) if base else None


def write_json(path: Path, tables: Sequence[Table], rounds: int) -> None:
    """Write all tables, with the machine they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "rounds": rounds,
        "tables": [table.as_json() for table in tables],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")

"""A pytest plugin for a machine that is to be shown to have everything: of each module only its first test.

Loaded by `scripts/test --first`. The first is the first that is written there and may run.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each module's first test."""
    kept: dict[Path, pytest.Item] = {}
    for item in items:
        kept.setdefault(item.path, item)
    config.hook.pytest_deselected(items=[item for item in items if kept[item.path] is not item])
    items[:] = kept.values()

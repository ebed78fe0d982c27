"""imgfs status: once, or again and again; as text, JSON, or as Prometheus reads it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imgfs.cli.output import say
from imgfs.cli.report import report
from imgfs.metrics.exposition import exposition
from imgfs.mounts.status_client import read_status
from imgfs.mounts.table import imgfs_mount_at

Status = dict[str, Any]
Text = Callable[[Status, Status | None], str]  # of a status, and of the one before it
# Home and erase; erase to the end of a line, of the screen; lines are cut off, not broken (xterm's ctlseqs).
_CLEAR, _HOME, _REST_OF_LINE, _REST = "\x1b[H\x1b[2J", "\x1b[H", "\x1b[K", "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


def status(options: argparse.Namespace) -> int:
    """Show what a mount has fetched and served."""
    path = Path(options.mountpoint).absolute()
    text = _text(options)
    found = _look(path)
    if options.watch is None:
        say(text(found, None))
        return 0
    with contextlib.suppress(KeyboardInterrupt):  # how one stops watching
        _watch(path, options.watch, found, text)
    return 0


def _watch(path: Path, every: float, found: Status, text: Text) -> None:
    """Show it until somebody interrupts, or the mount is gone."""
    before: Status | None = None
    draw = _redraw if sys.stdout.isatty() else _append
    while True:
        draw(text(found, before), before is None)
        time.sleep(every)
        before, found = found, _look(path)


def _look(path: Path) -> Status:
    return read_status(imgfs_mount_at(path))


def _text(options: argparse.Namespace) -> Text:
    if options.metrics:
        return lambda found, _: exposition(found).rstrip("\n")
    if options.json:
        indent = 2 if options.watch is None else None
        return lambda found, _: json.dumps(found, indent=indent)
    return report


def _append(text: str, is_first: bool) -> None:
    """Write a block; an empty line parts it from the one before, if it has several."""
    say(f"\n{text}" if "\n" in text and not is_first else text, flush=True)


def _redraw(text: str, is_first: bool) -> None:
    """Write over what was there, as much as the screen holds."""
    height = shutil.get_terminal_size().lines
    lines = text.splitlines()
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"… {len(lines) - height + 2} more lines"]
    drawn = "".join(f"{line}{_REST_OF_LINE}{os.linesep}" for line in lines)
    sys.stdout.write(f"{_CLEAR if is_first else _HOME}{_NO_WRAP}{drawn}{_REST}{_WRAP}")
    sys.stdout.flush()

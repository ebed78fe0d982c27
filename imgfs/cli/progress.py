"""Progress: on a terminal a line for each layer, redrawn in place; elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TextIO

from imgfs.cli.format import size
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.quoting import printable

_EVERY = 0.1  # seconds between redraws
_LINE_EVERY = 10.0  # seconds between lines where there is no terminal, so that a log does not look hung
_BAR = 20
# A line that the terminal broke in two would shift all redrawing: have it cut off instead (DECAWM, xterm's
# ctlseqs).
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"


@dataclass(slots=True)
class _Line:
    layer: Descriptor
    doing: str
    done: int = 0
    had: int = 0  # bytes of them that were here before
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None


class Progress:
    """Report on `stream`: bars if that is a terminal, else a line now and then; nothing if `quiet`.

    `doing` and `done` are the words for what is done to a layer.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        doing: str = "indexing",
        done: str = "indexed",
        quiet: bool = False,
    ) -> None:
        self._doing, self._done = doing, done
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._shown = self._stream.isatty() and not quiet
        self._lock = threading.Lock()
        self._lines: dict[Digest, _Line] = {}
        self._drawn = 0  # lines at the end of the screen that are redrawn
        self._begun = False
        self._last = 0.0
        self._next_line = time.monotonic() + _LINE_EVERY

    def layer_begins(self, layer: Descriptor) -> None:
        """A layer is about to be streamed."""
        self._set(layer, self._doing)

    def layer_waits(self, layer: Descriptor) -> None:
        """Another process streams it."""
        self._set(layer, "waiting for another imgfs")

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """`count` more compressed bytes have arrived."""
        if self._quiet:
            return
        with self._lock:
            if line := self._lines.get(layer.digest):
                line.done += count
            now = time.monotonic()
            if self._shown and now - self._last >= _EVERY:
                self._draw()
            elif not self._shown and now >= self._next_line:
                self._write_line(now)

    def layer_has(self, layer: Descriptor, count: int) -> None:
        """`count` bytes of it were here before: they do not count in its rate."""
        with self._lock:
            self._lines[layer.digest].done += count
            self._lines[layer.digest].had += count

    def layer_ends(self, layer: Descriptor) -> None:
        """That is done."""
        with self._lock:
            line = self._lines.setdefault(layer.digest, _Line(layer, self._done))
            line.doing, line.ended = self._done, time.monotonic()
            self._draw()

    def merging(self) -> None:
        """The layers are being merged."""
        self._note("merging the layers")

    def warns(self, text: str) -> None:
        """Something was not as it should be: said also where nothing is drawn."""
        with self._lock:
            self._stream.write(f"imgfs: warning: {printable(text)}\n")
            self._drawn = 0
            self._stream.flush()

    def close(self) -> None:
        """Draw the last state and leave it on the screen."""
        with self._lock:
            if self._lines:
                self._draw()
            self._drawn = 0

    def _note(self, text: str) -> None:
        with self._lock:
            if self._shown and self._begun:
                self._draw()
                self._stream.write(f"{text}\n")
                self._drawn = 0
                self._lines.clear()
                self._stream.flush()

    def _write_line(self, now: float) -> None:
        """Write a line about all layers that have begun, for a log."""
        self._next_line = now + _LINE_EVERY
        lines = self._lines.values()
        done, total = sum(line.done for line in lines), sum(line.layer.size for line in lines)
        seconds = max(1e-3, now - min((line.began for line in lines), default=now))
        rate = (done - sum(line.had for line in lines)) / seconds
        text = f"{self._doing}: {size(done)} of {size(total)}, {size(rate)}/s{_left(total - done, rate)}"
        self._stream.write(f"imgfs: {text}\n")
        self._stream.flush()

    def _set(self, layer: Descriptor, doing: str) -> None:
        with self._lock:
            self._lines[layer.digest] = _Line(layer, doing)
            self._draw()

    def _draw(self) -> None:
        """Draw the layers under way again; one that has ended stays above them for good.

        So the lines redrawn are few, and on the screen, however many layers there are.
        """
        if not self._shown:
            return
        self._begun = True
        self._last = time.monotonic()
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        lines = sorted(self._lines.values(), key=lambda line: line.ended is None)
        rows = [f"\x1b[2K{_row(line, self._last)}\n" for line in lines]
        self._stream.write(f"{_NO_WRAP}{up}{''.join(rows)}{_WRAP}")
        self._stream.flush()
        self._lines = {line.layer.digest: line for line in lines if line.ended is None}
        self._drawn = len(self._lines)


def _row(line: _Line, now: float) -> str:
    total = max(1, line.layer.size)
    filled = min(_BAR, _BAR * line.done // total)
    seconds = max(1e-3, (line.ended or now) - line.began)
    amount = f"{size(line.done)} of {size(line.layer.size)}"
    rate = (line.done - line.had) / seconds
    bar = "█" * filled + "░" * (_BAR - filled)
    left = _left(line.layer.size - line.done, rate) if line.ended is None else ""
    return f"{line.layer.digest.short}  {bar}  {amount:>20}  {size(rate):>7}/s  {line.doing}{left}"


def _left(count: int, rate: float) -> str:
    """Return the time that `count` bytes take at a rate, in words; '' if there is none, or no rate yet."""
    if count <= 0 or rate <= 0:
        return ""
    seconds = count / rate
    return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"

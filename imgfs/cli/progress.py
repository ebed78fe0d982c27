"""Progress: on a terminal a line for each layer, redrawn in place; elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from imgfs.cli.format import size
from imgfs.cli.output import draws_on
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.quoting import printable

if TYPE_CHECKING:
    from imgfs.cli.terminal import Bar, Bars

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal, so that a log does not look hung


@dataclass(slots=True)
class _LayerProgress:
    layer: Descriptor
    doing: str
    done: int = 0
    had: int = 0  # bytes of them that were here before
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None


class Progress:
    """Report on `stream`: bars if that is a terminal, else a line now and then; nothing if `quiet`.

    `doing` and `done` are the words for what is done to a layer. Called from several threads.
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
        self._draws = draws_on(self._stream) and not quiet
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._under_way: dict[Digest, _LayerProgress] = {}
        self._expected: dict[Digest, int] = {}  # sizes of layers that have not begun
        self._ended, self._ended_had = 0, 0  # bytes of layers that have ended, and of them those here before
        self._began = time.monotonic()
        self._next_line = self._began + _LINE_EVERY

    def expects(self, layers: Iterable[Descriptor]) -> None:
        """Note the layers that are to be done: they count in the total."""
        with self._lock:
            self._expected.update((layer.digest, layer.size) for layer in layers)

    def skips(self, layer: Descriptor) -> None:
        """Note that nothing has to be done to an expected layer."""
        with self._lock:
            self._expected.pop(layer.digest, None)

    def layer_begins(self, layer: Descriptor) -> None:
        """Note that a layer is about to be streamed."""
        self._set(layer, self._doing)

    def layer_waits(self, layer: Descriptor) -> None:
        """Note that another process streams it."""
        self._set(layer, "waiting for another imgfs")

    def layer_advances(self, layer: Descriptor, count: int) -> None:
        """Note that `count` more compressed bytes have arrived."""
        if self._quiet:
            return
        with self._lock:
            if one := self._under_way.get(layer.digest):
                one.done += count
            if not self._draws and (now := time.monotonic()) >= self._next_line:
                self._write_line(now)

    def layer_has(self, layer: Descriptor, count: int) -> None:
        """Note that `count` bytes of it were here before: they do not count in its rate."""
        with self._lock:
            one = self._under_way[layer.digest]
            one.done += count
            one.had += count
            if count:
                one.doing = f"going on at {size(count)}"  # short: a terminal has 80 columns

    def layer_ends(self, layer: Descriptor) -> None:
        """Note that a layer is done."""
        with self._lock:
            self._expected.pop(layer.digest, None)
            one = self._under_way.pop(layer.digest, None) or _LayerProgress(layer, self._done)
            one.doing, one.ended = self._done, time.monotonic()
            self._ended += one.done
            self._ended_had += one.had
            if self._draws:
                self._drawing().leave(_bar(one, one.ended))

    def merging(self) -> None:
        """Say that the layers are being merged, if something was drawn before."""
        with self._lock:
            if self._bars:
                self._bars.say("merging the layers")

    def warns(self, text: str) -> None:
        """Print a warning, also where nothing is drawn."""
        self._say(f"imgfs: warning: {printable(text)}")

    def notes(self, text: str) -> None:
        """Print a remark, also where nothing is drawn."""
        self._say(f"imgfs: {printable(text)}")

    def _say(self, line: str) -> None:
        with self._lock:
            if self._bars:
                self._bars.say(line)
            else:
                self._stream.write(f"{line}\n")
                self._stream.flush()

    def close(self) -> None:
        """Leave the last state of layers that have not ended on the screen."""
        with self._lock:
            if not self._bars:
                return
            now = time.monotonic()
            for one in self._under_way.values():
                self._bars.leave(_bar(one, now))
            self._under_way.clear()
            self._bars.close()
            self._bars = None

    def _set(self, layer: Descriptor, doing: str) -> None:
        with self._lock:
            self._expected.pop(layer.digest, None)
            self._under_way[layer.digest] = _LayerProgress(layer, doing)
            if self._draws:
                self._drawing()

    def _drawing(self) -> Bars:
        if self._bars is None:
            from imgfs.cli.terminal import Bars  # here: where nothing is to be done, nothing is drawn

            self._bars = Bars(self._stream, self._shown)
        return self._bars

    def _shown(self) -> list[Bar]:
        """Return the bars of the layers under way, and of all together; takes no lock (`Bars`)."""
        now = time.monotonic()
        layers = list(self._under_way.values())
        bars = [_bar(one, now) for one in layers]
        return [*bars, self._total(layers, now)] if len(layers) + len(self._expected) > 1 else bars

    def _total(self, layers: list[_LayerProgress], now: float) -> Bar:
        from imgfs.cli.terminal import Bar

        done, total, rate = self._sums(layers, now)
        state = f"{self._doing}{_left(total - done, rate)}"
        return Bar("total", done, total, f"{size(done)} of {size(total)}", f"{size(rate)}/s", state)

    def _sums(self, layers: list[_LayerProgress], now: float) -> tuple[int, int, float]:
        """Return the bytes done, those of all layers, and the bytes a second."""
        done = self._ended + sum(one.done for one in layers)
        had = self._ended_had + sum(one.had for one in layers)
        total = self._ended + sum(one.layer.size for one in layers) + sum(list(self._expected.values()))
        return done, total, (done - had) / max(1e-3, now - self._began)

    def _write_line(self, now: float) -> None:
        """Write a line about all layers, for a log."""
        self._next_line = now + _LINE_EVERY
        layers = list(self._under_way.values())
        done, total, rate = self._sums(layers, now)
        had = self._ended_had + sum(one.had for one in layers)
        going_on = f", going on at {size(had)}" if had else ""
        text = f"{size(done)} of {size(total)}, {size(rate)}/s{_left(total - done, rate)}"
        self._stream.write(f"imgfs: {self._doing}{going_on}: {text}\n")
        self._stream.flush()


def _bar(one: _LayerProgress, now: float) -> Bar:
    from imgfs.cli.terminal import Bar

    rate = (one.done - one.had) / max(1e-3, now - one.began)
    left = _left(one.layer.size - one.done, rate) if one.ended is None else ""
    amount = f"{size(one.done)} of {size(one.layer.size)}"
    return Bar(
        one.layer.digest.short, one.done, one.layer.size, amount, f"{size(rate)}/s", f"{one.doing}{left}"
    )


def _left(count: int, rate: float) -> str:
    """Return the time that `count` bytes take at a rate, in words; '' if there is none, or no rate yet."""
    if count <= 0 or rate <= 0:
        return ""
    seconds = count / rate
    return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"

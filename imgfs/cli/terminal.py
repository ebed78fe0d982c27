"""What is drawn on terminals alone, by Rich: bars of progress, pages of the manual.

Imported where it is drawn: Rich takes longer to load than most commands take. It obeys NO_COLOR and the
terminal's width. Names come from images and registries, so all text goes through `Text`, which knows no
markup, and has been quoted by `imgfs.quoting`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imgfs.quoting import printable

_REDRAWS = 10  # a second
_WIDEST_BAR, _NARROWEST_BAR = 20, 4
_BESIDE_BAR = 72  # columns for the rest of a line: 12 name, 18 amount, 9 rate, 25 state, 8 between them


def show_page(markdown: str) -> None:
    """Show Markdown in the user's pager ($MANPAGER, $PAGER, else less)."""
    console = Console()
    with console.pager():
        console.print(Markdown(markdown))


class Bar(NamedTuple):
    """A line of progress: `done` of `total`, and its columns as text."""

    name: str
    done: int
    total: int
    amount: str
    rate: str
    state: str


class Bars:
    """Lines at the end of the screen, redrawn in place; those that are `left` stay above them.

    `bars` returns what to draw: it is called in another thread, ten times a second, and must take no lock
    that is held while this is called.
    """

    def __init__(self, stream: TextIO, bars: Callable[[], Sequence[Bar]]) -> None:
        self._console = _console(stream)
        self._live = Live(
            console=self._console,
            get_renderable=lambda: self._drawn(bars()),
            refresh_per_second=_REDRAWS,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="ellipsis",  # more lines than the screen has could not be reached again
        )
        self._live.start()

    def leave(self, bar: Bar) -> None:
        """Draw a bar for good."""
        self._console.print(self._drawn([bar]))

    def say(self, text: str) -> None:
        """Write a line above the bars."""
        self._console.print(Text(printable(text)), soft_wrap=True)

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def close(self) -> None:
        """Remove what is not there for good."""
        self._live.stop()

    def _drawn(self, bars: Sequence[Bar]) -> Table:
        width = min(_WIDEST_BAR, max(_NARROWEST_BAR, self._console.width - _BESIDE_BAR))
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(min_width=12, no_wrap=True)
        table.add_column(min_width=width)
        table.add_column(min_width=18, justify="right", no_wrap=True)
        table.add_column(min_width=9, justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for bar in bars:
            drawn = ProgressBar(total=max(1, bar.total), completed=min(bar.done, bar.total), width=width)
            table.add_row(Text(bar.name), drawn, Text(bar.amount), Text(bar.rate), Text(bar.state))
        return table


class _Console(Console):
    """A terminal whose cursor stays visible: a command that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        return show


def _console(stream: TextIO) -> Console:
    return _Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False)

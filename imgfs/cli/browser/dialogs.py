"""What is asked and told over the screen: a choice, a line, yes or no, a search, the keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

_ESCAPE: list[BindingType] = [Binding("escape", "dismiss_none", "back", priority=True)]


class _Dialog(ModalScreen[str | None]):
    """A box over the screen, left by Escape without an answer."""

    BINDINGS: ClassVar[list[BindingType]] = _ESCAPE

    def action_dismiss_none(self) -> None:
        """Leave without an answer."""
        self.dismiss(None)


class ChoiceDialog(_Dialog):
    """Asks for one of several lines; answers with its number."""

    def __init__(self, title: str, lines: Sequence[str], chosen: int) -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="box"):
            yield Static(Text(self._title, "bold"))
            yield OptionList(*(Option(Text(line, no_wrap=True, overflow="ellipsis")) for line in self._lines))

    def on_mount(self) -> None:
        """Begin at what is chosen now."""
        self.query_one(OptionList).highlighted = self._chosen

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer."""
        self.dismiss(str(event.option_index))


class LineDialog(_Dialog):
    """Asks for a line."""

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title = title
        self._value = value

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="box"):
            yield Static(Text(self._title, "bold"))
            yield Input(self._value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer."""
        self.dismiss(event.value)


class TextDialog(_Dialog):
    """Shows a text; answers with the key that was pressed, if it is one of `keys`."""

    def __init__(self, title: str, text: str, keys: str = "") -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._keys = keys

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="box"):
            yield Static(Text(self._title, "bold"))
            yield Static(Text(self._text))

    def answer(self, key: str) -> None:
        """Leave by any key."""
        self.dismiss(key if key in self._keys.split() else None)


class SearchDialog(_Dialog):
    """Asks for a pattern, and lists what `search` finds; answers with the number of the line chosen.

    `search` is called with the pattern, `stop` when the dialog is left.
    """

    def __init__(self, pattern: str, search: Callable[[str], None], stop: Callable[[], None]) -> None:
        super().__init__()
        self._pattern = pattern
        self._search = search
        self._stop = stop

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        with Vertical(classes="box tall"):
            yield Static(Text("Search names: a part of one, or a pattern with * ? [", "bold"))
            yield Input(self._pattern)
            yield Static(id="count")
            yield OptionList()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Begin to search."""
        self.query_one(OptionList).clear_options()
        if event.value:
            self._search(event.value)

    def add(self, lines: Sequence[str], count: str) -> None:
        """Add lines that were found."""
        found = self.query_one(OptionList)
        found.add_options([Option(Text(line, no_wrap=True, overflow="ellipsis")) for line in lines])
        self.query_one("#count", Static).update(Text(count))
        if lines and found.highlighted is None:
            found.highlighted = 0
            found.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer."""
        self._stop()
        self.dismiss(str(event.option_index))

    def action_dismiss_none(self) -> None:
        """Leave without an answer."""
        self._stop()
        super().action_dismiss_none()

"""The screen of `imgfs browse`: what is looked at, what is said of a file, searching and saving."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Event, Key
from textual.widgets import Footer, Static

from imgfs.cli.browser.dialogs import ChoiceDialog, LineDialog, SearchDialog, TextDialog
from imgfs.cli.browser.highlight import compared, highlighted
from imgfs.cli.browser.jobs import BrowserJob
from imgfs.cli.browser.opened import Detail, OpenedImage, details_of
from imgfs.cli.browser.tree import FileSlot, FileTree, slot_of
from imgfs.cli.browser.walk import SAVE, SHOW, TreeWalker
from imgfs.cli.find_tests import iglob
from imgfs.cli.format import counted, size
from imgfs.cli.history import shortened
from imgfs.image.files import Found, ImageFiles
from imgfs.image.marked import FilesView, FileView, ImagesView, Item
from imgfs.image.preview import HEAD, Preview, preview_of
from imgfs.image.save import save
from imgfs.quoting import printable, printable_path

_FOUND = 1000  # files that a search lists
_REST = 0.25  # seconds that the cursor rests on a file before it is fetched
_HELP = """\
up, down, PgUp, PgDn   move
right, left            open, close a directory
Enter                  open; more of a directory
Tab                    to the preview and back
/                      search names
l                      what one layer does, or all layers
v                      versions of a file
s                      save a file or directory
d                      of two images: what differs, or one of them
Esc, q                 give up what is under way, quit

A added, C changed, D deleted. A directory is read when it is
opened, a file's first 64 kB when the cursor rests on it."""


class Browser(TreeWalker):
    """The browser of one image, or two. `start` is the path that it begins at."""

    CSS = """
    #title { background: $primary; color: $text; height: 1; }
    #tree { width: 2fr; }
    #right { width: 3fr; border-left: solid $primary; }
    #about { height: auto; max-height: 50%; }
    #kind { height: 1; background: $panel; }
    #status { height: 1; background: $panel; }
    ModalScreen { align: center middle; }
    .box { width: 90%; max-width: 100; height: auto; max-height: 80%; border: round $primary; padding: 0 1; background: $surface; }
    .tall { height: 80%; }
    .tall OptionList { height: 1fr; }
    """  # noqa: E501 (one rule of CSS)
    ENABLE_COMMAND_PALETTE = False
    # With priority: run where keys arrive, so that a key typed at once after another finds what that did.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", key_display="/", priority=True),
        Binding("l", "layer", "Layer", priority=True),
        Binding("d", "switch", "Difference", priority=True),
        Binding("v", "versions", "Versions", priority=True),
        Binding("s", "save", "Save", priority=True),
        Binding("question_mark", "help", "Help", key_display="?", priority=True),
        Binding("q", "leave", "Quit", priority=True),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("escape", "give_up", show=False, priority=True),
    ]

    def __init__(self, images: Sequence[OpenedImage], *, start: bytes = b"") -> None:
        super().__init__(images)
        self._image = images[-1]
        self._is_difference = len(images) > 1
        self._layer = 0  # that is looked at, 0 for all
        self._start = start
        self._pattern = ""
        self._matches: list[Item] = []
        self._details: list[Detail] = []

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(id="title")
        with Horizontal():
            yield FileTree("/", FileSlot(None), id="tree")
            with Vertical(id="right"):
                with VerticalScroll(id="about", can_focus=False):
                    yield Static(id="details")
                yield Static(id="kind")
                with VerticalScroll(id="beginning"):
                    yield Static(id="preview")
        yield Static(id="status")
        yield Footer()

    def on_mount(self) -> None:
        """Show the root."""
        self._tree.focus()
        self._look_at(self._whole())
        self.set_interval(SHOW, self._show_status)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Return False for an action that has nothing to do, and for a letter that is typed into a dialog."""
        if action == "switch" and len(self._images) == 1:
            return False
        return len(self.screen_stack) == 1 or action == "quit"

    async def on_event(self, event: Event) -> None:
        """Give a text's key to it at once: keys that wait for a dialog go with it."""
        if isinstance(event, Key) and not event.is_forwarded and isinstance(self.screen, TextDialog):
            self.screen.answer(event.key)
        else:
            await super().on_event(event)

    # What is looked at

    def _whole(self) -> Callable[[], FileView]:
        """Return what makes the view of all layers."""
        if self._is_difference:
            return lambda: ImagesView(self._images[0].files, self._images[1].files)
        return partial(FilesView, self._image.files)

    def _look_at(self, make: Callable[[], FileView]) -> None:
        """Show another view, which is made in a thread: trees of layers may have to be merged."""
        self._jobs.give_up(but=SAVE)
        self._reading.clear()

        def work(job: BrowserJob) -> None:
            view = make()
            root = view.at(b"/")
            assert root is not None
            job.show(partial(self._begin, view, root))

        self._jobs.start("view", "merging layers" if self._layer else "", work)

    def _begin(self, view: FileView, root: Item) -> None:
        self._view = view
        node = self._tree.begin(root)
        self._tree.move_cursor(node)
        self.query_one("#title", Static).update(Text(self._title(), no_wrap=True, overflow="ellipsis"))
        start, self._start = self._start, b""
        node.expand()
        self._show_item(root)
        if start.strip(b"/"):
            self._reveal(node, start.strip(b"/").split(b"/"))

    def _title(self) -> str:
        marks = "A added, C changed, D deleted"
        if self._is_difference:
            before, after = (printable(image.name) for image in self._images)
            return f" {before} → {after}: {marks}"
        name = printable(self._image.name)
        return f" {name}, layer {self._layer} of {self._image.count}: {marks}" if self._layer else f" {name}"

    def action_switch(self) -> None:
        """Show what differs, then the one image, then the other."""
        if self._is_difference:
            self._is_difference, self._image = False, self._images[0]
        elif self._image is self._images[0]:
            self._image = self._images[1]
        else:
            self._is_difference = True
        self._layer = 0
        self._look_at(self._whole())

    def action_layer(self) -> None:
        """Ask for a layer."""
        lines = ["all layers"]
        for number in range(1, self._image.count + 1):
            step = self._image.step(number)
            what = f"{size(step.size):>8}  {printable(shortened(step.command))}" if step else ""
            lines.append(f"{number:>3} {what}")
        title = f"Layers of {printable(self._image.name)}"
        self.push_screen(ChoiceDialog(title, lines, self._layer), self._take_layer)

    def _take_layer(self, answer: str | None) -> None:
        if answer is None:
            return
        self._layer = int(answer)
        if self._layer:
            self._is_difference = False
            self._look_at(partial(self._image.layer_view, self._layer))
        else:
            self._look_at(self._whole())

    # A file

    def _show_item(self, item: Item) -> None:
        """Show what is said of a file, and, when the cursor has rested on it, how it begins."""
        image, view = self._image_of(item), self._view

        def work(job: BrowserJob) -> None:
            files = view.files_of(item).until(job.given_up)
            job.show(partial(self._show_details, details_of(image, files, item)))
            found = files.followed(item.found) if not item.is_directory else None
            is_shown = found is not None and found.is_regular
            job.show(partial(self._show_preview, Text(), "…" if is_shown else ""))
            if found is None or not is_shown:
                return
            wait([job.given_up], _REST)
            if job.is_wanted:
                shown, kind = _beginning(item, found, view.until(job.given_up))
                job.show(partial(self._show_preview, shown, kind))

        self._jobs.stop("versions")
        self._jobs.start("look", "", work)

    def _image_of(self, item: Item) -> OpenedImage:
        return self._images[0] if self._is_difference and item.new is None else self._image

    def _show_details(self, details: list[Detail]) -> None:
        self._details = details
        text = Text()
        for label, said in details:
            text.append(f"{label:>8}  ", "dim").append(f"{said}\n")
        text.rstrip()
        self.query_one("#details", Static).update(text)

    def _show_preview(self, shown: Text, kind: str) -> None:
        self.query_one("#kind", Static).update(Text(f" {kind}"))
        self.query_one("#preview", Static).update(shown)
        self.query_one("#beginning").scroll_home(animate=False)

    def _chosen(self) -> Item | None:
        node = self._tree.cursor_node
        return slot_of(node).item if node else None

    def action_versions(self) -> None:
        """Show what the layers do to the file that is shown."""
        item = self._chosen()
        if item is None:
            return
        image, details = self._image_of(item), list(self._details)

        def work(job: BrowserJob) -> None:
            for number, line in enumerate(image.versions(item.found.path)):
                if not job.is_wanted:
                    return
                details.append(Detail("" if number else "versions", line))
                job.show(partial(self._show_details, list(details)))

        self._jobs.start("versions", "looking for versions", work)

    # Searching and saving

    def action_search(self) -> None:
        """Ask for names, and go to what is chosen."""
        dialog = SearchDialog(
            self._pattern, lambda pattern: self._search(dialog, pattern), partial(self._jobs.stop, "search")
        )
        self.push_screen(dialog, self._go_to_match)

    def _search(self, dialog: SearchDialog, pattern: str) -> None:
        self._pattern = pattern
        self._matches = []
        view, matches = self._view, self._matches
        test = iglob(pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*")

        def work(job: BrowserJob) -> None:
            watched = view.until(job.given_up)
            root = watched.at(b"/")
            assert root is not None
            batch: list[Item] = []
            looked, shown, total = 0, time.monotonic(), 0
            for looked, item in enumerate(watched.below(root), 1):
                if test(watched.files_of(item), item.found):
                    batch.append(item)
                    total += 1
                if total == _FOUND:
                    break
                if time.monotonic() - shown > SHOW:
                    job.show(partial(self._add_matches, dialog, matches, batch, f"{looked:,} looked at …"))
                    batch, shown = [], time.monotonic()
            said = f"the first {total}" if total == _FOUND else f"{total} of {looked:,}"
            job.show(partial(self._add_matches, dialog, matches, batch, said))

        self._jobs.start("search", "searching", work)

    def _add_matches(self, dialog: SearchDialog, matches: list[Item], batch: list[Item], said: str) -> None:
        matches += batch
        marks = (f"{item.change[0].upper()} " if item.change else "" for item in batch)
        names = (printable_path(item.found.path) for item in batch)
        dialog.add([mark + name for mark, name in zip(marks, names, strict=True)], said)

    def _go_to_match(self, answer: str | None) -> None:
        if answer is not None:
            path = self._matches[int(answer)].found.path
            self._reveal(self._tree.root, path.strip(b"/").split(b"/"))
            self._tree.focus()

    def action_save(self) -> None:
        """Ask where to save what the cursor is on."""
        item = self._chosen()
        if item is not None:
            name = printable_path(item.name) if item.name else "root"
            title = f"Save {printable_path(item.found.path)} as"
            self.push_screen(LineDialog(title, name), partial(self._save_as, item))

    def _save_as(self, item: Item, answer: str | None) -> None:
        if not answer:
            return
        target = Path(answer)
        if target.is_dir():
            target /= os.fsdecode(item.name) if item.name else "root"
        if not os.path.lexists(target):
            self._save(item, target, "y")
        elif item.is_directory or target.is_dir():
            self._take_note(f"{target}: already exists, and no directory is replaced")
        else:
            text = f"{printable(str(target))} already exists.\n\ny  replace it      any other key  do not"
            self.push_screen(
                TextDialog("Replace?", text, "y"), partial(self._save, item, target, replace=True)
            )

    def _save(self, item: Item, target: Path, answer: str | None, *, replace: bool = False) -> None:
        if answer != "y":
            self._take_note("not saved")
            return
        view = self._view

        def work(job: BrowserJob) -> None:
            warnings: list[str] = []
            save(
                view.files_of(item).until(job.given_up), item.found, target, warnings.append, replace=replace
            )
            more = f"; {counted(len(warnings), 'warning')}, the first: {warnings[0]}" if warnings else ""
            job.show(partial(self._take_note, f"saved as {target}{more}"))

        self._jobs.start(SAVE, f"saving {printable(str(target))}", work)

    async def action_leave(self) -> None:
        """End."""
        await self.action_quit()

    def action_help(self) -> None:
        """Tell of the keys."""
        self.push_screen(TextDialog("imgfs browse", _HELP))


def _beginning(item: Item, found: Found, view: FileView) -> tuple[Text, str]:
    """Return the beginning of a file and its kind; the differences if two images have it, and differ."""
    preview = _preview(found, view.files_of(item))
    old = item.old
    if item.new and old and old.is_regular and preview.is_text:
        before = _preview(old, view.files_of(Item(old, None)))
        lines = list(difflib.unified_diff(before.lines, preview.lines, "before", "after", lineterm=""))
        if before.is_text and lines:
            return compared(lines), f"what differs in {preview.kind}"
    if preview.is_text:
        return highlighted(os.fsdecode(found.path).rpartition("/")[2], preview.lines), preview.kind
    return Text("\n".join(preview.lines)), preview.kind


def _preview(found: Found, files: ImageFiles) -> Preview:
    return preview_of(files.reader(found)(0, HEAD), found.node.size)

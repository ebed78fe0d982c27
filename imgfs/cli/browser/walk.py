"""The tree that is walked in, the threads that read for it, and the status line that says what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from rich.text import Text
from textual.app import App
from textual.message import Message
from textual.widgets import Static, Tree
from textual.widgets.tree import TreeNode

from imgfs.cli.browser.jobs import BrowserJob, Jobs
from imgfs.cli.browser.opened import OpenedImage
from imgfs.cli.browser.tree import FileSlot, FileTree, Reading, slot_of
from imgfs.cli.format import counted, size
from imgfs.image.marked import FilesView, FileView, Item
from imgfs.quoting import printable, printable_path

_BATCH = 1000  # files that a directory is filled with at once
SHOW = 0.25  # seconds between two looks at what a job has found so far
_ENDS = 1.0  # seconds that a thread may take to end
SAVE = "save"  # the group of jobs that go on when something else is looked at


class TreeWalker(App[None]):
    """A tree of files, and a status line. A subclass says what is looked at, and shows files."""

    class JobFound(Message):
        """A job has something to show."""

        def __init__(self, job: BrowserJob, change: Callable[[], None]) -> None:
            super().__init__()
            self.job = job
            self.change = change

    def __init__(self, images: Sequence[OpenedImage]) -> None:
        super().__init__()
        self._images = images
        self._view: FileView = FilesView(images[-1].files)
        self._jobs = Jobs(self._post, self._failed)
        self._reading: dict[str, TreeNode[FileSlot]] = {}  # by the group of the job that reads a directory
        self._note = ""
        self._status = ""
        for image in images:
            image.notes = self._take_note

    def _show_item(self, item: Item) -> None:
        """Show what the cursor is on."""
        raise NotImplementedError

    def _show_preview(self, shown: Text, kind: str) -> None:
        """Show how a file begins."""
        raise NotImplementedError

    def end(self) -> bool:
        """Give up all jobs; return True if their threads have ended."""
        return self._jobs.end(_ENDS)

    @property
    def _tree(self) -> FileTree:
        return self.query_one("#tree", FileTree)

    # Jobs and the screen

    def _post(self, job: BrowserJob, change: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the screen has been left meanwhile
            self.post_message(self.JobFound(job, change))

    def on_tree_walker_job_found(self, message: TreeWalker.JobFound) -> None:
        """Show what a job has found."""
        if message.job.is_wanted:
            message.change()

    def _failed(self, job: BrowserJob, line: str) -> None:
        job.show(partial(self._show_failure, job.group, line))

    def _show_failure(self, group: str, line: str) -> None:
        self._take_note(line)
        self._forget_reading(group)
        if group == "look":
            self._show_preview(Text(printable(line), "red"), "cannot be read")

    def _take_note(self, line: str) -> None:
        self._note = printable(line)

    def _show_status(self) -> None:
        fetched = [image.fetched() for image in self._images]
        total, requests = sum(each.size for each in fetched), sum(each.requests for each in fetched)
        doing = ", ".join(self._jobs.texts())
        parts = [
            f"fetched {size(total)} in {counted(requests, 'request')}",
            doing and f"{doing} (Esc)",
            self._note,
        ]
        status = " │ ".join(filter(None, parts))
        if status != self._status:
            self._status = status
            self.query_one("#status", Static).update(Text(status, no_wrap=True, overflow="ellipsis"))

    def action_give_up(self) -> None:
        """Give up all that is under way, but saving: a second time that, too."""
        if self._jobs.give_up(but=SAVE) or self._jobs.give_up():
            self._take_note("given up")
        for group in list(self._reading):
            self._forget_reading(group)

    def _forget_reading(self, group: str) -> None:
        """Have a directory that was not read be read when it is opened again."""
        node = self._reading.pop(group, None)
        if node is not None:
            slot_of(node).reading = Reading.NOT
            node.collapse()

    # The tree

    def on_tree_node_expanded(self, event: Tree.NodeExpanded[FileSlot]) -> None:
        """Read a directory that has been opened."""
        slot = slot_of(event.node)
        if slot.item and slot.reading is Reading.NOT:
            self._read(event.node)

    def on_tree_node_selected(self, event: Tree.NodeSelected[FileSlot]) -> None:
        """Read more of a directory; go to the preview of a file."""
        slot = slot_of(event.node)
        if slot.item is None and event.node.parent:
            self._read(event.node.parent)
        elif slot.item and not slot.item.is_directory:
            self.query_one("#beginning").focus()

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[FileSlot]) -> None:
        """Show what the cursor is on."""
        if (item := slot_of(event.node).item) is not None:
            self._show_item(item)

    def _read(
        self, node: TreeNode[FileSlot], then: Callable[[], None] | None = None, name: bytes = b""
    ) -> None:
        """Add the next files of a directory, and the one of a name, then do something else."""
        slot = slot_of(node)
        item, known, view = slot.item, frozenset(slot.lines), self._view
        group = f"read {node.id}"
        assert item is not None

        def work(job: BrowserJob) -> None:
            watched = view.until(job.given_up)
            named = watched.at(item.found.path.rstrip(b"/") + b"/" + name) if name else None
            batch, count, shown, is_more = [], 0, time.monotonic(), False
            for child in watched.children(item):
                if child.name in known:
                    continue
                if is_more := count == _BATCH:
                    break
                batch.append(child)
                count += 1
                if time.monotonic() - shown > SHOW:
                    job.show(partial(self._tree.fill, node, batch))
                    batch, shown = [], time.monotonic()
            named_too = [named] if named and named.name == name else []
            job.show(partial(self._has_read, group, node, [*batch, *named_too], is_more, then))

        slot.reading = Reading.UNDER_WAY
        self._reading[group] = node
        what = "comparing" if not isinstance(view, FilesView) else "reading"
        self._jobs.start(group, f"{what} {printable_path(item.found.path)}", work)

    def _has_read(
        self,
        group: str,
        node: TreeNode[FileSlot],
        items: Sequence[Item],
        is_more: bool,
        then: Callable[[], None] | None,
    ) -> None:
        self._reading.pop(group, None)
        slot_of(node).reading = Reading.DONE
        self._tree.fill(node, items)
        self._tree.set_more(node, is_more=is_more)
        if then:
            then()

    def _reveal(self, node: TreeNode[FileSlot], names: list[bytes]) -> None:
        """Open directories down to a path, as far as there are any, and move the cursor there."""
        slot = slot_of(node)
        if slot.item is None or not slot.item.is_directory or not names:
            self._tree.go_to(node)
        elif names[0] in slot.lines:
            slot.reading = slot.reading if slot.reading is not Reading.NOT else Reading.UNDER_WAY
            node.expand()
            self._reveal(slot.lines[names[0]], names[1:])
        else:
            slot.reading = Reading.UNDER_WAY  # else opening it would read it, too
            node.expand()
            self._read(node, partial(self._reveal_in, node, names), names[0])

    def _reveal_in(self, node: TreeNode[FileSlot], names: list[bytes]) -> None:
        if names[0] in slot_of(node).lines:
            self._reveal(node, names)
        else:
            self._take_note(f"{printable_path(names[0])}: not in {printable_path(_path_of(node))}")
            self._tree.go_to(node)


def _path_of(node: TreeNode[FileSlot]) -> bytes:
    item = slot_of(node).item
    return item.found.path if item else b""

"""The tree of files: a widget whose directories are filled from elsewhere, when they are opened."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from imgfs.cli.format import size
from imgfs.image.marked import Item
from imgfs.quoting import printable_path

_STYLES = {"added": "green", "changed": "yellow", "deleted": "red"}


class Reading(Enum):
    """How far a directory has been read."""

    NOT = auto()
    UNDER_WAY = auto()
    DONE = auto()


@dataclass
class FileSlot:
    """What a line of the tree stands for; `item` is None of a line that stands for more of its directory."""

    item: Item | None
    reading: Reading = Reading.NOT
    lines: dict[bytes, TreeNode[FileSlot]] = field(default_factory=dict)  # by name
    more: TreeNode[FileSlot] | None = None


class FileTree(Tree[FileSlot]):
    """The tree."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *Tree.BINDINGS,
        Binding("j", "cursor_down", show=False),
        Binding("k", "cursor_up", show=False),
        Binding("left", "leave", "close or leave a directory", show=False),
        Binding("right", "enter", "open a directory", show=False),
    ]

    def begin(self, root: Item) -> TreeNode[FileSlot]:
        """Show a root that has not been read."""
        self.reset(label_of(root), FileSlot(root))
        return self.root

    def fill(self, node: TreeNode[FileSlot], items: Iterable[Item]) -> None:
        """Add files to a directory."""
        slot = slot_of(node)
        for item in items:
            if item.name not in slot.lines:
                slot.lines[item.name] = node.add(
                    label_of(item), FileSlot(item), before=slot.more, allow_expand=item.is_directory
                )

    def set_more(self, node: TreeNode[FileSlot], *, is_more: bool) -> None:
        """Show, or not, a line at the end that stands for the rest of the directory."""
        slot = slot_of(node)
        if slot.more and not is_more:
            slot.more.remove()
            slot.more = None
        elif is_more and not slot.more:
            slot.more = node.add_leaf(Text("… more (Enter)", "dim"), FileSlot(None))

    def go_to(self, node: TreeNode[FileSlot]) -> None:
        """Move the cursor to a line whose directory was opened just now."""
        self.call_after_refresh(self.move_cursor, node)

    def action_leave(self) -> None:
        """Close an open directory; from a file, or a closed directory, go to its parent."""
        node = self.cursor_node
        if node is None:
            return
        if node.is_expanded and node.allow_expand:
            node.collapse()
        elif node.parent:
            self.move_cursor(node.parent)

    def action_enter(self) -> None:
        """Open a directory."""
        if self.cursor_node and self.cursor_node.allow_expand:
            self.cursor_node.expand()


def slot_of(node: TreeNode[FileSlot]) -> FileSlot:
    """Return what a line stands for: each has that from when it was made."""
    assert node.data is not None
    return node.data


def label_of(item: Item) -> Text:
    """Return the line of a file: its mark, its name, and the size of a regular file."""
    found = item.found
    style = _STYLES.get(item.change, "")
    name = Text(printable_path(item.name or b"/"), style)
    if item.is_directory:
        name.stylize("bold")
    mark = Text(f"{item.change[0].upper()} ", style) if item.change else Text()
    return Text.assemble(mark, name, (f"  {size(found.node.size)}" if found.is_regular else "", "dim"))

"""What the paths of an image may cost while its layers are merged (`layer.limits`)."""

from __future__ import annotations

from imgfs.errors import InvalidImage
from imgfs.layer.limits import COMPONENTS_EACH, COMPONENTS_MORE, IMPLIED_EACH, IMPLIED_MORE


class Budget:
    """Components looked up and directories implied, each held against the entries that there were so far.

    A compressed layer can hold millions of components in a few kilobytes; an entry of a real one has its
    parents at hand, or makes a few of them.
    """

    def __init__(self) -> None:
        self._entries = 0
        self._components = 0
        self._implied = 0

    def add_entry(self) -> None:
        """An entry has been met: others may be looked up for it."""
        self._entries += 1

    def look_up(self, components: int) -> None:
        """Components are about to be looked up; raises InvalidImage."""
        self._components += components
        most = COMPONENTS_MORE + COMPONENTS_EACH * self._entries
        if self._components > most:
            raise InvalidImage(f"the paths so far have more than the {most} components allowed to them")

    def imply(self) -> None:
        """A directory is about to be made that no entry has described; raises InvalidImage."""
        self._implied += 1
        most = IMPLIED_MORE + IMPLIED_EACH * self._entries
        if self._implied > most:
            raise InvalidImage(f"the paths so far imply more than the {most} directories allowed to them")

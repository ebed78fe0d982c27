"""What the paths of an image may cost while its layers are merged (`layer.limits`)."""

from __future__ import annotations

from imgfs.errors import InvalidImage
from imgfs.layer.limits import COMPONENTS_EACH, COMPONENTS_MORE, IMPLIED_EACH, IMPLIED_MORE


class Budget:
    """Counts components looked up and directories implied; the limits grow with the entries merged so far.

    A compressed layer can hold millions of components in a few kilobytes; in real layers an entry's parents
    exist, or the entry implies a few of them.
    """

    def __init__(self) -> None:
        self._entries = 0
        self._components = 0
        self._implied = 0

    def add_entry(self) -> None:
        """Count an entry, which raises both limits."""
        self._entries += 1

    def look_up(self, components: int) -> None:
        """Count components about to be looked up; raises InvalidImage if they are too many."""
        self._components += components
        most = COMPONENTS_MORE + COMPONENTS_EACH * self._entries
        if self._components > most:
            raise InvalidImage(f"the paths so far have more than the {most} components allowed to them")

    def imply(self) -> None:
        """Count a directory that no entry describes; raises InvalidImage if they are too many."""
        self._implied += 1
        most = IMPLIED_MORE + IMPLIED_EACH * self._entries
        if self._implied > most:
            raise InvalidImage(f"the paths so far imply more than the {most} directories allowed to them")

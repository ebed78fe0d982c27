"""Guesses played against a tree whose bytes are all here: which files they want."""

from __future__ import annotations

from collections.abc import Iterable

from imgfs.predict.guess import Also, Look, Rank, Want, Watch
from imgfs.tree.reader import Tree


class Played:
    """The files that guesses want, by path: what of each, and how soon; and what is watched."""

    def __init__(self, tree: Tree, flat: bytes, guesses: Iterable[Also]) -> None:
        self.wanted: dict[str, list[Want]] = {}
        self.watched: dict[str, Watch] = {}
        self._tree, self._flat = tree, flat
        self._made: set[tuple[str, int]] = set()
        self._ahead = list(guesses)
        while self._ahead:
            self._play(self._ahead.pop(0))

    def paths(self, rank: Rank | None = None) -> set[str]:
        """Return the paths of what is wanted, or of what is wanted with that rank."""
        return {path for path, wants in self.wanted.items() if rank is None or wants[0].rank is rank}

    def _play(self, also: Also) -> None:
        if also.key in self._made:
            return
        self._made.add(also.key)
        sent = None
        try:
            while True:
                step = next(also.guess) if sent is None else also.guess.send(sent)
                sent = b""
                if isinstance(step, Look):
                    sent = self._bytes(step)
                elif isinstance(step, Want):
                    self.wanted.setdefault(self._path(step.ino), []).append(step)
                elif isinstance(step, Watch):
                    self.watched[self._path(step.ino)] = step
                else:
                    self._ahead.append(step)
        except StopIteration:
            pass

    def _bytes(self, look: Look) -> bytes:
        _, extents, size = self._tree.contents(look.ino)
        if not extents:
            return b""
        return self._flat[extents[0].flat :][:size][look.start : look.end]

    def _path(self, ino: int) -> str:
        return self._tree.path(ino).decode()

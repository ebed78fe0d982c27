"""What differs in the packages of two images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from imgfs.packages.package import Package


class PackageChange(NamedTuple):
    """A package whose versions differ: those `before`, and those `after`.

    A package may be installed several times, in several versions (npm, Python).
    """

    type: str
    name: str
    architecture: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def change(self) -> str:
        """Return "added", "changed" or "deleted"."""
        return "changed" if self.before and self.after else "added" if self.after else "deleted"


def changed_packages(before: Iterable[Package], after: Iterable[Package]) -> list[PackageChange]:
    """Return the packages that are not installed in the same versions as often, by type and name."""
    ours, theirs = _versions(before), _versions(after)
    return [
        PackageChange(*key, *(tuple(sorted(side.get(key, Counter()).elements())) for side in (ours, theirs)))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]


def _versions(packages: Iterable[Package]) -> dict[tuple[str, str, str], Counter[str]]:
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for package in packages:
        key = package.type, package.name, package.architecture
        found.setdefault(key, Counter())[package.full_version] += 1
    return found

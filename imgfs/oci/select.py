"""The manifest of an index that fits a platform, as containerd finds it (core/images/image.go, `Manifest`).

Entries that name a fitting platform come first. Only if none fits, entries that name none are looked into:
manifests by the platform in their configs, nested indexes by their entries. Artifacts are never chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imgfs.errors import InvalidImage, NotFound, Unavailable
from imgfs.oci.descriptor import Descriptor, Platform
from imgfs.oci.image import Index, Manifest, parse_config
from imgfs.oci.kind import foreign_format, index_kind, is_artifact_entry

_NESTING = 4  # indexes inside indexes
_NAMED, _LONGEST = 40, 60  # platforms that a message names, and characters of each
_LOOKS = (
    64  # documents that are read in search of one: 4 MiB each, and an index may name one thousands of times
)
_VARIANT = re.compile(r"v([0-9]{1,4})(?:\.([0-9]{1,4}))?")
_ALSO = {"amd64": {"386"}, "arm64": {"arm"}, "mips64": {"mips"}, "mips64le": {"mipsle"}}  # natively

Level = tuple[int, int]  # of a variant: v8.2 is (8, 2)


class Selected(NamedTuple):
    """A manifest that the platform runs, and the level of its variant."""

    descriptor: Descriptor
    manifest: Manifest
    level: Level


def select_manifest(
    named: Descriptor,
    wanted: Platform,
    read: Callable[[Descriptor], Manifest | Index],
    read_config: Callable[[Descriptor], bytes],
) -> Selected:
    """Return the manifest that `named` means for the platform `wanted`: itself, or the best of an index.

    An older variant of the same architecture will do (arm/v6 on arm/v7, amd64 on amd64/v3); the newest of
    them wins, and among equals the first. Unlike containerd, another architecture never does (386 on amd64).
    An only entry without a platform is taken unseen. `read` and `read_config` fetch documents and check them.
    Raises InvalidImage listing the platforms there are, and what the two functions raise.
    """
    document = read(named)
    if isinstance(document, Manifest):
        return Selected(named, document, (0, 0))
    search = _Search(wanted, read, read_config)
    found = search.within(document, 0, is_certain=True)
    if found:
        return found
    if search.unavailable:
        raise search.unavailable
    kind = index_kind(document)
    if kind and not search.platforms:
        raise InvalidImage(f"this is {kind}, not an image")
    among = f" among the first {_LOOKS} documents that it names" if search.looks > _LOOKS else ""
    raise InvalidImage(f"no image for {wanted}{among}; {_offered(search.platforms)}")


@dataclass(slots=True)
class _Search:
    """A search through an index.

    `platforms` has what was seen, as far as a message names them, `unavailable` the last look that failed.
    """

    wanted: Platform
    read: Callable[[Descriptor], Manifest | Index]
    read_config: Callable[[Descriptor], bytes]
    platforms: dict[str, None] = field(default_factory=dict)
    unavailable: Unavailable | None = None
    looks: int = 0  # documents read, and those that would have been

    def within(self, index: Index, depth: int, *, is_certain: bool) -> Selected | None:
        """Search an index; `is_certain` if its only entry needs no platform: nothing else could be meant."""
        if depth >= _NESTING:
            raise InvalidImage(f"indexes nested more than {_NESTING} deep")
        images = [entry for entry in index.manifests if is_image_entry(entry)]
        if is_certain and len(images) == 1 and images[0].platform is None:
            return self._enter(images[0], (0, 0), depth)
        for entry in images:
            if entry.platform:
                self._note(entry.platform)
        for level, entry in self._labelled(images):
            found = self._enter(entry, level, depth)
            if found:
                return found
        looked = [found for entry in images if not entry.platform for found in self._look(entry, depth)]
        return max(looked, key=lambda found: found.level, default=None)

    def _note(self, platform: Platform) -> None:
        if len(self.platforms) < _NAMED:
            self.platforms[f"{platform!s:.{_LONGEST}}"] = None

    def _labelled(self, images: list[Descriptor]) -> list[tuple[Level, Descriptor]]:
        """Return the entries whose platform fits, the newest variant first."""
        levels = [(level_for(self.wanted, entry.platform), entry) for entry in images if entry.platform]
        fitting = [(level, entry) for level, entry in levels if level is not None]
        return sorted(fitting, key=lambda pair: pair[0], reverse=True)

    def _read(self, entry: Descriptor) -> Manifest | Index | None:
        """Read what an entry names; None once as many documents were read as may be."""
        self.looks += 1
        return self.read(entry) if self.looks <= _LOOKS else None

    def _enter(self, entry: Descriptor, level: Level, depth: int) -> Selected | None:
        document = self._read(entry)
        if isinstance(document, Manifest):
            return Selected(entry, document, level)
        return self.within(document, depth + 1, is_certain=True) if document else None

    def _look(self, entry: Descriptor, depth: int) -> Iterator[Selected]:
        """Yield what an entry without a platform has for the platform, if it has something.

        What is missing or no image is passed over: others may have what is wanted.
        """
        try:
            document = self._read(entry)
            if document is None:
                return
            if isinstance(document, Index):
                found = self.within(document, depth + 1, is_certain=False)
                if found:
                    yield found
                return
            config = parse_config(self.read_config(document.config), document.config.media_type)
        except (InvalidImage, NotFound):
            return
        except Unavailable as error:
            self.unavailable = error
            return
        self._note(config.platform)
        level = level_for(self.wanted, config.platform)
        if level is not None:
            yield Selected(entry, document, level)


def is_image_entry(entry: Descriptor) -> bool:
    """Return True if an index's entry may be an image that imgfs reads, by what the entry itself says."""
    platform = entry.platform
    return not (
        is_artifact_entry(entry)
        or (platform and (platform.os, platform.architecture) == ("unknown", "unknown"))
        or (platform and foreign_format(platform))
    )


def level_for(wanted: Platform, offered: Platform) -> Level | None:
    """Return how new a variant `offered` is, if `wanted` runs it; None if it does not."""
    want, offer = wanted.normalized(), offered.normalized()
    if (want.os, want.architecture) != (offer.os, offer.architecture):
        return None
    most, level = _level(want.variant), _level(offer.variant)
    if most is None or level is None:
        return (0, 0) if want.variant == offer.variant else None
    return level if level <= most else None


def runs(machine: Platform, image: Platform) -> bool:
    """Return True if `machine` runs the programs of an image for `image` natively, as far as that is known.

    An image that does not say what it is for is given the benefit of the doubt. Variants count for 32-bit ARM
    only: those of other architectures say what a program may use, not what it needs.
    """
    want, offer = machine.normalized(), image.normalized()
    return is_for(machine, image) or (
        want.os == offer.os and offer.architecture in _ALSO.get(want.architecture, ())
    )


def is_for(wanted: Platform, image: Platform) -> bool:
    """Return True if an image for `image` is one for `wanted`, as far as it says what it is for."""
    want, offer = wanted.normalized(), image.normalized()
    if "unknown" in (offer.os, offer.architecture):
        return True
    if (want.os, want.architecture) != (offer.os, offer.architecture):
        return False
    return offer.architecture != "arm" or image.variant is None or level_for(want, offer) is not None


def _level(variant: str | None) -> Level | None:
    match = _VARIANT.fullmatch(variant or "v1")
    return (int(match[1]), int(match[2] or 0)) if match else None


def _offered(platforms: Iterable[str]) -> str:
    among = ", ".join(platforms)
    return f"there are: {among}" if among else "the index offers no image with a platform"

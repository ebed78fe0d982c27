"""The access profiles of an image: kept by name, replayed, and good for other tags of its repository, too."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice

from imgfs.content.content import Content, segments_of
from imgfs.content.profile import AccessProfile, FindFile, FlatRange, ProfileFile, ProfileLayer, origin_of
from imgfs.errors import ImgfsError, InvalidImage
from imgfs.image.image import Image
from imgfs.image.resolve import Resolved
from imgfs.image.trust import Trust
from imgfs.layer.entry import Extent
from imgfs.oci.descriptor import Digest
from imgfs.oci.policy import Policy
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.predict.files import FilesByPath
from imgfs.store.store import Store
from imgfs.tree.reader import Tree

AUTOMATIC = "auto"  # the profile that a mount records if it is given no name
DEFAULT = "default"  # is replayed instead, if it exists
_RELATIVES = 16  # other images of a repository that are looked at
_FILES = 3000  # of a profile at most
_MANY = 150_000  # files of an image whose paths are not looked for
_DEEPEST = 256  # directories above a file whose path is kept


def profile_for(resolved: Resolved, store: Store, name: str | None) -> AccessProfile | None:
    """Return the profile to replay: `name`, else DEFAULT, else AUTOMATIC; the image's own first.

    Then those of other tags of its repository count, in whichever registry, the last resolved first. None if
    there is none, or it is not valid. A profile that was published in another repository than the reference's
    does not count.
    """
    names = [name] if name else [DEFAULT, AUTOMATIC]
    accepted = ("", Trust.of(parse_reference(resolved.reference), Policy.ANY).origin)
    found = own_profile(resolved.digest, store, names, accepted)
    others = _relatives(resolved, store) if found is None else iter(())
    usable = (own_profile(digest, store, names, accepted) for digest in islice(others, _RELATIVES))
    return found or next(filter(None, usable), None)


def own_profile(
    manifest: Digest, store: Store, names: Iterable[str], accepted: tuple[str, ...]
) -> AccessProfile | None:
    """Return the first profile of an image that has one of `names` and comes from one of `accepted`."""
    profiles = store.profiles(manifest)
    for body in (profiles[name] for name in names if name in profiles):
        if origin_of(body) in accepted:
            with suppress(InvalidImage):
                return AccessProfile.from_json(body)
    return None


def _relatives(resolved: Resolved, store: Store) -> Iterator[Digest]:
    """Yield the other images of the repository that the store knows, the last resolved first."""
    own = _repository(resolved.reference)
    if own is None:
        return
    known = sorted(store.resolutions(), key=lambda resolution: resolution.resolved, reverse=True)
    for manifest in dict.fromkeys(each.manifest for each in known if _repository(each.reference) == own):
        if manifest != resolved.digest:
            yield manifest


def _repository(text: str) -> str | None:
    """Return the repository that a reference names, without its registry; None if it has none."""
    with suppress(ImgfsError):
        reference = parse_reference(text)
        if isinstance(reference, RegistryReference):
            return reference.repository
    return None


def touches_of(profile: AccessProfile, image: Image) -> list[tuple[int, int]]:
    """Return a profile's touches as (layer, span) of an image."""
    files = FilesByPath(image.tree)  # bounded: the mount waits for this, and the image may be made for that
    return _touches(profile, image.content, lambda file: ranges_of(file, files, image.tree))


def touches_without_tree(profile: AccessProfile, content: Content) -> list[tuple[int, int]]:
    """Return those of a profile's touches that lie in its own layers, as far as an image has these."""
    return _touches(profile, content, lambda _: ())


def _touches(profile: AccessProfile, content: Content, find: FindFile) -> list[tuple[int, int]]:
    layers = [ProfileLayer.of(layer.index.summary) for layer in content.layers]
    return content.spans_in(profile.resolve(layers, find))


def ranges_of(file: ProfileFile, files: FilesByPath, tree: Tree) -> Iterator[FlatRange]:
    """Yield where the bytes of a profile's file are in an image that has it; its size may be another."""
    with suppress(OSError, ImgfsError):
        node = files.file(file.path)
        if node:
            layer, extents, size = tree.contents(node.ino)
            files.left -= len(extents)
            start = min(file.start, size)
            yield from _ranges(layer, extents, start, min(file.length, size - start))


def _ranges(layer: int, extents: tuple[Extent, ...], start: int, length: int) -> Iterator[FlatRange]:
    for flat, size in segments_of(extents, start, length):
        if flat is not None:
            yield FlatRange(layer, flat, size)


def save_recorded(image: Image, store: Store, name: str | None) -> None:
    """Store what readers have touched as `name`; or as AUTOMATIC, followed by what earlier mounts have read.

    So a short mount does not replace what workloads usually read; one that reads nothing new changes nothing.
    """
    touches = image.content.recorded()
    if not touches:
        return
    if name is None:
        earlier = own_profile(image.resolved.digest, store, [AUTOMATIC], ("",))
        known = touches_of(earlier, image) if earlier else []
        if set(touches) <= set(known):
            return  # to look for the paths of files takes longer than all else at the end of a short mount
        touches += known
    profile = image.content.profile_of(dict.fromkeys(touches))
    profile = profile._replace(files=tuple(islice(_files(profile, image), _FILES)))
    store.put_profile(image.resolved.digest, name or AUTOMATIC, profile.to_json())


def _files(profile: AccessProfile, image: Image) -> Iterator[ProfileFile]:
    """Yield the files that lie in a profile's touches, if it does not take long to find them."""
    if image.tree.node_count > _MANY:
        return
    starts: dict[int, list[tuple[int, int, int]]] = {touch.layer: [] for touch in profile.touches}
    for layer, *place in image.tree.contiguous_files():
        if layer in starts:
            starts[layer].append((place[0], place[1], place[2]))
    for found in starts.values():
        found.sort()
    names = {ino: (parent, name) for parent, name, ino in image.tree.dirents()}
    for at, (layer, start, length) in enumerate(profile.touches):
        first = bisect_right(starts[layer], (start + 1,)) - 1  # it may begin before the touch
        for number in range(max(0, first), len(starts[layer])):
            flat, ino, size = starts[layer][number]
            if flat >= start + length:
                break
            before, end = max(start, flat), min(start + length, flat + size)
            if before < end:
                yield ProfileFile(at, _path(ino, names), before - flat, end - before, size)


def _path(ino: int, names: Mapping[int, tuple[int, bytes]]) -> bytes:
    """Return a path of a file, given a name of each in its directory."""
    parts: list[bytes] = []
    while ino in names and len(parts) < _DEEPEST:
        ino, name = names[ino]
        parts.append(name)
    return b"/".join(reversed(parts))

"""An image in an OCI image layout (image-layout.md), in a directory or, as skopeo's oci-archive, in a tar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from imgfs.errors import IntegrityError, InvalidImage, NotFound, Unavailable, UsageError
from imgfs.oci.artifact import encode, of_type, parse_referrers, referrer_in, referrers_tag
from imgfs.oci.descriptor import Descriptor, Digest, descriptor_fields
from imgfs.oci.image import INDEX_TYPES, OCI_INDEX, Index, Manifest, parse_document
from imgfs.oci.kind import artifact_kind, is_artifact_tag
from imgfs.oci.reference import DEFAULT_TAG, FileReference, LayoutReference
from imgfs.oci.select import is_image_entry
from imgfs.registry.endpoint import MAX_MANIFEST
from imgfs.transport.files import Directory, Files, FilesSource
from imgfs.transport.source import UNKNOWN_SIZE

_REF_NAME = "org.opencontainers.image.ref.name"  # annotations.md: a tag, in an image layout
_IMAGE_NAME = "io.containerd.image.name"  # containerd's and BuildKit's: the full name
_MAX_NESTING = 4  # indexes within indexes


class LayoutSource(FilesSource):
    """An image in an OCI image layout (image-layout.md): its `files` are in a directory or an archive."""

    def __init__(self, reference: LayoutReference | FileReference, files: Files | None = None) -> None:
        super().__init__(files or Directory(reference.path), str(replace(reference, tag=None, digest=None)))
        self._reference = reference
        self._path = reference.path

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Look the reference up in `index.json`; raises NotFound naming the tags there are.

        Without a tag: the only image, else `latest`, else, if its entries are one image's platforms, the
        index as a whole.
        """
        if self._reference.digest:
            return Descriptor("", self._reference.digest, UNKNOWN_SIZE)
        body, index = self._read_index()
        wanted = self._reference.tag
        images = self._images(index) if wanted is None else []
        if len(images) == 1:
            return images[0]
        found = self._named(index, wanted or DEFAULT_TAG)
        if found:
            return found
        if images and all(entry.platform and not _names(entry) for entry in images):
            return Descriptor(OCI_INDEX, Digest.of(body), len(body), data=body)
        tags = sorted({name for entry in self._entries(index) for name in _names(entry)})
        from imgfs.registry.manifests import describe_tags  # here: what speaks HTTP takes long to load

        raise NotFound(f"{self._place} has no tag {wanted or DEFAULT_TAG!r}; {describe_tags(tags)}")

    def tags(self) -> list[str]:
        """Return all tags, sorted."""
        return sorted({name for entry in self._entries(self._read_index()[1]) for name in _names(entry)})

    def tagged(self, tag: str) -> Descriptor:
        """Look a tag up in `index.json`."""
        found = self._named(self._read_index()[1], tag)
        if found is None:
            raise NotFound(f"{self._place} has no tag {tag!r}")
        return found

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Those among the entries of `index.json` that name `digest` as their subject, as oras has it, and
        those in the list under the digest's tag, as regclient has it; what is not there is passed over."""
        _, index = self._read_index()
        found = {entry.digest: entry for entry in self._listed(index, digest)}
        for entry in {entry.digest: entry for entry in index.manifests}.values():
            with suppress(InvalidImage, IntegrityError, NotFound):
                subject, referrer = referrer_in(self.document(entry), entry)
                if subject == digest:
                    found[entry.digest] = referrer
        return of_type(found.values(), artifact_type)

    def name_of(self, digest: Digest) -> str:
        """Return a blob's name."""
        return f"blobs/{digest.algorithm}/{digest.hex}"

    def _read_index(self) -> tuple[bytes, Index]:
        try:
            body = self.read_small("index.json", MAX_MANIFEST)
        except NotFound as error:
            raise UsageError(
                f"{self._path}: not an OCI image layout: it has no index.json{self._other_kind()}"
            ) from error
        index = parse_document(body, OCI_INDEX)
        if not isinstance(index, Index):
            raise InvalidImage("not an index", where=self._files.path("index.json"))
        return body, index

    def _other_kind(self) -> str:
        """Return which transport reads what is there instead, for the end of a message."""
        with suppress(NotFound, InvalidImage, Unavailable), self._files.open("manifest.json"):
            other = "dir" if isinstance(self._files, Directory) else "docker-archive"
            return f"; it has a manifest.json: {other}:{self._path}"
        return ""

    def _named(self, index: Index, tag: str) -> Descriptor | None:
        """Return the entry that has a tag; of several for different platforms, an index made of them.

        Raises InvalidImage if several entries have it, and do not say for which platforms they are.
        """
        found = {entry.digest: entry for entry in self._entries(index) if tag in _names(entry)}
        if len(found) > 1:
            images = [entry for entry in found.values() if is_image_entry(entry)]
            if not images or not all(entry.platform for entry in images):
                raise InvalidImage(f"{len(found)} images are called {tag!r}", where=str(self._path))
            return images[0] if len(images) == 1 else _index_of(images)
        return found.popitem()[1] if found else None

    def _images(self, index: Index) -> list[Descriptor]:
        """Return the entries that are images; all of them if none is, so that the error can say what it is.

        An entry that does not say by itself what it is, is looked into: attestations, signatures and other
        artifacts may have no more than a digest there.
        """
        images = [entry for entry in index.manifests if _is_image(entry)]
        if len(images) > 1:
            bare = {entry.digest: entry for entry in images if not entry.platform}
            artifacts = {digest for digest, entry in bare.items() if self._is_artifact(entry)}
            images = [entry for entry in images if entry.platform or entry.digest not in artifacts]
        return images or list(index.manifests)

    def _is_artifact(self, entry: Descriptor) -> bool:
        with suppress(InvalidImage, IntegrityError, NotFound):
            document = parse_document(self.document(entry), entry.media_type)
            return isinstance(document, Manifest) and artifact_kind(document) is not None
        return False

    def _listed(self, index: Index, subject: Digest) -> list[Descriptor]:
        """Return the list of referrers that is kept under the tag of `subject`, if it is there and one."""
        with suppress(InvalidImage, IntegrityError, NotFound):
            named = self._named(index, referrers_tag(subject))
            return parse_referrers(self.document(named)) if named else []
        return []

    def _entries(self, index: Index) -> Iterator[Descriptor]:
        """Yield the entries of an index and of those within it, each of which is read once."""
        done: set[Digest] = set()

        def within(index: Index, depth: int) -> Iterator[Descriptor]:
            for entry in index.manifests:
                yield entry
                if entry.media_type in INDEX_TYPES and depth < _MAX_NESTING and entry.digest not in done:
                    done.add(entry.digest)
                    inner = parse_document(self.document(entry), entry.media_type)
                    if isinstance(inner, Index):
                        yield from within(inner, depth + 1)

        yield from within(index, 0)


def _names(entry: Descriptor) -> set[str]:
    return {entry.annotations[key] for key in (_REF_NAME, _IMAGE_NAME) if key in entry.annotations}


def _index_of(entries: Sequence[Descriptor]) -> Descriptor:
    """Return an index of entries that share a tag, one for each platform, with its bytes in `data`."""
    manifests = [descriptor_fields(replace(entry, annotations=_without_names(entry))) for entry in entries]
    body = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
    return Descriptor(OCI_INDEX, Digest.of(body), len(body), data=body)


def _without_names(entry: Descriptor) -> dict[str, str]:
    return {key: text for key, text in entry.annotations.items() if key not in (_REF_NAME, _IMAGE_NAME)}


def _is_image(entry: Descriptor) -> bool:
    """Return True if an entry of `index.json` may be an image, by its own fields and tags."""
    return is_image_entry(entry) and not any(map(is_artifact_tag, _names(entry)))

"""An OCI image layout directory, written to (image-spec, image-layout.md). `source` reads them.

Every file is written under a temporary name, synced and renamed; `index.json` is changed under a lock that
all of imgfs honours. So writers may work at once, and one that is killed leaves nothing in the way.

The layout, its directories and its own files are opened by the rule of `owned.opening`: another user's are
refused, so that no link of theirs leads what is written elsewhere, and no image of theirs is taken for ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from imgfs.errors import InvalidImage, UsageError
from imgfs.oci import artifact
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.fields import list_in, object_at, parse_json
from imgfs.oci.image import OCI_INDEX
from imgfs.owned.opening import open_owned_directory, open_owned_file, open_regular, read_owned_file
from imgfs.owned.writing import os_errors, sweep, sync_directory, write_all

_REF_NAME = "org.opencontainers.image.ref.name"  # annotations.md: a tag, in an image layout
_NAMES = (_REF_NAME, "io.containerd.image.name")  # what an entry of `index.json` is called by
LAYOUT_VERSION = "1.0.0"  # image-layout.md, "oci-layout file"
_INDEX, _MARKER = "index.json", "oci-layout"
_LOCK = ".imgfs.lock"
_ASIDE = ".imgfs-"
_MAX_INDEX = 64 << 20  # bytes of an index.json, of which many images may have a part


class Layout:
    """The layout in the directory `path`, made when the first thing is put into it. Safe in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._made = False
        self._checked: set[Path] = set()  # directories that are there, and are this user's own

    def has(self, descriptor: Descriptor) -> bool:
        """Return whether a blob of that digest and size is there."""
        with suppress(OSError):
            found = self._blob_path(descriptor.digest).stat()
            return stat.S_ISREG(found.st_mode) and found.st_size == descriptor.size
        return False

    def put_blob(self, digest: Digest, chunks: Iterable[bytes]) -> None:
        """Write a blob, whose bytes the caller has checked; what `chunks` raises leaves nothing behind.

        Raises UsageError for a directory that is something else, StoreError if it cannot be written.
        """
        self._make()
        self._write(self._blob_path(digest), chunks)

    def tag(self, descriptor: Descriptor, tag: str | None) -> None:
        """Enter a stored manifest or index into `index.json`; another entry of that `tag` loses it."""
        self._change_index(lambda entries: entered(entries, descriptor, tag))

    def add_referrer(self, entry: Descriptor) -> None:
        """Enter a manifest with a subject, whose blob is there, into `index.json`, as oras does."""
        annotations = {key: text for key, text in entry.annotations.items() if key not in _NAMES}
        nameless = replace(entry, annotations=annotations)
        self._change_index(lambda entries: artifact.entered(entries, nameless))

    def remove_referrer(self, subject: Digest, digest: Digest) -> None:
        """Take a manifest out of `index.json`, and out of the list under its subject's tag; blobs stay."""
        tag = artifact.referrers_tag(subject)
        self._change_index(
            lambda entries: [
                self._without(entry, digest) if _tag_in(entry) == tag else entry
                for entry in artifact.removed(entries, digest)
            ]
        )

    def _without(self, entry: object, digest: Digest) -> object:
        """Return the entry of a list of referrers; of one without `digest`, if it has been there."""
        try:
            fields = object_at(entry, "entry")
            old = Digest.parse(fields.get("digest"))
            with open_regular(self._blob_path(old)) as file:
                body = artifact.without_referrer(file.read(_MAX_INDEX), digest)
        except (InvalidImage, OSError):  # no list: nothing to take out
            return entry
        new = Digest.of(body, old.algorithm)
        if new != old:
            self._write(self._blob_path(new), [body])
        return {**fields, "digest": str(new), "size": len(body)}

    def _change_index(self, change: Callable[[list[object]], list[object]]) -> None:
        """Give `index.json` other entries, alone among all of imgfs."""
        self._make()
        path = self.path / _INDEX
        with self._locked(), os_errors(path):
            fields = _read_index(path)
            fields["manifests"] = change(list_in(fields, "manifests", str(path)))
            self._write(path, [json.dumps(fields).encode()])

    def _blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex

    def _make(self) -> None:
        """Have the directory be a layout: new, or one already."""
        with self._lock:
            if self._made:
                return
            with os_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                os.close(open_owned_directory(self.path))
                _check_is_layout(self.path)
            with self._locked():
                _sweep(self.path)
                self._make_file(_MARKER, {"imageLayoutVersion": LAYOUT_VERSION})
                self._make_file(_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
            self._made = True

    def _make_file(self, name: str, fields: Mapping[str, object]) -> None:
        if not (self.path / name).exists():
            self._write(self.path / name, [json.dumps(fields).encode()])

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        with os_errors(path):
            self._check_directory(path.parent)
            with _aside(self.path) as (fd, aside):
                for chunk in chunks:
                    write_all(fd, chunk)
                os.fsync(fd)
                os.rename(aside, path)
            sync_directory(path.parent)

    def _check_directory(self, directory: Path) -> None:
        """Make a directory of the layout, and check that it and those above it are this user's own."""
        if directory in self._checked:
            return
        if directory != self.path:
            self._check_directory(directory.parent)
            with suppress(FileExistsError):  # whatever it is, it is looked at next
                directory.mkdir()
        os.close(open_owned_directory(directory))
        self._checked.add(directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the layout's lock, alone among processes and threads."""
        path = self.path / _LOCK
        with os_errors(path):
            fd = open_owned_file(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)


def entered(entries: Sequence[object], descriptor: Descriptor, tag: str | None) -> list[object]:
    """Return the entries of an `index.json` in which `descriptor` alone has `tag`.

    Without a tag, any entry for the digest is enough.
    """
    fields = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if tag:
        others = [entry for entry in entries if _tag_in(entry) != tag]
        return [*others, {**fields, "annotations": {_REF_NAME: tag}}]
    known = any(isinstance(entry, dict) and entry.get("digest") == fields["digest"] for entry in entries)
    return [*entries] if known else [*entries, fields]


def _tag_in(entry: object) -> object:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(_REF_NAME) if isinstance(annotations, dict) else None


def _check_is_layout(path: Path) -> None:
    """Raise UsageError for a directory that is neither empty nor a layout of version 1.0.0."""
    try:
        body = read_owned_file(path / _MARKER, names=None)
    except FileNotFoundError as error:
        names = os.listdir(path)  # perhaps after another process has made it
        if not {_MARKER, _INDEX} & set(names) and any(
            name != _LOCK and not name.startswith(_ASIDE) for name in names
        ):
            raise UsageError(f"{path}: neither empty nor an OCI image layout") from error
        return
    where = str(path / _MARKER)
    version = object_at(parse_json(body, where), where).get("imageLayoutVersion")
    if version != LAYOUT_VERSION:
        raise UsageError(f"{path}: an OCI image layout of version {version!r:.40}, not {LAYOUT_VERSION}")


def _read_index(path: Path) -> dict[str, object]:
    return object_at(parse_json(read_owned_file(path, names=None, largest=_MAX_INDEX), str(path)), str(path))


@contextmanager
def _aside(directory: Path) -> Iterator[tuple[int, Path]]:
    """A new file with a temporary name: its descriptor and path. It is removed unless it was renamed.

    Its writer holds a lock on it, so that one left by a killed writer can be told from one being written.
    """
    path = directory / f"{_ASIDE}{os.urandom(8).hex()}"
    fd = _create_locked(path)
    try:
        yield fd, path
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _create_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # swept away in the moment before it was locked


def _sweep(directory: Path) -> None:
    """Remove what killed writers have left under temporary names."""
    sweep(directory, _ASIDE, Path.unlink)

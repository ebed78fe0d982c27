"""An image in a directory as skopeo writes it (`dir:`; containers-transports(5)).

`manifest.json` is the manifest or index as it is; every blob is a file called by the hexadecimal digits of
its digest, every manifest of an index one with `.manifest.json` behind them (containers/image,
directory/directory_transport.go).
"""

from __future__ import annotations

from imgfs.errors import InvalidImage, NotFound, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.image import parse_document
from imgfs.oci.reference import FileReference
from imgfs.registry.endpoint import MAX_DOCUMENT
from imgfs.transport.files import Directory, FilesSource

_MANIFEST = "manifest.json"


class DirectorySource(FilesSource):
    """The image in a directory of skopeo's."""

    def __init__(self, reference: FileReference) -> None:
        super().__init__(Directory(reference.path), f"dir:{reference.path}")
        self._path = reference.path
        self._reference = reference

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Read `manifest.json`; raises NotFound if the reference has another digest."""
        try:
            body = self.read_small(_MANIFEST, MAX_DOCUMENT)
        except NotFound as error:
            is_layout = (self._path / "index.json").is_file()
            other = f"; it has an OCI image layout: oci:{self._path}" if is_layout else ""
            raise UsageError(
                f"{self._place}: not an image directory: it has no {_MANIFEST}{other}"
            ) from error
        digest = Digest.of(body)
        if self._reference.digest not in (None, digest):
            raise NotFound(f"{self._place} has {digest}, not {self._reference.digest}")
        try:
            media_type = parse_document(body, None).media_type
        except InvalidImage as error:
            raise InvalidImage(str(error), where=str(self._path / _MANIFEST)) from error
        return Descriptor(media_type, digest, len(body))

    def name_of(self, digest: Digest) -> str:
        """Return the file that a digest is in."""
        stem = digest.hex if digest.algorithm == "sha256" else f"{digest.algorithm}-{digest.hex}"
        for name in (stem, f"{stem}.{_MANIFEST}"):
            if (self._path / name).is_file():
                return name
        return _MANIFEST if Digest.of(self.read_small(_MANIFEST, MAX_DOCUMENT)) == digest else stem

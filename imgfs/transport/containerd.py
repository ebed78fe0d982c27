"""An image in containerd, read out of its content store by ranges: nothing is exported, copied or unpacked.

Its API is gRPC on a socket (containerd, api/services/images/v1, content/v1, namespaces/v1; api/types/
descriptor.proto): the numbers below are those of its messages' fields. Images and blobs are in namespaces,
of which a call names one; their names may look like the first part of an image's, so both are tried.

containerd checks the digest of a blob when it comes in. Here it is checked again, as of any source.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

from imgfs.errors import NotFound, RegistryError, Unavailable, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import EngineReference
from imgfs.registry.endpoint import Traffic
from imgfs.transport.engine_names import of_repository, usual_name
from imgfs.transport.engine_socket import SECONDS, connect_engine
from imgfs.transport.files import FilesSource, StoredFile
from imgfs.transport.grpc import GrpcChannel
from imgfs.transport.protobuf import ProtobufMessage, encode_message
from imgfs.transport.source import UNKNOWN_SIZE

_IMAGES = "containerd.services.images.v1.Images"
_CONTENT = "containerd.services.content.v1.Content"
_NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")  # containerd, pkg/identifiers
_LONGEST_NAMESPACE = 76
_PIECE = 4 << 20  # bytes read in one call: all of them are here, or none, within its time
_OVERHEAD = 64 << 10  # bytes of an answer beside them: containerd sends some hundred kB a message
_SMALL = 64 << 10  # bytes of an answer about one image or blob, labels included
_LARGE = 8 << 20  # bytes of a list of images
_NAMED = 20  # images that an error lists


class ContainerdApi:
    """What is asked of a containerd."""

    def __init__(self, address: Path) -> None:
        self._where = f"containerd at {address}"
        self._channel = GrpcChannel(
            lambda: connect_engine(address, "containerd", "CONTAINERD_ADDRESS"), self._where, SECONDS
        )

    @property
    def calls(self) -> int:
        """Return how many calls were made."""
        return self._channel.calls

    def image(self, namespace: str, name: str) -> Descriptor:
        """Return what an image's name stands for; raises NotFound."""
        answer = self._one(f"{_IMAGES}/Get", namespace, encode_message((1, name)), _SMALL)
        target = answer.message(1).message(3)
        where = f"{self._where}: image {name}"
        return Descriptor(target.text(1), Digest.parse(target.text(2), where=where), _size(target, 3, where))

    def names(self, namespace: str) -> list[str]:
        """Return the names of all images of a namespace, sorted."""
        answer = self._one(f"{_IMAGES}/List", namespace, b"", _LARGE)
        return sorted(image.text(1) for image in answer.messages(1))

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, sorted."""
        answer = self._one(f"{_NAMESPACES}/List", "default", b"", _LARGE)
        return sorted(namespace.text(1) for namespace in answer.messages(1))

    def size(self, namespace: str, digest: Digest) -> int:
        """Return the size of a blob in bytes; raises NotFound."""
        answer = self._one(f"{_CONTENT}/Info", namespace, encode_message((1, str(digest))), _SMALL)
        return _size(answer.message(1), 2, f"{self._where}: {digest}")

    def read(self, namespace: str, digest: Digest, start: int, end: int) -> list[bytes]:
        """Return the bytes `[start, end)` of a blob, in pieces; there must be some of them."""
        request = encode_message((1, str(digest)), (2, start), (3, end - start))  # a size of 0 means: all
        limit = end - start + _OVERHEAD
        where = f"{self._where}: {digest.short}"
        pieces = []
        for answer in self._call(f"{_CONTENT}/Read", namespace, request, limit):
            pieces.append(
                ProtobufMessage(answer, where).body(2)
            )  # its offset is left alone: some count it from `start`, some from 0
            start += len(pieces[-1])
        if start != end:
            raise Unavailable(f"{where}: bytes to {start} of those to {end}")
        return pieces

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()

    def _one(self, method: str, namespace: str, request: bytes, limit: int) -> ProtobufMessage:
        answers = self._call(method, namespace, request, limit)
        if len(answers) != 1:
            raise RegistryError(f"{self._where}: {method}: {len(answers)} messages for one")
        return ProtobufMessage(answers[0], f"{self._where}: {method}")

    def _call(self, method: str, namespace: str, request: bytes, limit: int) -> list[bytes]:
        return self._channel.call(method, request, {"containerd-namespace": namespace}, limit)


class ContentStore:
    """The blobs of containerd by their digests, in the first of some namespaces that has them, as files."""

    def __init__(self, api: ContainerdApi, namespaces: list[str]) -> None:
        self._api = api
        self._namespaces = namespaces
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, int]] = {}

    def path(self, name: str) -> str:
        """Return what messages call a blob."""
        return f"containerd's {name}"

    def open(self, name: str) -> StoredFile:
        """Look a blob up."""
        with self._lock:
            found = self._found.get(name)
        if found is None:
            found = self._look_up(Digest.parse(name))
            with self._lock:
                self._found[name] = found
        return _Blob(self._api, Digest.parse(name), *found)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def _look_up(self, digest: Digest) -> tuple[str, int]:
        for namespace in self._namespaces:
            try:
                return namespace, self._api.size(namespace, digest)
            except NotFound:
                continue
        raise NotFound(
            f"containerd has no {digest} in the namespace {' or '.join(self._namespaces)}: not pulled for "
            "this platform, or discarded when it was unpacked (discard_unpacked_layers)"
        )


class _Blob(StoredFile):
    """A blob of containerd."""

    def __init__(self, api: ContainerdApi, digest: Digest, namespace: str, size: int) -> None:
        self._api = api
        self._digest = digest
        self._namespace = namespace
        self.size = size

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield its bytes, a piece at a time."""
        while start < end:
            last = min(end, start + _PIECE)
            yield from self._api.read(self._namespace, self._digest, start, last)
            start = last

    def close(self) -> None:
        """Nothing is open."""


class ContainerdSource(FilesSource):
    """An image of containerd; `namespace` is meant by a name that has none."""

    def __init__(self, reference: EngineReference, address: Path, namespace: str) -> None:
        if not _is_namespace(namespace):
            raise UsageError(f"$CONTAINERD_NAMESPACE: {namespace!r} is not a namespace of containerd")
        self._reference = reference
        self._namespace = namespace
        self._api = ContainerdApi(address)
        self._meant = [(namespace, reference.name)]  # namespaces and names, the likeliest first
        first, slash, rest = reference.name.partition("/")
        if slash and _is_namespace(first):
            self._meant.insert(0, (first, rest))
        super().__init__(ContentStore(self._api, list(dict(self._meant))), str(reference))

    def resolve(self, *, whole: bool = False) -> Descriptor:  # noqa: ARG002  (nothing is far away here)
        """Ask for the image by its name, as it is written and as docker means it; not about a digest."""
        if self._reference.digest:
            return Descriptor("", self._reference.digest, UNKNOWN_SIZE)
        for namespace, name in self._meant:
            for known in dict.fromkeys((name, usual_name(name))):
                try:
                    return self._api.image(namespace, known)
                except NotFound:
                    continue
        raise NotFound(f"{self._place}: containerd has no such image; {self._there()}")

    def tags(self) -> list[str]:
        """Return the names of the images of the same repository, in the first namespace that has any."""
        found = (of_repository(self._api.names(namespace), name) for namespace, name in self._meant)
        return next(filter(None, found), [])

    def name_of(self, digest: Digest) -> str:
        """Return what `ContentStore` calls a blob."""
        return str(digest)

    def traffic(self) -> Traffic:
        """Calls made, and bytes read of blobs."""
        return Traffic(self._api.calls, super().traffic().bytes)

    def _there(self) -> str:
        names = [name for name in self._api.names(self._namespace) if not name.startswith("sha256:")]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        others = ", ".join(
            f"{other}/" for other in self._api.namespaces()[:_NAMED] if other != self._namespace
        )
        found = f"the namespace {self._namespace} has: {', '.join(names[:_NAMED]) or 'none'}{more}"
        return f"{found}; other namespaces: {others}" if others else found


def _is_namespace(text: str) -> bool:
    return bool(_NAMESPACE.fullmatch(text)) and len(text) <= _LONGEST_NAMESPACE


def _size(message: ProtobufMessage, field: int, where: str) -> int:
    size = message.number(field)
    if size < 0:
        raise RegistryError(f"{where}: a size of {size}")
    return size

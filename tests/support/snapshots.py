"""What containerd asks a snapshotter for, asked by a test: of imgfs directly, or by way of containerd.

The numbers are those of the fields of its messages (containerd, api/services/snapshots/v1).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imgfs.transport.engine_socket import connect_engine
from imgfs.transport.grpc import GrpcChannel
from imgfs.transport.protobuf import ProtobufMessage, encode_map, encode_message
from tests.support.patience import allowed

VIEW, ACTIVE, COMMITTED = 1, 2, 3
NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, INVALID_ARGUMENT = "5", "6", "9", "3"  # codes of gRPC
NO_LABELS: Mapping[str, str] = {}


class MountWords(NamedTuple):
    """A mount that a snapshotter wants made."""

    type: str
    source: str
    options: tuple[str, ...]


class Info(NamedTuple):
    """A snapshot, but for its times."""

    name: str
    parent: str
    kind: int
    labels: Mapping[str, str]


class Snapshots:
    """Asks the `snapshotter` at a socket, in a namespace of containerd. A refusal is a RegistryError.

    What is made under a `lease` is not collected as garbage.
    """

    def __init__(
        self, socket: Path, snapshotter: str = "imgfs", namespace: str = "default", lease: str = ""
    ) -> None:
        self._snapshotter = snapshotter
        self._metadata = {"containerd-namespace": namespace, **({"containerd-lease": lease} if lease else {})}
        self._channel = GrpcChannel(
            lambda: connect_engine(socket, "containerd", "CONTAINERD_ADDRESS"), "snapshots", allowed(60)
        )

    def prepare(self, key: str, parent: str, labels: Mapping[str, str] = NO_LABELS) -> list[MountWords]:
        return self._mounts("Prepare", encode_message((2, key), (3, parent)) + encode_map(4, labels))

    def view(self, key: str, parent: str, labels: Mapping[str, str] = NO_LABELS) -> list[MountWords]:
        return self._mounts("View", encode_message((2, key), (3, parent)) + encode_map(4, labels))

    def mounts(self, key: str) -> list[MountWords]:
        return self._mounts("Mounts", encode_message((2, key)))

    def commit(self, name: str, key: str, labels: Mapping[str, str] = NO_LABELS) -> None:
        self._ask("Commit", encode_message((2, name), (3, key)) + encode_map(4, labels))

    def remove(self, key: str) -> None:
        self._ask("Remove", encode_message((2, key)))

    def stat(self, key: str) -> Info:
        return _info(self._ask("Stat", encode_message((2, key)))[0].message(1))

    def update(self, name: str, labels: Mapping[str, str], *paths: str) -> Info:
        info = encode_message((1, name)) + encode_map(6, labels)
        mask = encode_message(*((1, path) for path in paths))
        return _info(self._ask("Update", encode_message((2, info), (3, mask)))[0].message(1))

    def all(self, *filters: str) -> list[Info]:
        answers = self._ask("List", encode_message(*((2, one) for one in filters)))
        return sorted(_info(info) for answer in answers for info in answer.messages(1))

    def times(self, key: str) -> tuple[int, int]:
        """Return when a snapshot was made and changed, in nanoseconds since 1970."""
        info = self._ask("Stat", encode_message((2, key)))[0].message(1)
        made, changed = (info.message(field) for field in (4, 5))
        return tuple(one.number(1) * 10**9 + one.number(2) for one in (made, changed))  # type: ignore[return-value]

    def usage(self, key: str) -> tuple[int, int]:
        (answer,) = self._ask("Usage", encode_message((2, key)))
        return answer.number(1), answer.number(2)

    def clean_up(self) -> None:
        self._ask("Cleanup", b"")

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()

    def _mounts(self, method: str, body: bytes) -> list[MountWords]:
        (answer,) = self._ask(method, body)
        found = ((one.text(1), one.text(2), tuple(one.texts(4))) for one in answer.messages(1))
        return [MountWords(*words) for words in found]

    def _ask(self, method: str, body: bytes) -> list[ProtobufMessage]:
        name = f"containerd.services.snapshots.v1.Snapshots/{method}"
        request = encode_message((1, self._snapshotter)) + body
        answers = self._channel.call(name, request, self._metadata, 8 << 20)
        return [ProtobufMessage(answer, method) for answer in answers]


def _info(message: ProtobufMessage) -> Info:
    assert message.message(4).number(1) > 1_700_000_000  # created, in seconds since 1970
    return Info(message.text(1), message.text(2), message.number(3), message.map(6))


@contextmanager
def mounted(words: MountWords, at: Path) -> Iterator[Path]:
    """Mount what a snapshotter wants, as containerd does, while the block lasts."""
    at.mkdir(exist_ok=True)
    options = [option for option in words.options if option not in ("rbind", "ro", "rw")]
    if words.type == "bind":
        subprocess.run(["mount", "--rbind", words.source, at], check=True)
    else:
        command: list[str | Path] = ["mount", "-t", words.type, "-o", ",".join(options), words.source, at]
        subprocess.run(command, check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)

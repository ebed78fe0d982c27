"""Requests and answers of containerd's snapshots service as bytes (api/services/snapshots/v1, api/types).

The numbers are those of the messages' fields. Every request begins with the name (1) that containerd's
configuration has for the plugin: a socket may have several, whose snapshots are apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self

from imgfs.engines.snapshotter.rows import Snapshot, SnapshotUsage
from imgfs.transport.protobuf import ProtobufMessage, encode_map, encode_message

_REQUEST = "a request of containerd"
_BATCH = 100  # snapshots in a message of a list, as containerd has it


class MountWord(NamedTuple):
    """A mount that containerd is to make: words of mount(8)."""

    type: str
    source: str
    options: list[str]


def plugin_of(body: bytes) -> str:
    """Return the plugin's name of any request."""
    return ProtobufMessage(body, _REQUEST).text(1)


class NamedRequest(NamedTuple):
    """The request of Mounts, Remove, Stat and Usage: a snapshot's key."""

    plugin: str
    key: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.text(2))


class PrepareRequest(NamedTuple):
    """The request of Prepare and View."""

    plugin: str
    key: str
    parent: str
    labels: Mapping[str, str]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.text(2), message.text(3), message.map(4))


class CommitRequest(NamedTuple):
    """The request of Commit; the parent is for engines that unpack layers in parallel."""

    plugin: str
    name: str
    key: str
    labels: Mapping[str, str]
    parent: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.text(2), message.text(3), message.map(4), message.text(5))


class UpdateRequest(NamedTuple):
    """The request of Update: an Info, of which the labels count, and a field mask."""

    plugin: str
    name: str
    labels: Mapping[str, str]
    paths: list[str]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        info = message.message(2)
        return cls(message.text(1), info.text(1), info.map(6), message.message(3).texts(1))


class ListRequest(NamedTuple):
    """The request of List: filters, of which a snapshot has to pass one."""

    plugin: str
    filters: list[str]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.texts(2))


def encode_mounts(mounts: Iterable[MountWord]) -> bytes:
    """Return the answer of Prepare, View and Mounts."""
    return encode_message(
        *(
            (1, encode_message((1, one.type), (2, one.source), *((4, option) for option in one.options)))
            for one in mounts
        )
    )


def encode_info(snapshot: Snapshot) -> bytes:
    """Return the answer of Stat and Update."""
    return encode_message((1, _info(snapshot)))


def encode_list(snapshots: list[Snapshot]) -> Iterable[bytes]:
    """Yield the messages of the answer of List."""
    for start in range(0, len(snapshots), _BATCH):
        yield encode_message(*((1, _info(one)) for one in snapshots[start : start + _BATCH]))


def encode_usage(usage: SnapshotUsage) -> bytes:
    """Return the answer of Usage."""
    return encode_message((1, usage.size), (2, usage.inodes))


def _info(snapshot: Snapshot) -> bytes:
    times = (_timestamp(snapshot.created), _timestamp(snapshot.updated))
    words = (1, snapshot.name), (2, snapshot.parent), (3, snapshot.kind), (4, times[0]), (5, times[1])
    return encode_message(*words) + encode_map(6, snapshot.labels)


def _timestamp(nanoseconds: int) -> bytes:
    """Return a google.protobuf.Timestamp."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return encode_message((1, seconds), (2, rest))

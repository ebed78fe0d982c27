"""Requests and answers of CSI as bytes (csi.proto 1.13): those fields that are of interest here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Self

from imgfs.transport.protobuf import ProtobufMessage, encode_map, encode_message

_REQUEST = "a request of CSI"
CONTROLLER_SERVICE = 1  # PluginCapability.Service.Type
CREATE_DELETE_VOLUME = 1  # ControllerServiceCapability.RPC.Type
GET_VOLUME_STATS = 2  # NodeServiceCapability.RPC.Type


class AccessMode(IntEnum):
    """Who may use a volume at once, and how (VolumeCapability.AccessMode.Mode)."""

    UNKNOWN = 0
    SINGLE_NODE_WRITER = 1
    SINGLE_NODE_READER_ONLY = 2
    MULTI_NODE_READER_ONLY = 3
    MULTI_NODE_SINGLE_WRITER = 4
    MULTI_NODE_MULTI_WRITER = 5
    SINGLE_NODE_SINGLE_WRITER = 6
    SINGLE_NODE_MULTI_WRITER = 7


READ_ONLY_MODES = (AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY)


class Unit(IntEnum):
    """What is counted (VolumeUsage.Unit)."""

    BYTES = 1
    INODES = 2


@dataclass(frozen=True, slots=True)
class Capability:
    """How a volume is to be used (VolumeCapability); `body` is the message itself, `flags` are mount(8)'s."""

    body: bytes
    is_block: bool
    is_mount: bool
    mode: int
    flags: tuple[str, ...]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        flags = tuple(message.message(2).texts(2))
        return cls(body, message.has(1), message.has(2), message.message(3).number(1), flags)


class CreateRequest(NamedTuple):
    """The request of CreateVolume; sizes in bytes, 0 if not said."""

    name: str
    required: int
    limit: int
    capabilities: list[Capability]
    parameters: Mapping[str, str]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        sizes = message.message(2)
        return cls(
            message.text(1), sizes.number(1), sizes.number(2), _capabilities(message, 3), message.map(4)
        )


class ValidateRequest(NamedTuple):
    """The request of ValidateVolumeCapabilities."""

    volume: str
    context: Mapping[str, str]
    capabilities: list[Capability]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.map(2), _capabilities(message, 3))


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """The request of NodePublishVolume; `secrets` stay out of what is shown of it."""

    volume: str
    target: str
    capability: Capability | None
    is_read_only: bool
    secrets: Mapping[str, str] = field(repr=False)
    context: Mapping[str, str]

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        capability = Capability.decode(message.body(5)) if message.has(5) else None
        is_read_only = bool(message.number(6))
        return cls(message.text(1), message.text(4), capability, is_read_only, message.map(7), message.map(8))


class VolumePath(NamedTuple):
    """The request of NodeUnpublishVolume and NodeGetVolumeStats: a volume, and where it is."""

    volume: str
    path: str

    @classmethod
    def decode(cls, body: bytes) -> Self:
        message = ProtobufMessage(body, _REQUEST)
        return cls(message.text(1), message.text(2))


class VolumeUsage(NamedTuple):
    """How much of a volume is used, in a unit."""

    available: int
    total: int
    used: int
    unit: Unit


def volume_of(body: bytes) -> str:
    """Return the volume that DeleteVolume asks about."""
    return ProtobufMessage(body, _REQUEST).text(1)


def encode_plugin(name: str, version: str) -> bytes:
    """Return the answer of GetPluginInfo."""
    return encode_message((1, name), (2, version))


def encode_capability(kind: int) -> bytes:
    """Return the answer of Get(Plugin|Controller|Node…)Capabilities: one capability, of a kind."""
    return encode_message((1, encode_message((1, encode_message((1, kind))))))


def encode_ready() -> bytes:
    """Return the answer of Probe."""
    return encode_message((1, encode_message((1, 1))))


def encode_volume(name: str, context: Mapping[str, str]) -> bytes:
    """Return the answer of CreateVolume: images have no size of their own choosing."""
    return encode_message((1, encode_message((2, name)) + encode_map(3, context)))


def encode_confirmed(request: ValidateRequest) -> bytes:
    """Return the answer of ValidateVolumeCapabilities for what is supported."""
    capabilities = ((2, capability.body) for capability in request.capabilities)
    return encode_message((1, encode_map(1, request.context) + encode_message(*capabilities)))


def encode_unsupported(reason: str) -> bytes:
    """Return the answer of ValidateVolumeCapabilities for what is not."""
    return encode_message((2, reason))


def encode_usages(usages: Iterable[VolumeUsage]) -> bytes:
    """Return the answer of NodeGetVolumeStats."""
    return encode_message(*((1, encode_message(*enumerate(usage, 1))) for usage in usages))


def encode_node(name: str) -> bytes:
    """Return the answer of NodeGetInfo."""
    return encode_message((1, name))


def _capabilities(message: ProtobufMessage, number: int) -> list[Capability]:
    return [Capability.decode(body) for body in message.bodies(number)]

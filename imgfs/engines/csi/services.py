"""The operations of CSI's services, from a request's bytes to an answer's (spec.md 1.13, "RPC Interface").

A volume of Kubernetes is asked for in one of two ways: in a pod (`csi:`), with its image among
`volumeAttributes`, or by a claim, whose class has the image among its `parameters`. The second makes a volume
first, which is no more than a name for its parameters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

from imgfs.engines.csi.messages import (
    CONTROLLER_SERVICE,
    CREATE_DELETE_VOLUME,
    GET_VOLUME_STATS,
    READ_ONLY_MODES,
    Capability,
    CreateRequest,
    PublishRequest,
    ValidateRequest,
    VolumePath,
    encode_capability,
    encode_confirmed,
    encode_node,
    encode_plugin,
    encode_ready,
    encode_unsupported,
    encode_usages,
    encode_volume,
    volume_of,
)
from imgfs.engines.csi.volumes import MOUNT_FLAGS, Volumes, Wanted, keep_file
from imgfs.engines.refusal import Code, Refusal
from imgfs.engines.rpc import Operation, Service
from imgfs.errors import StoreError, UsageError, describe
from imgfs.oci.descriptor import Platform
from imgfs.oci.reference import RegistryReference, parse_reference

DRIVER = "image.csi.imgfs.io"
_ATTRIBUTES = ("image", "platform")
_KUBERNETES = "csi.storage.k8s.io/"  # what kubelet adds (podInfoOnMount)
_PROVISIONER = "storage.kubernetes.io/csiProvisionerIdentity"
_SECRET = ".dockerconfigjson"  # the key of a secret of type kubernetes.io/dockerconfigjson
_MAX_SECRET = 1 << 20
_IDENTIFIER = re.compile(r"[^\0-\x1f\x7f]{1,1024}")


class Driver:
    """The driver of one node, `node`; what the controller has made is kept below `root`."""

    def __init__(self, root: Path, volumes: Volumes, node: str, version: str) -> None:
        self._created = root / "created"
        self._volumes = volumes
        self._node = node
        self._version = version
        try:
            self._created.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._created}: {describe(error)}") from error

    def services(self) -> list[Service]:
        """Return the services that kubelet and its helpers call."""
        identity: dict[str, Operation] = {
            "GetPluginInfo": lambda _: encode_plugin(DRIVER, self._version),
            "GetPluginCapabilities": lambda _: encode_capability(CONTROLLER_SERVICE),
            "Probe": lambda _: encode_ready(),
        }
        controller: dict[str, Operation] = {
            "ControllerGetCapabilities": lambda _: encode_capability(CREATE_DELETE_VOLUME),
            "CreateVolume": self._create,
            "DeleteVolume": self._delete,
            "ValidateVolumeCapabilities": self._validate,
        }
        node: dict[str, Operation] = {
            "NodeGetCapabilities": lambda _: encode_capability(GET_VOLUME_STATS),
            "NodeGetInfo": lambda _: encode_node(self._node),
            "NodePublishVolume": self._publish,
            "NodeUnpublishVolume": self._unpublish,
            "NodeGetVolumeStats": self._stats,
        }
        named = {"csi.v1.Identity": identity, "csi.v1.Controller": controller, "csi.v1.Node": node}
        return [Service(name, operations) for name, operations in named.items()]

    # Controller

    def _create(self, body: bytes) -> bytes:
        request = CreateRequest.decode(body)
        _check_identifier(request.name, "name")
        if not request.capabilities:
            raise _invalid("volume_capabilities: there are none")
        for capability in request.capabilities:
            if reason := _unsupported(capability):
                raise _invalid(f"volume_capabilities: {reason}")
        _check_image(request.parameters, "parameters")
        made = {"parameters": dict(request.parameters), "required": request.required, "limit": request.limit}
        path = self._path_of(request.name)
        if path.exists() and json.loads(path.read_bytes()) != made:
            raise Refusal(Code.ALREADY_EXISTS, f"volume {request.name}: is there, and otherwise")
        keep_file(path, json.dumps(made).encode())
        return encode_volume(request.name, request.parameters)

    def _delete(self, body: bytes) -> bytes:
        volume = volume_of(body)
        _check_identifier(volume, "volume_id")
        self._path_of(volume).unlink(missing_ok=True)
        return b""

    def _validate(self, body: bytes) -> bytes:
        request = ValidateRequest.decode(body)
        _check_identifier(request.volume, "volume_id")
        if not request.capabilities:
            raise _invalid("volume_capabilities: there are none")
        if not self._path_of(request.volume).exists():
            raise Refusal(Code.NOT_FOUND, f"volume {request.volume}: does not exist")
        reasons = filter(None, map(_unsupported, request.capabilities))
        return next(map(encode_unsupported, reasons), None) or encode_confirmed(request)

    def _path_of(self, volume: str) -> Path:
        return self._created / f"{hashlib.sha256(volume.encode()).hexdigest()}.json"

    # Node

    def _publish(self, body: bytes) -> bytes:
        request = PublishRequest.decode(body)
        _check_identifier(request.volume, "volume_id")
        _check_path(request.target, "target_path")
        if request.capability is None:
            raise _invalid("volume_capability: there is none")
        if reason := _unsupported(request.capability):
            raise _invalid(f"volume_capability: {reason}")
        image, platform = _check_image(request.context, "volume_context")
        flags = frozenset(request.capability.flags) - {"rw"}
        is_read_only = request.is_read_only or request.capability.mode in READ_ONLY_MODES or "ro" in flags
        secret = _auths_of(request.secrets.get(_SECRET, ""))
        self._volumes.publish(
            Wanted(request.volume, request.target, image, platform, not is_read_only, secret, flags - {"ro"})
        )
        return b""

    def _unpublish(self, body: bytes) -> bytes:
        request = VolumePath.decode(body)
        _check_identifier(request.volume, "volume_id")
        _check_path(request.path, "target_path")
        self._volumes.take_down(request.volume, request.path)
        return b""

    def _stats(self, body: bytes) -> bytes:
        request = VolumePath.decode(body)
        _check_identifier(request.volume, "volume_id")
        if not request.path:
            raise _invalid("volume_path: is missing")
        return encode_usages(self._volumes.usage(request.volume, request.path))


def _unsupported(capability: Capability) -> str:
    """Return why a volume cannot be used so, "" if it can."""
    if capability.is_block or not capability.is_mount:
        return "an image is a file system, no block device"
    if unknown := set(capability.flags) - {"ro", "rw", *MOUNT_FLAGS}:
        return f"mount_flags: {min(unknown)!r:.60} is not known: there are {', '.join(sorted(MOUNT_FLAGS))}"
    return ""


def _check_identifier(text: str, name: str) -> None:
    if not _IDENTIFIER.fullmatch(text):
        raise _invalid(f"{name}: is missing, or no name")


def _check_path(text: str, name: str) -> None:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise _invalid(f"{name}: is missing, or no path from the root")


def _check_image(attributes: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return the image and the platform that are asked for. Raises Refusal."""
    image, platform = attributes.get("image", ""), attributes.get("platform", "")
    unknown = [key for key in attributes if key not in _ATTRIBUTES and not _is_kubernetes(key)]
    if unknown:
        known = " and ".join(_ATTRIBUTES)
        raise _invalid(f"{name}: {sorted(unknown)[0]!r:.60} is not known: there are {known}")
    if not image:
        raise _invalid(f"{name}: 'image' is missing: which image the volume shows")
    try:
        if not isinstance(
            parse_reference(image), RegistryReference
        ):  # files of the node are no pod's business
            raise _invalid(f"{name}: {image!r:.80} is not in a registry")
        if platform:
            Platform.from_text(platform)
    except UsageError as error:
        raise _invalid(f"{name}: {error}") from error
    return image, platform


def _is_kubernetes(key: str) -> bool:
    return key.startswith(_KUBERNETES) or key == _PROVISIONER


def _auths_of(secret: str) -> str:
    """Return the passwords of a secret as a file of credentials; "" if there are none. Nothing of it is said.

    Only its `auths`: what else there is in docker's format names programs, which would be run here as root.
    """
    if not secret:
        return ""
    try:
        fields = json.loads(secret) if len(secret) <= _MAX_SECRET else None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not isinstance(fields.get("auths"), dict):
        raise _invalid(f"secrets: {_SECRET} is not a JSON object with auths")
    return json.dumps({"auths": fields["auths"]}, sort_keys=True)


def _invalid(reason: str) -> Refusal:
    return Refusal(Code.INVALID_ARGUMENT, reason)

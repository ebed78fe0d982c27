"""How kubelet learns of a driver: by a socket in a directory that it watches.

It asks there what is offered at which other socket, calls that, and says how that went (k8s.io/kubelet,
pluginregistration/v1).
"""

from __future__ import annotations

import logging
from pathlib import Path

from imgfs.engines.csi.services import DRIVER
from imgfs.engines.rpc import Service
from imgfs.quoting import printable
from imgfs.transport.protobuf import ProtobufMessage, encode_message

SOCKET = f"{DRIVER}-reg.sock"
_SERVICE = "pluginregistration.Registration"
_VERSION = "1.0.0"  # of CSI, as kubelet has it: only the major number counts

log = logging.getLogger(__name__)


def registration(endpoint: Path) -> Service:
    """Return the service that names the driver which answers at `endpoint`."""
    found = encode_message((1, "CSIPlugin"), (2, DRIVER), (3, str(endpoint)), (4, _VERSION))
    return Service(_SERVICE, {"GetInfo": lambda _: found, "NotifyRegistrationStatus": _notified})


def _notified(body: bytes) -> bytes:
    status = ProtobufMessage(body, "kubelet's registration status")
    if status.number(1):
        log.info("kubelet has registered %s", DRIVER)
    else:
        log.warning("kubelet has not registered %s: %s", DRIVER, printable(status.text(2)))
    return b""

"""The passwords by which kubelet pulls images, heard on their way to containerd (CRI v1, ImageService).

containerd tells a snapshotter none. So kubelet's requests for images come here first and go on to containerd;
those of a pull say the user, a password or a token. They are kept as podman keeps them, for each repository
the last ones, in a file that mounts read whenever the registry wants credentials: below /run, for root alone.
"""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.registry.config.credentials import Credentials, keep_credentials
from imgfs.transport.protobuf import ProtobufMessage

SERVICE = "runtime.v1.ImageService"
PULL = "PullImage"
STREAMED = ("StreamImages",)  # methods whose answer is several messages

log = logging.getLogger(__name__)


class PulledCredentials:
    """Keeps the credentials of pulls in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hear(self, method: str, body: bytes) -> None:
        """Take a request of kubelet's; what cannot be kept is logged, and the pull goes on without it."""
        if method != PULL:
            return
        try:
            image, credentials = decode_pull(body)
            reference = parse_reference(image)
            if credentials and isinstance(reference, RegistryReference):
                keep_credentials(self._path, reference.registry, reference.repository, credentials)
        except ImgfsError as error:
            log.warning("the credentials of a pull are not kept: %s", error)


def decode_pull(body: bytes) -> tuple[str, Credentials | None]:
    """Return the image of a PullImageRequest, and its credentials if it has any. Raises RegistryError."""
    message = ProtobufMessage(body, "a request of CRI")
    return message.message(1).text(1), _credentials(message.message(2))


def _credentials(auth: ProtobufMessage) -> Credentials | None:
    """Return what an AuthConfig says: as in docker's files, a pair may stand in `auth` instead."""
    username, password = auth.text(1), auth.text(2)
    if auth.text(3):
        try:
            pair = base64.b64decode(auth.text(3), validate=True).decode()
        except (binascii.Error, ValueError):
            return None
        username, _, password = pair.rstrip("\0").partition(":")
    if auth.text(6):
        return Credentials(username, auth.text(6), registry_token=True)
    if auth.text(5):
        return Credentials(username, auth.text(5), identity_token=True)
    return Credentials(username, password) if username and password else None

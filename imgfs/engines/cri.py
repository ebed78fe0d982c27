"""The passwords by which kubelet pulls images, heard on their way to containerd (CRI v1, ImageService).

containerd tells a snapshotter none. So kubelet's requests for images come here first and go on to containerd;
those of a pull say the user, a password or a token. They are kept as podman keeps them, for each repository
the last ones, in a file that mounts read whenever the registry wants credentials: below /run, for root alone.
A pull needs them before it is answered, for it is what mounts. If it is refused, those before count again: a
pod with a wrong password does not take the right one from the mounts of others.
"""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from imgfs.errors import ImgfsError
from imgfs.oci.reference import RegistryReference, parse_reference
from imgfs.registry.config.credentials import (
    Credentials,
    forget_credentials,
    keep_credentials,
    kept_credentials,
)
from imgfs.transport.protobuf import ProtobufMessage

SERVICE = "runtime.v1.ImageService"
PULL = "PullImage"
STREAMED = ("StreamImages",)  # methods whose answer is several messages

log = logging.getLogger(__name__)


class PulledCredentials:
    """Keeps the credentials of pulls in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def hear(self, method: str, body: bytes) -> Callable[[], None]:
        """Take a request of kubelet's; return what is to be called if it is refused.

        What cannot be kept is logged, and the pull goes on without it.
        """
        if method == PULL:
            with self._errors():
                image, credentials = decode_pull(body)
                reference = parse_reference(image)
                if credentials and isinstance(reference, RegistryReference):
                    name = reference.registry, reference.repository
                    before = kept_credentials(self._path, *name)
                    keep_credentials(self._path, *name, credentials)
                    return partial(self._put_back, name, credentials, before)
        return _nothing

    def _put_back(self, name: tuple[str, str], refused: Credentials, before: Credentials | None) -> None:
        """Have those before count again, if none have come since."""
        with self._errors():
            if kept_credentials(self._path, *name) != refused:
                return
            if before:
                keep_credentials(self._path, *name, before)
            else:
                forget_credentials(self._path, *name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ImgfsError as error:
            log.warning("the credentials of a pull are not kept: %s", error)


def _nothing() -> None:
    """Remove nothing: no credentials were kept for this request."""


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

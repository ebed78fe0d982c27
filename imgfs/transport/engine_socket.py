"""The socket of an engine on this machine: connected to, or an error that a person can act on."""

from __future__ import annotations

from pathlib import Path

from imgfs.errors import RegistryError, Unauthorized, Unavailable, describe
from imgfs.registry.sockets import Deadline, PlainSocket, dial_unix

SECONDS = 30.0  # that an answer of an engine may take, unless it has to make something first


def connect_engine(path: Path, what: str, variable: str) -> PlainSocket:
    """Return a connection to an engine that says `what` it is, with a deadline that has not begun.

    `variable` is what names another socket. Raises RegistryError.
    """
    try:
        made = dial_unix(path, SECONDS)
    except OSError as error:
        raise _refused(path, what, variable, error) from error
    made.deadline = Deadline()
    return made


def _refused(path: Path, what: str, variable: str, error: OSError) -> RegistryError:
    if isinstance(error, PermissionError):
        return Unauthorized(
            f"{path}: permission denied: {what} is asked by root, or by who its socket is for"
        )
    reason = "no such socket" if isinstance(error, FileNotFoundError) else describe(error).lower()
    return Unavailable(f"{path}: {reason}: is {what} running? ${variable} names another socket")

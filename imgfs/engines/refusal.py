"""Why an operation is refused: an error with a code of gRPC, which tells containerd (doc/statuscodes.md)."""

from __future__ import annotations

from enum import IntEnum

from imgfs.errors import ImgfsError


class Code(IntEnum):
    """The codes of gRPC that are used here."""

    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14


class Refusal(ImgfsError):
    """An operation that is refused."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def not_found(name: str) -> Refusal:
    """Return the refusal of an operation on a snapshot that is not there."""
    return Refusal(Code.NOT_FOUND, f"snapshot {name}: does not exist")


def already_exists(name: str) -> Refusal:
    """Return the refusal of a name that is taken, or, for a layer that is shown, the word not to fetch it."""
    return Refusal(Code.ALREADY_EXISTS, f"snapshot {name}: exists")

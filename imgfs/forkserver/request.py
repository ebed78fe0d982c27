"""What a client sends: a length, and as many bytes: fields that end with NUL, which none can contain.

Both ends are of one version, which the first field says: what another one sends is refused unread.
"""

from __future__ import annotations

import os
import sys

from imgfs import __path__ as _package
from imgfs import __version__

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ACCEPTED, REFUSED = b"y", b"n"
PROVE = b"p"  # what is open in the server's process, a pid and a number, is to be read and sent back
SECRET, SECRET_NAME = 16, "imgfs-secret"  # bytes of that, and what the memory with it is called
WORD = 4  # bytes of a length, a pid, an exit code; little-endian, as all of Linux's machines here
LARGEST = 8 << 20  # bytes; the kernel lets a program have 6 MiB of words and variables at most (execve(2))
PASSED = 4  # descriptors: standard input, output and error, and the directory


class CommandRequest:
    """A command: `name` as it was called, its `words`, its variables, and how its `streams` encode text."""

    def __init__(
        self, name: str, words: Sequence[str], variables: Mapping[str, str], streams: Sequence[str]
    ) -> None:
        self.name = name
        self.words = list(words)
        self.variables = dict(variables)
        self.streams = list(streams)

    def encode(self) -> bytes:
        """Return the bytes to send."""
        entries = [f"{name}={value}" for name, value in self.variables.items()]
        fields = [*interpreter(), *self.streams, self.name, str(len(self.words)), *self.words, *entries]
        body = b"".join(os.fsencode(field) + b"\0" for field in fields)
        return len(body).to_bytes(WORD, "little") + body

    @classmethod
    def decode(cls, body: bytes) -> CommandRequest:
        """Read what `encode` has written, but the length. Raises ValueError if another imgfs has."""
        fields = [os.fsdecode(field) for field in body.split(b"\0")[:-1]]
        own = interpreter()
        for name, ours, theirs in zip(_INTERPRETER, own, fields, strict=False):
            if ours != theirs:
                raise ValueError(f"{name}: {theirs!r}, not {ours!r}")
        streams, (name, count, *rest) = fields[len(own) :][:_STREAMS], fields[len(own) + _STREAMS :]
        words, entries = rest[: int(count)], rest[int(count) :]
        variables = {key: value for key, _, value in (entry.partition("=") for entry in entries)}
        if "" in variables:
            raise ValueError("a variable without a name, which cannot be set")
        return cls(name, words, variables, streams)


_INTERPRETER = ("version", "package", "Python", "file system encoding")
_STREAMS = 6  # fields: encoding and errors of each standard file


def interpreter() -> tuple[str, ...]:
    """Return what client and server have to have in common: the same imgfs, in the same Python."""
    encoding = f"{sys.getfilesystemencoding()} {sys.getfilesystemencodeerrors()}"
    return __version__, os.path.realpath(_package[0]), sys.executable, encoding


def streams_of_this_process() -> list[str]:
    """Return how this process's standard files encode text: encoding, then errors, of each."""
    return [
        word for file in (sys.stdin, sys.stdout, sys.stderr) for word in (file.encoding, file.errors or "")
    ]

"""Where credentials are kept: the files of docker and podman, and helper programs.

The files are docker's `config.json` and containers-auth.json(5). docker and podman write them too: unknown
fields are kept, and a change replaces the whole file, so that no reader sees half of it. Processes of imgfs
take turns with a lock; docker and podman do not, but replace the whole file, too.

A secret is kept only where no other user has a hand in it (`owned.opening`): the directory is this user's or
root's, and what is followed, too. A file in it that belongs to another user was put there by root, and stays
theirs; in a directory that everybody may add to, as /tmp, it is refused.

A helper is `docker-credential-NAME get|store|erase` (docker-credential-helpers). It is given its request on
standard input, never as an argument, little time and little room for an answer; one that hangs is ended with
all that it has started. Whatever goes wrong is an error that names the program, and quotes it only where it
says no secret.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import StoreError, Unauthorized, UsageError
from imgfs.oci.fields import words_of_json
from imgfs.owned.opening import (
    NotRegular,
    follow_own_links,
    open_owned_directory,
    open_owned_file,
    open_regular,
)
from imgfs.program import ProgramOutput, ask_program

_MAX_FILE = 4 << 20
_TRIES = 4  # at a file that another program may be writing in place
_PAUSE = 0.05  # seconds between them
TIMEOUT = 30.0  # seconds
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND = "credentials not found"  # every helper's words (credentials/error.go)
_MAX_ANSWER = 64 << 10  # an identity token has some kilobytes
_MAX_TEXT = 200


def read_auth_file(path: Path) -> dict[str, object] | None:
    """Return the fields of the file, None if there is none; raises UsageError unless it is a JSON object.

    One without a word in it has no fields, as for docker.
    """
    for left in range(_TRIES - 1, -1, -1):
        try:
            body = _content(path)
            return None if body is None else _parse(body, path)
        except UsageError:
            if not left:
                body = _content(path)
                if body is not None and not body.strip():
                    return {}
                raise
            time.sleep(_PAUSE)
    raise AssertionError("unreachable")


def change_auth_file(path: Path, change: Callable[[dict[str, object]], bool]) -> bool:
    """Let `change` edit the fields of the file, {} if there is none; write it, and return True, if it did.

    Only its owner may read the file from then on. A symbolic link of this user's stays, and what it leads to
    is replaced.
    Raises UsageError for a file that cannot be understood or written.
    """
    try:
        path = follow_own_links(path)
        with _turn(path.parent) as (directory, is_shared):
            if is_shared:
                with suppress(FileNotFoundError):
                    os.close(open_owned_file(path, os.O_RDONLY, directory=directory))
            body = _content(path)
            fields = _parse(body, path) if body and body.strip() else {}
            if not change(fields):
                return False
            _replace(path, json.dumps(fields, indent="\t").encode() + b"\n")  # as docker indents it
            return True
    except StoreError as error:
        raise UsageError(f"cannot keep credentials: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot keep credentials: {error.strerror}") from error


def _content(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read(_MAX_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegular as error:
        raise UsageError(f"{path}: not a credentials file: {error.strerror}") from error
    except OSError as error:
        if _is_out_of_sight(path):
            return None
        raise UsageError(f"{path}: cannot read credentials: {error.strerror}") from error


def _is_out_of_sight(path: Path) -> bool:
    """Return whether this user may not look: the root of a user namespace is not the machine's."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _parse(body: bytes, path: Path) -> dict[str, object]:
    try:
        fields = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a credentials file: not JSON: {words_of_json(error)}") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: not a credentials file: expected a JSON object")
    return fields


@contextmanager
def _turn(directory: Path) -> Iterator[tuple[int, bool]]:
    """Hold the lock of a directory, on the directory itself, so that no lock file is left behind.

    Gives it open, and whether other users may put files into it.
    """
    fd = open_owned_directory(directory, make=True)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd, bool(os.fstat(fd).st_mode & (stat.S_IWOTH | stat.S_IWGRP))
    finally:
        os.close(fd)


def _replace(path: Path, body: bytes) -> None:
    """Put `body` in the place of the file, in one step, with mode 0600 and the owner it has."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(body)
            with suppress(FileNotFoundError, PermissionError):  # root may write a user's
                owner = path.lstat()
                os.fchown(fd, owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class HelperSecret(NamedTuple):
    """The credentials that a helper keeps for one registry."""

    username: str
    secret: str

    def __repr__(self) -> str:
        return f"HelperSecret({self.username!r})"


def program_of(name: object) -> str:
    """Return the program of the helper `name`; raises UsageError for what can be no name of one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{name!r:.60} is not the name of a credential helper")
    return f"docker-credential-{name}"


def ask_helper(name: object, server: str, seconds: float = TIMEOUT) -> HelperSecret | None:
    """Return the credentials the helper keeps for `server`, None if none; raises Unauthorized if it fails."""
    program = program_of(name)
    output = ask_for_credentials([program, "get"], server, seconds=seconds)
    if output.code == 0:
        return _answer(output.out, program)
    if _NOT_FOUND in _text(output):
        return None
    raise _failed(program, f"for {server}", output)


def store_with_helper(name: object, server: str, kept: HelperSecret) -> None:
    """Let the helper store credentials; raises Unauthorized if it fails."""
    program = program_of(name)
    fields = {"ServerURL": server, "Username": kept.username, "Secret": kept.secret}
    output = ask_for_credentials([program, "store"], json.dumps(fields))
    if output.code:
        raise _failed(program, f"to store credentials for {server}", output, kept.secret)


def erase_from_helper(name: object, server: str) -> bool:
    """Let the helper erase the credentials of `server`; return True if there were any."""
    if ask_helper(name, server) is None:
        return False
    program = program_of(name)
    output = ask_for_credentials([program, "erase"], server)
    if output.code:
        raise _failed(program, f"to erase credentials for {server}", output)
    return True


def _answer(output: bytes, program: str) -> HelperSecret | None:
    """`{"ServerURL", "Username", "Secret"}`; both empty is how some say that there is nothing."""
    try:
        fields = json.loads(output.decode())
    except (ValueError, RecursionError) as error:
        raise Unauthorized(f"{program}: its answer is not JSON") from error
    if not isinstance(fields, dict):
        raise Unauthorized(f"{program}: its answer is not a JSON object")
    username, secret = fields.get("Username"), fields.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str) or (username and not secret):
        raise Unauthorized(f"{program}: its answer has no Username and Secret")
    return HelperSecret(username, secret) if secret else None


def _failed(program: str, what: str, output: ProgramOutput, secret: str = "") -> Unauthorized:
    text = _text(output)
    if "Secret" in text or (secret and (secret in text or json.dumps(secret)[1:-1] in text)):
        text = "what it says has a secret in it"
    return Unauthorized(f"{program} failed {what}: {text[:_MAX_TEXT]!r} (exit code {output.code})")


def _text(output: ProgramOutput) -> str:
    """Return the helper's error text: most write it to standard output."""
    return (output.out + output.error).decode(errors="replace").strip()


def ask_for_credentials(
    words: Sequence[str],
    request: str,
    *,
    seconds: float = TIMEOUT,
    limit: int = _MAX_ANSWER,
    environment: Mapping[str, str] | None = None,
) -> ProgramOutput:
    """Run a program that knows credentials, as `ask_program` does.

    Raises Unauthorized if it cannot be run, takes longer than `seconds`, or says more than `limit` bytes.
    """
    called = " ".join(words)
    try:
        return ask_program(words, request.encode(), seconds=seconds, limit=limit, environment=environment)
    except TimeoutError as error:
        raise Unauthorized(f"{called}: no answer within {seconds:.3g} s") from error
    except OverflowError as error:
        raise Unauthorized(f"{called}: says more than {limit} bytes") from error
    except OSError as error:
        raise Unauthorized(f"{words[0]}: cannot be run: {error.strerror}") from error

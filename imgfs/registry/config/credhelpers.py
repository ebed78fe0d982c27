"""Programs that keep credentials: `docker-credential-NAME get|store|erase` (docker-credential-helpers).

They are request what they need on standard input, never as an argument, and are given little time and little
room for an answer; one that hangs is ended with all that it has started. Whatever goes wrong is an error
that names the program, and quotes it only where it says no secret.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time
from typing import NamedTuple

from imgfs.errors import Unauthorized, UsageError

TIMEOUT = 30.0  # seconds
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FOUND = "credentials not found"  # every helper's words (credentials/error.go)
_MAX_ANSWER = 64 << 10  # an identity token has some kilobytes
_MAX_TEXT = 200


class HelperSecret(NamedTuple):
    """The credentials that a helper keeps for one registry."""

    username: str
    secret: str

    def __repr__(self) -> str:
        return f"HelperSecret({self.username!r})"


class _HelperOutput(NamedTuple):
    code: int
    out: bytes
    error: bytes


def program_of(name: object) -> str:
    """The program of the helper `name`; raises UsageError for what can be no name of one."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"{name!r:.60} is not the name of a credential helper")
    return f"docker-credential-{name}"


def ask_helper(name: object, server: str, seconds: float = TIMEOUT) -> HelperSecret | None:
    """Return the credentials the helper keeps for `server`, None if none; raises Unauthorized if it fails."""
    program = program_of(name)
    output = _run(program, "get", server, seconds)
    if output.code == 0:
        return _answer(output.out, program)
    if _NOT_FOUND in _text(output):
        return None
    raise _failed(program, f"for {server}", output)


def store_with_helper(name: object, server: str, kept: HelperSecret) -> None:
    """Let the helper store credentials; raises Unauthorized if it fails."""
    program = program_of(name)
    fields = {"ServerURL": server, "Username": kept.username, "Secret": kept.secret}
    output = _run(program, "store", json.dumps(fields))
    if output.code:
        raise _failed(program, f"to store credentials for {server}", output, kept.secret)


def erase_from_helper(name: object, server: str) -> bool:
    """Let the helper erase the credentials of `server`; return True if there were any."""
    if ask_helper(name, server) is None:
        return False
    program = program_of(name)
    output = _run(program, "erase", server)
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


def _failed(program: str, what: str, output: _HelperOutput, secret: str = "") -> Unauthorized:
    text = _text(output)
    if "Secret" in text or (secret and (secret in text or json.dumps(secret)[1:-1] in text)):
        text = "what it says has a secret in it"
    return Unauthorized(f"{program} failed {what}: {text[:_MAX_TEXT]!r} (exit code {output.code})")


def _text(output: _HelperOutput) -> str:
    """Return the helper's error text: most write it to standard output."""
    return (output.out + output.error).decode(errors="replace").strip()


def _run(program: str, verb: str, request: str, seconds: float = TIMEOUT) -> _HelperOutput:
    """Run the helper to its end; raises Unauthorized if it cannot be run or takes longer than `seconds`."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [program, verb], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise Unauthorized(f"{program}: cannot be run: {error.strerror}") from error
    with process:
        try:
            return _converse(process, request.encode(), time.monotonic() + seconds)
        except TimeoutError as error:
            raise Unauthorized(f"{program} {verb}: no answer within {seconds:.3g} s") from error
        except OverflowError as error:
            raise Unauthorized(f"{program} {verb}: says more than {_MAX_ANSWER} bytes") from error
        finally:
            if process.returncode is None:  # not waited for yet, so that its group cannot be another's
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _converse(process: subprocess.Popen[bytes], request: bytes, ends: float) -> _HelperOutput:
    """Write the request, and read until both outputs are closed and the helper has ended."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    with contextlib.suppress(BrokenPipeError):  # a helper may not read it; the request fits into a pipe
        process.stdin.write(request)
        process.stdin.close()
    output = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in output:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            if not (ready := selector.select(max(0.0, ends - time.monotonic()))):
                raise TimeoutError
            for key, _ in ready:
                chunk = os.read(key.fd, _MAX_ANSWER)
                output[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                if len(output[key.fd]) > _MAX_ANSWER:
                    raise OverflowError
    try:
        code = process.wait(max(0.0, ends - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    return _HelperOutput(code, *map(bytes, output.values()))

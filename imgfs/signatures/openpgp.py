"""OpenPGP messages, verified by public keys of a policy: by the `gpg` program, in a home of its own.

containers/image asks the same program, by gpgme; what is said of a message here is what gpgme makes of it.
A library would be a second opinion on keys that expired or were revoked, subkeys, weak hashes and odd
packets: podman would accept what imgfs refuses, or the other way round. `gpgv` is no choice: for it every key
in its keyring is good, the expired and revoked, too (gpgv(1)).

gpg sees neither the user's keys nor options, starts no agent, asks no network, and decrypts nothing: there is
no secret key. The home is a temporary directory that goes when the keyring is closed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imgfs.errors import InvalidImage, UsageError, describe
from imgfs.program import ProgramOutput, ask_program

_PLACES = "/usr/bin:/bin:/usr/local/bin"  # beside those of $PATH
_SECONDS = 60.0  # for all that one keyring is asked
_LARGEST_STATUS = 1 << 20  # bytes of status lines; a good signature has some hundred
LARGEST_PAYLOAD = 4 << 20  # bytes that a message may have signed: it could be compressed
_OPTIONS = (
    *("--batch", "--no-tty", "--quiet", "--no-options", "--status-fd", "1"),
    *("--no-autostart", "--disable-dirmngr", "--no-auto-key-retrieve"),
)
_UNKNOWN_KEY = "9"  # ERRSIG's reason, an error code of libgpg-error: GPG_ERR_NO_PUBKEY
# what is said of a signature (GnuPG's DETAILS, "Format of the --status-fd output"), and what it means here
_OUTCOMES = {
    "GOODSIG": "",
    "EXPSIG": "a signature that has expired",
    "EXPKEYSIG": "a signature by a key that has expired",
    "REVKEYSIG": "a signature by a key that was revoked",
    "BADSIG": "a signature that does not match what is signed",
    "ERRSIG": "a signature that gpg cannot verify",
}
_FAULTS = {"NODATA", "UNEXPECTED", "ERROR", "FAILURE", "TRUST_NEVER", "DECRYPTION_FAILED"}


class SignedMessage(NamedTuple):
    """What was signed, and the fingerprint of the primary key that it was signed by."""

    payload: bytes
    fingerprint: str


class Signer(NamedTuple):
    """The key of a good signature, perhaps a subkey, and the key that this belongs to."""

    fingerprint: str
    primary: str


class Keyring:
    """Public keys in a home of their own."""

    def __init__(self, program: str, home: Path) -> None:
        self._program = program
        self._home = home
        self._ends = time.monotonic() + _SECONDS
        self.fingerprints: set[str] = set()

    def add(self, body: bytes) -> None:
        """Import the public keys in a file's bytes, armored or not; there may be none. Raises UsageError."""
        path = self._home / "keys"
        path.write_bytes(body)
        try:
            output = self._ask("--import", "--", str(path))
        except InvalidImage as error:
            raise UsageError(str(error)) from error
        self.fingerprints |= imported_keys(output.out)

    def verify(self, message: bytes) -> SignedMessage:
        """Return what a message says, if it has one good signature by one of the keys; or InvalidImage."""
        path, payload = self._home / "message", self._home / "payload"
        path.write_bytes(message)
        payload.unlink(missing_ok=True)
        output = self._ask(*("--max-output", str(LARGEST_PAYLOAD), "--output", str(payload), "--", str(path)))
        signer = signer_of(output.out)
        if output.code:
            raise InvalidImage(f"a signature that gpg does not accept (exit code {output.code})")
        if self.fingerprints.isdisjoint(signer):
            raise InvalidImage(f"a signature by the key {signer.fingerprint}, which is another")
        with payload.open("rb") as file:
            return SignedMessage(file.read(LARGEST_PAYLOAD), signer.primary)

    def _ask(self, *words: str) -> ProgramOutput:
        environment = {
            "HOME": str(self._home),
            "GNUPGHOME": str(self._home),
            "PATH": _PLACES,
            "LC_ALL": "C.UTF-8",
        }
        left = self._ends - time.monotonic()
        try:
            return ask_program(
                [self._program, *_OPTIONS, *words],
                seconds=max(left, 0.0),
                limit=_LARGEST_STATUS,
                environment=environment,
            )
        except TimeoutError as error:
            raise InvalidImage(f"gpg takes longer than {_SECONDS:.0f} s") from error
        except OverflowError as error:
            raise InvalidImage("a signature of which gpg says too much") from error
        except OSError as error:
            raise UsageError(f"{self._program} cannot be run: {describe(error)}") from error


@contextmanager
def open_keyring(bodies: Sequence[bytes]) -> Iterator[Keyring]:
    """Open a keyring of the public keys in files' bytes; raises UsageError if there is no gpg, or no key."""
    program = shutil.which("gpg") or shutil.which("gpg", path=_PLACES)
    if program is None:
        raise UsageError("gpg is needed to check signatures by GPG keys (signedBy), and is not installed")
    with tempfile.TemporaryDirectory(prefix="imgfs-gpg-", ignore_cleanup_errors=True) as home:
        keyring = Keyring(program, Path(home))
        for body in bodies:
            keyring.add(body)
        if not keyring.fingerprints:
            raise UsageError("no public key of OpenPGP in the policy's keys")
        yield keyring


def imported_keys(status: bytes) -> set[str]:
    """Return the fingerprints of the primary keys that status lines say are imported, or were there."""
    return {words[1] for keyword, words in _lines(status) if keyword == "IMPORT_OK" and len(words) > 1}


def signer_of(status: bytes) -> Signer:
    """Return who signed, by gpg's status lines; raises InvalidImage unless there is one good signature."""
    lines = list(_lines(status))
    said = Counter(keyword for keyword, _ in lines)
    outcomes = [(keyword, words) for keyword, words in lines if keyword in _OUTCOMES]
    if len(outcomes) > 1 or said["NEWSIG"] > 1:
        raise InvalidImage("several signatures in one message")
    for keyword, words in outcomes:
        if keyword != "GOODSIG":
            raise InvalidImage(_refusal(keyword, words))
    if not outcomes:
        raise InvalidImage("no signature of OpenPGP")
    if faults := sorted(_FAULTS & said.keys()):
        raise InvalidImage(f"a message that gpg does not accept ({', '.join(faults)})")
    valid = [words for keyword, words in lines if keyword == "VALIDSIG"]
    if len(valid) != 1 or not valid[0]:
        raise InvalidImage("a signature that gpg does not call valid")
    fingerprint = valid[0][0]
    return Signer(fingerprint, valid[0][9] if len(valid[0]) > 9 else fingerprint)


def _refusal(keyword: str, words: Sequence[str]) -> str:
    if keyword == "ERRSIG" and len(words) > 5 and words[5] == _UNKNOWN_KEY:
        key = words[6] if len(words) > 6 and words[6] != "-" else words[0]
        return f"a signature by the key {key}, which is another"
    return _OUTCOMES[keyword]


def _lines(status: bytes) -> Iterator[tuple[str, list[str]]]:
    for line in status.decode(errors="replace").split("\n"):
        with suppress(ValueError):
            prefix, keyword, *words = line.split(" ")
            if prefix == "[GNUPG:]":
                yield keyword, words

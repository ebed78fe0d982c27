"""Keys of OpenPGP, and what they sign: by gpg in a home of its own, which has an agent until it is closed.

with OpenPgpHome() as home:
    home.make_key("a")
    home.sign(b"...", "a"), home.public("a")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support.patience import allowed

needs_gpg = pytest.mark.skipif(
    not (shutil.which("gpg") and shutil.which("gpg-agent")), reason="no gpg with an agent"
)
LONG_AGO = ("--faked-system-time", "20200101T000000")
_OPTIONS = ("--batch", "--quiet", "--no-tty", "--yes", "--pinentry-mode", "loopback", "--passphrase", "")
_TIMEOUT = allowed(60)


class OpenPgpHome:
    """A home of gpg's; keys have the names of their users, `NAME@example.com`."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gpg-"))  # short: an agent's socket is in it

    @property
    def environment(self) -> dict[str, str]:
        """For other programs that sign."""
        return {**os.environ, "GNUPGHOME": str(self.path), "HOME": str(self.path)}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        words = ["gpgconf", "--homedir", str(self.path), "--kill", "gpg-agent"]
        subprocess.run(words, check=False, timeout=_TIMEOUT, env=self.environment)
        shutil.rmtree(self.path, ignore_errors=True)

    def gpg(self, *words: str, body: bytes = b"") -> bytes:
        """Return what gpg answers."""
        done = subprocess.run(
            ["gpg", *_OPTIONS, *words],
            input=body,
            capture_output=True,
            env=self.environment,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def make_key(self, name: str, *options: str, usage: str = "sign", expires: str = "never") -> str:
        """Make a key; its fingerprint."""
        self.gpg(*options, "--quick-gen-key", f"{name} <{name}@example.com>", "ed25519", usage, expires)
        return self.fingerprint(name)

    def add_subkey(self, name: str) -> None:
        """Add a key that signs for the key of that name."""
        self.gpg("--quick-add-key", self.fingerprint(name), "ed25519", "sign", "never")

    def revoke(self, name: str) -> None:
        """Revoke a key, by what gpg keeps for that."""
        path = self.path / "openpgp-revocs.d" / f"{self.fingerprint(name)}.rev"
        self.gpg("--import", body=path.read_bytes().replace(b"\n:---", b"\n---"))

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of the primary key."""
        listed = self.gpg("--list-keys", "--with-colons", f"{name}@example.com").decode().splitlines()
        return next(line for line in listed if line.startswith("fpr:")).split(":")[9]

    def public(self, *names: str, armor: bool = False) -> bytes:
        """Return the public keys."""
        return self.gpg(
            *(["--armor"] if armor else []), "--export", *(f"{name}@example.com" for name in names)
        )

    def sign(self, body: bytes, *names: str, options: Sequence[str] = ()) -> bytes:
        """Return a message with the signatures of keys."""
        signers = [word for name in names for word in ("-u", f"{name}@example.com")]
        return self.gpg(*options, *signers, "--sign", body=body)


def claim(digest: str, reference: str, optional: object = None, **critical: Any) -> bytes:
    """Return what containers/image signs; `critical` are other fields of that."""
    fields: Mapping[str, object] = {
        "type": "atomic container signature",
        "image": {"docker-manifest-digest": digest},
        "identity": {"docker-reference": reference},
        **critical,
    }
    return json.dumps({"critical": fields, "optional": {} if optional is None else optional}).encode()

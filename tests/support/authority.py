"""A private certificate authority, with Debian's openssl.

authority = Authority(tmp_path / "ca")
certificate, key = authority.issue("127.0.0.1")
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.patience import allowed

_KEY_USAGE = "keyUsage=critical,keyCertSign"  # which is asked for since Python 3.13

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")


class Authority:
    """Signs certificates; `file` is its own, in PEM. What it makes is kept in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._issued = 0
        self.file = directory / "ca.crt"
        self._key = directory / "ca.key"
        self._make(
            "/CN=Authority of tests",
            self.file,
            self._key,
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            _KEY_USAGE,
        )

    def issue(self, name: str, *, days: int = 2, password: str = "") -> tuple[Path, Path]:
        """Return a certificate for a host, which is its holder's to show to others as well, and its key.

        It is good for some `days`, or has expired so many days ago.
        """
        self._issued += 1
        certificate = self._directory / f"{self._issued}.crt"
        key = certificate.with_suffix(".key")
        signed = ("-CA", str(self.file), "-CAkey", str(self._key), "-days")
        names = f"subjectAltName={_kind(name)}:{name}"
        is_none = (
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        )  # openssl: an authority
        self._make(f"/CN={name}", certificate, key, names, *is_none, *signed, str(max(days, 1)))
        if days < 1:
            request, kept = str(key.with_suffix(".csr")), ("-copy_extensions", "copyall")
            words = ("openssl", "x509", *kept, "-in")
            _run(*words, str(certificate), "-x509toreq", "-signkey", str(key), "-out", request)
            _run(
                *words,
                request,
                "-req",
                *signed[:-1],
                *_expired(days),
                "-set_serial",
                "7",
                "-out",
                str(certificate),
            )
        if password:
            locked = certificate.with_suffix(".locked")
            command = ["openssl", "ec", "-in", str(key), "-aes256", "-out", str(locked)]
            _run(*command, "-passout", f"pass:{password}")
            key = locked
        return certificate, key

    def _make(self, subject: str, certificate: Path, key: Path, extension: str, *more: str) -> None:
        _run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", subject, "-addext", extension, "-out", str(certificate), "-keyout", str(key)),
            *more,
        )


def _expired(days: int) -> list[str]:
    """Return the words for a certificate that ended `-days` days ago, which are others since openssl 3.4."""
    said = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout
    if tuple(map(int, said.split()[1].split(".")[:2])) < (3, 4):
        return ["-days", str(days)]
    end = datetime.now(UTC) + timedelta(days=days)
    begin = end - timedelta(days=1)
    return ["-not_before", f"{begin:%Y%m%d%H%M%SZ}", "-not_after", f"{end:%Y%m%d%H%M%SZ}"]


def _kind(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "DNS"
    return "IP"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=allowed(60), check=False)
    assert done.returncode == 0, done.stderr

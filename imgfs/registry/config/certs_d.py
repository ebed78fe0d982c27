"""Certificates as docker and containers keep them: `certs.d/HOST[:PORT]` (containers-certs.d(5); dockerd).

`*.crt` are authorities to trust, `NAME.cert` and `NAME.key` what a client shows. They count on top of the
system's authorities and of what other files say of the same host.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from imgfs.errors import UsageError
from imgfs.registry.config.reload import Reader
from imgfs.registry.endpoint import Tls

log = logging.getLogger(__name__)


def certificates_in(reader: Reader, directory: Path) -> Tls:
    """What a directory of certificates says of the registry it is named after.

    What this user may not read does not count: the keys in /etc/docker are often root's alone.
    """
    names = [name for name in reader.names(directory) if _readable(directory / name)]
    clients = [name.removesuffix(".cert") for name in names if name.endswith(".cert")]
    return Tls(
        tuple(directory / name for name in names if name.endswith(".crt")),
        tuple(
            (directory / f"{name}.cert", directory / f"{name}.key" if f"{name}.key" in names else None)
            for name in clients
        ),
    )


def merged(several: Iterable[Tls]) -> Tls:
    """All of them together, nothing twice; one that does not verify is enough."""
    found = list(several)
    authorities = dict.fromkeys(path for tls in found for path in tls.authorities)
    clients = dict.fromkeys(pair for tls in found for pair in tls.clients)
    return Tls(tuple(authorities), tuple(clients), all(tls.verify for tls in found))


def checked(reader: Reader, tls: Tls) -> Tls:
    """`tls` with the stamps of its files; raises UsageError naming one that is missing or not in PEM."""
    named = [*tls.authorities, *(path for pair in tls.clients for path in pair if path)]
    stamps = [reader.stamp(path) for path in named]
    for path in tls.authorities:
        _check_authorities(path)
    for certificate, key in tls.clients:
        _check_client(certificate, key)
    return replace(tls, stamps=tuple(stamp for stamp in stamps if stamp))


def _check_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(f"{path}: not certificates in PEM") from error
    except OSError as error:
        raise UsageError(f"{path}: the certificates cannot be read: {error.strerror}") from error


def _check_client(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        files = f"{certificate} and {key}" if key else f"{certificate}"
        raise UsageError(f"{files}: not a client's certificate and its key, unencrypted, in PEM") from error
    except OSError as error:
        raise UsageError(
            f"{certificate}: the client's certificate cannot be read: {error.strerror}"
        ) from error


def _no_password() -> str:
    """Return no passphrase: no terminal is there to ask for one."""
    return ""


def _readable(path: Path) -> bool:
    readable = os.access(path, os.R_OK)
    if not readable:
        log.debug("%s: may not be read, and does not count", path)
    return readable

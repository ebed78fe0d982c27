"""TLS: certificates out of `certs.d/HOST[:PORT]` and other files, as a context of Python's ssl module.

As docker and containers keep them (containers-certs.d(5); dockerd), `*.crt` are authorities to trust,
`NAME.cert` and `NAME.key` what a client shows. They count on top of the system's authorities and of what
other files say of the same host.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterable
from pathlib import Path

from imgfs.errors import RegistryError, UsageError
from imgfs.registry.config.reload import Reader
from imgfs.registry.endpoint import Tls

log = logging.getLogger(__name__)
# OpenSSL's reasons for a handshake that fails every time
NEVER_BETTER = (
    "CERTIFICATE_VERIFY_FAILED",
    "WRONG_VERSION_NUMBER",
    "RECORD_LAYER_FAILURE",
    "UNSUPPORTED_PROTOCOL",
    "SSLV3_ALERT_HANDSHAKE_FAILURE",
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)  # X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT and on (openssl-verify(1))


def certificates_in(reader: Reader, directory: Path) -> Tls:
    """Return what a directory of certificates says of the registry it is named after.

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


def merged_tls(several: Iterable[Tls]) -> Tls:
    """Return all of them together, nothing twice; one that does not verify is enough."""
    found = list(several)
    authorities = dict.fromkeys(path for tls in found for path in tls.authorities)
    clients = dict.fromkeys(pair for tls in found for pair in tls.clients)
    return Tls(tuple(authorities), tuple(clients), all(tls.verify for tls in found))


def checked_tls(reader: Reader, tls: Tls) -> Tls:
    """`tls` with the stamps of its files; raises UsageError naming one that is missing or not in PEM."""
    named = [*tls.authorities, *(path for pair in tls.clients for path in pair if path)]
    stamps = [reader.stamp(path) for path in named]
    for path in tls.authorities:
        _check_authorities(path)
    for certificate, key in tls.clients:
        _check_client(certificate, key)
    return tls._replace(stamps=tuple(stamp for stamp in stamps if stamp))


def _check_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise UsageError(f"{path}: not certificates in PEM") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _check_client(certificate: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        files = f"{certificate} and {key}" if key else f"{certificate}"
        raise UsageError(f"{files}: not a client's certificate and its key, unencrypted, in PEM") from error
    except OSError as error:
        raise UsageError(f"{certificate}: cannot be read: {error.strerror}") from error


def _no_password() -> str:
    """Return no passphrase: no terminal is there to ask for one."""
    return ""


def _readable(path: Path) -> bool:
    readable = os.access(path, os.R_OK)
    if not readable:
        log.debug("%s: may not be read, and does not count", path)
    return readable


def context_of(tls: Tls, ca_bundle: Path | None, *, shows: bool) -> ssl.SSLContext:
    """Return a context for connections; with `shows` it has the client certificate.

    `ca_bundle` is trusted instead of the machine's certificates, or those that come with Python's certifi
    where the machine has none. Raises RegistryError, naming the file, for one that is no PEM file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_bundle:
        _trust(context, ca_bundle, " ($SSL_CERT_FILE, or $REQUESTS_CA_BUNDLE)")
    else:
        _trust_usual(context)
    for path in tls.authorities if tls.verify else ():
        _trust(context, path)
    for certificate, key in tls.clients if shows else ():
        _show(context, certificate, key)
    return context


def hint_for(error: ssl.SSLError) -> str:
    """Return what may help against a handshake that fails, with a space before it, or nothing."""
    if error.reason in _NO_TLS:
        return " (no TLS there? --plain-http)"
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _UNKNOWN_AUTHORITY:
        return " (of a private authority? --tls-ca)"
    return ""


def _trust_usual(context: ssl.SSLContext) -> None:
    usual = ssl.get_default_verify_paths()
    if usual.cafile or (usual.capath and any(os.scandir(usual.capath))):
        context.load_default_certs()
        return
    import certifi  # only where the machine has none

    _trust(context, Path(certifi.where()))


def _trust(context: ssl.SSLContext, path: Path, named: str = "") -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise RegistryError(f"{path}: {_why(error, 'not certificates in PEM')}{named}") from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # a password, so that OpenSSL does not ask for one on the terminal
        context.load_cert_chain(certificate, key, password="none")
    except OSError as error:
        why = _why(error, "not a certificate and its key in PEM, without a password")
        raise RegistryError(f"{certificate}{f', {key}' if key else ''}: {why}") from error


def _why(error: OSError, otherwise: str) -> str:
    if isinstance(error, ssl.SSLError) or not error.strerror:
        return otherwise
    return f"cannot be read: {error.strerror}"

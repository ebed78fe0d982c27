"""What TLS believes and shows, as a context of Python's ssl module."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from imgfs.errors import RegistryError
from imgfs.registry.endpoint import Tls

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
        _trust(context, ca_bundle)
    else:
        _trust_usual(context)
    for path in tls.authorities if tls.verify else ():
        _trust(context, path)
    for certificate, key in tls.clients if shows else ():
        _show(context, certificate, key)
    return context


def hint_for(error: ssl.SSLError) -> str:
    """What may help against a handshake that fails, with a space before it, or nothing."""
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


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise RegistryError(f"{path}: {_why(error, 'not certificates in PEM')}") from error


def _show(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # a password, so that OpenSSL does not ask for one on the terminal
        context.load_cert_chain(certificate, key, password="none")
    except OSError as error:
        why = _why(error, "not a certificate and its key in PEM, without a password")
        raise RegistryError(f"{certificate}{f', {key}' if key else ''}: {why}") from error


def _why(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) or not error.strerror else error.strerror

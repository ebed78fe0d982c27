"""What kept a request from an answer, in words for a person and without secrets."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from http.client import BadStatusLine

from imgfs.errors import RegistryError, Unavailable
from imgfs.registry.tls import NEVER_BETTER, hint_for
from imgfs.registry.urls import redact


def no_answer(url: str, error: Exception, proxy: str) -> RegistryError:
    """The error to raise for a request without an answer: Unavailable if it may have one another time."""
    text = f"{redact(url)}: no answer: {reason_of(error)}{_through(proxy)}"
    tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if tls and tls.reason in NEVER_BETTER:
        return RegistryError(f"{text}{hint_for(tls)}", url=redact(url))
    return Unavailable(text, url=redact(url))


def not_asked(url: str, error: Exception, proxy: str) -> RegistryError:
    """The error to raise for a request that cannot even be sent: for its headers, or because of the proxy."""
    through = _through(proxy)
    why = "; of proxies, only those at http://, https:// and socks5:// are known here" if through else ""
    return RegistryError(f"{redact(url)}: cannot be asked for{through}: {type(error).__name__}{why}")


def hung_up(error: BaseException) -> bool:
    """Whether a connection was ended, or answered with no HTTP, as by a server that speaks TLS alone."""
    kinds = (ConnectionResetError, BadStatusLine)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _through(proxy: str) -> str:
    """Which proxy was to be asked, if one was, without its password."""
    return f" (through the proxy {redact(proxy)})" if proxy else ""


def reason_of(error: BaseException) -> str:
    """The innermost cause in the system's words: those of requests and urllib3 quote the URL's secrets."""
    for cause in reversed(list(_causes(error))):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, TimeoutError):
            return "timed out"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return f"TLS: {cause.reason.replace('_', ' ').lower()}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed"):
            return "".join(sign for sign in str(cause)[:100] if sign.isprintable())
    return type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__

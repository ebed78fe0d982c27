"""Errors of requests as exceptions: no answer, or an error response (distribution-spec, "Error Codes").

Texts are for people and have no secrets: URLs are redacted, and tokens that a registry repeats are cut out.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from http.client import BadStatusLine

from imgfs.errors import NotFound, RegistryError, Unauthorized, Unavailable
from imgfs.registry.retry import Busy, retry_after
from imgfs.registry.tls import NEVER_BETTER, hint_for
from imgfs.registry.urls import redact

MAX_ERROR_BODY = 16 << 10
_MAX_TEXT = 200
_SECRETS = re.compile(r"\b(Basic|Bearer)\s+\S+", re.IGNORECASE)  # a registry may repeat what it was sent
_PUSH_MEANINGS = {
    401: "the registry wants credentials that may push",
    403: "the registry does not allow it",
    404: "no such repository, and the registry does not make one",
    405: "the registry is read-only, or only a pull-through cache",
    413: "it is larger than the registry, or a proxy before it, takes at once",
}
_DELETE_MEANINGS = {
    400: "the registry does not allow deletion",
    401: "the registry wants credentials that may delete",
    403: "the registry does not allow it",
    405: "the registry does not allow deletion",
}
_CATALOG_MEANINGS = {
    401: "the registry does not allow it, or wants credentials that may",
    403: "the registry does not allow it",
    404: "the registry does not offer it",
    405: "the registry does not offer it",
    501: "the registry does not offer it",
}


def no_answer(url: str, error: Exception, proxy: str) -> RegistryError:
    """Return the error for a request without an answer: Unavailable if another try may have one."""
    text = f"{redact(url)}: no answer: {reason_of(error)}{_through(proxy)}"
    tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if tls and tls.reason in NEVER_BETTER:
        return RegistryError(f"{text}{hint_for(tls)}", url=redact(url))
    return Unavailable(text, url=redact(url))


def not_asked(url: str, error: Exception, proxy: str) -> RegistryError:
    """Return the error for a request that cannot be sent: for its headers, or because of the proxy."""
    through = _through(proxy)
    why = "; of proxies, only those at http://, https:// and socks5:// are known here" if through else ""
    return RegistryError(f"{redact(url)}: cannot be asked for{through}: {type(error).__name__}{why}")


def hung_up(error: BaseException) -> bool:
    """Return True if a connection was ended, or answered without HTTP, as by a TLS port."""
    kinds = (ConnectionResetError, BadStatusLine)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _through(proxy: str) -> str:
    """Name the proxy that was used, without its password; "" for none."""
    return f" (through the proxy {redact(proxy)})" if proxy else ""


def reason_of(error: BaseException) -> str:
    """Return the innermost cause in the system's words: requests and urllib3 quote URLs with secrets."""
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
        told = [argument for argument in seen.args if isinstance(argument, BaseException)]  # urllib3's way
        seen = seen.__cause__ or seen.__context__ or next(reversed(told), None)


def refusal(status: int, headers: Mapping[str, str], body: bytes, url: str) -> RegistryError:
    """Return the exception for an error response: its kind by `status`, its words from the body."""
    code, text = _first_error(body)
    shown = redact(url)
    message = f"{shown}: {status}{f' {code}' if code else ''}{f': {text}' if text else ''}"
    if status in (401, 403):
        return Unauthorized(message, status=status, code=code, url=shown)
    if status == 404:
        return NotFound(message, status=status, code=code, url=shown)
    if status in (429, 503):
        return Busy(message, after=retry_after(headers), status=status, code=code, url=shown)
    if status in (408, 425) or (status >= 500 and status != 501):  # "Not Implemented" stays so
        return Unavailable(message, status=status, code=code, url=shown)
    return RegistryError(message, status=status, code=code, url=shown)


def push_refusal(error: RegistryError, name: str) -> RegistryError:
    """Return the same refusal, saying what it means for a push to the repository `name`."""
    return _explained(error, _PUSH_MEANINGS, f"cannot push to {name}")


def delete_refusal(error: RegistryError, name: str) -> RegistryError:
    """Return the same refusal, saying what it means for a deletion from the repository `name`."""
    return _explained(error, _DELETE_MEANINGS, f"cannot delete from {name}")


def catalog_refusal(error: RegistryError, host: str) -> RegistryError:
    """Return the same refusal, saying what it means for a list of the repositories of `host`."""
    return _explained(error, _CATALOG_MEANINGS, f"cannot list the repositories of {host}")


def _explained(error: RegistryError, meanings: Mapping[int, str], what: str) -> RegistryError:
    meaning = meanings.get(error.status or 0)
    if meaning is None or isinstance(error, Unavailable):
        return error
    text = f"{what}: {meaning} ({error})"
    return type(error)(text, status=error.status, code=error.code, url=error.url)


def _first_error(body: bytes) -> tuple[str | None, str | None]:
    """Return (code, message) of `{"errors": [{"code", "message"}]}`, as far as they are there."""
    try:
        error = json.loads(body.decode())["errors"][0]
        code, text = error.get("code"), error.get("message")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None, None
    return _line(code), _line(text)


def _line(text: object) -> str | None:
    """Text from afar as one short printable line."""
    if not isinstance(text, str) or not text:
        return None
    text = _SECRETS.sub(r"\1 …", text)
    return "".join(sign if sign.isprintable() else " " for sign in text[:_MAX_TEXT])

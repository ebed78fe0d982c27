"""Byte ranges of a blob: what to ask for, and what a response says it carries (RFC 9110, section 14)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from imgfs.errors import IntegrityError, Unavailable

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)


class Piece(NamedTuple):
    """The bytes `[start, end)` of a blob of `size` bytes."""

    start: int
    end: int
    size: int


class Window(NamedTuple):
    """The wanted bytes within a response's body: `length` of them after the first `skip`."""

    skip: int
    length: int


def range_header(piece: Piece) -> dict[str, str]:
    """The header that asks for a piece: one closed range, and none at all for the whole blob.

    Suffix, open-ended and multiple ranges are answered wrongly by some registries.
    """
    start, end, size = piece
    return {} if (start, end) == (0, size) else {"Range": f"bytes={start}-{end - 1}"}


def window_of(status: int, headers: Mapping[str, str], piece: Piece, what: str) -> Window:
    """Where the piece is in the response's body; `what` it is of is said in errors.

    A 200 carries the whole blob, whatever was asked. A 206 may carry less than asked, from `start` on. Raises
    IntegrityError if the response contradicts the request or the blob's size.
    """
    start, end, size = piece
    if status == 200:
        _check_length(headers, size, what)
        return Window(start, end - start)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if status != 206 or not match:
        given = f"{status}, Content-Range {headers.get('Content-Range', '')[:80]!r}"
        raise IntegrityError(f"{what}: answer to a Range request", expected="206", actual=given)
    first, last, total = int(match[1]), int(match[2]), match[3]
    if first != start or not first <= last < end:
        raise IntegrityError(
            f"{what}: Content-Range", expected=f"{start}-{end - 1}", actual=f"{first}-{last}"
        )
    if total != "*" and int(total) != size:
        raise IntegrityError(f"{what}: size in Content-Range", expected=size, actual=int(total))
    _check_length(headers, last + 1 - first, what)
    return Window(0, last + 1 - first)


def cut_out(chunks: Iterable[bytes], window: Window, what: str) -> Iterator[bytes]:
    """The window's bytes out of a body in chunks; raises Unavailable if the body ends before."""
    skip, left = window
    for chunk in chunks:
        piece = chunk[skip : skip + left]
        skip = max(0, skip - len(chunk))
        left -= len(piece)
        if piece:
            yield piece
        if not left:
            return
    if left:
        raise Unavailable(f"{what}: the body ended {left + skip} bytes early")


def gather(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in chunks of at least `size`, but for the last.

    What came before Unavailable is handed out before it is raised.
    """
    parts: list[bytes] = []
    length = 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            length += len(chunk)
            if length >= size:
                yield b"".join(parts)
                parts, length = [], 0
    except Unavailable:
        if parts:
            yield b"".join(parts)
        raise
    if parts:
        yield b"".join(parts)


def _check_length(headers: Mapping[str, str], expected: int, what: str) -> None:
    given = headers.get("Content-Length")
    if given is not None and given.strip() != str(expected):
        raise IntegrityError(f"{what}: Content-Length", expected=expected, actual=given[:40])

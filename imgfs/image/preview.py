"""What a person is shown of a file's beginning: its lines if it is text, else its bytes in hexadecimal.

Lines are printable whatever the file holds (`imgfs.quoting`), and bounded in number and length.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from imgfs.quoting import printable

HEAD = 64 * 1024  # bytes of a file that a preview is made of
LINES = 2000
WIDTH = 500  # characters of a line
_HEX = 512  # bytes shown in hexadecimal
_ROW = 16
_TAB = 8
_PLAIN = frozenset(b"\t\n\r\f\b\x1b") | frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100))
_STRANGE = 0.05  # of a text's bytes may be other control characters
# What files begin with: gABI (ELF), RFC 1952 (gzip), RFC 8878 (zstd), the formats' own specifications.
_MAGIC = {
    b"\x7fELF": "ELF",
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"%PDF-": "PDF",
    b"SQLite format 3\0": "SQLite database",
    b"!<arch>\n": "ar archive",
}


class Preview(NamedTuple):
    """Lines to show; `kind` says what they show, `is_text` if they are the file's own."""

    kind: str
    is_text: bool
    lines: tuple[str, ...]


def preview_of(head: bytes, size: int) -> Preview:
    """Return the preview of a file of `size` bytes that begins with `head`."""
    head = head[:HEAD]
    if not head:
        return Preview("empty", is_text=True, lines=())
    kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")
    if (kind and kind != "PDF" and kind != "bzip2") or not _is_text(head):
        shown = head[:_HEX]
        cut = f", the first {len(shown)} bytes" if size > len(shown) else ""
        return Preview((kind or "binary") + cut, is_text=False, lines=tuple(_hexadecimal(shown)))
    lines = head.removesuffix(b"\n").split(b"\n")
    is_cut = size > len(head) or len(lines) > LINES
    if size > len(head) and len(lines) > 1 and not head.endswith(b"\n"):
        lines.pop()  # perhaps not all of it
    lines = lines[:LINES]
    kind = f"text, the first {len(lines)} lines" if is_cut else "text"
    return Preview(kind, is_text=True, lines=tuple(map(_line, lines)))


def _is_text(head: bytes) -> bool:
    if 0 in head:
        return False
    strange = len(head.translate(None, bytes(_PLAIN)))
    return strange <= _STRANGE * len(head)


def _line(line: bytes) -> str:
    """Return a line of a text, tabs as spaces, what does not print escaped; cut if it is long."""
    text = os.fsdecode(line[: 4 * WIDTH].removesuffix(b"\r")).expandtabs(_TAB)
    shown = printable(text)
    is_cut = len(line) > 4 * WIDTH or len(shown) > WIDTH
    return f"{shown[: WIDTH - 1]}…" if is_cut else shown


def _hexadecimal(body: bytes) -> list[str]:
    """Return rows of an offset, 16 bytes, and those of them that are printable ASCII."""
    rows = []
    for offset in range(0, len(body), _ROW):
        row = body[offset : offset + _ROW]
        half = _ROW // 2
        digits = f"{row[:half].hex(' '):<{3 * half - 1}}  {row[half:].hex(' '):<{3 * half - 1}}"
        signs = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        rows.append(f"{offset:08x}  {digits}  {signs}")
    return rows

"""How a file begins, for a person: text as lines, else hexadecimal; printable whatever the bytes are."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgfs.image.preview import HEAD, LINES, WIDTH, preview_of


@given(st.binary(max_size=3000), st.integers(0, 5000))
@example(b"\x1b]0;title\x07\n", 0)
@example(b"a\tb\r\n\xe2\x80\xae", 100)
@example("é".encode() * 10 + b"\xc3", 1)
def test_every_line_is_printable_and_bounded(head: bytes, more: int) -> None:
    preview = preview_of(head, len(head) + more)
    assert len(preview.lines) <= LINES
    for line in (preview.kind, *preview.lines):
        assert line.isprintable()
        assert len(line) <= WIDTH


def test_a_text_has_its_own_lines() -> None:
    assert preview_of(b"one\n\ttwo\r\n", 10) == ("text", True, ("one", "        two"))
    assert preview_of("h\u00fctte\n".encode(), 7).lines == ("h\u00fctte",)
    assert preview_of("h\u00fctte\n".encode("latin-1"), 6).lines == ("h\\xfctte",)
    assert preview_of(b"", 0).kind == "empty"


def test_a_long_text_ends_with_its_last_whole_line_that_was_read() -> None:
    head = b"0123456\n" * (HEAD // 8 - 1) + b"half"
    preview = preview_of(head[:9000], 1 << 30)
    assert (preview.kind, preview.lines[-1]) == ("text, the first 1125 lines", "0123456")
    assert len(preview_of(b"\n" * HEAD, HEAD).lines) == LINES


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x7fELF\2\1\1" + bytes(2000), "ELF, the first 512 bytes"),
        (b"a\0b", "binary"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\1\2\3\4\5\6", "binary"),
    ],
)
def test_what_is_no_text_is_shown_in_hexadecimal(head: bytes, kind: str) -> None:
    preview = preview_of(head, len(head))
    assert (preview.kind, preview.is_text) == (kind, False)
    digits = "".join(line[10:58].replace(" ", "") for line in preview.lines)
    assert bytes.fromhex(digits) == head[:512]

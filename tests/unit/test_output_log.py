"""The log of a detached container: its format and its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgfs.runtime.output_log import LOG, OLDER, SMALLEST, STREAMS, LogWriter, read_log

pytestmark = pytest.mark.timeout(60)


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    log = LogWriter(tmp_path)
    log.write(STREAMS[1], b"a\n\nb\r\nnot ")
    log.write(STREAMS[2], b"oops\n")
    log.write(STREAMS[1], b"whole\n")
    log.close()
    assert [(line.stream, line.text, line.whole) for line in read_log(tmp_path)] == [
        (b"stdout", b"a", True),
        (b"stdout", b"", True),
        (b"stdout", b"b\r", True),
        (b"stdout", b"not ", False),
        (b"stderr", b"oops", True),
        (b"stdout", b"whole", True),
    ]


@pytest.mark.parametrize("at_once", [1, 7, 5000])
def test_both_files_are_bounded_however_much_is_written_at_once(tmp_path: Path, at_once: int) -> None:
    lines = [b"line %d\n" % number for number in range(5000)]
    log = LogWriter(tmp_path, SMALLEST)
    for start in range(0, len(lines), at_once):
        log.write(STREAMS[1], b"".join(lines[start : start + at_once]))
    log.close()
    assert max((tmp_path / name).stat().st_size for name in (LOG, OLDER)) <= SMALLEST
    kept = [line.text + b"\n" for line in read_log(tmp_path)]
    assert len(kept) > 20
    assert kept == lines[-len(kept) :]


def test_a_line_that_is_longer_than_the_log_is_kept(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, SMALLEST)
    log.write(STREAMS[1], b"x" * 10_000 + b"\n")
    log.close()
    assert [len(line.text) for line in read_log(tmp_path)] == [10_000]

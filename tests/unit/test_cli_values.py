"""The small pieces of the command line: mount(8)'s arguments, numbers for people, progress on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from imgfs.cli.format import long_line, size
from imgfs.cli.fstab import mount_arguments
from imgfs.cli.progress import Progress
from imgfs.errors import UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.tree.reader import Node

LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(b"layer"), 2_000_000)
OTHER = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(b"other"), 0)


@pytest.mark.parametrize(
    ("asked", "ours"),
    [
        ("app:1 /mnt", ["--", "app:1", "/mnt"]),
        ("app:1 /mnt -o ro", ["-oro", "--", "app:1", "/mnt"]),
        (
            "app:1 /mnt -o rw,noauto,user,x-systemd.automount,_netdev,defaults,comment=x",
            ["--", "app:1", "/mnt"],
        ),
        (
            "app:1 /mnt -o allow_other,platform=linux/arm64",
            ["-oallow_other", "--platform=linux/arm64", "--", "app:1", "/mnt"],
        ),
        (
            "app:1 /mnt -o store=/s,log_level=DEBUG",
            ["--store=/s", "--log-level=DEBUG", "--", "app:1", "/mnt"],
        ),
        (
            "app:1 /mnt -o plain_http,squash_owner",
            ["--plain-http", "--squash-owner", "--", "app:1", "/mnt"],
        ),
        ("-sn app:1 -o ro -v /mnt -o dev,", ["-oro", "-odev", "--", "app:1", "/mnt"]),
        ("-t fuse.imgfs app:1 /mnt", ["--", "app:1", "/mnt"]),
        (
            "app:1 /mnt -o driver=kernel,tls_ca=/ca.pem,insecure,offline,metrics=9100",
            [
                "--driver=kernel",
                "--tls-ca=/ca.pem",
                "--insecure",
                "--offline",
                "--metrics=9100",
                "--",
                "app:1",
                "/mnt",
            ],
        ),
    ],
)
def test_an_fstab_line_becomes_our_arguments(asked: str, ours: list[str]) -> None:
    translated = mount_arguments(asked.split())
    assert translated == ["mount", *ours]


@pytest.mark.parametrize("asked", ["", "app:1", "app:1 /mnt more", "app:1 /mnt -o", "app:1 /mnt --help"])
def test_what_mount_would_not_ask_is_a_usage_error(asked: str) -> None:
    with pytest.raises(UsageError, match=r"usage|needs a value|does not know"):
        mount_arguments(asked.split())


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (123_456_789, "123 MB"),
        (5_000_000_000, "5 GB"),
        (7.5e12, "7.5 TB"),
        (2e15, "2 PB"),
    ],
)
def test_a_size_has_three_digits(count: float, text: str) -> None:
    assert size(count) == text


def node(mode: int, *, count: int = 0, device: int = 0, mtime_ns: int = 0) -> Node:
    return Node(9, mode, 1000, 50, count, mtime_ns, 2, device, 0, False)


@pytest.mark.parametrize(
    ("found", "target", "line"),
    [
        (
            node(stat.S_IFREG | 0o4755, count=1234, mtime_ns=1_700_000_000_000_000_000),
            None,
            b"-rwsr-xr-x   2  1000    50       1234 2023-11-14 22:13 \xffname",
        ),
        (
            node(stat.S_IFLNK | 0o777, count=2, mtime_ns=-1),
            b"to",
            b"lrwxrwxrwx   2  1000    50          2 1969-12-31 23:59 \xffname -> to",
        ),
        (
            node(stat.S_IFCHR | 0o600, device=os.makedev(5, 1)),
            None,
            b"crw-------   2  1000    50       5, 1 1970-01-01 00:00 \xffname",
        ),
        (
            node(stat.S_IFDIR | 0o1777),
            None,
            b"drwxrwxrwt   2  1000    50          0 1970-01-01 00:00 \xffname",
        ),
    ],
)
def test_a_long_line_looks_as_ls_writes_it(found: Node, target: bytes | None, line: bytes) -> None:
    assert long_line(found, b"\xffname", target) == line


def tell(progress: Progress) -> None:
    """The story of a preparation."""
    progress.layer_begins(LAYER)
    progress.layer_waits(OTHER)
    progress.layer_advances(LAYER, 1_000_000)
    progress.layer_advances(LAYER, 500_000)
    progress.layer_ends(LAYER)
    progress.layer_begins(OTHER)
    progress.layer_ends(OTHER)


@contextmanager
def terminal() -> Iterator[tuple[TextIO, int]]:
    """A terminal's end to write to, and the descriptor to read what was written."""
    reading, writing = pty.openpty()
    try:
        with open(writing, "w") as stream:
            yield stream, reading
    finally:
        os.close(reading)


def read_until(terminal: int, end: str) -> str:
    """What comes out of a terminal, up to `end`: it hands over a piece at a time."""
    text = b""
    while not text.endswith(end.encode()):
        text += os.read(terminal, 65536)
    return text.decode()


def test_progress_is_silent_in_a_pipe() -> None:
    pipe = io.StringIO()
    progress = Progress(pipe)
    tell(progress)
    progress.merging()
    progress.close()
    assert pipe.getvalue() == ""


def test_without_a_terminal_a_line_is_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgfs.cli.progress._LINE_EVERY", 0.0)
    pipe = io.StringIO()
    progress = Progress(pipe)
    progress.layer_begins(LAYER)
    progress.layer_advances(LAYER, 500_000)
    progress.layer_advances(LAYER, 500_000)
    progress.close()
    lines = pipe.getvalue().splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"imgfs: indexing: 1 MB of 2 MB, \S+ [kMGT]?B/s, \d+ (s|min) left", lines[1])


def screen(text: str) -> list[str]:
    """The lines a terminal shows in the end; none may be so long that 80 columns cannot hold it."""
    shown: list[str] = []
    row = 0
    for part in re.findall(r"\x1b\[\d+A|\x1b\[\?7[lh]|[^\x1b]*\r\n|\x1b\[2K[^\x1b]*\r\n", text):
        if part.endswith("A"):
            row -= int(part[2:-1])
        elif part.endswith("\r\n"):
            shown[row : row + 1] = [part.removeprefix("\x1b[2K").rstrip("\r\n")]
            row += 1
        assert row >= 0
    assert max(map(len, shown)) <= 80
    return shown


def test_progress_on_a_terminal_ends_with_a_line_for_each_layer() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        tell(progress)
        progress.merging()
        progress.close()
        text = read_until(reading, "merging the layers\r\n")
    lines = screen(text)
    assert re.fullmatch(
        rf"{LAYER.digest.short}  █{{15}}░{{5}}  +1.5 MB of 2 MB  +\S+ \S+/s  indexed", lines[0]
    )
    assert re.fullmatch(rf"{OTHER.digest.short}  ░{{20}}  +0 B of 0 B  +\S+ B/s  indexed", lines[1])
    assert lines[2:] == ["merging the layers"]


def test_progress_redraws_only_the_layers_under_way() -> None:
    """More lines than the screen has could not be reached again."""
    layers = [Descriptor("x", Digest.of(bytes([number])), 1000) for number in range(100)]
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_begins(LAYER)
        text = read_until(reading, "\x1b[?7h")
        for layer in layers:
            progress.layer_begins(layer)
            text += read_until(reading, "indexing\r\n\x1b[?7h")
            progress.layer_ends(layer)
            text += read_until(reading, "indexing\r\n\x1b[?7h")
        progress.close()
    assert max(int(lines) for lines in re.findall(r"\x1b\[(\d+)A", text)) == 2
    assert [line[:12] for line in screen(text)] == [each.digest.short for each in (*layers, LAYER)]


def test_progress_says_who_is_waited_for() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_waits(LAYER)
        text = read_until(reading, "\x1b[?7h")
        progress.close()
    assert "waiting for another imgfs\r\n" in text


def test_a_preparation_with_nothing_to_do_draws_nothing() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.merging()
        progress.close()
        stream.write("the end")
        stream.flush()
        assert read_until(reading, "end") == "the end"

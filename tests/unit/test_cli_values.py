"""The small pieces of the command line: mount(8)'s arguments, numbers for people, progress on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import pytest

from imgfs.cli.commands import COMMANDS
from imgfs.cli.engine_server import socket_path
from imgfs.cli.format import Column, long_line, size
from imgfs.cli.fstab import is_option, mount_arguments
from imgfs.cli.output import say_table
from imgfs.cli.output_file import output_file
from imgfs.cli.parser import describe, options_of
from imgfs.cli.progress import Progress
from imgfs.errors import StoreError, UsageError
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.transport.archive_writer import ArchiveWriter
from imgfs.tree.database import Node

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


def test_fstab_takes_every_option_of_mount_but_those_that_mean_nothing_there() -> None:
    (mount,) = (action for action in describe({"mount": COMMANDS["mount"]})._actions if action.choices)
    assert isinstance(mount.choices, dict)
    options = options_of(mount.choices["mount"])
    assert {name for name in options if not is_option(name)} == {"foreground", "o", "rw"}
    takes_value = {name for name, action in options.items() if action.nargs is None}
    for name in filter(is_option, options):
        value = "=1" if name in takes_value else ""
        dashed = name.replace("-", "_")
        assert mount_arguments(["app:1", "/mnt", "-o", f"{dashed}{value}"])[1] == f"--{name}{value}"


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
    return Node(9, mode, 1000, 50, count, mtime_ns, 2, device, 0, mtime_ns, mtime_ns, False)


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


_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|\x1b\[\?\d+[hl]|(\r)|(\n)|([^\x1b\r\n]+)")


def screen(text: str) -> list[str]:
    """The lines a terminal shows in the end; none may be so long that 80 columns cannot hold it."""
    shown, row, column = [""], 0, 0
    for number, letter, is_return, is_feed, words in _TOKEN.findall(re.sub(r"\x1b\[[\d;]*m", "", text)):
        if letter == "A":
            row -= int(number or 1)
        elif letter == "K":
            shown[row] = ""
        elif is_return:
            column = 0
        elif is_feed:
            row += 1
            shown += [""] * (row + 1 - len(shown))
        elif words:
            shown[row] = f"{shown[row][:column]:<{column}}{words}{shown[row][column + len(words) :]}"
            column += len(words)
            assert column <= 80, shown[row]
        assert row >= 0
    return [line.rstrip() for line in shown if line.strip()]


def test_progress_on_a_terminal_ends_with_a_line_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")  # the rest of a bar is another colour, or nothing
    with terminal() as (stream, reading):
        progress = Progress(stream)
        tell(progress)
        progress.merging()
        progress.close()
        stream.write("the end")
        stream.flush()
        lines = screen(read_until(reading, "the end"))
    assert re.fullmatch(rf"{LAYER.digest.short}  ━{{6}}   +1.5 MB of 2 MB  +\S+ \S+/s  indexed", lines[0])
    assert re.fullmatch(rf"{OTHER.digest.short}  ━* +0 B of 0 B  +\S+ B/s  indexed", lines[1])
    assert lines[2:] == ["merging the layers", "the end"]


def test_progress_redraws_only_the_layers_under_way_and_a_total() -> None:
    """More lines than the screen has could not be reached again."""
    layers = [Descriptor("x", Digest.of(bytes([number])), 1000) for number in range(60)]
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_begins(LAYER)
        for layer in layers:
            progress.layer_begins(layer)
            progress.layer_ends(layer)
        progress.close()
        stream.write("the end")
        stream.flush()
        text = read_until(reading, "the end")
    assert text.count("\x1b[1A\x1b[2K\x1b[1A\x1b[2K\x1b[1A") == 0  # three lines up
    assert [line[:12] for line in screen(text)][:-1] == [each.digest.short for each in (*layers, LAYER)]


def test_progress_shows_all_layers_together_with_the_time_left() -> None:
    waiting = Descriptor("x", Digest.of(b"waiting"), 6_000_000)
    done_elsewhere = Descriptor("x", Digest.of(b"skipped"), 10**9)
    with terminal() as (stream, _):
        progress = Progress(stream)
        progress.expects([LAYER, waiting, done_elsewhere])
        progress.skips(done_elsewhere)
        progress.layer_begins(LAYER)
        progress.layer_advances(LAYER, 1_000_000)
        of_layer, total = progress._shown()
        progress.layer_advances(LAYER, 1_000_000)
        progress.layer_ends(LAYER)
        progress.layer_begins(waiting)
        progress.layer_advances(waiting, 2_000_000)
        (alone,) = progress._shown()
        amount = progress._total([*progress._under_way.values()], progress._began + 4.0)
        progress.close()
    assert (of_layer.amount, total.amount) == ("1 MB of 2 MB", "1 MB of 8 MB")
    assert alone.amount == "2 MB of 6 MB"
    assert (amount.amount, amount.rate, amount.state) == ("4 MB of 8 MB", "1 MB/s", "indexing, 4 s left")


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("imgfs.cli.progress._LINE_EVERY", 0.0)
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_begins(LAYER)
        progress.layer_advances(LAYER, 500_000)
        progress.layer_ends(LAYER)
        progress.close()
        text = read_until(reading, "left\r\n")
    assert "\x1b" not in text
    assert text.startswith("imgfs: indexing: 500 kB of 2 MB, ")


def test_without_colours_none_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal() as (stream, reading):
        progress = Progress(stream)
        tell(progress)
        progress.close()
        stream.write("the end")
        stream.flush()
        text = read_until(reading, "the end")
    assert not re.search(r"\x1b\[[34][\d;]*m", text)


def test_a_warning_is_a_line_above_the_bars_and_obeys_no_markup() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_begins(LAYER)
        progress.warns("[red]\x1b[31mnot this[/red]")
        progress.layer_ends(LAYER)
        progress.close()
        stream.write("the end")
        stream.flush()
        lines = screen(read_until(reading, "the end"))
    assert lines[0] == r"imgfs: warning: [red]\x1b[31mnot this[/red]"
    assert lines[1].endswith("indexed")


def table(rows: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal of 40 columns is sent for a table."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    with terminal() as (stream, reading):
        monkeypatch.setattr("sys.stdout", stream)
        say_table((Column("IMAGE"), Column("SIZE", right=True)), rows)
        stream.write("the end")
        stream.flush()
        return read_until(reading, "the end")


def test_a_table_on_a_terminal_obeys_no_markup_and_no_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = table([("[bold]x[/bold]", "1 B"), ("a\x1b[31mb\nc", "22 B"), (":smile:", "3 B")], monkeypatch)
    assert [line.split() for line in screen(text)][:-1] == [
        ["IMAGE", "SIZE"], ["[bold]x[/bold]", "1", "B"], [r"a\x1b[31mb\nc", "22", "B"], [":smile:", "3", "B"],
    ]  # fmt: skip


def test_a_table_that_is_wider_than_the_terminal_is_neither_folded_nor_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "registry.example.com/team/" + "x" * 40
    assert screen(table([(name, "12 kB")], monkeypatch))[1:-1] == [f"{name}  12 kB"]


def test_a_file_of_results_is_replaced_whole_and_what_is_no_file_is_written_to(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_bytes(b"before")
    link.symlink_to(plain)
    os.mkfifo(pipe)
    with suppress(ValueError), output_file(str(link)) as file:
        file.write(b"half")
        raise ValueError
    assert plain.read_bytes() == b"before"
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for target in (link, pipe, Path("-")):
        with output_file(str(target)) as file:
            file.write(b"whole")
    assert (plain.read_bytes(), os.read(reader, 9)) == (b"whole", b"whole")
    os.close(reader)
    assert capfdbinary.readouterr().out == b"whole"
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe, plain]
    with pytest.raises(StoreError, match="none: No such file"), output_file(str(tmp_path / "none/x")):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a link another user's")
@pytest.mark.parametrize("precious", ["file", "pipe"])
def test_no_result_goes_where_another_users_link_leads(tmp_path: Path, precious: str) -> None:
    """As one in /tmp; with fs.protected_symlinks the kernel follows none there either (proc_sys_fs(5))."""
    target, link = tmp_path / precious, tmp_path / "link"
    target.write_bytes(b"precious") if precious == "file" else os.mkfifo(target)
    link.symlink_to(target)
    os.chown(link, 65534, 65534, follow_symlinks=False)
    said = "a symbolic link of uid 65534's, which is not followed"
    with pytest.raises(StoreError, match=said), output_file(str(link)):
        pass
    if precious == "file":
        with pytest.raises(StoreError, match=said):
            ArchiveWriter(link)._open()
    assert precious == "pipe" or target.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == sorted([precious, "link"])


def test_a_table_in_a_pipe_is_aligned_and_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    say_table((Column("IMAGE"), Column("SIZE", right=True)), [("a\nb", "1 B"), ("long name", "22 kB")])
    assert capsys.readouterr().out == "IMAGE       SIZE\na\\nb         1 B\nlong name  22 kB\n"


def test_progress_says_who_is_waited_for() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.layer_waits(LAYER)
        progress.close()
        stream.write("the end")
        stream.flush()
        lines = screen(read_until(reading, "the end"))
    assert lines[0].endswith("waiting for another imgfs")


def test_a_preparation_with_nothing_to_do_draws_nothing() -> None:
    with terminal() as (stream, reading):
        progress = Progress(stream)
        progress.merging()
        progress.close()
        stream.write("the end")
        stream.flush()
        assert read_until(reading, "end") == "the end"


@pytest.mark.parametrize("address", ["/run/x", "unix:///run/x", "unix:/run/x"])
def test_a_socket_is_named_as_a_path_or_as_by_grpc(address: str) -> None:
    assert socket_path(address) == Path("/run/x")


@pytest.mark.parametrize("address", ["", "unix://", "tcp://127.0.0.1:80"])
def test_what_is_no_socket_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match="not a Unix socket"):
        socket_path(address)

"""`imgfs status`: what it says of layers, of trouble, of lies; and that it can be watched."""

from __future__ import annotations

import bz2
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.cli.format import sizes
from imgfs.cli.status import report
from imgfs.content.requests import SpanTable
from imgfs.content.stats import Cause, Counts, Usage
from imgfs.errors import MountError
from imgfs.mounts.status_client import decode_status, encode_status
from imgfs.status import BroughtStatus, EndpointStatus, FillStatus, MountStatus, ScratchStatus, plain
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Stored, gzipped, on_terminal, serve, until, write_image
from tests.support.patience import allowed

both_drivers = pytest.mark.drivers("fuse", "kernel")


@cache
def noise_body() -> bytes:
    return random.Random(8).randbytes(3_000_000)


@cache
def image_layer() -> Stored:
    return gzipped(tar.archive(tar.file("noise", noise_body()), tar.file("small", b"x" * 5000)))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.referrers_api = True
        yield running


# -- the text ------------------------------------------------------------------------------------------------


def a_status(counts: Counts | None = None, **more: Any) -> dict[str, Any]:
    """A status of a mount of one layer."""
    layer = plain((counts or Counts()).snapshot()) | {
        "digest": "sha256:" + "ab" * 32, "format": "gzip", "size": 4_000_000, "flat_size": 9_000_000,
        "index": "verified", "bytes_fetched": 1500, "spans": 9, "spans_present": 2, "spans_touched": 1,
        "hits": 0,
    }  # fmt: skip
    mount = {
        "image": "app:1", "digest": "sha256:" + "b" * 64, "platform": "linux/amd64", "mountpoint": "/mnt",
        "began": 1000.5, "seconds": 60.0, "pid": 7, "bytes_served": 5000, "bytes_fetched": 2000,
        "requests_fetched": 4, "spans_recorded": 1, "fill": None, "scratch": None, "tree": "verified",
        "metrics": None, "endpoints": [], "layers": [layer],
    }  # fmt: skip
    return mount | more


def report_of(found: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    return report(MountStatus.from_json(found), MountStatus.from_json(before) if before else None)


def test_a_layer_that_nobody_reads_has_two_lines() -> None:
    lines = report_of(a_status()).splitlines()
    assert lines[lines.index("layers") + 1 :] == [
        "  abababababab  gzip              4 MB          2/9 spans here  1.5 kB fetched",
        "      index verified",
    ]


def test_what_was_fetched_is_told_by_its_causes_and_uses() -> None:
    counts = Counts()
    counts.received, counts.discarded, counts.needed, counts.requests = 1000, 100, 700, 3
    counts.needed_fetched, counts.needed_here, counts.needed_flat = 600, 100, 2000
    counts.landed(Cause.MISS, 500, used=True)
    counts.landed(Cause.REPLAY, 400, used=False)
    counts.used(Cause.REPLAY, 100)
    text = report_of(a_status(counts))
    assert (
        "needed 700 B in 1 span (2 kB decompressed): 600 B fetched by this mount, 100 B in the store before"
        in text
    )
    assert "fetched 1.00 kB in 3 requests: 0.60 kB read, 0.30 kB not read yet, 0.10 kB discarded\n" in text
    assert "kept 500 B for a miss (100 % read), 400 B by replay (25 % read)" in text
    assert "fetched   2.00 kB in 4 requests: 1.00 kB of layers, 1.00 kB of indexes and documents" in text


def test_what_is_neither_here_nor_there_yet_is_told_as_that() -> None:
    counts = Counts()
    counts.received, counts.needed, counts.requests = 1000, 700, 1
    counts.landed(Cause.MISS, 400, used=True)
    counts.needed_fetched = 400
    text = report_of(a_status(counts))
    assert (
        "400 B fetched by this mount, 0 B in the store before, 300 B awaited or fetched by another mount"
        in text
    )
    assert (
        "fetched 1.00 kB in 1 request: 0.40 kB read, 0 B not read yet, 0 B discarded, 0.60 kB not "
        "verified yet\n" in text
    )


_AMOUNTS = st.integers(0, 10**15)
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}


def shown(line: str) -> list[Fraction]:
    """The sizes of a line as they are shown, in bytes."""
    return [Fraction(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+) (\w?B)\b", line)]


@given(st.lists(_AMOUNTS, min_size=1, max_size=6))
def test_sizes_of_a_sum_add_up_as_they_are_shown_and_each_is_the_nearest_or_next_to_it(
    parts: list[int],
) -> None:
    total, *rest = sizes(*parts)
    (whole,), each = shown(total), [shown(part)[0] for part in rest]
    assert sum(each) == whole
    number, unit = total.split(" ")
    step = Fraction(1, 10 ** len(number.partition(".")[2])) * _UNITS[unit]
    assert abs(whole - sum(parts)) <= step / 2 <= max(sum(parts), 1)
    assert all(abs(said - part) <= step for said, part in zip(each, parts, strict=True))
    assert all(
        part.endswith(f" {unit}") if size else part == "0 B" for part, size in zip(rest, parts, strict=True)
    )


@given(
    fetched=st.lists(st.tuples(st.sampled_from(Cause), _AMOUNTS, st.booleans()), max_size=8),
    discarded=_AMOUNTS,
    arriving=_AMOUNTS,
    here=_AMOUNTS,
    documents=_AMOUNTS,
)
def test_the_sums_of_a_report_hold_as_they_are_shown(
    fetched: list[tuple[Cause, int, bool]], discarded: int, arriving: int, here: int, documents: int
) -> None:
    counts = Counts()
    for cause, size, used in fetched:
        counts.landed(cause, size, used=used)
    counts.needed_fetched = sum(size for _, size, used in fetched if used)
    counts.needed_here, counts.needed = here, counts.needed_fetched + here
    counts.discarded = discarded
    counts.received = sum(size for _, size, _ in fetched) + discarded + arriving
    lines = report_of(a_status(counts, bytes_fetched=counts.received + documents)).splitlines()
    sums = [line for line in lines if re.match(r" *(fetched|needed) .*: ", line)]
    for line in sums:
        total, *parts = shown(re.sub(r"\([^)]*\)", "", line))
        assert total == sum(parts), line
    assert len(sums) == 1 + bool(counts.needed) + bool(counts.received)


@given(st.data())
def test_what_usage_counts_is_all_that_readers_have_needed(data: st.DataObject) -> None:
    """Spans are read, fetched, evicted and read again, in any order: the parts never exceed the whole."""
    table = SpanTable([(100 * each, 100 * each + 100, 10 * each, 10 * each + 10) for each in range(4)])
    counts = Counts()
    usage = Usage(table, counts)
    present: set[int] = set()
    for _ in range(data.draw(st.integers(1, 12))):
        number = data.draw(st.integers(0, 3))
        match data.draw(st.sampled_from(["read", "fetch", "evict"])):
            case "read":
                usage.touch(number, number, {0, 1, 2, 3} - present)
            case "fetch":
                usage.landed([number], Cause.MISS)
                present.add(number)
            case "evict":
                present.discard(number)
        assert counts.needed == 10 * usage.touched.count(1)
        awaited = counts.needed - counts.needed_fetched - counts.needed_here
        assert awaited >= 0


def test_reads_are_told_by_how_many_waited_and_how_long() -> None:
    counts = Counts()
    counts.misses = 1
    counts.waited(0.02)
    counts.waited(0.08)
    status = a_status(counts)
    status["layers"][0]["hits"] = 3
    text = report_of(status)
    assert "reads     4, 75.0 % without waiting; first byte after 50 ms, 80 ms at most\n" in text
    assert "      reads 4, 75.0 % without waiting; first byte after 50 ms, 80 ms at most" in text


def test_trouble_is_told_with_its_reason_and_since_when() -> None:
    counts = Counts()
    counts.failed(OSError("the first"))
    counts.failed(OSError("no answer after 3 tries"))
    text = report_of(a_status(counts))
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(
        f"      failing since {stamp}: 2 errors, the last at {stamp}: no answer after 3 tries", text
    )
    counts.landed(Cause.MISS, 1, used=True)
    text = report_of(a_status(counts))
    assert "failing" not in text
    assert "2 errors, the last at" in text


def test_whose_word_is_taken_is_told() -> None:
    status = a_status(tree="reg.example/app")
    status["layers"][0]["index"] = "reg.example/app"
    text = report_of(status)
    assert "tree      on the word of reg.example/app" in text
    assert "      index on the word of reg.example/app" in text


def test_places_that_are_asked_are_told_with_what_is_known_of_them() -> None:
    well = {
        "endpoint": "https://hub", "state": "ok", "since": None, "error": "gone by", "tries": 0,
        "left_alone_until": None,
    }  # fmt: skip
    bad = well | {"endpoint": "mirror:5000", "state": "failing", "since": 1e9, "error": "refused", "tries": 3}
    text = report_of(a_status(endpoints=[well, bad, bad | {"left_alone_until": 1e9}]))
    assert "source    https://hub: ok\n" in text
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(f"source    mirror:5000: failing since {stamp}, 3 tries: refused\n", text)
    assert re.search(
        f"mirror:5000: failing since {stamp}, 3 tries, left alone until {stamp}: refused\n", text
    )


def test_rates_are_of_the_time_since_the_last_look() -> None:
    before = a_status()
    after = a_status(seconds=62.0, bytes_served=9000, bytes_fetched=2000)
    after["layers"][0]["bytes_fetched"] = 4500
    text = report_of(after, before)
    assert "served    9 kB of files, decompressed, 2 kB/s now\n" in text
    assert re.search("fetched   2.00 kB in 4 requests: .* of indexes and documents, 0 B/s now\n", text)
    assert "4.5 kB fetched, 1.5 kB/s now" in text


@pytest.mark.parametrize("other", [{"pid": 8}, {"began": 1.0}, {"seconds": 60.0}])
def test_another_mount_in_its_place_has_no_rates_yet(other: dict[str, Any]) -> None:
    before = a_status(**other) | {"layers": []} if other != {"seconds": 60.0} else a_status()
    assert "now" not in report_of(a_status(), before)


def test_a_status_of_any_number_of_layers_fits_into_an_attribute() -> None:
    status = a_status()
    status["layers"] = [
        status["layers"][0] | {"digest": f"sha256:{random.Random(number).randbytes(32).hex()}"}
        for number in range(400)
    ]
    body = encode_status(status)
    assert len(json.dumps(status)) > 64 << 10 > len(body)
    assert decode_status(body) == status
    assert json.loads(encode_status(a_status())) == a_status()


@pytest.mark.parametrize(
    "body",
    [
        bz2.compress(b'{"image": "%b"}' % (b"a" * (17 << 20))),  # in 100 bytes
        bz2.compress(b'{"image": "app:1"}')[:-9],
        b'{"image": ' + b"[" * 50_000,
        b'{"image": "app:1"',
        b"[1]",
        b"",
    ],
)
def test_what_is_no_status_is_said_within_bounds(body: bytes) -> None:
    with pytest.raises(MountError, match="what its daemon answers is not a status"):
        decode_status(body)


def test_numbers_that_are_none_of_a_mounts_do_not_count() -> None:
    found = MountStatus.from_json({"pid": 10**400, "seconds": 10**400, "began": 7, "restarts": 2})
    assert found == MountStatus(began=7.0, restarts=2)


def test_a_status_is_read_as_it_was_written_and_of_another_version_as_far_as_it_goes() -> None:
    status = MountStatus.from_json(a_status(scratch={"directory": "/s", "name": "work", "kept": True}))
    assert MountStatus.from_json(json.loads(json.dumps(status.to_json()))) == status
    assert MountStatus.from_json({"image": "app:1", "of_a_later_version": 1}) == MountStatus(image="app:1")


@pytest.mark.parametrize(
    "found",
    [
        None, [], "text", {"pid": "7"}, {"layers": {}}, {"layers": [7, None]}, {"fill": 3}, {"scratch": []},
        {"began": True}, {"image": None}, {"endpoints": [None]},
    ],
)  # fmt: skip
def test_what_a_status_has_of_another_type_is_as_if_it_were_not_there(found: object) -> None:
    assert MountStatus.from_json(found) == MountStatus()


def test_all_of_a_status_is_read_back() -> None:
    counts = Counts()
    counts.failed(OSError("lost"))
    counts.landed(Cause.FILL, 5, used=True)
    status = MountStatus.from_json(
        a_status(
            counts, fill={"state": "running", "missing": 3}, metrics="unix:/m", passthrough=1,
            scratch={"directory": "/s", "name": "work", "kept": False},
            endpoints=[{"endpoint": "https://hub", "state": "failing", "since": 7, "error": "x", "tries": 2}],
        )
    )  # fmt: skip
    assert status.layers[0].brought["fill"] == BroughtStatus(1, 5, 1, 5)
    assert status.layers[0].last_error is not None
    assert status.layers[0].last_error.text == "lost"
    assert status.endpoints[0] == EndpointStatus("https://hub", "failing", 7.0, "x", 2, None)
    assert (status.fill, status.scratch) == (FillStatus("running", 3), ScratchStatus("/s", "work", False))
    assert MountStatus.from_json(json.loads(json.dumps(status.to_json()))) == status


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.kernel
@both_drivers
def test_a_mount_of_many_layers_has_a_status(imgfs: Imgfs, tmp_path: Path) -> None:
    layers = [gzipped(tar.archive(tar.file(f"f{number}", b"x"))) for number in range(120)]
    at = imgfs.mount(write_image(tmp_path / "layout", layers))
    assert len(imgfs.status(at)["layers"]) == 120


@pytest.mark.kernel
@both_drivers
def test_the_registrys_silence_is_told_and_forgotten(imgfs: Imgfs, server: FaultServer) -> None:
    imgfs.expected.append("noise")
    image = serve(server, "app", "v1", [image_layer()])
    at = imgfs.mount(image, "--read-timeout", "1")
    imgfs.evict(image)
    blobs = dict(server.blobs)
    server.blobs.clear()
    with pytest.raises(OSError, match="Input/output error"):
        (at / "noise").read_bytes()
    layer = imgfs.status(at)["layers"][0]
    assert layer["errors"] >= 1
    assert layer["failing_since"] <= layer["last_error"]["time"]
    assert "failing since" in imgfs.ok("status", at)
    server.blobs.update(blobs)
    until(lambda: _can_read(at / "noise"), "the mount to heal")
    assert imgfs.status(at)["layers"][0]["failing_since"] is None
    assert "failing since" not in imgfs.ok("status", at)


def _can_read(path: Path) -> bool:
    try:
        return path.read_bytes() == noise_body()
    except OSError:
        return False


def watched(imgfs: Imgfs, blocks: int, *words: str | Path) -> list[str]:
    """The first lines of `imgfs status --watch`, until an empty one has come so often; then interrupted."""
    process = imgfs.start("status", *words, start_new_session=True)
    assert process.stdout
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.decode().rstrip("\n"))
        if lines.count("") == blocks or ("--json" in words and len(lines) == blocks):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=allowed(60))
    assert (process.returncode, errors) == (0, b"")
    return lines


@pytest.mark.kernel
@pytest.mark.parametrize("words", [["--watch", "0.2", "AT"], ["AT", "--watch=0.2"]], ids=" ".join)
def test_watching_in_a_pipe_writes_a_block_each_time(imgfs: Imgfs, tmp_path: Path, words: list[str]) -> None:
    image = write_image(tmp_path / "layout", [image_layer()])
    at = imgfs.mount(image)
    lines = watched(imgfs, 2, *[at if word == "AT" else word for word in words])
    assert lines.count(f"image     {image}") == 2
    assert len([line for line in lines if re.fullmatch("served .*/s now", line)]) == 1
    assert "\x1b" not in "".join(lines)


@pytest.mark.kernel
def test_watching_as_json_is_a_line_each_time(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [image_layer()]))
    lines = watched(imgfs, 3, "--json", "--watch", "0.2", at)
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(set(seconds))


@pytest.mark.kernel
def test_how_often_need_not_be_said(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [image_layer()]))
    assert json.loads(watched(imgfs, 1, "--json", "--watch", at)[0])["mountpoint"] == str(at)


@pytest.mark.kernel
@both_drivers
def test_watching_on_a_terminal_draws_in_place_until_the_mount_is_gone(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [image_layer()]))
    # its standard output, too, is the terminal that `on_terminal` gives it for its errors
    words = ["sh", "-c", '"$@" >&2', "sh", *imgfs.command("status", "--watch", "0.2", at)]
    # in the moment that the command looks at the mount, that is busy
    ending = f"sleep {allowed(1.5)}; "
    ending += "for n in $(seq 100); do umount $0 2>/dev/null && exit; sleep 0.05; done; umount $0"
    with subprocess.Popen(["sh", "-c", ending, at]) as ender:
        ran = on_terminal(words, imgfs.environment)
        assert ender.wait(timeout=allowed(20)) == 0
    imgfs.gone(at)
    assert ran.code == 1
    assert ran.err.startswith("\x1b[H\x1b[2J")
    assert ran.err.count("\x1b[H") >= 3
    assert "/s now" in ran.err
    assert ran.err.rstrip().endswith(f"imgfs: {at}: nothing is mounted here")


@pytest.mark.parametrize("word", ["0", "-1", "nan", "1e9", "inf"])
def test_a_time_that_is_none_is_exit_code_2(imgfs: Imgfs, word: str) -> None:
    ran = imgfs.run("status", f"--watch={word}", "/mnt")
    assert ran.code == 2
    assert f"argument --watch: {word!r} is not a number of seconds" in ran.err


@pytest.mark.parametrize("words", [[], ["--watch"], ["--watch", "5"], ["--json"]], ids=" ".join)
def test_a_mount_point_is_needed(imgfs: Imgfs, words: list[str]) -> None:
    ran = imgfs.run("status", *words)
    assert ran.code == 2
    assert ran.err.endswith("imgfs status: error: the following arguments are required: MOUNTPOINT\n")


@pytest.mark.kernel
def test_no_status_has_a_secret_in_it(imgfs: Imgfs, server: FaultServer) -> None:
    home = Path(imgfs.environment["HOME"])
    image = serve(server, "app", "v1", [image_layer()])
    os.makedirs(home / ".docker", exist_ok=True)
    secret = {"auths": {server.host: {"username": "ann", "password": "hunter2"}}}
    (home / ".docker/config.json").write_text(json.dumps(secret))
    at = imgfs.mount(image)
    said = [imgfs.ok("status", *words, at) for words in ([], ["--json"], ["--metrics"])]
    assert "hunter2" not in "".join(said)

"""`imgfs status`: what it says of layers, of trouble, of lies; and that it can be watched."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgfs.cli.report import report
from imgfs.content.stats import Cause, Counts
from imgfs.mounts.status_client import decode_status, encode_status
from imgfs.status import MountStatus
from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, gzipped, on_terminal, serve, until, write_image
from tests.support.patience import allowed

both_drivers = pytest.mark.drivers("fuse", "kernel")
NOISE = random.Random(8).randbytes(3_000_000)
LAYER = gzipped(tar.archive(tar.file("noise", NOISE), tar.file("small", b"x" * 5000)))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.referrers_api = True
        yield running


# -- the text ------------------------------------------------------------------------------------------------


def a_status(counts: Counts | None = None, **more: Any) -> dict[str, Any]:
    """A status of a mount of one layer."""
    layer = {
        "digest": "sha256:" + "ab" * 32, "format": "gzip", "size": 4_000_000, "flat_size": 9_000_000,
        "index": "verified", "bytes_fetched": 1500, "spans": 9, "spans_present": 2, "spans_touched": 1,
        "hits": 0, **(counts or Counts()).snapshot(),
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
    counts.received, counts.discarded, counts.needed, counts.requests = 1000, 100, 600, 3
    counts.landed(Cause.MISS, 500, used=True)
    counts.landed(Cause.REPLAY, 400, used=False)
    counts.used(Cause.REPLAY, 100)
    text = report_of(a_status(counts))
    assert "needed 600 B; fetched 1 kB in 3 requests, of that 100 B discarded, 300 B not read yet" in text
    assert "miss 500 B, 100 % used; replay 400 B, 25 % used" in text


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
    assert "served    9 kB, 2 kB/s now\n" in text
    assert "fetched   2 kB in 4 requests, 0 B/s now\n" in text
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


def test_a_status_is_read_as_it_was_written_and_of_another_version_as_far_as_it_goes() -> None:
    status = MountStatus.from_json(a_status(scratch={"directory": "/s", "name": "work", "kept": True}))
    assert MountStatus.from_json(json.loads(json.dumps(status.to_json()))) == status
    assert MountStatus.from_json({"image": "app:1", "of_a_later_version": 1}) == MountStatus(image="app:1")


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
    image = serve(server, "app", "v1", [LAYER])
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
        return path.read_bytes() == NOISE
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
    image = write_image(tmp_path / "layout", [LAYER])
    at = imgfs.mount(image)
    lines = watched(imgfs, 2, *[at if word == "AT" else word for word in words])
    assert lines.count(f"image     {image}") == 2
    assert len([line for line in lines if re.fullmatch("served .*/s now", line)]) == 1
    assert "\x1b" not in "".join(lines)


@pytest.mark.kernel
def test_watching_as_json_is_a_line_each_time(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [LAYER]))
    lines = watched(imgfs, 3, "--json", "--watch", "0.2", at)
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(set(seconds))


@pytest.mark.kernel
def test_how_often_need_not_be_said(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [LAYER]))
    assert json.loads(watched(imgfs, 1, "--json", "--watch", at)[0])["mountpoint"] == str(at)


@pytest.mark.kernel
@both_drivers
def test_watching_on_a_terminal_draws_in_place_until_the_mount_is_gone(imgfs: Imgfs, tmp_path: Path) -> None:
    at = imgfs.mount(write_image(tmp_path / "layout", [LAYER]))
    # its standard output, too, is the terminal that `on_terminal` gives it for its errors
    words = ["sh", "-c", '"$@" >&2', "sh", *imgfs.command("status", "--watch", "0.2", at)]
    # in the moment that the command looks at the mount, that is busy
    ending = "sleep 1.5; for n in $(seq 100); do umount $0 2>/dev/null && exit; sleep 0.05; done; umount $0"
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
    assert f"argument --watch: {word!r} is no number of seconds" in ran.err


@pytest.mark.parametrize("words", [[], ["--watch"], ["--watch", "5"], ["--json"]], ids=" ".join)
def test_a_mount_point_is_needed(imgfs: Imgfs, words: list[str]) -> None:
    ran = imgfs.run("status", *words)
    assert ran.code == 2
    assert ran.err.endswith("imgfs status: error: the following arguments are required: MOUNTPOINT\n")


@pytest.mark.kernel
def test_no_status_has_a_secret_in_it(imgfs: Imgfs, server: FaultServer) -> None:
    home = Path(imgfs.environment["HOME"])
    image = serve(server, "app", "v1", [LAYER])
    os.makedirs(home / ".docker", exist_ok=True)
    secret = {"auths": {server.host: {"username": "ann", "password": "hunter2"}}}
    (home / ".docker/config.json").write_text(json.dumps(secret))
    at = imgfs.mount(image)
    said = [imgfs.ok("status", *words, at) for words in ([], ["--json"], ["--metrics"])]
    assert "hunter2" not in "".join(said)

"""The command line: what it says, where it says it, and with which exit code."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs import __version__
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import (
    TIMEOUT,
    Imgfs,
    Wire,
    documents,
    gzipped,
    on_terminal,
    plain,
    serve,
    sha256,
    until,
    write_image,
    zstd,
)
from tests.support.patience import allowed

T = 1_600_000_000_000_000_000
BINARY = bytes(range(256)) * 300
LAYER = tar.archive(
    tar.directory("etc", mtime_ns=T),
    tar.file("etc/motd", b"hello\n", mode=0o640, uid=1, gid=42, mtime_ns=T),
    tar.directory("etc/deep/er", mtime_ns=T),
    tar.file("etc/deep/er/x", b"x", mtime_ns=T),
    tar.symlink("etc/link", "deep/er/x", mtime_ns=T),
    tar.symlink("absolute", "/etc/../etc/motd", mtime_ns=T),
    tar.symlink("loop", "loop", mtime_ns=T),
    tar.symlink("climbing", "../../../../etc/motd", mtime_ns=T),
    tar.file("binary", BINARY, mode=0o4755, mtime_ns=T),
    tar.device("null", "c", 1, 3),
    tar.file(b"\xff\xfe", b"no text", mtime_ns=T),
)
COMMANDS = ["mount", "umount", "status", "ls", "cat", "inspect", "store", "version"]


@pytest.fixture(scope="module")
def image(module_imgfs: Imgfs) -> str:
    return write_image(module_imgfs.directory / "layout", [gzipped(LAYER), plain(tar.archive())])


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


# -- help and usage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_every_command_explains_itself_with_an_example(module_imgfs: Imgfs, command: list[str]) -> None:
    said = module_imgfs.ok(*command, "--help")
    assert said.startswith(" ".join(["usage: imgfs", *command]))
    assert re.search(r"^Examples:\n  (imgfs|mount) ", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("action", ["path", "ls", "rm"])
def test_every_action_on_the_store_explains_itself(module_imgfs: Imgfs, action: str) -> None:
    assert module_imgfs.ok("store", action, "--help").startswith(f"usage: imgfs store {action}")


def test_version(module_imgfs: Imgfs) -> None:
    assert module_imgfs.ok("--version") == f"imgfs {__version__}\n"
    assert module_imgfs.ok("version").startswith(f"imgfs {__version__} (Python 3.")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nonsense"],
        ["mount"],
        ["mount", "image"],
        ["mount", "--nonsense", "image", "/mnt"],
        ["mount", "--log-level", "loud", "image", "/mnt"],
        ["ls"],
        ["ls", "--read-timeout", "0", "image"],
        ["ls", "--read-timeout", "never", "image"],
        ["cat"],
        ["status"],
        ["store"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong_is_exit_code_2(module_imgfs: Imgfs, words: list[str]) -> None:
    ran = module_imgfs.run(*words)
    assert (ran.code, ran.out) == (2, b"")
    assert ran.err.startswith("usage: imgfs")
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "name",
    [
        "registry.example/UPPER/case",
        "app:",
        "http://registry.example/app",
        "docker-archive:/x.tar",
        "oci:",
        "app@sha256:123",
        "a" * 300,
        "",
        "app:tag with space",
    ],
)
def test_a_name_that_is_no_image_is_one_line_and_exit_code_2(module_imgfs: Imgfs, name: str) -> None:
    module_imgfs.run("ls", name).complaint(2)


@pytest.mark.parametrize("platform", ["linux", "linux/", "/amd64", "a/b/c/d", "linux/amd64/v1/x"])
def test_a_platform_that_is_none_is_exit_code_2(module_imgfs: Imgfs, image: str, platform: str) -> None:
    module_imgfs.run("ls", "--platform", platform, image).complaint(2)


# -- ls and cat ----------------------------------------------------------------------------------------------


def test_ls_names_what_is_there(module_imgfs: Imgfs, image: str) -> None:
    names = module_imgfs.run("ls", image).out.splitlines()
    assert names == sorted([b"etc", b"absolute", b"loop", b"climbing", b"binary", b"null", b"\xff\xfe"])
    assert module_imgfs.ok("ls", image, "/etc") == "deep\nlink\nmotd\n"
    assert module_imgfs.ok("ls", image, "etc/deep/../motd") == "etc/deep/../motd\n"


def test_ls_l_is_as_ls_writes_it(module_imgfs: Imgfs, image: str) -> None:
    lines = module_imgfs.ok("ls", "-l", image, "/etc").splitlines()
    assert [line.split() for line in lines] == [
        ["drwxr-xr-x", "3", "0", "0", "0", "1970-01-01", "00:00", "deep"],
        ["lrwxrwxrwx", "1", "0", "0", "9", "2020-09-13", "12:26", "link", "->", "deep/er/x"],
        ["-rw-r-----", "1", "1", "42", "6", "2020-09-13", "12:26", "motd"],
    ]
    assert module_imgfs.ok("ls", "-l", image, "/etc/link").endswith("/etc/link -> deep/er/x\n")
    assert module_imgfs.ok("ls", "-l", image, "/binary").startswith("-rwsr-xr-x")
    assert "1, 3" in module_imgfs.ok("ls", "-l", image, "/null")


def test_ls_r_goes_down(module_imgfs: Imgfs, image: str) -> None:
    assert module_imgfs.ok("ls", "-R", image, "/etc") == (
        "/etc:\ndeep\nlink\nmotd\n\n/etc/deep:\ner\n\n/etc/deep/er:\nx\n\n"
    )


def test_cat_writes_bytes_through_symlinks(module_imgfs: Imgfs, image: str) -> None:
    assert module_imgfs.run("cat", image, "/binary").out == BINARY
    for path in ("/etc/motd", "etc/motd", "/absolute", "/climbing"):
        assert module_imgfs.ok("cat", image, path) == "hello\n"
    assert module_imgfs.ok("cat", image, "/etc/motd", "/etc/link") == "hello\nx"
    assert module_imgfs.run("cat", image, os.fsdecode(b"\xff\xfe")).out == b"no text"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/etc", "/etc: Is a directory"),
        ("/none", "/none: No such file or directory"),
        ("/etc/motd/x", "/etc/motd/x: Not a directory"),
        ("/loop", "/loop: Too many levels of symbolic links"),
        ("/null", "/null: Invalid argument"),
    ],
)
def test_what_cannot_be_written_out_is_named(module_imgfs: Imgfs, image: str, path: str, said: str) -> None:
    assert module_imgfs.run("cat", image, path).complaint() == said


def test_ls_of_what_is_not_there_is_an_error(module_imgfs: Imgfs, image: str) -> None:
    assert module_imgfs.run("ls", image, "/none").complaint() == "/none: No such file or directory"


def test_output_that_nobody_reads_any_more_ends_quietly(module_imgfs: Imgfs, image: str) -> None:
    many = tar.archive(*(tar.file(f"{number:060}") for number in range(5000)))
    large = write_image(module_imgfs.directory / "large", [gzipped(many)])
    words = " ".join(f"'{word}'" for word in module_imgfs.command("ls", large))
    ran = module_imgfs.program("sh", "-c", f"{words} | head -1")
    assert (ran.out, ran.err) == (b"0" * 60 + b"\n", "")
    ran = module_imgfs.program("sh", "-c", f"{words.replace(large, image)} | head -0")
    assert (ran.out, ran.err) == (b"", "")


def test_output_to_a_full_disk_is_one_line(module_imgfs: Imgfs, image: str) -> None:
    with open("/dev/full", "wb") as full:
        for words in (("cat", image, "/binary"), ("ls", image), ("inspect", image)):
            ran = module_imgfs.run(*words, stdout=full)
            assert ran.complaint() == "standard output: No space left on device"


def test_what_cannot_be_written_to_a_closed_output_is_an_error(module_imgfs: Imgfs, image: str) -> None:
    for words in (
        ("cat", image, "/binary"),
        ("export", image),
        ("ps",),
        ("grep", "-q", "", image, "/etc/motd"),
    ):
        line = " ".join(f"'{word}'" for word in module_imgfs.command(*words))
        ran = module_imgfs.program("sh", "-c", f"{line} >&-")
        said = "imgfs: standard output: Bad file descriptor\n"
        assert (ran.code, ran.err) == ((0, "") if words[0] == "grep" else (1, said))


def test_a_working_directory_that_is_gone_is_named(module_imgfs: Imgfs, image: str) -> None:
    line = " ".join(f"'{word}'" for word in module_imgfs.command("ls", "--store", "here", image))
    ran = module_imgfs.program("sh", "-c", f"mkdir gone && cd gone && rmdir ../gone && {line}")
    assert ran.complaint() == "the directory that this was started in has been removed"


# -- inspect -------------------------------------------------------------------------------------------------


def test_inspect_says_what_an_image_is(module_imgfs: Imgfs, image: str) -> None:
    said = module_imgfs.ok("inspect", image)
    made = documents([gzipped(LAYER), plain(tar.archive())])
    for line in (
        f"reference   {image}",
        f"digest      {sha256(made.manifest)}",
        "platform    linux/amd64",
        'env         ["PATH=/bin"]',
        'cmd         ["sh"]',
        f"  {sha256(gzipped(LAYER).blob)}",
    ):
        assert line in said


def test_inspect_json_is_for_programs(module_imgfs: Imgfs, image: str) -> None:
    found = json.loads(module_imgfs.ok("inspect", "--json", image))
    assert found["platform"] == "linux/amd64"
    assert found["config"] == {"Env": ["PATH=/bin"], "Cmd": ["sh"]}
    stored = [gzipped(LAYER), plain(tar.archive())]
    assert [(layer["digest"], layer["diff_id"], layer["size"]) for layer in found["layers"]] == [
        (sha256(layer.blob), layer.diff_id, len(layer.blob)) for layer in stored
    ]


def test_inspect_fetches_no_layer(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [gzipped(LAYER)])
    imgfs.ok("inspect", image)
    layer = sha256(gzipped(LAYER).blob)
    assert server.seen("/blobs/")
    assert server.seen(layer) == []


# -- status --------------------------------------------------------------------------------------------------


@pytest.mark.kernel
def test_status_tells_what_is_mounted_and_what_it_cost(imgfs: Imgfs, server: FaultServer) -> None:
    noise = random.Random(5).randbytes(1 << 20)
    image = serve(server, "app", "v1", [gzipped(tar.archive(tar.file("noise", noise)))])
    at = imgfs.mount(image)
    before = imgfs.status(at)
    assert (before["image"], before["mountpoint"], before["platform"]) == (image, str(at), "linux/amd64")
    assert (before["bytes_fetched"], before["requests_fetched"], before["bytes_served"]) == (0, 0, 0)
    imgfs.ok("store", "rm", "--data", image)
    assert imgfs.status(at)["layers"][0]["spans_present"] == 0
    assert (at / "noise").read_bytes() == noise
    after = imgfs.status(at)
    layer = after["layers"][0]
    assert after["bytes_served"] == len(noise)
    assert after["requests_fetched"] == len(server.seen("/blobs/")) - 2
    assert after["bytes_fetched"] == layer["bytes_fetched"] >= len(noise)
    assert layer["spans_present"] == layer["spans"] > 0
    said = imgfs.ok("status", at)
    assert f"image     {image}" in said
    assert f"{layer['spans']}/{layer['spans']} spans here" in said
    imgfs.umount(at)


# -- store ---------------------------------------------------------------------------------------------------


def test_store_path_follows_option_and_environment(imgfs: Imgfs, tmp_path: Path) -> None:
    assert imgfs.ok("store", "path") == f"{imgfs.store}\n"
    assert imgfs.ok("store", "path", "--store", tmp_path / "other") == f"{tmp_path}/other\n"
    assert not imgfs.store.exists()
    assert json.loads(imgfs.ok("store", "ls", "--json"))["layers"] == []
    assert not imgfs.store.exists()
    imgfs.ok("store", "limit", "1G")
    assert stat.S_IMODE(os.stat(imgfs.store).st_mode) == 0o700


def test_store_ls_shows_images_and_layers(imgfs: Imgfs, tmp_path: Path) -> None:
    stored = [gzipped(LAYER), zstd(tar.archive(tar.file("x")))]
    image = write_image(tmp_path / "layout", stored)
    assert json.loads(imgfs.ok("store", "ls", "--json"))["images"] == []
    imgfs.ok("ls", image)
    found = json.loads(imgfs.ok("store", "ls", "--json"))
    assert [one["reference"] for one in found["images"]] == [image]
    assert found["images"][0]["layers"] == [sha256(layer.blob) for layer in stored]
    formats = {
        layer["digest"]: (layer["format"], layer["size"], layer["in_use"]) for layer in found["layers"]
    }
    assert formats == {
        sha256(stored[0].blob): ("gzip", len(stored[0].blob), False),
        sha256(stored[1].blob): ("zstd", len(stored[1].blob), False),
    }
    text = imgfs.ok("store", "ls")
    assert image in text
    assert "100 %" in text


def test_store_rm_removes_an_image_and_what_only_it_needs(imgfs: Imgfs, tmp_path: Path) -> None:
    shared, own = gzipped(LAYER), gzipped(tar.archive(tar.file("x")))
    one = write_image(tmp_path / "layout", [shared], tag="one")
    two = write_image(tmp_path / "layout", [shared, own], tag="two")
    for image in (one, two):
        imgfs.ok("ls", image)
    imgfs.ok("store", "rm", two)
    found = json.loads(imgfs.ok("store", "ls", "--json"))
    assert [image["reference"] for image in found["images"]] == [one]
    assert [layer["digest"] for layer in found["layers"]] == [sha256(shared.blob)]
    imgfs.ok("store", "rm", "--all")
    found = json.loads(imgfs.ok("store", "ls", "--json"))
    assert (found["images"], found["layers"]) == ([], [])
    assert imgfs.ok("ls", one, "/etc") == "deep\nlink\nmotd\n"


def test_store_rm_data_keeps_the_index(imgfs: Imgfs, server: FaultServer) -> None:
    image = serve(server, "app", "v1", [gzipped(LAYER)])
    imgfs.ok("ls", image)
    assert imgfs.ok("store", "rm", "--data", image).endswith(" freed\n")
    server.log.clear()
    assert imgfs.ok("ls", image, "/etc") == "deep\nlink\nmotd\n"
    assert server.seen("/blobs/") == []
    assert imgfs.ok("cat", image, "/etc/motd") == "hello\n"
    assert len(server.seen("/blobs/")) == 1


def test_store_rm_of_what_is_not_there_says_so(imgfs: Imgfs) -> None:
    said = imgfs.run("store", "rm", "app:v1").complaint(2)
    assert said == f"app:v1: no such image or layer in {imgfs.store} (see: imgfs store ls)"
    assert "or --all" in imgfs.run("store", "rm").complaint(2)


@pytest.mark.kernel
def test_store_rm_spares_what_is_mounted_unless_forced(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    at = imgfs.mount(image)
    assert "is mounted: unmount it first, or use --force" in imgfs.run("store", "rm", image).complaint()
    assert (at / "etc/motd").read_bytes() == b"hello\n"
    imgfs.ok("store", "rm", "--force", image)
    assert (at / "binary").read_bytes() == BINARY
    imgfs.umount(at)


def test_store_rm_asks_the_mounts_which_image_they_are(imgfs: Imgfs, tmp_path: Path) -> None:
    """Images share layers: what is mounted is told by its manifest, and another one can be removed."""
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    other = write_image(tmp_path / "other", [gzipped(LAYER), gzipped(tar.archive(tar.file("more", b"more")))])
    imgfs.ok("ls", other)
    at = imgfs.mount(image)
    for words in ([image], ["--all"]):
        said = imgfs.run("store", "rm", *words).complaint()
        assert said == f"{image} is mounted: unmount it first, or use --force"
    imgfs.ok("store", "rm", other)
    listed = json.loads(imgfs.ok("store", "ls", "--json"))["images"]
    assert [one["reference"] for one in listed] == [image]
    assert (at / "binary").read_bytes() == BINARY
    imgfs.umount(at)


def test_a_store_of_another_layout_is_refused(imgfs: Imgfs, image: str) -> None:
    imgfs.ok("store", "limit", "none")
    (imgfs.store / "version").write_text("99")
    said = imgfs.run("ls", image).complaint()
    assert f"{imgfs.store}: a store of layout '99'" in said


# -- progress and interruption -------------------------------------------------------------------------------


def test_a_terminal_sees_layers_rates_and_what_is_being_done(imgfs: Imgfs, tmp_path: Path) -> None:
    noise = random.Random(6).randbytes(6 << 20)
    image = write_image(tmp_path / "layout", [gzipped(tar.archive(tar.file("noise", noise))), gzipped(LAYER)])
    ran = on_terminal(imgfs.command("ls", image), imgfs.environment)
    assert ran.code == 0
    last = [line for line in ran.err.replace("\r", "").split("\n") if "indexed" in line][-2:]
    assert {sha256(gzipped(LAYER).blob)[7:19] in line for line in last} == {True, False}
    assert all(re.search(r"B of .*B .*B/s  indexed", line) for line in last), last
    assert "merging the layers" in ran.err
    again = on_terminal(imgfs.command("ls", image), imgfs.environment)
    assert (again.code, again.err) == (0, "")


def test_a_pipe_sees_no_progress(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [gzipped(LAYER)])
    assert imgfs.run("ls", image).err == ""


@pytest.mark.parametrize("stall_after", [300_000, 0])
def test_ctrl_c_ends_a_slow_scan_and_leaves_a_store_that_works(
    imgfs: Imgfs, server: FaultServer, stall_after: int
) -> None:
    stored = plain(tar.archive(tar.file("noise", random.Random(7).randbytes(1 << 20))))
    image = serve(server, "app", "v1", [stored])
    server.inject(Fault(stall_after=stall_after), on=sha256(stored.blob))
    process = imgfs.start("ls", image)
    until(lambda: server.seen(sha256(stored.blob)), "the layer is asked for")
    time.sleep(0.2)  # into the body
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (130, b"", b"imgfs: interrupted\n")
    assert time.monotonic() - began < allowed(9)  # a read may take 10 s
    assert imgfs.ok("ls", image) == "noise\n"


def test_a_scan_that_was_killed_is_done_again(imgfs: Imgfs, server: FaultServer) -> None:
    stored = plain(tar.archive(tar.file("noise", random.Random(8).randbytes(1 << 20))))
    image = serve(server, "app", "v1", [stored])
    server.inject(Fault(stall_after=500_000), on=sha256(stored.blob))
    process = imgfs.start("ls", image)
    until(lambda: server.seen(sha256(stored.blob)), "the layer is asked for")
    process.kill()
    process.communicate()
    assert imgfs.ok("ls", image) == "noise\n"


def test_two_commands_at_once_stream_a_layer_once(imgfs: Imgfs, server: FaultServer) -> None:
    stored = plain(tar.archive(tar.file("noise", random.Random(9).randbytes(1 << 20))))
    with Wire(server.host) as wire:
        image = serve(server, "app", "v1", [stored], wire.host)
        started = [imgfs.start("ls", image) for _ in range(3)]
        found = [process.communicate(timeout=TIMEOUT) for process in started]
    assert found == [(b"noise\n", b"")] * 3
    assert len(server.seen(sha256(stored.blob))) == 1

"""Commands that look into an image without a mount: held against umoci's unpacked files and their tools."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import stat
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.api.filesystem import ImgfsFileSystem
from imgfs.cli import main
from imgfs.cli.grep import _blocks, compiled
from imgfs.cli.paths import split_image
from imgfs.errors import UsageError
from imgfs.overlay.fdtree import remove_tree
from tests.support import tarmake as tar
from tests.support.mounted import gzipped, plain, write_image

needs_umoci = pytest.mark.skipif(
    shutil.which("umoci") is None or os.geteuid() != 0, reason="no umoci for root"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")

SOME_TIME = 1_500_000_000_123_456_789  # in nanoseconds
NOISE = random.Random(5).randbytes(200_000)
LOWER = tar.archive(
    tar.directory("etc", mtime_ns=10**18),
    tar.file("etc/passwd", b"root:x:0:0\ndaemon:x:1:1\nsync:x:4:65534\n", mtime_ns=10**18),
    tar.file("etc/gone", b"deleted"),
    tar.directory("usr"),
    tar.directory("usr/bin"),
    tar.file("usr/bin/su", NOISE + b"\nroot\n", mode=0o4755, uid=3, gid=4, mtime_ns=SOME_TIME),
    tar.hardlink("usr/bin/other", "usr/bin/su"),
    tar.symlink("bin", "usr/bin"),
)
UPPER = tar.archive(
    tar.whiteout("etc/gone"),
    tar.file("etc/new\n\x1b[31m", b"new Root\n", xattrs={b"user.note": b"hello"}),
    tar.file("usr/empty", b"", mode=0o600),
    tar.fifo("usr/pipe"),
)


class Look:
    """An image, and the commands run on it in this process."""

    def __init__(self, path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        self.image = write_image(path / "layout", [gzipped(LOWER), plain(UPPER)])
        self.layout = path / "layout"
        self._capture = capfdbinary
        self._store = str(path / "store")

    def __call__(self, command: str, *words: str | Path, code: int = 0) -> bytes:
        assert main([command, "--store", self._store, *map(str, words)]) == code
        out, err = self._capture.readouterr()
        assert bool(err) == (code not in (0, 1) or not out), err
        return out or err

    def lines(self, command: str, *words: str | Path) -> list[str]:
        return os.fsdecode(self(command, *words)).splitlines()


@pytest.fixture
def look(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Look:
    return Look(tmp_path, capfdbinary)


@pytest.fixture
def unpacked(look: Look, tmp_path: Path) -> Path:
    words = ["umoci", "unpack", "--image", f"{look.layout}:test", str(tmp_path / "bundle")]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    return tmp_path / "bundle/rootfs"


def output(*words: str | Path, cwd: Path) -> bytes:
    return subprocess.run(words, capture_output=True, cwd=cwd, timeout=60, check=False).stdout


@pytest.mark.parametrize(
    ("text", "image", "path"),
    [
        ("debian:12", "debian:12", None),
        ("debian:12:/etc", "debian:12", "/etc"),
        ("h.io:5000/a:/", "h.io:5000/a", "/"),
        ("oci:/a/b:v1:/etc", "oci:/a/b:v1", "/etc"),
        ("oci:/a/b", "oci:/a/b", None),
        ("docker://h.io/a:v1:/x:/y", "docker://h.io/a:v1", "/x:/y"),
        ("docker-archive:/a.tar:/etc", "docker-archive:/a.tar", "/etc"),
        ("tar:/a.tar", "tar:/a.tar", None),
        ("containers-storage:[/s]app:/x", "containers-storage:[/s]app", "/x"),
    ],
)
def test_a_path_begins_behind_the_image(text: str, image: str, path: str | None) -> None:
    assert split_image(text) == (image, path)


FIND_EXPRESSIONS = (
    "-perm -4000",
    "-size -9c -type f",
    "-maxdepth 1",
    "-mindepth 2 -maxdepth 2",
    "! -type d",
    "-not -type f,l",
    "-name e* -o -type l",
    "-type f -name p* -o -uid 3",
    "-type f ( -name p* -o -uid +0 ) ! -size +99c",
    "! ( -type d -o -type p )",
    "! ! -empty -a -type f",
    "-mtime +1000 -links +1 -mmin +99",
    "! -mtime -1000 -type f",
    "-group 4 -user 3",
)


@needs_umoci
def test_find_lists_what_find_lists(look: Look, unpacked: Path) -> None:
    for ours, theirs in [
        ([], []),
        (["--type", "f", "--size", "+100"], ["-type", "f", "-size", "+100c"]),
        (["--name", "[np]*"], ["-name", "[np]*"]),
        (["--mode=-4000"], ["-perm", "-4000"]),
        (["--uid", "3", "--newer", "2017-01-01"], ["-uid", "3", "-newermt", "2017-01-01"]),
        *((words.split(), words.split()) for words in FIND_EXPRESSIONS),
    ]:
        found = look("find", "-0", look.image, *ours).split(b"\0")
        expected = output("find", ".", "-print0", cwd=unpacked) if not theirs else (
            output("find", ".", "(", *theirs, ")", "-print0", cwd=unpacked)
        )  # fmt: skip
        assert sorted(found) == sorted(b"/" if name == b"." else name[1:] for name in expected.split(b"\0"))


@needs_umoci
def test_sha256_grep_and_du_say_what_their_models_say(look: Look, unpacked: Path) -> None:
    summed = look("sha256", "-r", look.image, "/etc", "/usr")
    listed = tmp = unpacked.parent / "sums"
    tmp.write_bytes(summed.replace(b"  /", b"  "))
    assert (
        subprocess.run(
            ["sha256sum", "-c", "--quiet", listed], cwd=unpacked, timeout=60, check=False
        ).returncode
        == 0
    )
    for words in (
        ["-n", "o*t:"],
        ["-E", "^(root|sync):x"],
        ["-i", "-l", "ROOT"],
        ["-F", "x:0"],
        ["-v", "root"],
        ["-w", "[ro]*t"],
        ["-c", "root"],
    ):
        theirs = output("grep", "-r", *words, "etc", cwd=unpacked)
        ours = look("grep", *words, "-r", look.image, "/etc")
        assert sorted(b"\n".join(ours.split(b"\n/")).split(b"\n")) == sorted(
            theirs.replace(b"etc/", b"/etc/").replace(b"\n/", b"\n").split(b"\n")
        )
    [total] = look("du", "-s", look.image).split(b"\t")[:1]
    sizes = {entry.stat().st_ino: entry.stat().st_size for entry in unpacked.rglob("*") if entry.is_file()}
    links = sum(entry.lstat().st_size for entry in unpacked.rglob("*") if entry.is_symlink())
    assert int(total) == sum(sizes.values()) + links


def test_grep_tells_binary_files_and_what_it_did_not_find(look: Look) -> None:
    assert look("grep", "root", look.image, "/bin/su") == b"Binary file /bin/su matches\n"
    assert main(["grep", "--store", look._store, "nothing", look.image, "/etc/passwd"]) == 1
    assert b"Is a directory" in look("grep", "x", look.image, "/etc", code=2)


@pytest.mark.parametrize(
    ("pattern", "kind", "text"),
    [
        ("a+b", None, "a+b"),
        (r"a\+b", None, "aab"),
        ("a+b", "E", "aab"),
        (r"\(x\)\1", None, "xx"),
        ("*a", None, "*a"),
        ("a^b$c", None, "a^b$c"),
        ("[]x]y", None, "]y"),
        (r"[\x]y", None, r"\y"),
        ("[[:digit:]]{2}$", "E", "n42"),
        ("[^[:space:]]a", None, "xa"),
        ("a.c*", "F", "a.c*"),
        (r"\<or\>", None, "to or fro"),
    ],
)
def test_expressions_mean_what_grep_means(pattern: str, kind: str | None, text: str) -> None:
    assert compiled(pattern, kind).search(text.encode())
    flags = [f"-{kind}"] if kind else []
    asked = subprocess.run(["grep", *flags, "-e", pattern], input=text.encode(), check=False, timeout=60)
    assert asked.returncode == 0


_LINES = st.lists(st.sampled_from([b"", b"ab", b"b a", b"aXb", b"x\0a", b"a b c", b"ba"]), max_size=6)
_PATTERNS = st.sampled_from(["a", "^a", "b$", "^$", "a.b", "[^a]b", r"\ba", "^b|c$", r"(a|b)+$", "x?y"])


@given(_LINES, _PATTERNS, st.integers(1, 7), st.booleans())
def test_blocks_of_lines_are_searched_as_lines(
    lines: list[bytes], pattern: str, size: int, ends: bool
) -> None:
    """Whatever the pieces that a file comes in, and whether its last line ends."""
    text = b"\n".join(lines) + b"\n" * (ends and bool(lines))
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert b"".join(_blocks(pieces)) == text
    assert all(block.endswith(b"\n") for block in list(_blocks(pieces))[:-1])
    by_line = [
        line for line in text.removesuffix(b"\n").split(b"\n") if text and re.search(pattern.encode(), line)
    ]
    anywhere = re.compile(pattern.encode(), re.MULTILINE)
    assert not by_line or any(anywhere.search(block) for block in _blocks(pieces))


@pytest.mark.parametrize(("pattern", "kind"), [("[a", None), ("(", "E"), ("[[:nothing:]]", None)])
def test_what_is_no_expression_is_told(pattern: str, kind: str | None) -> None:
    with pytest.raises(UsageError):
        compiled(pattern, kind)


@as_root
def test_cp_keeps_all_that_a_file_has(look: Look, tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AssertionError):
        look("cp", look.image, "/etc", tmp_path)  # a link in the way is not followed
    assert not (tmp_path / "elsewhere").exists()
    look._capture.readouterr()
    main(["cp", "--store", look._store, f"{look.image}:/", str(tmp_path / "out")])
    assert look._capture.readouterr() == (b"", b"")
    su = tmp_path / "out/usr/bin/su"
    found = su.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (3, 4, 0o4755)
    assert found.st_mtime_ns == SOME_TIME
    assert (tmp_path / "out/usr/bin/other").samefile(su)
    assert su.read_bytes() == NOISE + b"\nroot\n"
    assert os.readlink(tmp_path / "out/bin") == "usr/bin"
    assert stat.S_ISFIFO((tmp_path / "out/usr/pipe").lstat().st_mode)
    assert not (tmp_path / "out/etc/gone").exists()
    assert os.getxattr(tmp_path / "out/etc/new\n\x1b[31m", "user.note") == b"hello"
    assert (tmp_path / "out/etc").stat().st_mtime_ns == 10**18


def test_of_a_terabyte_of_holes_cp_and_grep_take_what_the_layer_has(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pieces = [(0, b"first"), (5, b"second"), (1 << 39, NOISE)]
    layer = gzipped(tar.archive(tar.sparse_pax("1.0", "huge", 1 << 40, pieces)))
    image = write_image(tmp_path / "layout", [layer])
    main(["cp", "--store", str(tmp_path / "store"), f"{image}:/huge", str(tmp_path / "huge")])
    found = (tmp_path / "huge").stat()
    assert (found.st_size, found.st_blocks < len(NOISE) // 256) == (1 << 40, True)
    with open(tmp_path / "huge", "rb") as file:
        assert file.read(14) == b"firstsecond\0\0\0"
        file.seek(1 << 39)
        assert file.read(len(NOISE) + 2) == NOISE + b"\0\0"
    main(["grep", "--store", str(tmp_path / "store"), "firstsecond", image, "/huge"])
    assert capfd.readouterr().out == "Binary file /huge matches\n"


def test_of_endless_holes_no_digest_or_tar_is_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = {"huge": 1 << 62, "hole": 4 << 20}
    members = (tar.sparse_pax("1.0", name, size, [(0, b"first")]) for name, size in sizes.items())
    image = write_image(tmp_path / "layout", [gzipped(tar.archive(*members))])
    store = ["--store", str(tmp_path / "store")]
    assert main(["sha256", *store, image, "/huge", "/hole"]) == 1
    out, err = capfd.readouterr()
    assert out == f"{hashlib.sha256(b'first'.ljust(4 << 20, bytes(1))).hexdigest()}  /hole\n"
    assert err.startswith(f"imgfs: /huge: is {1 << 62} bytes long, nearly all of them holes")
    assert main(["export", *store, "-o", str(tmp_path / "tar"), image]) == 1
    assert "huge: is 4611686018427387904 bytes long" in capfd.readouterr().err
    assert not (tmp_path / "tar").exists()


def test_a_copy_to_a_pipe_or_an_open_file_is_written_to_it(look: Look, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open(tmp_path / "open", "w+b") as file:
        for target in (pipe, f"/proc/self/fd/{file.fileno()}"):
            main(["cp", "--store", look._store, f"{look.image}:/etc/passwd", str(target)])
        assert os.read(reader, 100) == file.read() == look("cat", look.image, "/etc/passwd")
    os.close(reader)
    assert pipe.is_fifo()
    assert b"not a directory" in look("cp", f"{look.image}:/etc", pipe, code=2)


def test_a_copy_that_cannot_be_written_names_it(look: Look, tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # EFBIG: Python ignores SIGXFSZ
    try:
        said = look("cp", f"{look.image}:/etc/passwd", f"{look.image}:/usr/bin/su", tmp_path, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert f"{tmp_path}".encode() in said


@pytest.mark.parametrize("command", [["export"], ["cp", "/", "-"]])
def test_the_merged_files_go_out_as_a_tar(look: Look, command: list[str]) -> None:
    body = look(command[0], look.image, *command[1:])
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        members = {member.name: member for member in archive}
        su = archive.extractfile(members["usr/bin/other"])
        assert su is not None
        assert hashlib.sha256(su.read()).digest() == hashlib.sha256(NOISE + b"\nroot\n").digest()
    assert "etc/gone" not in members
    assert members["usr/bin/su"].islnk()
    assert members["bin"].linkname == "usr/bin"


def test_stat_and_find_say_it_to_programs(look: Look) -> None:
    [su] = json.loads(look("stat", "--json", f"{look.image}:/usr/bin/su"))
    assert (su["mode"], su["uid"], su["layer"], su["nlink"], su["kind"]) == ("4755", 3, 1, 2, "file")
    found = json.loads(look("find", "--json", look.image, "--layer", "2"))
    assert {"/usr/empty", "/usr/pipe"} <= {one["path"] for one in found}
    assert json.loads(look("find", "--json", look.image, "--name", "none")) == []
    assert look.lines("find", look.image, "--xattr", "user.*") == ["/etc/new", "\x1b[31m"]


def test_inspect_fills_templates_of_the_fields_that_docker_shows(look: Look) -> None:
    shown = json.loads(look("inspect", "--json", look.image))
    template = "{{.Digest}} {{.Id}} {{.Os}}/{{.Architecture}} {{index .RootFS.Layers 1}}"
    assert look("inspect", "-f", template, look.image).decode().split() == [
        shown["digest"],
        shown["config_digest"],
        shown["platform"],
        shown["layers"][1]["diff_id"],
    ]
    assert json.loads(look("inspect", "--format", "json", look.image))["Config"] == shown["config"]
    assert b"no field 'Nope'" in look("inspect", "-f", "{{.Nope}}", look.image, code=2)


def test_find_knows_the_images_users_and_times(look: Look) -> None:
    assert look.lines("find", look.image, "-type", "f", "!", "-user", "root") == [
        "/usr/bin/other",
        "/usr/bin/su",
    ]
    assert look.lines("find", look.image, "-newer", "/etc/passwd") == ["/usr/bin/other", "/usr/bin/su"]
    assert b"'sync2' is not in the image" in look("find", look.image, "-user", "sync2", code=2)


BEYOND = (1 << 63) - 1  # seconds: the last that an inode can have


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-(1 << 63), f"-{1 << 63} s since 1970"),
        (-(1 << 33), "1697-10-17 11:03"),
        ((1 << 33) + (1 << 32), "2378-04-22 19:24"),
        (1 << 56, f"{1 << 56} s since 1970"),
        (BEYOND, f"{BEYOND} s since 1970"),
    ],
)
def test_a_file_of_any_time_is_shown(look: Look, tmp_path: Path, seconds: int, shown: str) -> None:
    """A layer says any time; no calendar has all of them."""
    layer = tar.archive(tar.file("file", b"x", mtime_ns=seconds * 10**9))
    image = write_image(tmp_path / "times", [plain(layer)])
    assert look.lines("ls", "-l", image) == [
        f"-rw-r--r--   1     0     0          1 {shown} file",
    ]
    assert f"mtime  {shown[:10]}" in os.fsdecode(look("stat", image, "/file"))
    with closing(ImgfsFileSystem(image, store=tmp_path / "store").image):
        found = ImgfsFileSystem(image, store=tmp_path / "store").modified("/file")
        assert found.timestamp() == min(max(seconds, -62_135_596_800), 253_402_300_799)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("!", "a test is missing at the end"),
        ("-name a -o", "a test is missing at the end"),
        ("-o -name a", "a test is missing before '-o'"),
        ("( -name a", "there is no ')' for a '('"),
        ("-name a )", "there is no '(' for a ')'"),
        ("( )", "a test is missing before ')'"),
        ("! " * 300, "more than 200 tests"),
    ],
)
def test_find_says_what_is_wrong_with_an_expression(look: Look, words: str, reason: str) -> None:
    assert look("find", look.image, *words.split(), code=2).decode().strip() == f"imgfs: {reason}"


def test_names_may_be_patterns(look: Look) -> None:
    assert look.lines("ls", f"{look.image}:/etc/p*") == ["/etc/passwd"]
    assert look.lines("find", look.image, "/*/bin/s?") == ["/usr/bin/su"]
    assert b"no file matches" in look("stat", look.image, "/x*", code=1)
    assert look("cat", look.image, "/etc/n*") == b"new Root\n"


def test_tree_draws_what_is_below(look: Look) -> None:
    drawn = look.lines("tree", "-L", "1", look.image)
    assert drawn == ["/", "├── bin -> usr/bin", "├── etc", "└── usr", "", "2 directories, 1 file"]
    assert look.lines("tree", "-d", f"{look.image}:/usr") == ["/usr", "└── bin", "", "1 directory, 0 files"]


def test_files_may_be_as_deep_as_a_path_is_long(look: Look, tmp_path: Path) -> None:
    """Deeper than Python calls, and than a process may have files open."""
    top = write_image(tmp_path / "deep", [plain(tar.archive(tar.file("d/" * 1900 + "f", b"x")))])
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_NOFILE)
    out.mkdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert main(["cp", "--store", str(tmp_path / "store"), top, "/d", str(out)]) == 0
        for command in ("find", "tree", "du", "export", "ls"):
            look(command, *(["-R"] if command == "ls" else []), top)
        look("grep", "-r", "x", top, "/")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(output("find", "d", "-type", "d", cwd=out).splitlines()) == 1900
    remove_tree(out)  # pytest cannot


def test_a_file_of_the_users_is_not_given_the_rights_of_another(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    assert b"not of 3:4" in look("cp", f"{look.image}:/usr/bin/su", tmp_path)
    assert stat.S_IMODE((tmp_path / "su").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls"], 1),
        (["cat"], 1),
        (["stat"], 1),
        (["sha256"], 1),
        (["tree"], 1),
        (["find"], 1),
        (["du"], 1),
        (["grep", "root"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_path_that_leads_nowhere_is_told_and_the_others_are_worked_on(
    look: Look, words: list[str], code: int, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    command, *pattern = words
    given = [command, "--store", look._store, *pattern, look.image]
    assert main([*given, "/etc/passwd"]) == 0
    alone = capfdbinary.readouterr().out
    assert main([*given, "/nowhere", "/etc/passwd", "/etc/passwd/below"]) == code
    out, err = capfdbinary.readouterr()
    assert err.decode().splitlines() == [
        "imgfs: /nowhere: No such file or directory",
        "imgfs: /etc/passwd/below: Not a directory",
    ]
    assert out == (b"/etc/passwd:" if command == "grep" else b"") + alone  # several are named, as by grep(1)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["cat", "{}", "/x"], 1), (["grep", "root", "{}"], 2), (["diff", "{}", "{}"], 2)],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_failure_is_told_from_the_answer_no(
    words: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 of grep and diff says that nothing was found, or that something differs."""
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout/index.json").write_text("{")
    command, *rest = (word.format(f"oci:{tmp_path}/layout:test") for word in words)
    assert main([command, "--store", str(tmp_path / "store"), *rest]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_cp_copies_what_there_is(look: Look, tmp_path: Path) -> None:
    assert b"/nowhere: No such" in look("cp", f"{look.image}:/nowhere", "/etc/passwd", tmp_path, code=1)
    assert (tmp_path / "passwd").exists()


@pytest.mark.parametrize("command", ["cat", "stat", "sha256"])
def test_what_needs_a_path_says_so(look: Look, command: str) -> None:
    assert b"say which file: IMAGE PATH, or IMAGE:PATH" in look(command, look.image, code=2)

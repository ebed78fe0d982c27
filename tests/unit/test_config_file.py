"""imgfs's configuration files: what they say of options, which of them counts, and what is wrong in them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgfs.cli.commands import COMMANDS
from imgfs.cli.config_file import ConfigFile, configure
from imgfs.cli.connection import options_for
from imgfs.cli.parser import describe, parse
from imgfs.errors import UsageError


class Files(NamedTuple):
    """The two configuration files."""

    system: Path
    user: Path

    def write(self, user: str, system: str = "") -> None:
        for path, text in ((self.user, user), (self.system, system)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IMGFS_ETC", str(tmp_path / "etc"))
    monkeypatch.delenv("IMGFS_STORE", raising=False)
    return Files(tmp_path / "etc/imgfs/config.toml", tmp_path / "home/imgfs/config.toml")


def parsed(line: str) -> argparse.Namespace:
    return parse(line.split())


def test_without_files_all_is_as_it_was(files: Files) -> None:
    options = parsed("mount debian /mnt")
    assert (options.platform, options.rw, options.fuse_options) == (None, False, [])
    assert not hasattr(options, "registries")


def test_each_kind_of_option_can_be_said(files: Files) -> None:
    files.write("""
[all]
platform = "linux/arm64"
read-timeout = 7
store = "~/images"
[mount]
rw = true
squash-owner = false
o = ["noexec", "nosuid,dev"]
limit-rate = "2M"
driver = "fuse"
log-level = "debug"
[run]
env = ["A=1", "B=two words"]
volume = "/data:/data:ro"
cap-add = ["NET_ADMIN", "SYS_TIME"]
mount = "type=tmpfs,destination=/x"
read-only-tmpfs = false
stop-timeout = 3
memory = "512m"
pids-limit = 64
[store.prune]
keep = "5G"
[ls]
l = true
[status]
watch = true
""")
    mount = parsed("mount debian /mnt")
    assert (mount.platform, mount.read_timeout, mount.rw, mount.squash_owner) == (
        "linux/arm64",
        7.0,
        True,
        False,
    )
    assert (mount.fuse_options, mount.limit_rate) == (["noexec", "nosuid,dev"], 2_000_000)
    assert (mount.driver, mount.log_level) == ("fuse", "debug")
    assert mount.store == os.path.expanduser("~/images")
    run = parsed("run -e C=3 debian env --no-such -e D=4")
    assert run.env == ["A=1", "B=two words", "C=3"]
    assert len(run.volume) == 1
    assert len(run.tmpfs) == 1
    assert run.cap_add == ["CAP_NET_ADMIN", "CAP_SYS_TIME"]
    assert (run.read_only_tmpfs, run.stop_timeout, run.memory) == (False, 3, 512 << 20)
    assert run.command == ["env", "--no-such", "-e", "D=4"]
    assert parsed("store prune").keep == parsed("store prune --keep 5G").keep
    assert parsed("ls debian").long
    assert parsed("status").watch is not None
    assert not parsed("cat debian /x").offline
    assert parsed("version").store == os.path.expanduser("~/images")


def test_the_command_line_counts_before_the_environment_and_that_before_the_files(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(
        '[all]\nindex = "none"\nstore = "/user"\n[mount]\nfill = false\n',
        '[all]\nindex = "any"\nplatform = "linux/riscv64"\nstore = "/etc"\n[mount]\nfill = true\nrw = true\n',
    )
    options = parsed("mount debian /mnt")
    assert (options.index, options.platform, options.store) == ("none", "linux/riscv64", "/user")
    assert (options.fill, options.rw) == (False, True)
    assert parsed("mount --index verified debian /mnt").index == "verified"
    assert parsed("mount --no-rw debian /mnt").rw is False
    assert parsed("mount --no-rw --rw debian /mnt").rw is True
    monkeypatch.setenv("IMGFS_STORE", "/environment")
    assert parsed("mount debian /mnt").store is None
    assert not hasattr(parsed("version"), "store")
    assert parsed("mount --store /typed debian /mnt").store == "/typed"


def test_a_command_counts_before_all_in_one_file(files: Files) -> None:
    files.write('[mount]\nindex = "verified"\n[all]\nindex = "none"\n')
    assert parsed("mount debian /mnt").index == "verified"
    assert parsed("ls debian").index == "none"


def test_a_flag_can_be_taken_back_where_no_file_says_it(files: Files) -> None:
    assert parsed("mount --rw --no-rw debian /mnt").rw is False
    with pytest.raises(SystemExit):
        parsed("mount --no-driver debian /mnt")
    assert parsed("history --no-trunc debian").no_trunc


def test_registries_have_settings_of_their_own(files: Files) -> None:
    files.write(
        """
[all]
insecure = true
read-timeout = 20
[registry."registry.example.com:5000"]
plain-http = true
read-timeout = 5
insecure = false
""",
        '[registry."registry.example.com:5000"]\ntls-ca = "/etc/ca.pem"\nread-timeout = 50\n',
    )
    options = parsed("ls x")
    assert (options.plain_http, options.insecure, options.read_timeout, options.tls_ca) == (
        False,
        True,
        20,
        None,
    )
    own = options_for(options, "registry.example.com:5000")
    assert (own.plain_http, own.insecure, own.read_timeout, own.tls_ca) == (True, False, 5, "/etc/ca.pem")
    assert options_for(options, "docker.io") is options
    typed = options_for(
        parsed("ls --insecure --no-plain-http --read-timeout 9 x"), "registry.example.com:5000"
    )
    assert (typed.plain_http, typed.insecure, typed.read_timeout) == (False, True, 9)
    run = options_for(parsed("run x curl --insecure"), "registry.example.com:5000")
    assert (run.insecure, run.command) == (False, ["curl", "--insecure"])


def test_what_excludes_an_option_of_the_file_is_typed_all_the_same(files: Files) -> None:
    files.write("[grep]\nF = true\n")
    assert parsed("grep x debian /").kind == "F"
    assert parsed("grep -E x debian /").kind == "E"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[all]\n\nplatfrom = 'linux'", "3: all.platfrom: no command has such an option; did you "),
        ("[mount]\nrw = true\ndrvier = 'fuse'", "3: mount.drvier: imgfs mount has no such option; did "),
        ("[mont]\nrw = true", "1: mont: no such command; did you mean mount?"),
        ("platform = 'linux'", "1: platform: stands in no table: [all], that of a command, or "),
        ("\nmount = 3", "2: mount: expected a table"),
        ("[mount]\nrw = 'yes'", "2: mount.rw: expected true or false"),
        ("[mount]\nplatform = 3", "2: mount.platform: expected a string"),
        ("[mount]\nplatform = true", "2: mount.platform: expected a value, not true or false"),
        ("[mount]\nplatform = ['a']", "2: mount.platform: expected a string"),
        ("[mount]\no = [\n  'noexec',\n  3,\n]", "2: mount.o: expected a string, or an array of them"),
        ("[mount]\ndriver = 'kernl'", "2: mount.driver: invalid choice: 'kernl'; did you mean kernel?"),
        ("[all]\nread-timeout = 400", "2: all.read-timeout: '400' is not a number of seconds up to 60"),
        ("[mount]\nlimit-rate = {a = 1}", "2: mount.limit-rate: expected a number or a string"),
        ("[all]\ntls-ca = 'ca.pem'", "2: all.tls-ca: expected a path that begins with / or ~"),
        ("[mount.prune]\nrw = true", "1: mount.prune: imgfs mount has no such option"),
        ("[registry.'h:5']\nplain-htp = true", "2: registry.h:5.plain-htp: is said of no registry; did you "),
        ("[registry.'h.io']\ninsecure = 1", '2: registry."h.io".insecure: expected true or false'),
        ("[registry]\n'h.io' = 1", '2: registry."h.io": expected a table'),
        ("[mount]\nhelp = true", "2: mount.help: imgfs mount has no such option"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_file_and_line(files: Files, text: str, said: str) -> None:
    files.write(text)
    with pytest.raises(UsageError) as raised:
        parsed("mount debian /mnt")
    assert str(raised.value).startswith(f"{files.user}: line {said}")
    assert "\n" not in str(raised.value)


def test_a_table_of_another_command_is_read_when_that_is_called(files: Files) -> None:
    files.write("[run]\nnonsense = true\n")
    parsed("mount debian /mnt")
    with pytest.raises(UsageError, match=r"line 2: run\.nonsense"):
        parsed("run debian")


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.unlink()
        make(path)

    return act


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (replaced(Path.mkdir), "not a regular file"),
        (replaced(os.mkfifo), "not a regular file"),
        (lambda path: path.chmod(0o646), r"other users may write to it.*chmod o-w"),
        (lambda path: path.write_bytes(b"#" * 300_000), "larger than 262144 bytes"),
        (lambda path: path.write_bytes(b"[mount]\nx = '\xff'"), "line 2: not UTF-8"),
        (lambda path: path.write_bytes(b"[" * 200_000), "not TOML"),
        (
            lambda path: path.write_bytes(b"[mount]\nrw = tru"),
            r"not TOML: Invalid value \(at line 2, column 6\)",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(files: Files, act: Callable[[Path], None], said: str) -> None:
    files.write("")
    act(files.user)
    with pytest.raises(UsageError, match=said) as raised:
        parsed("mount debian /mnt")
    assert str(raised.value).startswith(f"{files.user}: ")


NAMES = st.sampled_from(["all", "mount", "registry", "rw", "platform", "driver", "o", "h.io", "x\ny"])
VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.lists(st.one_of(st.text(max_size=4), st.integers()), max_size=3),
)


@given(
    st.dictionaries(
        NAMES,
        st.dictionaries(NAMES, st.one_of(VALUES, st.dictionaries(NAMES, VALUES, max_size=2)), max_size=3),
        max_size=3,
    )
)
@example({"all": {"o": ""}})
def test_whatever_a_file_says_is_used_or_refused_in_one_line(fields: dict[str, object]) -> None:
    file = ConfigFile("c.toml", "", fields)
    parser = describe({"mount": COMMANDS["mount"]})
    said = "c.toml: "
    try:
        configure(parser, [file], has_store=False)
    except UsageError as error:
        said = str(error)
    assert said.startswith("c.toml: ")
    assert said.isprintable()
    if said == "c.toml: ":
        assert isinstance(parser.parse_args(["mount", "debian", "/mnt"]).rw, bool)


def test_no_file_costs_no_module(files: Files) -> None:
    code = """\
import sys
from imgfs.cli import main
main(["store", "path"])
print("tomllib" in sys.modules, "imgfs.cli.config_file" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False False"


def test_an_option_with_several_spellings_is_said_by_its_long_name(files: Files) -> None:
    files.write('[find]\nmode = "755"\ndepth = 1\n[ls]\nl = true\n[run]\npull = "never"\n')
    assert parsed("find debian").expression
    assert parsed("find debian").depth is not None
    assert parsed("ls -h debian").long
    assert parsed("run debian").offline

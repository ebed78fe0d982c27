"""`imgfs upgrade`: mounts go from one version of imgfs to another while they are read."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgfs import __version__
from imgfs.cli import upgrade as upgrade_command
from imgfs.errors import MountError
from imgfs.mount.holder_protocol import PROTOCOL
from imgfs.mounts import holders as mounts_holders
from imgfs.mounts import table
from imgfs.mounts.table import Mount
from tests.support import restarted
from tests.support.fault_server import FaultServer
from tests.support.mounted import (
    CHECKOUT,
    NOBODY,
    Imgfs,
    Ran,
    Wire,
    command_line,
    errno_of,
    is_alive,
    processes_of_tests,
    serve,
    until,
    write_image,
)
from tests.support.restarted import FILES, LAYER, NOISE, RESTARTED, contents, holders

pytestmark = pytest.mark.kernel
image = restarted.image


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Another checkout, of another version."""
    shutil.copytree(
        CHECKOUT / "imgfs", tmp_path / "newer/imgfs", ignore=shutil.ignore_patterns("__pycache__")
    )
    said = tmp_path / "newer/imgfs/__init__.py"
    said.write_text(said.read_text().replace(f'__version__ = "{__version__}"', '__version__ = "99.1"'))
    return tmp_path / "newer"


def upgrade(imgfs: Imgfs, checkout: Path, *words: str | Path) -> Ran:
    program = (
        f"import sys; sys.path.insert(0, {str(checkout)!r}); from imgfs.cli import main; sys.exit(main())"
    )
    return imgfs.program(sys.executable, "-I", "-c", program, "upgrade", *words)


def metrics(imgfs: Imgfs, at: Path) -> bytes:
    """What Prometheus would get."""
    with urllib.request.urlopen(imgfs.status(at)["metrics"], timeout=30) as answer:
        body: bytes = answer.read()
        return body


@pytest.mark.drivers("fuse", "kernel")
def test_mounts_are_handed_over_and_back_while_they_are_read(imgfs: Imgfs, newer: Path) -> None:
    with FaultServer() as server, ThreadPoolExecutor(2) as readers:
        image = serve(server, "app", "v1", [LAYER])
        at = imgfs.mount(image, "--restart", "--metrics", "0")
        until(lambda: holders(imgfs), "the holder has its own words")
        first, (held_by,) = imgfs.pid(at), holders(imgfs)
        imgfs.evict(image)
        reads = [readers.submit(contents, at)]
        for checkout, version in ((newer, "99.1"), (CHECKOUT, __version__), (newer, "99.1")):
            reads.append(readers.submit(contents, at))
            assert upgrade(imgfs, checkout, at) == (0, b"", "")
            status = imgfs.status(at)
            assert (status["version"], status["restarts"]) == (version, 0)
            until(lambda: holders(imgfs) == [held_by], "the holder is the same process")
            assert os.fsencode(checkout / "imgfs/mount/holder.py") in command_line(held_by)
            until(lambda: errno_of(lambda: metrics(imgfs, at)) is None, "the metrics are served again")
        assert all(read.result() == FILES for read in reads)
        assert not is_alive(first)
        os.kill(imgfs.pid(at), signal.SIGKILL)
        imgfs.expected.append(RESTARTED)
        assert contents(at) == FILES
        row = next(row for row in json.loads(imgfs.ok("ps", "--json")) if row["mountpoint"] == str(at))
        assert (row["version"], row["restarts"]) == ("99.1", 1)
        assert re.search(r" 99\.1 +1 ", imgfs.ok("ps"))
        imgfs.umount(at)
    until(lambda: not processes_of_tests(imgfs.store), "the holder has ended")


def test_a_request_under_way_is_answered_by_who_has_taken_it(imgfs: Imgfs) -> None:
    with FaultServer() as server, Wire(server.host) as wire, ThreadPoolExecutor(1) as reader:
        image = serve(server, "app", "v1", [LAYER], wire.host)
        at = imgfs.mount(image, "--restart")
        imgfs.evict(image)
        wire.stall()
        pid = imgfs.pid(at)
        read = reader.submit((at / "noise").read_bytes)
        time.sleep(0.3)
        assert imgfs.ok("upgrade", at) == ""
        assert imgfs.pid(at) != pid
        assert is_alive(pid)
        wire.mend()
        assert read.result() == NOISE
        until(lambda: not is_alive(pid), "it ends once it has answered")
        imgfs.umount(at)


def test_a_version_that_cannot_go_on_leaves_the_old_one_serving(
    imgfs: Imgfs, image: str, newer: Path
) -> None:
    imgfs.expected.append(" ERROR .* cannot go on with a mount of this imgfs")
    at = imgfs.mount(image, "--restart")
    pid = imgfs.pid(at)
    options = newer / "imgfs/mount/options.py"
    last = "    restart_after: float = 0.0\n"
    options.write_text(options.read_text().replace(last, f"{last}    quiet: bool = False\n"))
    said = upgrade(imgfs, newer, at).complaint()
    reason = "cannot go on with a mount of this imgfs"
    assert said.startswith(f"{at}: imgfs 99.1 {reason} {__version__}: imgfs.mount.options.MountOptions(")
    protocol = newer / "imgfs/mount/holder_protocol.py"
    known = protocol.read_text()
    other = re.sub('PROTOCOL = ".*"', 'PROTOCOL = "99"', known)
    for name, text in ("holder_protocol.py", other), ("holder.py", "def main():\n    return 1\n"):
        protocol.write_text(known)
        (newer / "imgfs/mount" / name).write_text(text)
        assert upgrade(imgfs, newer, at).complaint().startswith(f"{at}: its holder is of another version")
    assert (imgfs.pid(at), (at / "noise").read_bytes()) == (pid, NOISE)
    assert upgrade(imgfs, CHECKOUT, at) == (0, b"", "")
    assert imgfs.pid(at) != pid
    imgfs.umount(at)


def test_an_heir_that_is_killed_leaves_the_old_one_serving(imgfs: Imgfs, image: str, newer: Path) -> None:
    at = imgfs.mount(image, "--restart")
    pid = imgfs.pid(at)
    script = newer / "imgfs/mount/successor.py"
    script.write_text("import os\ndef main():\n    os.kill(os.getpid(), 9)\n")
    assert upgrade(imgfs, newer, at).complaint() == f"{at}: it was killed"
    assert (imgfs.pid(at), (at / "noise").read_bytes()) == (pid, NOISE)
    imgfs.umount(at)


def test_a_user_upgrades_a_mount_and_what_cannot_be_is_said(nobody: Imgfs) -> None:
    image = write_image(nobody.directory / "layout", [LAYER])
    at, plain = nobody.mount(image, "--restart"), nobody.mount(image, at=nobody.mountpoint("plain"))
    pid = nobody.pid(at)
    assert nobody.ok("upgrade", at) == ""
    assert nobody.pid(at) != pid
    said = nobody.run("upgrade", plain).complaint()
    assert said == f"{plain}: mounted without --restart, so it cannot be handed over"
    nobody.umount(plain)
    nobody.umount(at)


@contextmanager
def pretended(
    words: Sequence[str | Path | int], *kept: int, ids: tuple[int, int] = (NOBODY.uid,) * 2
) -> Iterator[int]:
    """Run a process that says what a holder says, with these real and effective uids; gives its pid."""
    told = f"import os, time; os.setresuid(*{(*ids, ids[1])}); print(flush=True); time.sleep(60)"
    said = [sys.executable, "-I", "-c", told, "/imgfs/mount/holder.py", *map(str, words)]
    with subprocess.Popen(said, stdout=subprocess.PIPE, pass_fds=kept) as process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_what_says_that_it_is_a_holder_leads_root_to_no_file(nobody: Imgfs, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"root's own")
    at = nobody.mount(write_image(nobody.directory / "layout", [LAYER]))
    name = at, table.imgfs_mount_at(at).device, 3, 4
    pipe, memory = os.pipe(), os.memfd_create("imgfs-outcome")
    with open(tmp_path / "mine", "rb") as file:
        os.fchown(memory, NOBODY.uid, -1)
        for orders, said in (
            (f"../../..{tmp_path}/mine", "it is of another version"),  # a path
            (file.fileno(), "it is of another version"),  # no pipe
            (pipe[1], "what it names is not its own"),  # another user's
        ):
            with (
                pretended([*name, orders, memory], file.fileno(), pipe[1], memory) as pid,
                pytest.raises(MountError, match=rf" \(pid {pid}\) takes no orders: {said}"),
            ):
                mounts_holders.hand_over(table.imgfs_mount_at(at), PROTOCOL, ["holder"], ["program"])
    assert (tmp_path / "mine").read_bytes() == b"root's own"
    nobody.umount(at)
    for number in (*pipe, memory):
        os.close(number)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_a_process_is_a_holder_of_no_other_user_than_its_own() -> None:
    mount = Mount(Path("/a"), "fuse.imgfs", "a", "0:1", 0)
    name = "/a", "0:1", 3, 4, 5, 6
    with pretended(name, ids=(0, 0)) as roots:
        with pretended(name), pretended(name, ids=(NOBODY.uid, 0)):  # the last as if by a set-uid program
            assert mounts_holders.holder_of(mount) == roots
            assert mounts_holders.idle_mounts([mount]) == {Path("/a")}
        mounts_holders.end_held(Path("/a"), 10)
        assert mounts_holders.holder_of(mount) is None
    with pretended(name) as pid:
        mounts_holders.end_held(Path("/a"), 10)
        assert is_alive(pid)
        assert mounts_holders.idle_mounts([mount]) == set()


@pytest.mark.parametrize(("user", "named"), [(0, ["0:1", "0:2"]), (7, ["0:2"]), (8, [])])
def test_all_are_those_of_restart_that_a_user_may_hand_over(
    monkeypatch: pytest.MonkeyPatch, user: int, named: list[str]
) -> None:
    there = [
        Mount(Path("/a"), "fuse.imgfs", "a", device, owner) for device, owner in (("0:1", 0), ("0:2", 7))
    ]
    plain = Mount(Path("/a"), "fuse.imgfs", "a", "0:3", 7)
    monkeypatch.setattr(table, "imgfs_mounts", lambda: [*there, plain])
    monkeypatch.setattr(mounts_holders, "holder_of", lambda mount: 1 if mount in there else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert [mount.device for mount in upgrade_command._all()] == named

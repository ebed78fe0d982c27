"""System calls through ctypes: what they do, and that a failure is an OSError with the kernel's errno."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imgfs import syscalls


def test_a_file_is_renamed_only_onto_a_free_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="a") as raised:
            syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_NOREPLACE)
        assert raised.value.errno == errno.EEXIST
        syscalls.renameat2(directory, b"a", directory, b"b", syscalls.RENAME_EXCHANGE)
    finally:
        os.close(directory)
    assert [(tmp_path / name).read_text() for name in "ab"] == ["b", "a"]


def test_the_access_time_stays_when_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.utime(path, ns=(1_000_000_007, 2_000_000_009))
    before = path.stat()
    syscalls.rewrite_atime(os.fsencode(path))
    after = path.stat()
    assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, before.st_mtime_ns)
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_failures_name_the_file_and_the_reason(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for call in (syscalls.detach_mount, syscalls.cover_with_tmpfs):
        with pytest.raises(OSError, match=re.escape(missing)) as raised:
            call(missing)
        assert raised.value.errno in (errno.ENOENT, errno.EPERM)  # the latter for an ordinary user
        assert raised.value.filename == missing
    with pytest.raises(OSError, match="Bad file") as bad:
        syscalls.syncfs(-1)
    assert bad.value.errno == errno.EBADF


def test_no_kernel_mounts_an_invented_file_system() -> None:
    assert not syscalls.can_mount("imgfs-invented")
    with pytest.raises(OSError, match=r"such device|not permitted") as raised:
        syscalls.new_mount("imgfs-invented", [], 0)
    assert raised.value.errno in (errno.ENODEV, errno.EPERM)


def test_the_signal_comes_too_if_the_parent_had_ended_before_it_was_asked_for() -> None:
    script = "import os, signal, sys; from imgfs import syscalls; syscalls.set_parent_death_signal(15, {})"
    for parent, code in ((os.getpid(), 0), (1, -signal.SIGTERM)):
        assert subprocess.run([sys.executable, "-c", script.format(parent)], check=False).returncode == code

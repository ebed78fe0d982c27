"""What is said to use a mount, and to have it elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from imgfs.mounts.in_use import user_of
from imgfs.mounts.table import mounts, process_with_mount
from tests.support.mounted import until


def test_the_command_that_asks_is_not_what_keeps_a_mount_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert user_of(tmp_path) == "this command was started in it"
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            until(lambda: user_of(tmp_path) == f"process {other.pid} (sleep) uses it", "it is named")
        finally:
            other.kill()


def test_a_mount_elsewhere_is_that_one_and_not_another_with_its_device() -> None:
    (here,) = (mount for mount in mounts() if mount.mountpoint == Path("/proc"))
    ours = os.readlink("/proc/self/ns/mnt")
    with subprocess.Popen(["unshare", "-rm", "sleep", "60"]) as other:
        try:
            until(lambda: os.readlink(f"/proc/{other.pid}/ns/mnt") != ours, "it has a namespace of its own")
            assert process_with_mount(here) is not None
            assert process_with_mount(here._replace(source="another")) is None
            assert process_with_mount(here._replace(filesystem="fuse.imgfs")) is None
        finally:
            other.kill()

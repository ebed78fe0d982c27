"""dive's score, held against its formula over what tarfile reads and umoci unpacks."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from imgfs.tree.efficiency import efficiency
from tests.support import tarmake as tar
from tests.support.layers import all_versions
from tests.support.umoci_oracle import unpack

FIRST = tar.archive(
    tar.directory("etc"),
    tar.file("etc/a", b"a" * 1000),
    tar.file("etc/b", b"b" * 300),
    tar.file("opt/x/1", b"1" * 5000),
    tar.file("opt/x/y/2", b"2" * 700),
    tar.hardlink("opt/x/3", "opt/x/1"),
    tar.directory("empty"),
    tar.file("gone", b"g" * 4000),
)
SECOND = tar.archive(
    tar.file("etc/a", b"A" * 1500),
    tar.whiteout("opt/x"),
    tar.whiteout("gone"),
    tar.symlink("etc/b", "a"),
    tar.directory("etc"),
    tar.file("deep/new", b"n" * 90),
)
THIRD = tar.archive(tar.file("gone", b"back"), tar.opaque("deep"), tar.file("etc/a", b"a" * 200))


def dives_score(layers: Sequence[bytes], path: Path) -> float:
    """The formula once more, layer by layer in memory; whiteouts of directories by what umoci unpacks."""
    sizes: dict[str, list[int]] = defaultdict(list)
    for number, layer in enumerate(layers):
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            members = archive.getmembers()
        names = {member.name for member in members}
        parents = {os.path.dirname(name) for name in names}
        for member in members:
            directory, name = os.path.split(member.name)
            if name.startswith(".wh..wh.") or (member.name in parents and member.isdir()):
                continue
            if name.startswith(".wh."):
                below = unpack(Path(tempfile.mkdtemp(dir=path)), layers[:number]) / directory / name[4:]
                files = [file for file in below.rglob("*") if stat.S_ISREG(file.lstat().st_mode)]
                inodes = {file.lstat().st_ino: file.lstat().st_size for file in files}
                sizes[os.path.join(directory, name[4:])].append(sum(inodes.values()) if below.is_dir() else 0)
            else:
                sizes[member.name].append(member.size if member.isreg() else 0)
    return sum(map(min, sizes.values())) / sum(map(sum, sizes.values()))


def score(layers: Sequence[bytes], path: Path) -> float:
    with all_versions(path, *layers) as (tree, indexes):
        return efficiency(indexes, path / f"{len(layers)}.leaves", tree.hidden_below)


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("umoci") is None, reason="no umoci")
def test_the_score_is_that_of_dives_formula(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        layers = [FIRST, SECOND, THIRD][:count]
        ours = score(layers, tmp_path)
        assert ours == pytest.approx(dives_score(layers, tmp_path))
        assert (ours == 1) == (count == 1)


def test_an_image_without_files_loses_nothing(tmp_path: Path) -> None:
    assert score([tar.archive()], tmp_path) == 1
    assert score([tar.archive(tar.directory("a")), tar.archive(tar.whiteout("a"))], tmp_path) == 1

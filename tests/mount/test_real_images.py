"""Real images, mounted, against what umoci makes of them, and read by real programs.

The images are built once and kept: see tests/support/images.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.lab.layout import Image
from scripts.lab.recipes import RecipeError
from tests.support import images
from tests.support.mounted import Imgfs, drop_caches, resident
from tests.support.patience import allowed
from tests.support.umoci_oracle import Seen, differences, undated, unpack_layout, walk_directory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    pytest.mark.timeout(1800),  # the first time an image is built
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and chroot need root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
]

PATIENT = allowed(300.0)  # seconds for a program that reads a whole image


class Real(NamedTuple):
    """An image mounted at `at`, and unpacked at `unpacked`, which it is to equal."""

    at: Path
    unpacked: Path
    image: Image
    imgfs: Imgfs

    @property
    def reference(self) -> str:
        return self.image.reference

    def program(self, *words: str | Path) -> str:
        """What a program writes; it must succeed and complain of nothing."""
        done = self.imgfs.program(*words, timeout=PATIENT)
        assert (done.code, done.err) == (0, ""), (done.code, done.err[-2000:], done.out[-2000:])
        return done.text


def real(build: Callable[[Path], Image], directory: Path) -> Iterator[Real]:
    try:
        image = build(images.default_cache())
    except RecipeError as error:
        pytest.skip(f"the image cannot be built here: {error}")
    imgfs = Imgfs(directory / "imgfs")
    unpacked = unpack_layout(image.layout, image.tag, directory / "bundle")
    it = Real(imgfs.mountpoint(), unpacked, image, imgfs)
    imgfs.mount(it.reference, at=it.at, timeout=PATIENT)
    yield it
    imgfs.umount(it.at)
    imgfs.close()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    yield from real(images.debian, tmp_path_factory.mktemp("debian"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    yield from real(images.python_image, tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    yield from real(images.node_tree, tmp_path_factory.mktemp("node"))


def compare(it: Real) -> dict[bytes, Seen]:
    """Assert that every entry is as umoci makes it: attributes, xattrs, links and content."""
    actual = walk_directory(it.at)
    assert differences(walk_directory(it.unpacked), actual, ignoring_mtime=undated(actual)) == []
    return actual


def fingerprint(tar: str) -> str:
    """A pipeline that shows a tree as one number; names in order, no dates of directories."""
    return f"tar -C {tar} --sort=name --numeric-owner --mtime=@0 -cf - . | sha256sum"


# -- Debian --------------------------------------------------------------------------------------------------


def test_debian_is_what_umoci_unpacks(debian: Real) -> None:
    assert len(compare(debian)) > 5000


def test_diff_finds_no_difference(debian: Real) -> None:
    words = ("diff", "-r", "--no-dereference", "--exclude=dev")  # it takes any two devices for different
    assert debian.program(*words, debian.unpacked, debian.at) == ""


def test_tar_packs_the_same_archive_cold_and_warm(debian: Real) -> None:
    expected = debian.program("sh", "-c", fingerprint(str(debian.unpacked)))
    debian.imgfs.evict(debian.reference)
    for _ in range(2):
        assert debian.program("sh", "-c", fingerprint(str(debian.at))) == expected


def test_find_lists_the_same(debian: Real) -> None:
    def found(top: Path) -> list[str]:
        lines = debian.program("find", top, "-not", "-type", "d", "-printf", "%P %y %m %s %n %T@ %l\n")
        return sorted(lines.splitlines())

    assert found(debian.at) == found(debian.unpacked)


def test_checksums_of_one_hold_for_the_other(debian: Real, tmp_path: Path) -> None:
    sums = debian.program(
        "sh", "-c", f"cd {debian.unpacked} && find etc usr/bin -type f -exec sha256sum {{}} +"
    )
    (tmp_path / "sums").write_text(sums)
    debian.program("sh", "-c", f"cd {debian.at} && sha256sum --quiet -c {tmp_path}/sums")


def test_programs_run_in_a_chroot_of_it(debian: Real) -> None:
    assert debian.program("chroot", debian.at, "/bin/echo", "hello") == "hello\n"
    assert "VERSION_CODENAME=bookworm" in debian.program("chroot", debian.at, "cat", "/etc/os-release")
    assert debian.program("chroot", debian.at, "dpkg-query", "-W", "-f", "${Status}", "bash") == (
        "install ok installed"
    )
    assert debian.program("chroot", debian.at, "sh", "-c", "ls /usr/bin | wc -l").strip().isdigit()


# -- Python --------------------------------------------------------------------------------------------------


def test_a_python_image_of_many_layers_is_what_umoci_unpacks(python: Real) -> None:
    assert len(python.image.layers) >= 5
    assert len(compare(python)) > 10_000


def test_numpy_works_in_a_chroot_from_a_cold_cache(python: Real) -> None:
    python.imgfs.evict(python.reference)
    program = "import numpy; print(numpy.arange(10).sum())"
    words = ("chroot", python.at, "env", "-i", "PATH=/usr/bin", "python3", "-B", "-c", program)
    assert python.program(*words) == "45\n"
    status = python.imgfs.status(python.at)
    assert 0 < status["bytes_fetched"] < sum(layer.size for layer in python.image.layers)
    assert any(layer["bytes_fetched"] == 0 for layer in status["layers"]), "what nobody imported was fetched"


def test_grep_finds_the_same_lines(python: Real) -> None:
    found = [
        python.program(
            "sh", "-c", f"cd {top}/usr/local && grep -rc 'import numpy as np' . | sort | sha256sum"
        )
        for top in (python.at, python.unpacked)
    ]
    assert found[0] == found[1]


# -- Node ----------------------------------------------------------------------------------------------------


def test_a_node_tree_of_over_30000_files_is_what_umoci_unpacks(node: Real) -> None:
    assert len(compare(node)) > 30_000


def test_a_cold_find_over_30000_files_is_right_and_small_in_memory(node: Real) -> None:
    drop_caches()
    counts = [node.program("sh", "-c", f"find {top} | wc -l") for top in (node.at, node.unpacked)]
    assert counts[0] == counts[1]
    assert resident(node.imgfs.pid(node.at)) < 100 << 20

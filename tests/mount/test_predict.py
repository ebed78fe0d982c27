"""What is read next is guessed from what is opened, by both drivers, unless that is not wanted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imgfs.status import BroughtStatus
from tests.support import elfmake
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, until, write_image

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]

CHANCE = random.Random(11)
LIBRARY = elfmake.program(code=CHANCE.randbytes(3 << 20)).body
PACKAGE = {f"app/pkg/{name}.py": CHANCE.randbytes(400_000) for name in ("__init__", "a", "b", "c")}


@pytest.fixture
def image(imgfs: Imgfs, tmp_path: Path) -> str:
    """An image that has been mounted, so that it has an index, and of which no bytes are here."""
    members = [
        tar.file("bin/app", elfmake.program([b"libown.so"]).body, mode=0o755),
        tar.file("noise", CHANCE.randbytes(3 << 20)),
        tar.file("lib/libown.so", LIBRARY),
        *(tar.file(path, body) for path, body in PACKAGE.items()),
    ]
    image = write_image(tmp_path / "layout", [gzipped(tar.archive(*members))])
    imgfs.umount(imgfs.mount(image))
    imgfs.evict(image)
    return image


def brought(imgfs: Imgfs, at: Path, cause: str) -> BroughtStatus:
    return BroughtStatus(**imgfs.status(at)["layers"][0]["brought"][cause])


def test_libraries_and_modules_come_before_they_are_read(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--replay", "none")
    with (at / "bin/app").open("rb") as program:
        assert program.read(4) == b"\x7fELF"
        until(lambda: brought(imgfs, at, "library").bytes > 2 << 20, "its library has come")
    with (at / "app/pkg/a.py").open("rb") as module:
        assert module.read(4) == PACKAGE["app/pkg/a.py"][:4]
        until(lambda: brought(imgfs, at, "module").spans, "the modules beside it have come")
    before = brought(imgfs, at, "library").bytes_used
    assert (at / "lib/libown.so").read_bytes() == LIBRARY
    assert {path: (at / path).read_bytes() for path in PACKAGE} == PACKAGE
    assert brought(imgfs, at, "library").bytes_used > before
    assert "by a guess at libraries" in imgfs.ok("status", at)


def test_nothing_is_guessed_where_that_is_not_wanted(imgfs: Imgfs, image: str) -> None:
    at = imgfs.mount(image, "--replay", "none", "--no-predict")
    assert (at / "bin/app").read_bytes()[:4] == b"\x7fELF"
    assert (at / "app/pkg/a.py").read_bytes() == PACKAGE["app/pkg/a.py"]
    assert (at / "noise").stat().st_size == 3 << 20
    assert brought(imgfs, at, "library") == brought(imgfs, at, "module") == BroughtStatus()

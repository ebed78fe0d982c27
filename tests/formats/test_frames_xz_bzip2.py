"""Layers that are packed as no engine packs them any more, mounted."""

from __future__ import annotations

import bz2
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.blobs import prose
from tests.support.mounted import Imgfs, Stored, sha256, write_image
from tests.support.tarmake import archive, file

pytestmark = pytest.mark.kernel

NOISE, PROSE = random.Random(1).randbytes(300_000), prose(1_200_000)
LAYER = archive(file("prose", PROSE), file("noise", NOISE))


@pytest.mark.parametrize(("name", "pack"), [("xz", lzma.compress), ("bzip2", bz2.compress)])
def test_a_layer_in_xz_or_bzip2_is_read_like_any_other(
    imgfs: Imgfs, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    layer = Stored(pack(LAYER), sha256(LAYER), f"application/vnd.oci.image.layer.v1.tar+{name}")
    image = write_image(tmp_path / "layout", [layer])
    at = imgfs.mount(image)
    for _ in range(2):
        assert (at / "noise").read_bytes() == NOISE
        assert (at / "prose").read_bytes() == PROSE
        imgfs.evict(image)

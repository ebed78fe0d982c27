"""Layers that are packed as no engine packs them any more, mounted."""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.test_mount import NOISE
from tests.mount.test_registry import LAYER
from tests.support.mounted import Imgfs, Stored, sha256, write_image

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize(("name", "pack"), [("xz", lzma.compress), ("bzip2", bz2.compress)])
def test_a_layer_in_xz_or_bzip2_is_read_like_any_other(
    imgfs: Imgfs, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    layer = Stored(pack(LAYER), sha256(LAYER), f"application/vnd.oci.image.layer.v1.tar+{name}")
    image = write_image(tmp_path / "layout", [layer])
    at = imgfs.mount(image)
    assert (at / "noise").read_bytes() == NOISE
    imgfs.evict(image)
    assert (at / "noise").read_bytes() == NOISE

"""A layer's own attributes with names of overlayfs's: they fake nothing, whatever driver shows the image."""

from __future__ import annotations

import pytest

from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, write_image

pytestmark = [pytest.mark.kernel, pytest.mark.drivers("fuse", "kernel")]

LAYERS = [
    gzipped(tar.archive(tar.file("secret", b"other"), tar.file("m", b"lower"))),
    gzipped(
        tar.archive(
            tar.directory("r", xattrs={b"trusted.overlay.redirect": b"/secret"}),
            tar.file("m", b"abc", xattrs={b"trusted.overlay.metacopy": b""}),
        )
    ),
]


@pytest.mark.parametrize("options", [(), ("--rw",)])
def test_a_layer_s_overlay_xattrs_mean_nothing(imgfs: Imgfs, options: tuple[str, ...]) -> None:
    image = write_image(imgfs.directory / "layout", LAYERS)
    if options and imgfs.driver == "kernel":
        imgfs.expected.append("the image has attributes trusted.overlay")
        said = imgfs.run("mount", *options, image, imgfs.mountpoint()).complaint()
        assert said == "the image has attributes trusted.overlay.*, which overlayfs takes for its own"
        return
    at = imgfs.mount(image, *options)
    assert (at / "m").read_bytes() == b"abc"
    assert list((at / "r").iterdir()) == []

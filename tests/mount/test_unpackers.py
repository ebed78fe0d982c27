"""What a mount shows, beside what umoci, podman and containerd unpack of the same layers, by both drivers.

The layers are those of `scripts/unpackers`, by chance but always the same: trees with every kind of file,
packed by GNU tar and Python's tarfile, with whiteouts, odd names and members that stand there twice.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from scripts.proving.stacks import by_gnu_tar, by_tarfile, stack
from scripts.proving.unpackers import judged, judges
from tests.support.engines import needs_containerd, needs_podman

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    needs_containerd,
    needs_podman,
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root"),
]


def test_stacks_of_layers_are_what_engines_unpack() -> None:
    with tempfile.TemporaryDirectory(prefix="judge-") as place, judges(Path(place)) as panel:
        for number in (2, 6):
            scratch = Path(place, f"stack{number}")
            scratch.mkdir()
            chance = random.Random(f"7/{number}")
            layers = stack(chance, scratch, [by_gnu_tar, by_tarfile])
            assert judged(panel, layers, scratch, chance) == (["umoci", "podman", "containerd"], [])

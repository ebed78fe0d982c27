"""Large files: what is fetched for a reader in sequence, all of it once, and at random, what is touched."""

from __future__ import annotations

import random
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support import tarmake as tar
from tests.support.fault_server import FaultServer
from tests.support.mounted import Imgfs, Stored, caches_kept, gzipped, plain, serve
from tests.support.patience import allowed

pytestmark = pytest.mark.kernel

SPAN = 1 << 20  # flat bytes: where a layer is cut, or soon after that in a gzip member


@cache
def model_bytes() -> bytes:
    return random.Random(15).randbytes(28 * SPAN)


@cache
def model_layer() -> bytes:
    return tar.archive(tar.file("model", model_bytes()))


# Spans, in all less than the third of a layer after which the rest of it comes.
TOUCHED = {"mapped": (5, 19), "mapped, advised": (11, 2), "read": (25, 8), "read, advised": (14, 22)}
# In a process of its own: a page fault holds the interpreter's lock, which the registry needs.
TOUCH = """
import mmap, os, sys
path, how, *places = sys.argv[1:]
fd = os.open(path, os.O_RDONLY)
if how == "read, advised":
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
if how == "mapped, advised":
    memory.madvise(mmap.MADV_RANDOM)
for at in map(int, places):
    sys.stdout.buffer.write(memory[at : at + 9] if how.startswith("mapped") else os.pread(fd, 9, at))
"""


@pytest.fixture(params=[plain, gzipped], ids=["tar", "gzip"])
def layer(request: pytest.FixtureRequest) -> Stored:
    stored: Stored = request.param(model_layer())
    return stored


@pytest.fixture
def model(imgfs: Imgfs, layer: Stored) -> Any:
    """The file, in a mount that has an index and no bytes."""
    with FaultServer() as server:
        image = serve(server, "model", "1", [layer])
        imgfs.umount(imgfs.mount(image, "--driver", "fuse"))
        imgfs.ok("store", "rm", "--data", image)
        yield imgfs.mount(image, "--driver", "fuse") / "model"


def layer_of(imgfs: Imgfs, model: Path) -> dict[str, Any]:
    [found] = imgfs.status(model.parent)["layers"]
    return dict(found)


def test_a_large_file_read_in_sequence_comes_once_and_stays_with_the_kernel(
    imgfs: Imgfs, model: Path, layer: Stored
) -> None:
    with caches_kept():
        assert model.read_bytes() == model_bytes()
        served = imgfs.status(model.parent)["bytes_served"]
        assert model.read_bytes() == model_bytes()
        again = imgfs.status(model.parent)["bytes_served"] - served
        assert again < len(model_bytes()) // 100  # pages that the kernel had other uses for
    found = layer_of(imgfs, model)
    assert found["bytes_fetched"] == pytest.approx(len(layer.blob), abs=1 << 16)  # a byte may be in two spans
    assert found["brought"]["miss"]["spans"] <= 3
    assert found["requests"] <= len(model_bytes()) // SPAN + 1


def test_what_is_touched_at_random_comes_and_nothing_beside_it(imgfs: Imgfs, model: Path) -> None:
    for count, (how, spans) in enumerate(TOUCHED.items(), 1):
        places = [number * SPAN + SPAN // 2 for number in spans]
        command = [sys.executable, "-c", TOUCH, str(model), how, *map(str, places)]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=allowed(30)).stdout
        assert found == b"".join(model_bytes()[at : at + 9] for at in places)
        layer = layer_of(imgfs, model)
        assert (how, layer["spans_touched"], layer["spans_present"]) == (how, 2 * count, 2 * count)

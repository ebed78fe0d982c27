"""What the bench measures with is right itself: stubs in place of CUDA, weights, copies in the registry."""

from __future__ import annotations

import ctypes
import json
import math
import shutil
import statistics
import struct
import subprocess
from pathlib import Path

import pytest

from scripts.benchmark.cold import JOURNEYS, STOPS
from scripts.benchmark.stage import APPLICATIONS
from scripts.lab import layout, recipes
from scripts.lab.containerd import Containerd
from scripts.lab.registry import Registry
from scripts.lab.torch import PIECE, WEIGHT_DEVIATION, leave_out_cuda, stub, weights

needs_gcc = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("nm")), reason="no gcc, or no nm beside it"
)


def compile_library(path: Path, source: str, *options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_suffix(".c")
    text.write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, text, *options], check=True, timeout=60)
    text.unlink()


@needs_gcc
def test_a_stub_answers_every_call_with_zeros(tmp_path: Path) -> None:
    stub(tmp_path / "libcuda.so", ["one", "two"])
    library = ctypes.CDLL(str(tmp_path / "libcuda.so"))
    for function in (library.one, library.two):
        function.restype = ctypes.POINTER(ctypes.c_char * 8)
        assert bytes(function().contents) == bytes(8)
    assert [path.name for path in tmp_path.iterdir()] == ["libcuda.so"]


@needs_gcc
def test_a_stub_has_the_version_that_its_users_ask_for(tmp_path: Path) -> None:
    stub(tmp_path / "libcudnn.so.8", ["cudnnGetVersion"], "libcudnn.so.8")
    said = subprocess.run(
        ["nm", "--dynamic", "--with-symbol-versions", tmp_path / "libcudnn.so.8"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "cudnnGetVersion@@libcudnn.so.8" in said.stdout


@needs_gcc
def test_a_program_of_cuda_starts_without_its_libraries(tmp_path: Path) -> None:
    at = tmp_path / "lib"
    compile_library(at / "libtorch_cuda.so", "int devices(void) { return 7; } int unused(void) { return 7; }")
    compile_library(at / "libtorch_cuda_linalg.so", "int solve(void) { return 7; }")
    user = "int devices(void); int ask(void) { return devices() != 0; }"
    compile_library(at / "libtorch_python.so", user, f"-L{at}", "-ltorch_cuda", "-Wl,-rpath,$ORIGIN")
    leave_out_cuda(at)
    assert sorted(path.name for path in at.iterdir()) == ["libtorch_cuda.so", "libtorch_python.so"]
    cuda = ctypes.CDLL(str(at / "libtorch_cuda.so"))
    assert cuda.devices() != 7
    assert not hasattr(cuda, "unused")
    ctypes.CDLL(str(at / "libtorch_python.so")).ask()


@pytest.mark.parametrize("size", [1_000, PIECE + 1, 2 * PIECE + 1_001])
def test_weights_have_the_size_asked_for_and_are_always_the_same(size: int) -> None:
    made = b"".join(weights(size))
    assert len(made) == size
    assert made == b"".join(weights(size))


def test_weights_are_a_normally_distributed_tensor() -> None:
    made = b"".join(weights(1_000_000))
    length = int.from_bytes(made[:8], "little")
    tensor = json.loads(made[8 : 8 + length])["weights"]
    start, end = tensor["data_offsets"]
    body = made[8 + length :]
    assert (start, end) == (0, len(body))
    assert tensor["shape"] == [len(body) // 2]
    numbers = [struct.unpack("<f", b"\0\0" + body[at : at + 2])[0] for at in range(0, len(body) - 1, 2)]
    assert all(map(math.isfinite, numbers))
    assert statistics.fmean(numbers) == pytest.approx(0, abs=0.002)
    assert statistics.pstdev(numbers) == pytest.approx(WEIGHT_DEVIATION, rel=0.5)


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry")
def test_a_registry_tells_where_an_image_lies(tmp_path: Path) -> None:
    image = layout.cached_image(
        tmp_path, "small", lambda at: layout.write_image(at, "v1", [recipes.pack_files(at, {"a": "text"})])
    )
    with Registry(tmp_path / "registry") as registry:
        assert not registry.holds("ns/small", "v1")
        assert registry.blobs("ns/small") == []
        registry.push(image, "ns/small")
        assert registry.holds("ns/small", "v1")
        assert not registry.holds("ns/small", "v2")
        held = {path.parent.name for path in registry.blobs("ns/small")}
    assert held == {path.name for path in (image.layout / "blobs/sha256").iterdir()}


def test_a_containerd_that_is_not_installed_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(recipes.RecipeError, match=r"^containerd is not installed$"), Containerd(tmp_path):
        pass


def test_the_journeys_of_a_cold_start_reach_every_stop_once() -> None:
    assert sorted(stop for stops in JOURNEYS for stop in stops) == sorted(STOPS)


def test_every_application_names_a_large_file_below_its_root() -> None:
    for recipe in APPLICATIONS.values():
        assert not recipe.large.startswith("/")
        assert Path(recipe.large).suffix in {".so", ".node"}

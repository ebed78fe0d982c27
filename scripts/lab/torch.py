"""Images for machine learning: Debian with Python, torch with or without CUDA, weights.

The registry of packages has torch for x86-64 with CUDA only, 2 GB of it. What a machine without such a card
would run is that without the libraries of CUDA: their place is taken by stubs, and `import torch` works.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from statistics import NormalDist

from scripts.lab.layout import (
    Image,
    Layer,
    Member,
    cached_image,
    directory,
    pack_members,
    regular,
    tree_members,
    write_image,
)
from scripts.lab.recipes import PYTHON_APP, SITE, RecipeError, pack_debian, pack_pip, pip_install, run

SCIENCE = [*PYTHON_APP[0], *PYTHON_APP[1], *PYTHON_APP[2], *PYTHON_APP[4]]  # matplotlib left out
TORCH = (
    *("torch==2.3.1", "typing-extensions==4.12.2", "sympy==1.12.1", "mpmath==1.3.0", "networkx==3.3"),
    *("jinja2==3.1.4", "markupsafe==2.1.5", "fsspec==2024.6.0", "filelock==3.15.1"),
)
# Small ones that torch is linked with, whose versioned symbols a stub would have to repeat.
CUDA_SMALL = tuple(f"nvidia-{name}-cu12==12.1.105" for name in ("cuda-runtime", "cuda-cupti", "nvtx"))
# All that torch 2.3.1 requires for CUDA 12.1 (its METADATA, Requires-Dist).
CUDA = (
    *CUDA_SMALL,
    *("nvidia-cublas-cu12==12.1.3.1", "nvidia-cuda-nvrtc-cu12==12.1.105", "nvidia-cudnn-cu12==8.9.2.26"),
    *("nvidia-cufft-cu12==11.0.2.54", "nvidia-curand-cu12==10.3.2.106", "nvidia-cusolver-cu12==11.4.5.107"),
    *("nvidia-cusparse-cu12==12.1.0.106", "nvidia-nccl-cu12==2.20.5", "nvidia-nvjitlink-cu12==12.1.105"),
    "triton==2.3.1",
)
CUDA_LARGE = ("libtorch_cuda_linalg.so", "libcusparseLt-*.so.*")  # loaded only when they are used
WEIGHTS = 250_000_000  # bytes
MODEL = 1_000_000_000  # bytes of a model file
MODEL_PATH = "models/weights.safetensors"
WEIGHT_DEVIATION = 0.02  # as a trained model's
PIECE = 1 << 20  # bytes of weights made at once


def ml_app(cache: Path) -> Image:
    """Build Debian with Python, science packages, torch for the CPU, and 250 MB of weights: 4 layers."""

    def build(layout: Path) -> Image:
        layers = [
            pack_debian(layout, ["python3"]),
            pack_pip(layout, SCIENCE),
            _pack_torch(layout),
            _pack_weights(layout, WEIGHTS),
        ]
        return write_image(layout, "latest", layers, ["python3"])

    return cached_image(cache, "ml-app", build)


def torch_cuda(cache: Path) -> Image:
    """Build Debian with Python, and one layer of numpy, torch and CUDA's libraries: 2.9 GB, 5.2 unpacked."""

    def build(layout: Path) -> Image:
        layers = [pack_debian(layout, ["python3"]), pack_pip(layout, [*PYTHON_APP[0], *TORCH, *CUDA])]
        return write_image(layout, "latest", layers, ["python3"])

    return cached_image(cache, "torch", build)


def model(cache: Path) -> Image:
    """Build one layer, not compressed, with a model file of 1 GB: as such artifacts are published."""

    def build(layout: Path) -> Image:
        return write_image(layout, "latest", [_pack_weights(layout, MODEL, is_plain=True)])

    return cached_image(cache, "model", build)


def _pack_torch(layout: Path) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-torch-") as scratch:
        site = Path(scratch)
        pip_install(site, TORCH)
        if (site / "torch/lib/libtorch_cuda.so").exists():  # elsewhere than on x86-64 it is for the CPU
            pip_install(site, CUDA_SMALL)
            leave_out_cuda(site / "torch/lib")
        return pack_members(layout, tree_members(site, SITE))


def leave_out_cuda(libraries: Path) -> None:
    """Put stubs in the place of torch's CUDA libraries, and of cuDNN, which it is linked with."""
    cuda = libraries / "libtorch_cuda.so"
    wanted = set(_symbols(libraries.glob("*.so"), "--undefined-only", but=cuda))
    plain = {name for name in wanted if "@" not in name}
    stub(cuda, sorted(plain.intersection(_symbols([cuda], "--defined-only"))))
    cudnn = re.compile(r"(\w+)@(libcudnn\.so\.\d+)")
    versioned = [found.groups() for found in map(cudnn.fullmatch, sorted(wanted)) if found]
    for soname in {soname for _, soname in versioned}:
        stub(libraries / soname, [name for name, version in versioned if version == soname], soname)
    for pattern in CUDA_LARGE:
        for path in libraries.glob(pattern):
            path.unlink()


def _symbols(libraries: Iterable[Path], which: str, but: Path | None = None) -> Iterator[str]:
    """Name the dynamic symbols of libraries; one with a version as NAME@VERSION."""
    paths = [str(path) for path in libraries if path != but]
    try:
        said = subprocess.run(
            ["nm", "--dynamic", which, "--format=just-symbols", *paths],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as failed:
        raise RecipeError(f"nm: {failed}") from failed
    return (line.strip() for line in said.stdout.splitlines() if line.strip())


def stub(library: Path, symbols: Iterable[str], version: str = "") -> None:
    """Write a library with these symbols, of this version: functions that return a pointer to zeros.

    Type information (the C++ ABI's `_ZTI`) becomes that of a class without bases (Itanium C++ ABI, 2.9.5).
    """
    source = library.with_name(f"{library.name}.c")
    mapping = library.with_name(f"{library.name}.map")
    source.write_text(c_stubs(symbols))
    mapping.write_text(f"{version} {{ global: *; }};\n")
    options = ["-shared", "-nostdlib", f"-Wl,-soname,{library.name}"]
    if version:
        options.append(f"-Wl,--version-script={mapping}")
    library.unlink(missing_ok=True)
    run(["gcc", *options, "-w", "-fPIC", "-o", library, source])
    source.unlink()
    mapping.unlink()


def c_stubs(symbols: Iterable[str]) -> str:
    """Write the C source of such a library."""
    lines = [
        "static char zeros[4096];",
        "void *nothing(void) { return zeros; }",
        "extern char _ZTVN10__cxxabiv117__class_type_infoE[];",
    ]
    for name in symbols:
        if name.startswith("_ZTI"):
            lines.append(
                f"void *{name}[] = {{ _ZTVN10__cxxabiv117__class_type_infoE + 16, "
                f'"{len(name)}{name}" }};'  # the mangled name of a class called like the symbol
            )
        elif name.startswith("_ZTV"):
            lines.append(f"char {name}[512];")
        else:
            lines.append(f'void *{name}(void) __attribute__((alias("nothing")));')
    return "\n".join([*lines, ""])


def _pack_weights(layout: Path, size: int, *, is_plain: bool = False) -> Layer:
    with tempfile.TemporaryDirectory(prefix="imgfs-weights-") as scratch:
        path = Path(scratch, "weights")
        with path.open("wb") as out:
            out.writelines(weights(size))
        members: list[Member] = [(directory("models"), None), (regular(MODEL_PATH, size), path)]
        return pack_members(layout, members, is_plain=is_plain)


def weights(size: int) -> Iterator[bytes]:
    """Yield a file of `size` bytes with one tensor of normally distributed bfloat16, always the same.

    safetensors: a 64-bit length, JSON, numbers (its README, Format). bfloat16 is the upper half of a float.
    """
    head = _safetensors_head(size)
    yield head
    left, random, upper = size - len(head), Random(3), _upper_bytes()
    while left:
        count = min(left, PIECE)
        piece = bytearray(random.randbytes(count + 1))
        piece[1::2] = piece[1::2].translate(upper)
        yield bytes(piece[:count])
        left -= count


def _safetensors_head(size: int) -> bytes:
    def head(count: int) -> bytes:
        tensor = {"dtype": "BF16", "shape": [count // 2], "data_offsets": [0, count]}
        text = json.dumps({"weights": tensor}).encode().ljust(128)  # blanks are allowed to follow
        return len(text).to_bytes(8, "little") + text

    return head(size - len(head(size)))


def _upper_bytes() -> bytes:
    """Map each byte to a quantile of what such a number's upper byte (sign, 7 bits of exponent) would be."""
    normal = NormalDist(0, WEIGHT_DEVIATION)
    return bytes(_float_bits(normal.inv_cdf((number + 0.5) / 256)) >> 24 for number in range(256))


def _float_bits(value: float) -> int:
    return int.from_bytes(struct.pack(">f", value), "big")

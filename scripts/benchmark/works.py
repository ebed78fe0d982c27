"""What people do in a container's root, scene by scene: each work is one command, timed alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.benchmark.clock import drop_page_cache, run
from scripts.benchmark.journey import read_everything
from scripts.benchmark.material import FOR_IMAGE, NUMPY, PIP, Material, Sizes

PLACE = "srv/bench"  # where the scenes put what they make, below the root
SMALL, LARGE = "small", "large"  # what they are called there
MOVED = "usr/lib/python3.11"  # a directory of the image
PIP_INSTALL = ("install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
TAR = 'tar -C "$1" -cf - . | cat >/dev/null'  # GNU tar reads nothing when it writes to /dev/null itself

Step = Callable[[Path, Material], object]


def nothing(_root: Path, _material: Material) -> None:
    """Do nothing before a work."""


class Work(NamedTuple):
    """A command in the root, and what is to be done before it, untimed."""

    name: str
    command: Callable[[Path, Material], Sequence[str | Path]]
    before: Step = nothing


class Scene(NamedTuple):
    """Works that follow from each other; a scene that `writes` is not for a read-only root."""

    works: tuple[Work, ...]
    writes: bool = True

    def __str__(self) -> str:
        return "; ".join(work.name for work in self.works)


def scenes(sizes: Sizes) -> tuple[Scene, ...]:
    """List the scenes, in their order: those that look at the image come before those that change it."""
    return (
        Scene(
            (
                Work("find -newer of everything, cold", _find, _forget_pages),
                Work("find -newer of everything, again", _find),
                Work(
                    "tar of usr/lib, warm", lambda root, _: ["sh", "-c", TAR, "sh", root / "usr/lib"], _read
                ),
            ),
            writes=False,
        ),
        Scene((Work(f"tar -xf of {sizes.files:,} small files", _unpack),)),
        Scene(
            (
                Work(f"git clone of {sizes.tracked:,} files", _clone),
                Work("git status", _status),
                Work("git status, again", _status),
            )
        ),
        Scene((Work("pip install --target, numpy", _pip_target),)),
        Scene((Work("pip install over the image's numpy", _pip_in_image, _bring_wheels),)),
        Scene((Work(f"make -j2 of {sizes.sources} C files", _make, _bring_sources),)),
        Scene(
            (
                Work(f"chmod of {sizes.touched:,} files of the image", _chmod),
                Work(f"mv of {MOVED}", lambda root, _: ["mv", root / MOVED, root / PLACE]),
            )
        ),
        # Late: see `settle` for what so many deletions do to those who make files after them.
        Scene((Work("rm -rf of the small files", lambda root, _: ["rm", "-rf", root / PLACE / SMALL]),)),
        Scene(
            (
                Work(f"dd of {sizes.mebibytes:,} MiB", _dd, _touch_memory),
                Work("dd of it back, warm", _dd_back),
                Work("dd of it back, cold", _dd_back, _forget_pages),
                Work(
                    f"dd of {sizes.mebibytes:,} MiB, conv=fsync",
                    lambda root, material: [*_dd(root, material), "conv=fsync"],
                    lambda root, _: run(["rm", root / PLACE / LARGE]),
                ),
            )
        ),
    )


def _find(root: Path, _material: Material) -> list[str | Path]:
    return ["find", root, "-newer", root / "etc/os-release"]


def _forget_pages(_root: Path, _material: Material) -> None:
    drop_page_cache()


def _read(root: Path, _material: Material) -> None:
    read_everything(root)


def _unpack(root: Path, material: Material) -> list[str | Path]:
    return ["tar", "-C", root / PLACE, f"--one-top-level={SMALL}", "-xf", material.archive]


def _clone(root: Path, material: Material) -> list[str | Path]:
    # By its URL: of a mere path, git would link or copy the pack.
    return ["git", "clone", "--quiet", f"file://{material.repository}", root / PLACE / "clone"]


def _status(root: Path, _material: Material) -> list[str | Path]:
    return ["git", "-C", root / PLACE / "clone", "status"]


def _pip_target(root: Path, material: Material) -> list[str | Path]:
    pip = [sys.executable, "-m", "pip", *PIP_INSTALL, *FOR_IMAGE]
    return [*pip, "--find-links", material.wheels, "--target", root / PLACE / "target", NUMPY]


def _bring_wheels(root: Path, material: Material) -> None:
    run(["cp", *material.wheels.glob("*.whl"), root / PLACE])


def _pip_in_image(root: Path, material: Material) -> list[str | Path]:
    # A wheel of pip runs as it is: a zip on sys.path.
    program = next(Path("/", PLACE, wheel.name, "pip") for wheel in material.wheels.glob(f"{PIP[:3]}-*"))
    over = ["--force-reinstall", "--break-system-packages", "--root-user-action=ignore"]
    return ["chroot", root, "python3", program, *PIP_INSTALL, *over, "--find-links", f"/{PLACE}", NUMPY]


def _bring_sources(root: Path, material: Material) -> None:
    run(["cp", "-r", material.sources, root / PLACE / "sources"])


def _make(root: Path, _material: Material) -> list[str | Path]:
    return ["make", "--silent", "-j2", "-C", root / PLACE / "sources"]


def _chmod(root: Path, material: Material) -> list[str | Path]:
    return ["sh", "-c", 'cd "$1" && xargs -0 chmod g+w <"$2"', "sh", root, material.touched]


def _touch_memory(_root: Path, material: Material) -> None:
    # A virtual machine gives free memory back to its host: who fills it first would pay for its return.
    spare = material.spare
    run(["dd", "if=/dev/zero", f"of={spare}", "bs=1M", f"count={2 * material.sizes.mebibytes}"])
    run(["rm", spare])


def _dd(root: Path, material: Material) -> list[str | Path]:
    count = f"count={material.sizes.mebibytes}"
    return ["dd", "if=/dev/zero", f"of={root / PLACE / LARGE}", "bs=1M", count]


def _dd_back(root: Path, _material: Material) -> list[str | Path]:
    return ["dd", f"if={root / PLACE / LARGE}", "of=/dev/null", "bs=1M"]

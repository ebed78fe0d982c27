"""Whether an image is for a platform, whether this machine runs it, and what binfmt_misc has handlers for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from imgfs.oci.descriptor import Platform
from imgfs.oci.select import is_for, runs
from imgfs.runtime.emulation import check_platform, emulators_to_show, is_emulated
from imgfs.runtime.rootfs import NOT_EXECUTABLE, Refused


def platform(text: str) -> Platform:
    parts = text.split("/")
    return Platform(parts[0], parts[1], parts[2] if len(parts) == 3 else None)


@pytest.mark.parametrize(
    ("machine", "image", "expected"),
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64", "linux/x86_64", True),
        ("linux/amd64", "linux/amd64/v2", True),
        ("linux/amd64", "linux/386", True),
        ("linux/386", "linux/amd64", False),
        ("linux/amd64", "linux/arm64", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64", "linux/aarch64", True),
        ("linux/arm64", "linux/arm/v7", True),
        ("linux/arm64", "linux/arm/v5", True),
        ("linux/arm/v7", "linux/arm/v6", True),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("linux/arm/v6", "linux/arm", True),  # it does not say which
        ("linux/arm/v7", "linux/arm64", False),
        ("linux/amd64", "windows/amd64", False),
        ("linux/amd64", "Linux/AMD64", True),
        ("linux/amd64", "darwin/arm64", False),
        ("linux/ppc64le", "linux/ppc64", False),
        ("linux/amd64", "unknown/unknown", True),
        ("linux/amd64", "linux/unknown", True),
    ],
)
def test_what_a_machine_runs(machine: str, image: str, expected: bool) -> None:
    assert runs(platform(machine), platform(image)) is expected


def test_what_is_wanted_is_more_than_what_runs() -> None:
    assert not is_for(platform("linux/amd64"), platform("linux/386"))
    assert not is_for(platform("linux/arm64"), platform("linux/arm/v7"))
    assert is_for(platform("linux/amd64/v3"), platform("linux/amd64"))
    assert is_for(platform("linux/arm/v7"), platform("linux/arm/v6"))


# As Debian's qemu-user-static registers them.
AARCH64 = (
    "7f454c460201010000000000000000000200b700",
    "ffffffffffffff00fffffffffffffffffeffffff",
)
ARM = ("7f454c4601010100000000000000000002002800", "ffffffffffffff00fffffffffffffffffeffffff")
S390X = ("7f454c4602020100000000000000000000020016", "ffffffffffffff00fffffffffffffffffffeffff")


def handlers(directory: Path, *, status: str = "enabled", **registered: tuple[str, str]) -> Path:
    (directory / "status").write_text(f"{status}\n")
    (directory / "register").write_text("")
    (directory / "python").write_text("enabled\ninterpreter /usr/bin/python3\nflags: \nextension .py\n")
    for name, (magic, mask) in registered.items():
        state, _, name = name.partition("_") if name.startswith("disabled_") else ("enabled", "", name)
        text = f"{state}\ninterpreter /usr/bin/{name}\nflags: OCF\noffset 0\nmagic {magic}\nmask {mask}\n"
        (directory / name).write_text(text)
    return directory


def test_a_handler_is_one_by_what_it_takes_and_not_by_its_name(tmp_path: Path) -> None:
    found = handlers(tmp_path, x=AARCH64, disabled_y=ARM, z=S390X)
    assert is_emulated(platform("linux/arm64"), found)
    assert is_emulated(platform("linux/aarch64/v8"), found)
    assert is_emulated(platform("linux/s390x"), found)
    assert not is_emulated(platform("linux/arm/v7"), found)  # disabled
    assert not is_emulated(platform("linux/riscv64"), found)
    assert not is_emulated(platform("linux/pdp11"), found)


def elf(directory: Path, name: str, *kinds: int, cut: int | None = None) -> Path:
    """A program with these program headers (elf(5))."""
    head = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, len(kinds), 64, 0, 0)
    body = head + b"".join(struct.pack("<II48x", kind, 4) for kind in kinds)
    (directory / name).write_bytes(body[:cut])
    return directory / name


def test_an_emulator_without_the_flag_f_is_shown_if_it_is_static(tmp_path: Path) -> None:
    machine, image = platform("linux/amd64"), platform("linux/arm64")
    (place := tmp_path / "handlers").mkdir()
    handlers(place)

    def shown(path: Path | str, flags: str) -> tuple[str, ...]:
        text = (
            f"enabled\ninterpreter {path}\nflags: {flags}\noffset 0\nmagic {AARCH64[0]}\nmask {AARCH64[1]}\n"
        )
        (place / "arm64").write_text(text)
        check_platform(image, machine, place)
        return emulators_to_show(image, machine, place)

    static = elf(tmp_path, "static", 1, 2)
    assert shown(static, "OC") == shown(static, "") == (str(static),)
    assert shown("/nowhere", "OCF") == ()
    assert emulators_to_show(platform("linux/386"), machine, place) == ()
    for unfit in (
        elf(tmp_path, "dynamic", 1, 3),
        elf(tmp_path, "cut", 1, cut=66),
        "/nowhere",
        "/etc/passwd",
    ):
        with pytest.raises(Refused, match=r"without the flag F, is not a static program"):
            shown(unfit, "OC")


def test_handlers_count_only_while_all_of_them_are_enabled(tmp_path: Path) -> None:
    assert not is_emulated(platform("linux/arm64"), handlers(tmp_path, status="disabled", x=AARCH64))
    assert not is_emulated(platform("linux/arm64"), tmp_path / "nowhere")


def test_what_cannot_be_run_is_refused_by_both_names(tmp_path: Path) -> None:
    machine = platform("linux/amd64")
    with pytest.raises(
        Refused, match=r"for linux/arm64, .* linux/amd64: .*qemu-user.*binfmt_misc"
    ) as refused:
        check_platform(platform("linux/arm64"), machine, handlers(tmp_path))
    assert refused.value.code == NOT_EXECUTABLE
    check_platform(platform("linux/arm64"), machine, handlers(tmp_path, x=AARCH64))
    check_platform(platform("linux/386"), machine, tmp_path)
    with pytest.raises(Refused, match=r"for windows/arm64, and this machine is linux/amd64$"):
        check_platform(platform("windows/arm64"), machine, tmp_path)

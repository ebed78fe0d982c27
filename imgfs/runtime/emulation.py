"""Can this machine run an image's programs: natively, or by an emulator that binfmt_misc starts for them?

A handler with the flag F has its emulator opened already, and starts it in any container. Another one's is
looked for by its path where the program is started: in the container, so it is shown there, and has to be
static (Linux, Documentation/admin-guide/binfmt-misc.rst).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from imgfs.oci.descriptor import Platform
from imgfs.oci.select import runs
from imgfs.owned.opening import open_regular
from imgfs.runtime.rootfs import Refused

HANDLERS = Path("/proc/sys/fs/binfmt_misc")  # Linux, Documentation/admin-guide/binfmt-misc.rst
# Of an ELF file (elf(5)) by GOARCH: EI_CLASS, EI_DATA, e_machine.
_ELF = {
    "386": (1, 1, 3),
    "amd64": (2, 1, 62),
    "arm": (1, 1, 40),
    "arm64": (2, 1, 183),
    "loong64": (2, 1, 258),
    "mips": (1, 2, 8),
    "mipsle": (1, 1, 8),
    "mips64": (2, 2, 8),
    "mips64le": (2, 1, 8),
    "ppc64": (2, 2, 21),
    "ppc64le": (2, 1, 21),
    "riscv64": (2, 1, 243),
    "s390x": (2, 2, 22),
}
_PT_INTERP = 3
_HEAD = 1 << 16  # bytes of a program in which its program headers have to be
_LONGEST = 256  # bytes of a file that the kernel looks at (linux/binfmts.h, BINPRM_BUF_SIZE)


def check_platform(image: Platform, machine: Platform, handlers: Path = HANDLERS) -> None:
    """Raise Refused if no program of an image can be run here."""
    if runs(machine, image):
        return
    advice = ""
    if image.normalized().os == machine.os:
        if is_emulated(image, handlers):
            emulators_to_show(image, machine, handlers)
            return
        advice = ": that needs qemu-user, registered in binfmt_misc (apt install qemu-user-static)"
    raise Refused(f"the image is for {image}, and this machine is {machine}{advice}")


def is_emulated(image: Platform, handlers: Path = HANDLERS) -> bool:
    """Return True if an enabled handler takes the programs of an image's architecture."""
    return any(True for _ in _handlers(image, handlers))


def emulators_to_show(image: Platform, machine: Platform, handlers: Path = HANDLERS) -> tuple[str, ...]:
    """Return the paths of emulators that have to be in a container of an image.

    Raises Refused for an unfit one.
    """
    if runs(machine, image):
        return ()
    found = dict.fromkeys(
        handler["interpreter"]
        for handler in _handlers(image, handlers)
        if "F" not in handler.get("flags", "")
    )
    for path in found:
        if not _is_static(path):
            raise Refused(
                f"the image is for {image}, and {path}, which binfmt_misc has for that without the flag F, "
                "is not a static program of this machine (apt install qemu-user-static)"
            )
    return tuple(found)


def _handlers(image: Platform, handlers: Path) -> Iterator[dict[str, str]]:
    """Yield the enabled handlers that take the programs of an image's architecture."""
    program = _program(image.normalized().architecture)
    if program is None or _fields(handlers / "status").keys() != {"enabled"}:
        return
    for path in sorted(handlers.iterdir()):
        if path.name not in ("status", "register") and _takes(fields := _fields(path), program):
            yield fields


def _is_static(path: str) -> bool:
    """Return whether it is an ELF file that no other program has to load: one without PT_INTERP (elf(5))."""
    try:
        with open_regular(Path(path)) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] not in (1, 2):
        return False
    order, is_64 = "<>"[head[5] - 1], head[4] == 2
    (offset,) = struct.unpack_from(f"{order}{'Q' if is_64 else 'I'}", head, 32 if is_64 else 28)
    size, count = struct.unpack_from(f"{order}HH", head, 54 if is_64 else 42)
    places = range(offset, offset + size * count, size) if size else range(0)
    kinds = [struct.unpack_from(f"{order}I", head, at)[0] for at in places if at + 4 <= len(head)]
    return len(kinds) == count and _PT_INTERP not in kinds


def _program(architecture: str) -> bytes | None:
    """Return how a program for an architecture begins; None if that is not known."""
    known = _ELF.get(architecture)
    if known is None:
        return None
    bits, order, machine = known
    head = b"\x7fELF" + bytes((bits, order, 1)) + bytes(9)
    executable = struct.pack(">HHI" if order == 2 else "<HHI", 2, machine, 1)
    return (head + executable).ljust(_LONGEST, b"\0")


def _takes(handler: Mapping[str, str], program: bytes) -> bool:
    try:
        magic = bytes.fromhex(handler["magic"])
        mask = bytes.fromhex(handler.get("mask", "ff" * len(magic)))
        offset = int(handler.get("offset", "0"))
    except (KeyError, ValueError):  # it goes by the end of a name
        return False
    begins = program[offset : offset + len(magic)]
    is_like = len(begins) == len(magic) and all(
        not (ours ^ theirs) & bits for ours, theirs, bits in zip(begins, magic, mask, strict=False)
    )
    return "enabled" in handler and "interpreter" in handler and is_like


def _fields(path: Path) -> dict[str, str]:
    """Read a file of binfmt_misc: lines of a word and what belongs to it; nothing if there is none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(" ") for line in lines)
    return {word.removesuffix(":"): text.strip() for word, _, text in pairs if word}

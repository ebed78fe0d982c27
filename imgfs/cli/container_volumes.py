"""The options of run and bundle for what is mounted in a container: binds, tmpfs, and names of hosts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from imgfs.cli.container_security import checked
from imgfs.cli.options import in_image, memory, refusal
from imgfs.cli.plain_line import SUPPRESS
from imgfs.runtime.named_volumes import check_volume_name
from imgfs.runtime.request import Bind, Tmpfs

if TYPE_CHECKING:
    import argparse

_SOURCE, _TARGET = ("src", "source"), ("dst", "destination", "target")


_READ_ONLY = ("ro", "readonly")


_DEFAULT = ("nosuid", "nodev")  # of a bind, as podman-run(1) has it: lifted by suid and dev


_BIND_WORDS = {"", "ro", "rw", "z", "Z", "rbind", "suid", "nosuid", "dev", "nodev", "exec", "noexec"}


_HOST = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,252}):([0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[?[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]?)"
)


def mount_options(command: argparse.ArgumentParser) -> None:
    """Add the options for binds, tmpfs and names of hosts."""
    command.add_argument(
        "-v",
        "--volume",
        metavar="[SRC|NAME:]DST[:OPT,…]",
        action="append",
        default=[],
        type=bind,
        help="show SRC, a path or a volume's name, at DST, nosuid and nodev unless OPT: suid, dev, ro; DST "
        "alone: a volume that goes with the container",
    )
    command.add_argument(
        "--tmpfs", metavar="DST[:OPT,…]", action="append", default=[], type=tmpfs, help="a tmpfs at DST"
    )
    command.add_argument(
        "--mount",
        metavar="type=…,…",
        action=_append_mount,  # type: ignore[arg-type]  # makes one
        default=SUPPRESS,
        type=mount,
        help="the same, written out: type=bind,src=SRC,dst=DST,ro or type=tmpfs,dst=DST,tmpfs-size=64m",
    )
    command.add_argument(
        "--add-host",
        metavar="NAME:ADDRESS",
        action="append",
        default=[],
        type=host,
        help="add a line to /etc/hosts",
    )


def bind(text: str) -> Bind:
    """SRC:DST[:OPT,…], or DST for a volume without a name."""
    if text.startswith("/") and ":" not in text:
        return Bind("", in_image(text))
    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    words = set(options.split(","))
    if not source or not target.startswith("/") or words - _BIND_WORDS:
        raise refusal(f"{text!r} is not SRC:DST or SRC:DST:ro, with DST from the root")
    volume = "" if "/" in source or source in (".", "..") else _volume(source)
    return Bind(source, target, "ro" in words, _flags(words), volume)


def _volume(name: str) -> str:
    with checked():
        check_volume_name(name)
    return name


def tmpfs(text: str) -> Tmpfs:
    """DST[:OPT,…]."""
    target, _, options = text.partition(":")
    return Tmpfs(in_image(target), tuple(word for word in options.split(",") if word))


def mount(text: str) -> Bind | Tmpfs:
    """type=bind,src=SRC,dst=DST[,ro] or type=tmpfs,dst=DST[,tmpfs-size=SIZE][,tmpfs-mode=MODE]."""
    fields = dict(word.partition("=")[::2] for word in text.split(","))
    kind, target = fields.pop("type", "volume"), in_image(_taken(fields, _TARGET))
    if kind == "volume":
        source = _taken(fields, _SOURCE)
        name = _volume(source) if source else ""
        found: Bind | Tmpfs = Bind(name, target, _flag(fields, _READ_ONLY), volume=name)
    elif kind == "bind":
        words = {word for word in ("suid", "dev", "noexec") if _flag(fields, (word,))}
        found = Bind(_taken(fields, _SOURCE), target, _flag(fields, _READ_ONLY), _flags(words))
    elif kind == "tmpfs":
        found = Tmpfs(target, _tmpfs_options(fields))
    else:
        raise refusal(f"{kind!r} is not mounted here: type=bind, type=volume or type=tmpfs")
    if fields:
        raise refusal(f"{min(fields)!r} is nothing that type={kind} has")
    if kind == "bind" and isinstance(found, Bind) and not found.source:
        raise refusal(f"{text!r}: src= is missing")
    return found


def _flags(words: set[str]) -> tuple[str, ...]:
    kept = (flag for flag in _DEFAULT if flag.removeprefix("no") not in words)
    return (*kept, *(("noexec",) if "noexec" in words else ()))


def host(text: str) -> tuple[str, str]:
    """NAME:ADDRESS, as a name and an address."""
    match = _HOST.fullmatch(text)
    if not match:
        raise refusal(f"{text!r} is not NAME:ADDRESS, like db:10.0.0.7")
    return match[1], match[2].strip("[]")


def _tmpfs_options(fields: dict[str, str]) -> tuple[str, ...]:
    size, mode = fields.pop("tmpfs-size", ""), fields.pop("tmpfs-mode", "")
    if mode and not (mode.isdecimal() and set(mode) <= set("01234567") and len(mode) <= 5):
        raise refusal(f"{mode!r} is not a mode, like 1777")
    found = (f"size={memory(size)}" if size else "", f"mode={mode}" if mode else "")
    read_only = ("ro",) if _flag(fields, _READ_ONLY) else ()
    return (*(word for word in found if word), *read_only)


def _taken(fields: dict[str, str], names: tuple[str, ...]) -> str:
    return next((fields.pop(name) for name in names if name in fields), "")


def _flag(fields: dict[str, str], names: tuple[str, ...]) -> bool:
    return any(fields.pop(name) in ("", "true", "1") for name in names if name in fields)


def _append_mount(*words: Any, **said: Any) -> argparse.Action:
    """Make the action of --mount: a plain line has none, and does without argparse."""
    from imgfs.cli.container_actions import AppendMount

    return AppendMount(*words, **said)

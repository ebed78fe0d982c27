"""The options of run and bundle, and the forms of their values; `container_request` reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from imgfs.cli.container_security import limit_options, rights_options
from imgfs.cli.container_volumes import mount_options
from imgfs.cli.options import (
    Commands,
    add_command,
    driver_option,
    image_options,
    in_image,
    lazily,
    memory,
    refusal,
)
from imgfs.cli.plain_line import REMAINDER, SUPPRESS
from imgfs.oci.reference import LAST_PORT
from imgfs.runtime.exposed_ports import free_ports
from imgfs.runtime.output_log import SMALLEST
from imgfs.runtime.request import Network, PortMapping
from imgfs.runtime.signals import find_signal

if TYPE_CHECKING:
    import argparse

_PORTS = re.compile(
    r"(?:(?:(\[[0-9a-fA-F:.]+\]|[0-9]+(?:\.[0-9]+){3}|):)?([0-9]{1,5}(?:-[0-9]{1,5})?|):)?"
    r"([0-9]{1,5}(?:-[0-9]{1,5})?)(?:/(tcp|udp))?"
)


def add_run(commands: Commands) -> None:
    """`imgfs run`."""
    command = add_command(
        commands,
        "run",
        lazily("run", "run"),
        "run a container of an image",
        """\
Runs a command, the image's own or CMD, in a container of IMAGE: nothing is pulled, bytes are fetched as they
are read. What the container changes goes with it, unless --scratch keeps it. Needs crun or runc.
The exit code is the command's; 125 if imgfs or the runtime failed or an option is wrong, 126 if the container
cannot be set up or the command cannot be executed, 127 if it is not found, 128+N if signal N ended it.

Examples:
  imgfs run debian:12 cat /etc/os-release
  imgfs run -it debian:12 bash
  imgfs run -v ./data:/data:ro -e MODE=test registry.example.com/team/app:v2
  imgfs run --scratch work debian:12 apt-get update     imgfs diff work says what it changed
  imgfs run --read-only --network none -u nobody debian:12 id
  imgfs run --cap-drop ALL --security-opt no-new-privileges --memory 512m --pids-limit 64 app:v2
  imgfs run --device /dev/fuse --cap-add SYS_ADMIN --ulimit nofile=4096 debian:12 bash
""",
        own_h=True,
    )
    command.usage = "imgfs run [OPTIONS] IMAGE [CMD…]"
    container_options(command)
    command.add_argument(
        "-i", "--interactive", action="store_true", help="pass standard input on (otherwise it is empty)"
    )
    command.add_argument(
        "--name",
        metavar="NAME",
        help="its name, and its host name (default: two words; twelve digits of its id)",
    )
    _start_options(command)
    _detach_options(command)
    command.add_argument(
        "--stop-timeout",
        metavar="SECONDS",
        type=_seconds,
        default=10,
        help="time to end after its stop signal, or after imgfs was killed, before SIGKILL (default: 10)",
    )
    _refused_options(command)
    image_and_command(command)


def image_and_command(command: argparse.ArgumentParser, *, directory: bool = False) -> None:
    """Add what stands behind the options: IMAGE, DIR for a bundle, and the command."""
    image_options(command)
    if directory:
        command.add_argument("directory", metavar="DIR", help="the bundle's directory; made if it is missing")
    words = command.add_argument(
        "command", metavar="CMD", nargs=REMAINDER, help="the command, instead of the image's own"
    )
    words.required = False  # as argparse takes it to be: errors would name it


def container_options(command: argparse.ArgumentParser) -> None:
    """Add the options that describe the container."""
    add = command.add_argument
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add(
        "-e",
        "--env",
        metavar="K[=V]",
        action="append",
        default=[],
        help="set a variable; without a value: copy it from here",
    )
    add(
        "--env-file",
        metavar="FILE",
        action="append",
        default=[],
        help="set variables from a file, one a line",
    )
    mount_options(command)
    add("-w", "--workdir", metavar="DIR", type=in_image, help="its working directory; made if it is missing")
    add("-u", "--user", metavar="USER[:GROUP]", help="run as this user, by name or number")
    add(
        "--entrypoint",
        metavar="CMD",
        help="instead of the image's; several words as a JSON array; '' for none",
    )
    add("-h", "--hostname", metavar="NAME", type=_hostname, help="its host name (default: its name)")
    add(
        "--network",
        "--net",
        choices=[network.value for network in Network],
        help="this machine's (host, the default), one by pasta (the default with -p), or a loopback alone",
    )
    limit_options(command)
    rights_options(command)
    add(
        "--init",
        action="store_true",
        help="run catatonit or tini of this machine as process 1, which reaps orphans",
    )
    _root_options(command)
    add(
        "--stop-signal",
        metavar="SIGNAL",
        type=_signal,
        help="the signal that ends it (default: the image's, else TERM)",
    )
    _note_options(command)
    driver_option(command)


def _root_options(command: argparse.ArgumentParser) -> None:
    """Add what of the container's root can be changed, and what becomes of the changes."""
    add = command.add_argument
    add(
        "--read-only",
        action="store_true",
        help="make the root read-only; /tmp, /var/tmp, /run and volumes stay writable",
    )
    add(
        "--read-only-tmpfs",
        metavar="true|false",
        default=True,
        type=_truth,
        help="false: make /tmp, /var/tmp and /run read-only, too",
    )
    add("--scratch", metavar="NAME|DIR", help="keep what it changes (see: imgfs mount --help)")


def _note_options(command: argparse.ArgumentParser) -> None:
    """Add annotations; labels become annotations, as with podman. The image's own labels never do."""
    for names, text in (
        (["--annotation"], "an annotation in config.json"),
        (["-l", "--label"], "the same as --annotation"),
    ):
        command.add_argument(
            *names,
            dest="annotation",
            metavar="KEY=VALUE",
            action="append",
            type=_note,
            default=[],
            help=text,
        )


def _refuse(*words: Any, **said: Any) -> argparse.Action:
    """Make the action of an option of podman's that imgfs does not have; a plain line has none."""
    from imgfs.cli.container_actions import Refuse

    return Refuse(*words, **said)


def _start_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--runtime", metavar="NAME|PATH", help="the OCI runtime (default: crun, else runc)")
    command.add_argument(
        "--pull",
        metavar="POLICY",
        dest="offline",
        type=_asks_none,
        default=SUPPRESS,
        help="always, newer or missing: ask what a tag means, as without; never: as --offline",
    )


def _detach_options(command: argparse.ArgumentParser) -> None:
    """Add --detach, and what has a use with it."""
    add = command.add_argument
    add(
        "-d",
        "--detach",
        action="store_true",
        help="print its id and let it run: see imgfs ps, logs, exec, stop, rm",
    )
    add(
        "--rm",
        action="store_true",
        help="remove a detached container when it ends; any other is always removed then",
    )
    add(
        "-p",
        "--publish",
        metavar="[[ADDRESS:]HOST:]PORT[/udp]",
        action="append",
        type=ports,
        default=[],
        help="have a port of this machine's lead to one of the container, by pasta",
    )
    add(
        "-P",
        "--publish-all",
        action="store_true",
        help="have a free port of this machine's lead to each port that the image exposes (see: imgfs ps)",
    )
    add("--cidfile", metavar="FILE", help="write its id to a new file")
    add("--pidfile", metavar="FILE", help="write the pid of its first process to a file")
    add(
        "--log-opt",
        metavar="max-size=SIZE",
        type=_log_size,
        help="begin a new file of a detached container's log at this size; two are kept (default: 10m)",
    )


def _log_size(text: str) -> int:
    name, _, value = text.partition("=")
    if name != "max-size":
        raise refusal(f"{text!r} is not max-size=SIZE")
    size = memory(value)
    if size < SMALLEST:
        raise refusal(f"{text!r}: at least {SMALLEST} bytes")
    return size


def _refused_options(command: argparse.ArgumentParser) -> None:
    why = "a container has processes of its own, so that none is left of it"
    command.add_argument("--pid", action=_refuse, const=why, help=SUPPRESS)  # type: ignore[arg-type]  # makes one


def _note(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise refusal(f"{text!r} is not KEY=VALUE")
    return name, value


def _asks_none(text: str) -> bool:
    if text not in ("always", "newer", "missing", "never"):
        raise refusal(f"{text!r} is not always, newer, missing or never")
    return text == "never"


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise refusal(f"{text!r} is neither true nor false")
    return text == "true"


def _signal(text: str) -> str:
    if find_signal(text) is None:
        raise refusal(f"{text!r} is not a signal, like QUIT or 3")
    return text


def _seconds(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text):
        raise refusal(f"{text!r} is not a number of seconds")
    return int(text)


def _hostname(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})", text):
        raise refusal(f"{text!r} is not a host name")
    return text


def ports(text: str) -> list[PortMapping]:
    """[[ADDRESS:][HOST]:]CONTAINER[/PROTOCOL]; HOST and CONTAINER may be ranges of the same length."""
    match = _PORTS.fullmatch(text)
    if not match:
        raise refusal(f"{text!r} is not a port, like 8080:80, 127.0.0.1:8080:80")
    address, host, inside, protocol = (match[1] or "").strip("[]"), match[2], match[3], match[4] or "tcp"
    inner = _range(inside, text)
    outer = _range(host, text) if host else free_ports(address, [protocol] * len(inner))
    if len(outer) != len(inner):
        raise refusal(f"{text!r}: the two ranges have not the same length")
    return [PortMapping(address, *pair, protocol) for pair in zip(outer, inner, strict=True)]


def _range(text: str, whole: str) -> list[int]:
    first, _, last = text.partition("-")
    found = list(range(int(first), int(last or first) + 1))
    if not found or found[0] < 1 or found[-1] > LAST_PORT:
        raise refusal(f"{whole!r}: ports are from 1 to {LAST_PORT}")
    return found

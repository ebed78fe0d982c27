"""run, bundle: what they may be told, and what their help teaches."""

from __future__ import annotations

import argparse
import re

from imgfs.cli.arguments.options import Commands, add_command, driver_option, image_options
from imgfs.runtime.wishes import Bind, Network, Tmpfs

_SIZE = re.compile(r"([0-9]{1,15})([bkmgt]?)", re.IGNORECASE)


def add_run(commands: Commands) -> None:
    """`imgfs run`."""
    command = add_command(
        commands,
        "run",
        "run",
        "run a container of an image",
        """\
Runs a command, the image's own or CMD, in a container of IMAGE: nothing is pulled, bytes are fetched as they
are read. What the container changes goes with it, unless --scratch keeps it. Needs crun or runc.
The exit code is the command's; 125 if imgfs or the runtime failed, 126 if the command cannot be executed,
127 if it is not there, 128+N if signal N ended it: as podman has it.

Examples:
  imgfs run debian:12 cat /etc/os-release
  imgfs run -it debian:12 bash
  imgfs run -v ./data:/data:ro -e MODE=test registry.example.com/team/app:v2
  imgfs run --scratch work debian:12 apt-get update     imgfs diff work says what it changed
  imgfs run --read-only --network none -u nobody debian:12 id
""",
    )
    _container_options(command)
    command.add_argument(
        "-i", "--interactive", action="store_true", help="hand standard input on (otherwise there is none)"
    )
    command.add_argument(
        "--name", metavar="NAME", help="what it is called, as a host too (default: twelve digits)"
    )
    command.add_argument(
        "--runtime", metavar="NAME|PATH", help="an OCI runtime (default: crun, else runc, whichever there is)"
    )
    command.add_argument(
        "--rm", action="store_true", help="remove it when it ends: always so, accepted for podman's sake"
    )
    _image_and_command(command)


def add_bundle(commands: Commands) -> None:
    """`imgfs bundle`."""
    command = add_command(
        commands,
        "bundle",
        "run",
        "make an OCI runtime bundle of an image, for another engine",
        """\
Writes DIR/config.json, mounts IMAGE at DIR/rootfs, and leaves the rest to others. Volumes of the image's are
no mounts of their own there. Unmount it with: imgfs umount DIR/rootfs

Examples:
  imgfs bundle debian:12 ./box
  runc run -b ./box name
  imgfs bundle --scratch work debian:12 ./box bash -c 'echo hello >/greeting'
""",
    )
    _container_options(command)
    _image_and_command(command, directory=True)


def _image_and_command(command: argparse.ArgumentParser, *, directory: bool = False) -> None:
    image_options(command)
    if directory:
        command.add_argument("directory", metavar="DIR", help="the bundle: made, if it is not there")
    command.add_argument(
        "command", metavar="CMD", nargs=argparse.REMAINDER, help="instead of the image's own command"
    )


def _container_options(command: argparse.ArgumentParser) -> None:
    """Add what the container is to be like."""
    add = command.add_argument
    add("-t", "--tty", action="store_true", help="give it a terminal")
    add("-e", "--env", metavar="K[=V]", action="append", default=[], help="a variable, alone: as it is here")
    add("--env-file", metavar="FILE", action="append", default=[], help="variables, one a line")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro]",
        action="append",
        default=[],
        type=bind,
        help="show SRC at DST",
    )
    add("--tmpfs", metavar="DST[:OPT,…]", action="append", default=[], type=tmpfs, help="DST in memory")
    add("-w", "--workdir", metavar="DIR", type=_in_image, help="where it starts; made, if it is not there")
    add("-u", "--user", metavar="USER[:GROUP]", help="whom it runs as, by name or number")
    add("--entrypoint", metavar="CMD", help="instead of the image's; words as a JSON array; '' for none")
    add("--hostname", metavar="NAME", type=_hostname, help="what it takes its host to be called")
    add(
        "--network",
        type=Network,
        choices=list(Network),
        default=Network.HOST,
        help="this machine's (host, the default) or one with nothing but a loopback (none)",
    )
    add("--memory", metavar="SIZE", type=memory, help="at most so much: 512m, 2g")
    add("--cpus", metavar="N", type=_cpus, help="at most so many processors: 0.5, 2")
    add("--read-only", action="store_true", help="let it change nothing but /tmp, /var/tmp, /run, volumes")
    add("--scratch", metavar="NAME|DIR", help="keep what it changes (see: imgfs mount --help)")
    driver_option(command)


def bind(text: str) -> Bind:
    """SRC:DST[:ro|rw]."""
    source, _, rest = text.partition(":")
    target, _, options = rest.partition(":")
    words = set(options.split(",")) - {"", "rw", "z", "Z", "rbind"}
    if not source or not target.startswith("/") or words - {"ro"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not SRC:DST or SRC:DST:ro, with DST from the root")
    if "/" not in source and source != ".":
        raise argparse.ArgumentTypeError(
            f"{source!r}: volumes have no names here; for a directory: ./{source}"
        )
    return Bind(source, target, read_only="ro" in words)


def tmpfs(text: str) -> Tmpfs:
    """DST[:OPT,…]."""
    target, _, options = text.partition(":")
    return Tmpfs(_in_image(target), tuple(word for word in options.split(",") if word))


def memory(text: str) -> int:
    """Bytes: a number, with k, m or g for powers of 1024, as podman has it."""
    match = _SIZE.fullmatch(text)
    count = int(match[1]) * 1024 ** " kmgt".index(match[2].lower().replace("b", "") or " ") if match else 0
    if not 0 < count < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory, like 512m or 2g")
    return count


def _cpus(text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if not 0.01 <= count <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processors, like 0.5 or 2")
    return count


def _in_image(text: str) -> str:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with a slash")
    return text


def _hostname(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host's name")
    return text

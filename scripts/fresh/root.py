"""A bare Debian root file system with a clone of this checkout in it, in a directory of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.fresh import machine

CHECKOUT = Path(__file__).resolve().parent.parent.parent
CLONE = "srv/imgfs"  # below the root: where every user may read it
RETRIES = 'Acquire::Retries "3";'  # unless this machine says otherwise
MACHINES = "opt/machine"  # below the root: files of this machine that its package clients need
USER = "joe"  # an ordinary user, with ranges of ids of his own (subuid(5)), without sudo
_PREFIX = "imgfs-fresh-"


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for a root, gone after the block; what a killed one has left goes with the next."""
    _sweep(Path(tempfile.gettempdir()))
    place = Path(tempfile.mkdtemp(prefix=_PREFIX))
    place.chmod(0o755)
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield place
    finally:
        shutil.rmtree(place)
        os.close(fd)


def _sweep(directory: Path) -> None:
    for left in directory.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            fd = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left)
            finally:
                os.close(fd)


def bootstrap(place: Path, suite: str) -> list[str]:
    """Return the command that makes a root of `suite`, no more than apt needs, at `place`/root."""
    sources, options = place / "sources.list", place / "apt.conf"
    sources.write_text("".join(f"{line}\n" for line in machine.apt_sources(suite)))
    options.write_text("".join(f"{line}\n" for line in [RETRIES, *machine.apt_options()]))
    given = [str(sources)] if sources.stat().st_size else []
    words = ["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", f"--aptopt={options}"]
    return [*words, suite, str(place / "root"), *given]


def furnish(root: Path) -> dict[str, str]:
    """Put a clone, a user and the clients' configuration in a root; the environment to use there."""
    environment = machine.client_environment()
    for source, name in machine.client_files():
        _copy(source, root / name)
    for variable, path in machine.named_paths(environment).items():
        name = (
            f"{MACHINES}{path}"  # not where it is here: what packages bring may not look as if it were there
        )
        _copy(path, root / name)
        environment[variable] = f"/{name}"
    _add_user(root)
    (root / "etc/hosts").write_text("127.0.0.1 localhost fresh\n")
    (root / "etc/hostname").write_text("fresh\n")
    _forbid_services(root)
    clone(root / CLONE)
    return environment


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)


def clone(target: Path) -> None:
    """Clone this checkout's last commit: nothing that was only built or changed here comes along."""
    words = ["git", "-c", f"safe.directory={CHECKOUT}", "clone", "--quiet", "--no-hardlinks"]
    subprocess.run([*words, str(CHECKOUT), str(target)], check=True)


def _add_user(root: Path) -> None:
    home = root / "home" / USER
    home.mkdir(parents=True)
    os.chown(home, 1000, 1000)
    for name, line in {
        "passwd": f"{USER}:x:1000:1000::/home/{USER}:/bin/bash",
        "group": f"{USER}:x:1000:",
        "subuid": f"{USER}:100000:65536",
        "subgid": f"{USER}:100000:65536",
    }.items():
        with (root / "etc" / name).open("a") as file:
            file.write(f"{line}\n")


def _forbid_services(root: Path) -> None:
    """Start no service when its package is installed: the network is this machine's (invoke-rc.d(8))."""
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)

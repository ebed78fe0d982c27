"""How this machine reaches its package registries: apt's sources and options, pip's files, proxies.

A fresh root file system is given the same, whatever it is; no registry is named here.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

# What says how a client reaches a registry. Proxies are written in small and in capital letters.
_CLIENTS = re.compile(
    r"(?i)(http|https|ftp|all|no)_proxy|PIP_.*|npm_config_.*|.*_(CA_BUNDLE|CERT_FILE|CA_CERTS)"
)
# apt.conf(5): the transports' settings, and those about dates and addresses.
_APT = re.compile(r"Acquire::(http|https|ftp|Retries|Check-|Max-FutureTime|ForceIPv)")
_FILES = ("/etc/resolv.conf", "/etc/pip.conf", "~/.config/pip/pip.conf", "~/.pip/pip.conf", "~/.npmrc")
_TARGET = "$(REPO_URI) $(RELEASE) $(COMPONENT)"


def apt_sources(suite: str) -> list[str]:
    """Return the sources of this machine's own release as those of `suite`, one-line style.

    Empty without any.

    `bookworm-updates` becomes `trixie-updates`; sources of other releases, and not of Debian, are left out.
    """
    own = _release()
    found = _apt_targets() if own else []
    if own and not found:  # apt tells of those only whose lists it has read
        subprocess.run(["apt-get", "update", "-qq"], check=False, stdout=subprocess.DEVNULL)
        found = _apt_targets()
    renamed = (re.sub(rf" {own}(-updates|-security)? ", rf" {suite}\1 ", f"{line} ") for line in found)
    return [f"deb {line.strip()}" for line in renamed if re.search(rf" {suite}(-updates|-security)? ", line)]


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    return ""


def _apt_targets() -> list[str]:
    words = ["apt-get", "indextargets", "--format", _TARGET, "Created-By: Packages"]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return sorted(set(said.splitlines()))


def apt_options() -> list[str]:
    """Return the options by which this machine's apt reaches its sources, as lines of apt.conf(5)."""
    words = ["apt-config", "dump", "--format", '%F "%v";%n']
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if _APT.match(line)]


def client_environment() -> dict[str, str]:
    """Return the variables that say how clients reach registries."""
    return {name: value for name, value in os.environ.items() if _CLIENTS.fullmatch(name)}


def named_paths(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the files and directories of this machine that variables name, such as certificates to trust."""
    paths = {name: Path(value) for name, value in environment.items() if value.startswith("/")}
    return {name: path for name, path in paths.items() if path.exists()}


def client_files() -> list[tuple[Path, str]]:
    """The configuration files that clients read, and where below another root they read them as root."""
    pairs = [(Path(name).expanduser(), name.replace("~", "/root").lstrip("/")) for name in _FILES]
    return [(path, place) for path, place in pairs if path.exists()]

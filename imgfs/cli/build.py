"""What building a wheel of imgfs adds to setuptools (pyproject.toml, cmdclass): man pages and completions.

setuptools runs this file by its path: imgfs itself can be imported only once the project's directory is in
sys.path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

_PREFIX = Path("build/pages")


class BuildPages(build_py):
    """setuptools' build_py, after which the wheel also has the pages, as data files below the prefix."""

    def run(self) -> None:
        """Build the package, then generate the pages from its parsers."""
        super().run()
        sys.path.insert(0, str(Path.cwd()))
        from imgfs.cli.pages import write

        directories: dict[str, list[str]] = {}
        for path in write(_PREFIX):
            directories.setdefault(str(path.parent), []).append(os.fspath(_PREFIX / path))
        self.distribution.data_files = [*directories.items()]


class CheckTools(egg_info):
    """setuptools' egg_info, which pip has run before it compiles pyfuse3: what that lacks is said.

    pyfuse3 has no wheels, and without its tools it ends in a traceback of its own build (pyfuse3's setup.py).
    """

    def run(self) -> None:
        """Name what is missing, unless pyfuse3 is there already; else do what egg_info does."""
        lacking = [] if _has_pyfuse3() else missing_tools()
        if lacking:
            sys.exit(
                f"imgfs: pyfuse3 is compiled while imgfs is installed; missing: {', '.join(lacking)}. "
                f"Debian: apt-get install {DEBIAN}. Or, without a compiler, install a wheel of pyfuse3 first."
            )
        super().run()


DEBIAN = "gcc libc6-dev libfuse3-dev pkg-config python3-dev"


def missing_tools() -> list[str]:
    """Return what is missing to compile pyfuse3: compiler, pkg-config, libfuse's and Python's headers."""
    pkg_config = shutil.which("pkg-config")
    has_fuse = pkg_config and subprocess.run([pkg_config, "--exists", "fuse3"], check=False).returncode == 0
    there = {
        "a C compiler": shutil.which("cc") or shutil.which("gcc"),
        "pkg-config": pkg_config,
        "libfuse 3 (fuse3.pc)": has_fuse,
        "Python.h": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    return [name for name, found in there.items() if not found]


def _has_pyfuse3() -> bool:
    """Return whether the environment that is installed into has it: an isolated build cannot import it."""
    return any(Path(sysconfig.get_path("platlib")).glob("pyfuse3-*.dist-info"))

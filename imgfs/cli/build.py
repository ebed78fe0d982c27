"""What building a wheel of imgfs adds to setuptools (pyproject.toml, cmdclass): man pages and completions.

setuptools runs this file by its path: imgfs itself can be imported only once the project's directory is in
sys.path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools.command.build_py import build_py

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

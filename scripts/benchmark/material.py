"""What the works take: an archive, a repository, C sources, wheels; the same bytes in every run."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from scripts.benchmark.clock import run
from scripts.lab.layout import MODIFIED, directory, regular
from scripts.lab.recipes import PYTHON

NUMPY, PIP = "numpy==1.26.4", "pip==24.0"
# As the recipes of the images choose wheels: for bookworm's Python, whatever runs the bench.
FOR_IMAGE = (
    *("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"),
    *("--implementation=cp", f"--python-version={PYTHON}", f"--abi=cp{PYTHON.replace('.', '')}"),
    *("--abi=none", "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64"),
)
LARGEST = 8 << 10  # bytes of a small file
PER_DIRECTORY = 100  # small files
FUNCTIONS = 20  # of a generated C file


class Sizes(NamedTuple):
    """How much there is to do: `mebibytes` in the large file, a new mode for `touched` of the image's."""

    files: int
    tracked: int
    commits: int
    sources: int
    mebibytes: int
    touched: int


FULL = Sizes(files=30_000, tracked=3_000, commits=50, sources=100, mebibytes=1_024, touched=5_000)
QUICK = Sizes(files=3_000, tracked=300, commits=10, sources=20, mebibytes=100, touched=500)


class Material:
    """Everything that the works take, made below `place` when it is first asked for.

    Wheels come from the network, once: they stay in `wheelhouse`. CommandFailed if a tool is missing.
    """

    def __init__(self, place: Path, wheelhouse: Path, lower: Path, sizes: Sizes) -> None:
        self._place, self._wheelhouse, self._lower, self.sizes = place, wheelhouse, lower, sizes
        self.spare = place / "spare"  # a name for a file that may be large
        place.mkdir()

    @cached_property
    def archive(self) -> Path:
        """A tar of small files, of 0 to 8 KiB, 100 to a directory."""
        path, random = self._place / "small.tar", Random(1)
        with tarfile.open(path, "w") as tar:
            for number in range(self.sizes.files):
                at = f"d{number // PER_DIRECTORY:03}"
                if number % PER_DIRECTORY == 0:
                    tar.addfile(directory(at))
                data = random.randbytes(random.randint(0, LARGEST))
                tar.addfile(regular(f"{at}/f{number:05}", len(data)), io.BytesIO(data))
        return path

    @cached_property
    def repository(self) -> Path:
        """A bare git repository, each of whose commits adds files and changes as many older ones."""
        path, stream = self._place / "repository.git", self._place / "fast-import"
        with stream.open("wb") as out:
            out.writelines(history(self.sizes.tracked, self.sizes.commits))
        run(["git", "init", "--quiet", "--bare", "--initial-branch=main", path])
        run(["sh", "-c", 'git -C "$1" fast-import --quiet <"$2"', "sh", path, stream])
        return path

    @cached_property
    def sources(self) -> Path:
        """A directory of C files and the Makefile that links them into one program."""
        path = self._place / "sources"
        path.mkdir()
        for number in range(self.sizes.sources):
            (path / f"part{number:03}.c").write_text(c_source(number))
        (path / "main.c").write_text("int part000_0(int);\nint main(void) { return part000_0(1) == 0; }\n")
        (path / "Makefile").write_text(MAKEFILE)
        return path

    @cached_property
    def wheels(self) -> Path:
        """A directory with the wheels of numpy and of pip itself, which Debian's python3 comes without."""
        for wanted in (NUMPY, PIP):
            if not list(self._wheelhouse.glob(f"{wanted.replace('==', '-')}-*.whl")):
                run([sys.executable, "-m", "pip", "download", "--dest", self._wheelhouse, *FOR_IMAGE, wanted])
        return self._wheelhouse

    @cached_property
    def touched(self) -> Path:
        """The names of the image's first regular files below usr, relative to its root, ended by NUL."""
        path = self._place / "touched"
        found = (name for name in sorted(self._lower.glob("usr/**/*")) if _is_regular(name))
        names = islice(found, self.sizes.touched)
        path.write_bytes(b"".join(bytes(name.relative_to(self._lower)) + b"\0" for name in names))
        return path


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def history(tracked: int, commits: int) -> Iterator[bytes]:
    """Yield what git fast-import makes a repository of `tracked` files from (its page, INPUT FORMAT)."""
    random, step = Random(2), tracked // commits
    for commit in range(commits):
        yield b"commit refs/heads/main\ncommitter Bench <bench@localhost> %d +0000\n" % (MODIFIED + commit)
        yield _data(b"commit %d\n" % commit)
        new = range(commit * step, (commit + 1) * step)
        for number in [*new, *random.sample(range(new.start), min(step, new.start))]:
            yield b"M 100644 inline src/d%02d/f%04d.txt\n" % (number // PER_DIRECTORY, number)
            yield _data(random.randbytes(random.randint(0, LARGEST // 2)).hex("\n", 32).encode())


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)


def c_source(number: int) -> str:
    """Write a C file of some small functions, with the headers that every program has."""
    headers = "".join(f"#include <{name}.h>\n" for name in ("stdio", "stdlib", "string", "unistd"))
    return headers + "".join(
        f"int part{number:03}_{each}(int x) {{ char text[32]; for (int i = 0; i < {each + 2}; i++) "
        f'x += i * x; snprintf(text, sizeof text, "%d", x); return strlen(text) + abs(x); }}\n'
        for each in range(FUNCTIONS)
    )


MAKEFILE = """\
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\tgcc -o $@ $^
%.o: %.c
\tgcc -O1 -c -o $@ $<
"""

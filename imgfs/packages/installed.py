"""The packages of an image: which files of its tree are metadata, and what is in them.

The whole tree is looked through by name; only metadata is read, small files several at once. What cannot be
read is listed, never fatal: half a list that says what is missing is worth more than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

from imgfs.errors import InvalidImage
from imgfs.image.files import Found, ImageFiles
from imgfs.packages.metadata import apk_packages, deb_packages, npm_package, python_package
from imgfs.packages.package import DEB, Distribution, Package, parse_os_release
from imgfs.packages.rpm import ndb_headers, rpm_package, sqlite_headers
from imgfs.parallel import ThreadPool

_MOST = 500_000  # packages; an image with more is no image of programs
_MOST_UNREAD = 100  # files that are named
_SMALL = 1 << 20  # bytes of a file that is read whole
_LARGEST = 1 << 30  # bytes of a database
_PIECE = 1 << 20
_BATCH, _READERS = 16, 8  # small files under way, and threads that read them
_OS_RELEASE = (b"/etc/os-release", b"/usr/lib/os-release")
_LISTS = b"/var/lib/dpkg/info/"

_DPKG = re.compile(rb"/var/lib/dpkg/(?:status|status\.d/[^/]+(?<!\.md5sums))")
_APK = re.compile(rb"/(?:usr/)?lib/apk/db/installed")
_RPM = re.compile(rb"/(?:var/lib|usr/lib/sysimage|usr/share)/rpm/(rpmdb\.sqlite|Packages\.db|Packages)")
_PYTHON = re.compile(
    rb".*(?:\.dist-info/METADATA|(?:\.egg-info|\.egg/EGG-INFO)/PKG-INFO|/[^/]+\.egg-info)", re.S
)
_NPM = re.compile(rb".*/node_modules/(?:@[^/]+/)?[^/@][^/]*/package\.json", re.S)

_Read = Callable[[int, int], bytes]


class Unread(NamedTuple):
    """A file of metadata that could not be read, and why."""

    path: bytes
    reason: str


class InstalledPackages:
    """Finds the packages of an image; `unread` has what could not be read, once they are all found."""

    def __init__(self, files: ImageFiles) -> None:
        self._files = files
        self.unread: list[Unread] = []
        self.unread_more = 0  # that are not listed
        self.distribution = self._distribution()

    def packages(self) -> Iterator[Package]:
        """Yield the packages, in the order of the files. Raises InvalidImage for more than any image has."""
        with ThreadPool(_READERS, thread_name_prefix="imgfs-packages") as pool:
            for count, package in enumerate(self._found(pool)):
                if count == _MOST:
                    raise InvalidImage(f"more than {_MOST} packages")
                yield package

    def _distribution(self) -> Distribution:
        for path in _OS_RELEASE:
            try:
                [found] = self._files.matching(path, follow=True)
            except OSError:
                continue
            if found.is_regular:
                return parse_os_release(self._files.reader(found)(0, _PIECE))
        return Distribution()

    def _found(self, pool: Executor) -> Iterator[Package]:
        """Look through the tree; files that describe a package each are read several at once."""
        small: list[Found] = []
        [root] = self._files.matching(b"/")
        for found in self._files.below(root):
            if not found.is_regular:
                continue
            if _PYTHON.fullmatch(found.path) or _NPM.fullmatch(found.path):
                small.append(found)
                if len(small) == _BATCH:
                    yield from self._small(small, pool)
                    small.clear()
            elif read := self._reader_of(found):
                yield from self._read_database(found, read)
        yield from self._small(small, pool)

    def _reader_of(self, found: Found) -> Callable[[], Iterable[Package]] | None:
        """Return what reads a database; None if a file is none."""
        if _DPKG.fullmatch(found.path):
            return lambda: map(self._of_deb, deb_packages(self._pieces(found)))
        if _APK.fullmatch(found.path):
            return lambda: apk_packages(self._pieces(found))
        if match := _RPM.fullmatch(found.path):
            return partial(self._of_rpm, found, match[1])
        return None

    def _read_database(self, found: Found, read: Callable[[], Iterable[Package]]) -> Iterator[Package]:
        layer = self._files.layer(found)
        try:
            _refuse_larger(found, _LARGEST)
            for package in read():
                yield package._replace(path=found.path, layer=package.layer or layer)
        except InvalidImage as error:
            self._cannot_read(found.path, str(error))

    def _pieces(self, found: Found) -> Iterator[bytes]:
        read = self._files.reader(found)
        return (read(offset, _PIECE) for offset in range(0, found.node.size, _PIECE))

    def _of_deb(self, package: Package) -> Package:
        """Return a package with the layer that installed it: that of its list of files, if it has one."""
        names = [package.name, f"{package.name}:{package.architecture}"]
        for name in names if package.type == DEB else ():
            listed = "/" not in name and self._files.at(_LISTS + name.encode(errors="replace") + b".list")
            if listed:
                return package._replace(layer=self._files.layer(listed))
        return package

    def _of_rpm(self, found: Found, name: bytes) -> Iterator[Package]:
        read, size = self._files.reader(found), found.node.size
        if name == b"Packages":
            raise InvalidImage("a Berkeley DB of rpm's, which imgfs does not read")
        if name == b"rpmdb.sqlite":
            self._check_journal(found.path + b"-wal")
            headers = sqlite_headers(read, size)
        else:
            headers = ndb_headers(read, size)
        yield from filter(None, map(rpm_package, headers))

    def _check_journal(self, path: bytes) -> None:
        """Say that changes in a write-ahead log, which SQLite has not yet put into its file, are not read."""
        journal = self._files.at(path)
        if journal and journal.node.size:
            self._cannot_read(path, "changes in SQLite's write-ahead log are not read")

    def _small(self, small: list[Found], pool: Executor) -> Iterator[Package]:
        """Yield the packages that a file each describes."""
        readers = [self._files.reader(found) for found in small]
        for found, body in zip(small, pool.map(_head, readers), strict=True):
            yield from self._described(found, body)

    def _described(self, found: Found, body: bytes) -> Iterator[Package]:
        is_npm = found.path.endswith(b".json")
        try:
            if is_npm:  # Python's has its fields at its beginning
                _refuse_larger(found, _SMALL)
            package = npm_package(body) if is_npm else python_package(body)
        except InvalidImage as error:
            self._cannot_read(found.path, str(error))
            return
        if package:
            yield package._replace(path=found.path, layer=self._files.layer(found))

    def _cannot_read(self, path: bytes, reason: str) -> None:
        if len(self.unread) < _MOST_UNREAD:
            self.unread.append(Unread(path, reason))
        else:
            self.unread_more += 1


def _refuse_larger(found: Found, size: int) -> None:
    if found.node.size > size:
        raise InvalidImage(f"a file of {found.node.size} bytes; at most {size} are read")


def _head(read: _Read) -> bytes:
    return read(0, _SMALL)

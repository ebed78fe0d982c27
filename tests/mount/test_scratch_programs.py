"""Real programs at work in a chroot of a writable mount, and in a plain directory that holds the same image.

The image is Debian with git, make, a C compiler and pip. Both must do the same, and what they leave must be
the same, also after the scratch has been mounted again. Nothing here needs a network once the image is built.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.lab.recipes import RecipeError
from tests.support import images
from tests.support.mounted import Imgfs
from tests.support.patience import allowed
from tests.support.umoci_oracle import differences, unpack_layout, walk_directory

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.parts,
    pytest.mark.timeout(1800),  # the first time the image is built
    pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root"),
    pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed"),
]

PATIENT = allowed(300.0)  # seconds for a program that does much
DATE = "2020-02-02T02:02:02Z"
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONDONTWRITEBYTECODE": "1",
    "SOURCE_DATE_EPOCH": "1580608922",
    **{f"GIT_{who}_{what}": what for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    **{f"GIT_{who}_DATE": DATE for who in ("AUTHOR", "COMMITTER")},
}


@dataclass
class Work:
    """The image mounted with a scratch, and unpacked; programs run in both."""

    imgfs: Imgfs
    reference: str
    mounted: Path
    plain: Path
    scratch: Path

    @property
    def roots(self) -> tuple[Path, Path]:
        return self.mounted, self.plain

    def run(self, script: str) -> str:
        """What a shell script writes in either root; it must succeed, and write the same in both."""
        mounted, plain = (self._chroot(root, script) for root in self.roots)
        assert mounted == plain
        return mounted

    def bring(self, path: str, content: bytes) -> None:
        """Put a file into both roots."""
        for root in self.roots:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            os.utime(root / path, (0, 1_600_000_000))

    def mount(self) -> None:
        options = ("--rw", "--scratch", str(self.scratch))
        self.imgfs.mount(self.reference, *options, at=self.mounted, timeout=PATIENT)

    def remount(self) -> None:
        self.imgfs.umount(self.mounted)
        self.mount()

    def compare(self, *directories: str) -> int:
        """Assert that the directories are the same in both roots, but for the time of what is new; count."""
        count = 0
        for directory in directories:
            mounted, plain = (walk_directory(root / directory) for root in self.roots)
            new = {path for path, seen in plain.items() if seen.mtime_ns > time.time_ns() - 3600 * 10**9}
            assert differences(plain, mounted, ignoring_mtime=new) == [], directory
            count += len(plain)
        return count

    def _chroot(self, root: Path, script: str) -> str:
        """In a mount namespace of its own, with the machine's devices."""
        prepared = f"mount --bind /dev {root}/dev; mount -t proc proc {root}/proc; cd {root}"
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        outside = ["unshare", "-m", "sh", "-euc", f'{prepared}; exec chroot {root} "$@"', "sh"]
        inside = ["env", "-i", *environment, "sh", "-euc", script]
        done = self.imgfs.program(*outside, *inside, timeout=PATIENT)
        assert done.code == 0, (root, done.code, done.err[-3000:], done.text[-3000:])
        return done.text


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    try:
        image = images.debian(images.default_cache())
    except RecipeError as error:
        pytest.skip(f"the image cannot be built here: {error}")
    directory = tmp_path_factory.mktemp("programs")
    plain = unpack_layout(image.layout, image.tag, directory / "bundle")
    imgfs = Imgfs(directory / "imgfs")
    it = Work(imgfs, image.reference, imgfs.mountpoint(), plain, directory / "scratch")
    it.mount()
    yield it
    imgfs.umount(it.mounted)
    imgfs.close()
    shutil.rmtree(directory)


# -- packages


def stanza(version: str) -> str:
    """What a control file says of `greeting`."""
    fields = {"Version": version, "Architecture": "all", "Maintainer": "us", "Description": "greets"}
    return "Package: greeting\n" + "".join(f"{name}: {value}\n" for name, value in fields.items())


def deb(directory: Path, version: str, files: dict[str, str]) -> bytes:
    """A package `greeting`, with a conffile and a script that runs when it is configured."""
    tree = directory / version
    scripts = {"DEBIAN/control": stanza(version), "DEBIAN/conffiles": "/etc/greeting.conf\n"}
    scripts["DEBIAN/postinst"] = f"#!/bin/sh\nset -e\necho {version} >> /var/lib/greeting.log\n"
    for name, text in {**files, **scripts, "etc/greeting.conf": "loud\n"}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if text.startswith("#!") else 0o644)
        os.utime(path, (0, 1_600_000_000))
    built = directory / f"greeting_{version}.deb"
    words = ["dpkg-deb", "--root-owner-group", "-b", str(tree), str(built)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return built.read_bytes()


def bring_repository(work: Work, directory: Path) -> None:
    """An apt repository in /srv/repository: two versions of a package."""
    stanzas = []
    versions = {
        "1": {"usr/bin/greet": "#!/bin/sh\necho hello\n", "usr/share/greeting/old": "old\n"},
        "2": {"usr/bin/greet": "#!/bin/sh\necho good morning\n", "usr/share/greeting/new/file": "new\n"},
    }
    for version, files in versions.items():
        package = deb(directory, version, files)
        work.bring(f"srv/repository/greeting_{version}.deb", package)
        stanzas.append(
            f"{stanza(version)}Filename: ./greeting_{version}.deb\nSize: {len(package)}\n"
            f"SHA256: {hashlib.sha256(package).hexdigest()}\n"
        )
    work.bring("srv/repository/Packages", "\n".join(stanzas).encode())
    work.run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
    work.bring("etc/apt/sources.list", b"deb [trusted=yes] file:/srv/repository ./\n")


def test_apt_installs_upgrades_and_removes_packages(work: Work, tmp_path: Path) -> None:
    bring_repository(work, tmp_path)
    work.run("apt-get -qq update; apt-get -qq -y install greeting=1 >/dev/null")
    assert work.run("greet; cat /usr/share/greeting/old") == "hello\nold\n"
    work.run("apt-get -qq -y install greeting >/dev/null; test ! -e /usr/share/greeting/old")
    assert work.run("greet; cat /var/lib/greeting.log") == "good morning\n1\n2\n"
    work.remount()
    verified = work.run("dpkg -V greeting; dpkg-query -W -f '${Version} ${Status}' greeting")
    assert verified == "2 install ok installed"
    work.run("dpkg -r greeting >/dev/null; test ! -e /usr/share/greeting; cat /etc/greeting.conf")
    work.run("dpkg -P greeting >/dev/null; test ! -e /etc/greeting.conf")
    assert work.run("dpkg --audit; dpkg-query -W | grep -c greeting || true") == "0\n"
    work.compare("etc", "usr/bin", "usr/share", "var/lib/dpkg/info")


def test_a_package_of_the_image_is_removed_and_comes_back(work: Work) -> None:
    work.run("mkdir -p /srv/again; cp -a /usr/bin/make /srv/again/; dpkg -P --force-depends make >/dev/null")
    work.run("test ! -e /usr/bin/make; test ! -e /usr/share/doc/make; ! dpkg -s make 2>/dev/null")
    work.remount()
    work.run("test ! -e /usr/bin/make; cp -a /srv/again/make /usr/bin/make; make --version >/dev/null")
    work.compare("usr/bin", "usr/share", "var/lib/dpkg/info")


# -- version control, databases, builds


def test_git_keeps_a_repository(work: Work) -> None:
    made = work.run("""
        mkdir -p /srv/git; cd /srv/git; git init -q -b main .
        for n in $(seq 200); do mkdir -p d$((n % 10)); echo "file $n" > "d$((n % 10))/$n"; done
        ln -s d1 link; git add .; git commit -qm first
        git mv d2 moved; git rm -q -r d3; echo changed > d1/1; git commit -qam second
        git checkout -q -b other HEAD~1; echo other > d4/4; git commit -qam third; git checkout -q main
        git merge -q -m merge other; git gc -q; git fsck --strict; git status --porcelain; git log --format=%H
    """)
    assert len(made.splitlines()) == 4  # three commits and the merge: status and fsck have nothing to say
    work.remount()
    work.run(
        "cd /srv/git; git status --porcelain; git fsck --strict; git clone -q . ../clone; rm -r ../clone"
    )
    assert work.compare("srv/git/d1", "srv/git/moved", "srv/git/.git/objects", "srv/git/.git/refs") > 40


SQL = """
import multiprocessing, sqlite3, sys
def insert(number):
    with sqlite3.connect("/srv/sql/base", timeout=60) as base:
        for at in range(40):
            base.execute("insert into t values (?, ?)", (number, at))
            base.commit()
    base.close()
if __name__ == "__main__":
    base = sqlite3.connect("/srv/sql/base")
    print(base.execute("pragma journal_mode = wal").fetchone()[0])
    base.execute("create table t (number, at)")
    processes = [multiprocessing.Process(target=insert, args=(number,)) for number in range(4)]
    [process.start() for process in processes]; [process.join() for process in processes]
    print([process.exitcode for process in processes])
    print(base.execute("select count(*), sum(number * 1000 + at) from t").fetchone())
"""
CHECK = """
import sqlite3
base = sqlite3.connect("/srv/sql/base")
for question in ("pragma integrity_check", "select count(*) from t"):
    print(base.execute(question).fetchone()[0])
"""


def test_sqlite_has_many_writers_in_wal_mode(work: Work) -> None:
    work.bring("srv/sql/insert.py", SQL.encode())
    work.bring("srv/sql/check.py", CHECK.encode())
    made = work.run("python3 /srv/sql/insert.py").splitlines()
    assert made == ["wal", "[0, 0, 0, 0]", "(160, 243120)"]
    assert work.run("python3 /srv/sql/check.py") == "ok\n160\n"
    work.remount()
    assert work.run("python3 /srv/sql/check.py; ls /srv/sql") == "ok\n160\nbase\ncheck.py\ninsert.py\n"


MAKEFILE = """
CC = tcc
greet: main.o word.o
	$(CC) -o $@ $^
%.o: %.c word.h
	$(CC) -c -o $@ $<
clean:
	rm -f greet *.o
"""


def test_make_builds_what_has_changed_and_no_more(work: Work) -> None:
    for name, text in {
        "Makefile": MAKEFILE,
        "word.h": "const char *word(void);\n",
        "word.c": '#include "word.h"\nconst char *word(void) { return "hello"; }\n',
        "main.c": '#include <stdio.h>\n#include "word.h"\nint main(void) { puts(word()); return 0; }\n',
    }.items():
        work.bring(f"srv/make/{name}", text.encode())
    assert len(work.run("cd /srv/make; make").splitlines()) == 3
    assert work.run("cd /srv/make; make; ./greet") == "make: 'greet' is up to date.\nhello\n"
    work.remount()
    assert work.run("cd /srv/make; make") == "make: 'greet' is up to date.\n"
    rebuilt = work.run("cd /srv/make; sleep 0.02; sed -i s/hello/bye/ word.c; make; ./greet; make -s clean")
    assert rebuilt == "tcc -c -o word.o word.c\ntcc -o greet main.o word.o\nbye\n"
    work.compare("srv/make")


# -- Python


def wheel() -> bytes:
    """A package in pure Python, with a command."""
    name = "greeting-1.0.dist-info"
    files = {
        "greeting/__init__.py": "def main():\n    print('hello')\n",
        f"{name}/METADATA": "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n",
        f"{name}/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}/entry_points.txt": "[console_scripts]\ngreeting = greeting:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{name}/RECORD"])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in {**files, f"{name}/RECORD": record}.items():
            archive.writestr(zipfile.ZipInfo(path), text)
    return packed.getvalue()


def test_pip_installs_into_an_environment_and_a_directory(work: Work) -> None:
    name = "greeting-1.0-py3-none-any.whl"
    work.bring(f"srv/{name}", wheel())
    pip = "pip --quiet --disable-pip-version-check"
    install = f"{pip} install --no-index --no-compile --root-user-action=ignore"
    work.run(f"python3 -m venv /srv/env; /srv/env/bin/{install} /srv/{name}")
    work.run(f"{install} --target /srv/target /srv/{name}")
    greet = "/srv/env/bin/greeting; PYTHONPATH=/srv/target /srv/target/bin/greeting"
    assert work.run(greet) == "hello\nhello\n"
    work.remount()
    assert work.compare("srv/env", "srv/target") > 500
    work.run(f"/srv/env/bin/{pip} uninstall -y greeting; test ! -e /srv/env/bin/greeting")
    work.run("rm -rf /srv/env /srv/target; test ! -e /srv/env")


def test_compileall_writes_beside_the_images_modules(work: Work) -> None:
    json, email = "usr/lib/python3.11/json", "usr/lib/python3.11/email"
    work.run(f"rm -rf /{json}/__pycache__ /{email}/__pycache__")
    work.run(f"env -u SOURCE_DATE_EPOCH python3 -m compileall -q /{json} /{email}")
    work.remount()
    assert work.run(f"ls /{json}/__pycache__ | grep -c 311.pyc") == "5\n"
    work.compare(json, email)


# -- many files


def archive_of(files: int) -> bytes:
    """A tar of small files, in directories of a hundred, with links of both kinds."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in range(files):
            info = tarfile.TarInfo(f"many/{number // 100:03}/file-{number}")
            info.size, info.mtime, info.mode = number % 700, 1_500_000_000 + number, 0o600 + number % 64
            info.uid = info.gid = number % 5
            tar.addfile(info, io.BytesIO(b"x" * info.size))
        links = ((tarfile.LNKTYPE, "hard", "many/000/file-7"), (tarfile.SYMTYPE, "soft", "hard"))
        for kind, name, target in links:
            info = tarfile.TarInfo(f"many/{name}")
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return packed.getvalue()


def test_tar_unpacks_thousands_of_files_and_rm_removes_them(work: Work) -> None:
    work.bring("srv/many.tar", archive_of(1000))
    work.run("cd /srv; tar -xpf many.tar; find many -type f | wc -l")
    assert work.compare("srv/many") == 1013
    work.remount()
    work.run("cd /srv; tar -df many.tar; cp -a many more; diff -r --no-dereference many more; rm -rf more")
    work.run("cd /srv; mv many moved; find moved -type f -name '*7' -delete; find moved | wc -l")
    work.run("cd /srv; rm -rf moved; test ! -e moved; ls")


def test_a_directory_of_the_image_is_copied_moved_and_removed(work: Work) -> None:
    work.run("cp -a /usr/share/perl5 /srv/copy; diff -r --no-dereference /usr/share/perl5 /srv/copy")
    work.run("mv /usr/share/perl5 /srv/perl; diff -r --no-dereference /srv/perl /srv/copy; rm -rf /srv/copy")
    work.remount()
    assert work.compare("srv/perl") > 50
    work.run("mv /srv/perl /usr/share/perl5; perl -e 'use strict; use Debconf::Gettext; print gettext(1.5)'")
    work.compare("usr/share")

"""The programs that run on a mount while its daemon is killed (`storm`), as a shell is told.

Each says all that matters, and the same at every mount of the same image, which is at `{at}`.
"""

from __future__ import annotations

from collections.abc import Mapping

_SHOW = "find . -type f -print0 | sort -z | xargs -0 sha256sum; find . -printf '%P %m %u %n\\n' | sort"

_GIT = """\
export HOME={at} GIT_CONFIG_NOSYSTEM=1
g='git -c user.name=a -c user.email=a@b -c gc.auto=0'
$g init -q -b main one; cp -r n0 n1 one; cd one; $g add .; $g commit -qm 0
for n in 1 2 3 4; do echo $n >>n0/new; $g add .; $g commit -qm $n; done
$g clone -q . ../two; cd ../two
$g repack -qad; $g fsck --strict 2>&1; $g status --short; $g log --format=%s
find . -name .git -prune -o -type f -print | sort | xargs sha256sum
"""

# A package and its next version, as apt has dpkg do it: each file beside its name, synced, and renamed.
_UNPACK = """\
umask 022; PATH=$PATH:/usr/sbin:/sbin; d=$(mktemp -d); r={at}/root
mkdir -p $r/var/lib/dpkg/info $r/var/lib/dpkg/updates; : >$r/var/lib/dpkg/status
for version in 1 2 3 4 5 6; do
    mkdir -p $d/$version/DEBIAN $d/$version/usr; cp -r n0 n$((version % 4)) $d/$version/usr
    echo $version >$d/$version/usr/n0/version
    printf '%s\\n' 'Package: n' "Version: $version" 'Architecture: all' 'Maintainer: a <a@b>' \
        'Description: n' >$d/$version/DEBIAN/control
    dpkg-deb --root-owner-group -Znone -b $d/$version $d/$version.deb >/dev/null
    dpkg --root=$r --log=/dev/null --force-not-root --force-bad-path -i $d/$version.deb >/dev/null 2>&1
    echo installed $?
done
rm -r $d; dpkg --root=$r --verify n; dpkg --root=$r -s n; cd $r
"""

_INSTALL = """\
export PYTHONDONTWRITEBYTECODE=1 HOME={at}; umask 022
for target in one two; do
    /usr/bin/python3 -m pip install -q --no-index --no-compile --no-cache-dir --disable-pip-version-check \
        --find-links /usr/share/python-wheels --target lib/$target setuptools 2>&1 | grep -v 'running pip as'
done
cd lib
"""

_COMMIT = """\
{python} -m tests.support.storm change {at} {seed} >/dev/null; d=$(mktemp -d)
for n in 1 2; do
    {python} -m imgfs commit {at} oci:$d/$n:new >/dev/null; echo committed $?
    {python} -m imgfs sha256 -r oci:$d/$n:new / | sort
done
rm -r $d
"""

# By name: what runs in the mount, or, with {python}, in the checkout; and whether that changes anything.
PROGRAMS: Mapping[str, tuple[str, bool]] = {
    "find": ("find . -printf '%p %y %m %s %T@ %n\\n' | sort", False),
    "tar": ("tar -c --sort=name . | sha256sum", False),
    "grep": ("grep -r -c -E '[aeiou]{{2}}' . | sort", False),
    "read": ("{python} -m tests.support.storm read {at} {seed}", False),
    "execute": ("for n in $(seq 8); do ./busybox sha256sum n*/*; done", False),
    "change": ("{python} -m tests.support.storm change {at} {seed}", True),
    "ranges": ("{python} -m tests.support.storm ranges {at} {seed}", True),
    "database": ("{python} -m tests.support.storm database {at} {seed}", True),
    "git": (_GIT, True),
    "unpack": (_UNPACK + _SHOW, True),
    "install": (_INSTALL + _SHOW, True),
    "commit": (_COMMIT, True),
}

"""What the dynamic linker reads for a program: which libraries, found where, and what of large ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.predict.files import FilesByPath
from imgfs.predict.guess import Rank
from imgfs.predict.libraries import Libraries
from imgfs.tree.database import Node
from imgfs.tree.reader import Tree
from tests.support import elfmake
from tests.support.guesses import Played
from tests.support.layers import merged
from tests.support.tarmake import archive, directory, file, symlink

ARCH = "usr/lib/x86_64-linux-gnu"


def played(tmp_path: Path, opened: str, *members: bytes) -> Played:
    """The guesses that follow from a file that is opened."""
    flat = archive(*members)
    with merged(tmp_path, flat) as tree:
        files = FilesByPath(tree)
        node = files.file(opened.encode())
        assert node
        return Played(tree, flat, Libraries(files).of_file(opened.encode(), node))


def test_a_program_needs_its_libraries_and_theirs_and_the_linker(tmp_path: Path) -> None:
    program = elfmake.program([b"liba.so.1"], interpreter=b"/lib64/ld-linux-x86-64.so.2")
    found = played(
        tmp_path,
        "usr/bin/app",
        directory(ARCH),
        symlink("lib", "usr/lib"),
        symlink("lib64", "usr/lib64"),
        file("usr/bin/app", program.body, mode=0o755),
        file("usr/lib64/ld-linux-x86-64.so.2", elfmake.program().body, mode=0o755),
        symlink(f"{ARCH}/liba.so.1", "liba.so.1.2"),
        file(f"{ARCH}/liba.so.1.2", elfmake.program([b"libb.so"]).body),
        file("usr/local/lib/libb.so", elfmake.program([b"libnone.so"]).body),
        file(f"{ARCH}/libc.so.6", elfmake.program().body),
        file(f"{ARCH}/gconv/gconv-modules.cache", b"x"),
        file("etc/ld.so.cache", b"cache"),
        file("etc/passwd", b"root"),
    )
    assert found.paths() == {
        "usr/bin/app", "usr/lib64/ld-linux-x86-64.so.2", f"{ARCH}/liba.so.1.2", "usr/local/lib/libb.so",
        f"{ARCH}/libc.so.6", f"{ARCH}/gconv/gconv-modules.cache", "etc/ld.so.cache",
    }  # fmt: skip
    assert found.paths(Rank.NOW) == found.paths()


def test_libraries_are_found_by_runpath_and_by_what_ld_so_conf_includes(tmp_path: Path) -> None:
    extension = elfmake.program([b"libown.so", b"libfar.so"], runpath=b"/none:$ORIGIN/../app.libs")
    found = played(
        tmp_path,
        "opt/app/x.so",
        file("opt/app/x.so", extension.body),
        file("opt/app.libs/libown.so", elfmake.program().body),
        file("opt/far/libfar.so", elfmake.program().body),
        file("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n"),
        file("etc/ld.so.conf.d/far.conf", b"# far\n/opt/far\n"),
    )
    assert found.paths() == {"opt/app/x.so", "opt/app.libs/libown.so", "opt/far/libfar.so"}


def test_of_a_large_library_what_is_linked_is_wanted_and_its_code_watched(tmp_path: Path) -> None:
    large = elfmake.program([b"libsmall.so"], code=bytes(12 << 20))
    library = file("usr/lib/liblarge.so", large.body)
    found = played(tmp_path, "usr/lib/liblarge.so", library, file("usr/lib/libsmall.so", b"\x7fELF"))
    assert found.paths() == {"usr/lib/liblarge.so", "usr/lib/libsmall.so"}
    wanted = sum(want.end - want.start for want in found.wanted["usr/lib/liblarge.so"])
    assert wanted < 4 << 20
    watched = found.watched["usr/lib/liblarge.so"]
    assert (watched.start, watched.end) == large.code


def test_all_code_of_a_large_program_is_wanted_last(tmp_path: Path) -> None:
    large = elfmake.program(code=bytes(12 << 20))
    found = played(tmp_path, "usr/bin/large", file("usr/bin/large", large.body, mode=0o755))
    last = [(want.start, want.end) for want in found.wanted["usr/bin/large"] if want.rank is Rank.LATER]
    assert last == [large.code]


def test_a_script_is_wanted_and_no_more(tmp_path: Path) -> None:
    script = file("usr/bin/script", b"#!/bin/sh\n", mode=0o755)
    assert played(tmp_path, "usr/bin/script", script).paths() == {"usr/bin/script"}


def test_all_guesses_of_a_mount_look_at_so_many_names_and_no_more(tmp_path: Path) -> None:
    names = [b"lib%d.so" % number for number in range(200)]
    flat = archive(
        file("lib/libx.so", elfmake.program(names, runpath=b":".join([b"/a"] * 60)).body),
        file("lib/lib0.so", b""),
        file("lib/lib1.so", b""),
    )
    with merged(tmp_path, flat) as tree:
        files = FilesByPath(tree)
        node = files.file(b"lib/libx.so")
        assert node
        files.left = 70 * 20  # more than 60 paths are tried for the first, and as many for the second
        found = Played(tree, flat, Libraries(files).of_file(b"lib/libx.so", node))
        assert found.paths() == {"lib/libx.so", "lib/lib0.so"}
        assert files.left <= 0


def test_a_path_costs_no_more_than_it_counts_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    lookup = Tree.lookup

    def counted(tree: Tree, parent: int, name: bytes) -> Node | None:
        looked.append(name)
        return lookup(tree, parent, name)

    monkeypatch.setattr(Tree, "lookup", counted)
    deep = "d/" * 1000
    names = [b"lib%d.so" % number for number in range(20)]
    program = elfmake.program(names, runpath=b"/%s:%s" % (deep.encode(), b"$ORIGIN" * 200))
    found = played(tmp_path, "a/x.so", file("a/x.so", program.body), file(f"{deep}lib0.so", b""))
    assert found.paths() == {"a/x.so"}
    assert len(looked) < 20 * (64 + 40)


def test_libraries_that_need_each_other_come_to_an_end(tmp_path: Path) -> None:
    a, b = elfmake.program([b"libb.so"]).body, elfmake.program([b"liba.so", b"libb.so"]).body
    found = played(tmp_path, "lib/liba.so", file("lib/liba.so", a), file("lib/libb.so", b))
    assert found.paths() == {"lib/liba.so", "lib/libb.so"}


@given(st.lists(st.tuples(st.integers(4, 12_000), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_damaged_library_is_read_within_its_bounds(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    body = bytearray(elfmake.program([b"libc.so.6"], runpath=b"$ORIGIN", interpreter=b"/lib/ld.so").body)
    for at, value in damage:
        body[at % len(body)] = value
    library = file("lib/libx.so", bytes(body))
    found = played(tmp_path_factory.mktemp("elf"), "lib/libx.so", library, file("lib/libc.so.6", b"no"))
    assert found.paths() <= {"lib/libx.so", "lib/libc.so.6"}

"""The rooms of the house: who may import whom, and what belongs to one room alone (`imgfs/__init__.py`)."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import imgfs

ROOT = Path(imgfs.__file__).parent
# From the bottom; rooms of one line do not import each other.
RANKS = [
    {"variables"},
    {"errors", "buffers", "config", "garbage", "program", "quoting", "status", "syscalls"},
    {"starting"},
    {"oci", "owned", "loglines", "listening", "parallel", "systemd"},
    {"layer", "registry", "store"},
    {"peers"},
    {"transport"},
    {"commit"},
    {"tree", "content"},
    {"overlay", "predict"},
    {"maintenance", "image", "mounts", "daemonize", "metrics", "forkserver"},
    {"publish", "packages", "runtime", "signatures"},
    {"fuse", "kernel", "report"},
    {"mount", "manual", "engines"},
    {"cli"},
    {"api"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
# Who imports, reads or calls what alone; "room.module" is that module only.
ALONE = {
    "requests": {"registry"},
    "urllib3": {"registry"},
    "zlib": {"layer"},
    "zstandard": {"layer"},
    "ctypes": {"layer", "syscalls"},
    "pyfuse3": {"mount.fuse_mount", "cli.version"},  # init and close
    "trio": {"fuse"},
    "argparse": {"cli"},
    "rich": {"cli.terminal", "cli.browser"},
    "textual": {"cli.browser"},
    "pygments": {"cli.browser"},
    "fsspec": {"api.filesystem"},
    "yaml": {"oci.yaml"},
    "cryptography": {"signatures.keys", "signatures.certificates", "signatures.sigstore"},
    "h2": {"transport.grpc"},
    "grpc": {"engines.rpc"},
}
TWICE = {"Image", "_Layer"}  # names of classes that two modules have
# Tests of several modules, or of what is said of all.
OF_MANY = {
    "architecture",
    "erofs",
    "error_words",
    "expressions",
    "hostile_sqlite",
    "index_artifact",
    "prose",
    "umoci",
}
LONGEST = 50  # lines of a function
LARGEST = 400  # lines of a module
VAGUE = {"utils", "util", "common", "types", "constants", "interfaces", "helpers", "misc", "base"}


Module = tuple[str, ast.Module]  # its name below `imgfs`, with dots, and its code


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    found = sorted(ROOT.rglob("*.py"))
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_bytes()))
        for path in found
    ]


@cache
def nodes_of(code: ast.Module) -> list[ast.AST]:
    """Return all nodes of a module: each test looks at those of all modules."""
    return list(ast.walk(code))


def room_of(name: str) -> str:
    """The room a module is in: the first part of its name; the package itself shows what `api` has."""
    first = name.partition(".")[0]
    return {"__init__": "api", "__main__": "cli"}.get(first, first)


def within(name: str, places: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{place}.") for place in places)


def imports_of(code: ast.Module) -> set[str]:
    """The dotted names a module imports, wherever in it."""
    found = set()
    for node in nodes_of(code):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def modules_of(code: ast.Module, names: set[str]) -> set[str]:
    """Those of the modules `names` that a module imports when it runs, not only for its annotations."""
    checked = [node for node in nodes_of(code) if isinstance(node, ast.If) and _is_for_types(node)]
    left_out = {id(child) for node in checked for child in ast.walk(node)}
    found = set()
    for node in nodes_of(code):
        if isinstance(node, ast.ImportFrom) and id(node) not in left_out:
            dotted = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in names else str(node.module) for name in dotted}
    return found & names


def _is_for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def reached_from(name: str, arrows: dict[str, set[str]]) -> set[str]:
    """All modules that importing one may import."""
    found: set[str] = set()
    ahead = list(arrows[name])
    while ahead:
        if (each := ahead.pop()) not in found:
            found.add(each)
            ahead += arrows[each]
    return found


def names_in(code: ast.Module) -> set[str]:
    """Every name and attribute a module mentions."""
    nodes = nodes_of(code)
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return names | attributes | {node.name for node in nodes if isinstance(node, ast.alias)}


def rooms_on_the_map() -> list[str]:
    """The rooms that the package's docstring lists, from the bottom: NAME, spaces, what it is for."""
    text = (imgfs.__doc__ or "").partition("The rooms")[2].partition("\n\n")[0]
    columns = [re.split(" {2,}", line.strip()) for line in text.splitlines()[1:]]
    return [name.rstrip("/") for line in columns for name in line[::2]]


def test_every_room_has_its_rank(modules: list[Module]) -> None:
    assert {room_of(name) for name, _ in modules} == set(RANK)


def test_the_map_shows_every_room_from_the_bottom() -> None:
    shown = rooms_on_the_map()
    assert sorted(shown) == sorted(RANK)
    assert [RANK[room] for room in shown] == sorted(RANK.values())


def test_a_room_imports_only_from_below(modules: list[Module]) -> None:
    wrong = []
    for name, code in modules:
        room = room_of(name)
        for imported in imports_of(code):
            package, other = [*imported.split("."), ""][:2]
            if package == "imgfs" and other in RANK and other != room and RANK[other] >= RANK.get(room, -1):
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_what_belongs_to_one_room_is_imported_there_alone(modules: list[Module]) -> None:
    wrong = []
    for name, code in modules:
        imported = {dotted.partition(".")[0] for dotted in imports_of(code)}
        wrong += [
            (name, what) for what, places in ALONE.items() if what in imported and not within(name, places)
        ]
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others(modules: list[Module]) -> None:
    """Imports inside functions count too: what is imported late is still a dependency."""
    names = {f"imgfs.{name}".removesuffix(".__init__") for name, _ in modules}
    arrows = {f"imgfs.{name}".removesuffix(".__init__"): modules_of(code, names) for name, code in modules}
    assert {name for name in names if name in reached_from(name, arrows)} == set()


def test_functions_are_short(modules: list[Module]) -> None:
    lengths = {
        f"{name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, code in modules
        for node in nodes_of(code)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_named_tuple_means_to_check_itself(modules: list[Module]) -> None:
    """`__post_init__` is of `dataclasses`: of a NamedTuple nothing calls it."""
    tuples = [
        (name, node)
        for name, code in modules
        for node in nodes_of(code)
        if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases)
    ]
    assert len(tuples) > 100
    checks = [
        f"{name}.{node.name}"
        for name, node in tuples
        for each in node.body
        if isinstance(each, ast.FunctionDef) and each.name == "__post_init__"
    ]
    assert checks == []


def test_modules_are_small(modules: list[Module]) -> None:
    lengths = {name: code.body[-1].end_lineno or 0 for name, code in modules if code.body}
    assert {name for name, length in lengths.items() if length > LARGEST} == set()


def test_only_one_module_reads_the_environment(modules: list[Module]) -> None:
    reading = {"environ", "environb", "getenv", "getenvb", "expandvars"}
    found = {
        name
        for name, code in modules
        for node in nodes_of(code)
        if (isinstance(node, ast.Attribute) and node.attr in reading)
        or (isinstance(node, ast.alias) and node.name in reading)
    }
    assert found == {"variables"}


def test_no_interpreter_that_is_started_looks_for_modules_where_the_caller_is(modules: list[Module]) -> None:
    """There another user's may be."""
    lists = [node for _, code in modules for node in nodes_of(code) if isinstance(node, ast.List)]
    words = [node.elts[1] for node in lists if _begins_with(node, "sys.executable") and len(node.elts) > 1]
    options = [str(word.value) for word in words if isinstance(word, ast.Constant)]
    assert [option for option in options if not option.startswith(("-I", "-P"))] == []
    assert len(options) > 4


def _begins_with(node: ast.List, text: str) -> bool:
    return bool(node.elts) and ast.unparse(node.elts[0]) == text


def test_only_the_command_line_prints(modules: list[Module]) -> None:
    assert {room_of(name) for name, code in modules if "print" in names_in(code)} == {"cli"}


def test_only_the_boundary_to_the_kernel_knows_its_error(modules: list[Module]) -> None:
    assert {room_of(name) for name, code in modules if "FUSEError" in names_in(code)} == {"fuse"}


def test_no_module_has_a_name_that_could_stand_in_any_project(modules: list[Module]) -> None:
    assert [name for name, _ in modules if VAGUE.intersection(name.split("."))] == []


def test_every_module_says_what_it_is_for(modules: list[Module]) -> None:
    assert [name for name, code in modules if not ast.get_docstring(code)] == []


DOTTED, SLASHED = re.compile(r"`((?:[a-z_]+\.)+[a-z_]+)`"), re.compile(r"`((?:[a-z_]+/)+[a-z_]+)\.py`")


def test_a_module_that_is_named_in_prose_is_there() -> None:
    """As `room.module`, `room.module.name` of what is in one, or, in the manual, `room/module.py`."""
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    wrong = []
    for path in [*sorted(ROOT.rglob("*.py")), *sorted(ROOT.rglob("*.md"))]:
        named = (SLASHED if path.suffix == ".md" else DOTTED).findall(path.read_text())
        for name in sorted({name.replace(".", "/") for name in named}):
            there = [ROOT / name, ROOT / f"{name}.py", (ROOT / name).parent.with_suffix(".py")]
            if name.partition("/")[0] in packages and not any(one.exists() for one in there):
                wrong.append(f"{path.relative_to(ROOT)} names {name}")
    assert wrong == []


def test_what_python_has_is_not_written_again(modules: list[Module]) -> None:
    """A class of values is a NamedTuple, or one of `dataclasses`, whose tools come from there."""
    tools = {"dataclass", "asdict", "is_dataclass"}
    for name, code in modules:
        defined = {node.name for node in nodes_of(code) if isinstance(node, ast.FunctionDef)}
        assert "dataclass" not in defined, name
        for node in nodes_of(code):
            if isinstance(node, ast.ImportFrom) and tools & {alias.name for alias in node.names}:
                assert node.module == "dataclasses", name


def test_no_class_has_the_name_of_another(modules: list[Module]) -> None:
    names = [node.name for _, code in modules for node in nodes_of(code) if isinstance(node, ast.ClassDef)]
    assert {name for name, count in Counter(names).items() if count > 1} <= TWICE


def test_a_test_is_found_by_the_name_of_what_it_tests(modules: list[Module]) -> None:
    """`test_MODULE`, `test_MODULE_ASPECT` or `test_ROOM_MODULE`, where a test is one of a module."""
    parts = {part for name, _ in modules for part in name.split(".")}
    tests = ROOT.parent / "tests"
    named = [
        path.stem.split("_")[1:] for room in ("unit", "formats") for path in (tests / room).glob("test_*.py")
    ]
    prefixes = {
        "_".join(words): {"_".join(words[:end]) for end in range(1, len(words) + 1)} for words in named
    }
    assert {name for name, found in prefixes.items() if not found & parts} <= OF_MANY


def test_threads_are_started_where_it_is_known_that_there_may_be_none(modules: list[Module]) -> None:
    """All others use these two, and so say what they do then."""
    found = set()
    for name, code in modules:
        called = [node.func for node in nodes_of(code) if isinstance(node, ast.Call)]
        bases = [base for node in nodes_of(code) if isinstance(node, ast.ClassDef) for base in node.bases]
        used = {ast.unparse(node).rpartition(".")[2] for node in (*called, *bases)}
        if used & {"Thread", "Timer", "ThreadPoolExecutor", "ThreadingMixIn"}:
            found.add(name)
    assert found == {"starting", "parallel", "listening"}  # whose handler has a thread of `starting`

"""What the bench measures with is right itself: stubs in place of CUDA, weights, copies, bundles, tables."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import signal
import statistics
import struct
import subprocess
from pathlib import Path

import pytest

from scripts.benchmark import __doc__ as about
from scripts.benchmark import drivers, tools
from scripts.benchmark.__main__ import GROUPS, parse
from scripts.benchmark.clock import run
from scripts.benchmark.cold import JOURNEYS, STOPS
from scripts.benchmark.containers import COLD, COLUMNS, DROPPED, FETCHED, TRUE, WARM, Starts
from scripts.benchmark.drivers import FLOOR, NOWHERE, PODMAN, Figure
from scripts.benchmark.engines import PulledByPodman, Runc, Unpacked
from scripts.benchmark.node import READY, Readiness, tell
from scripts.benchmark.report import Table
from scripts.benchmark.snapshotters import OVERLAYFS, SNAPSHOTTERS
from scripts.benchmark.stage import APPLICATIONS
from scripts.benchmark.tools import PodmanRun, end, having
from scripts.lab import layout, recipes
from scripts.lab.containerd import Containerd
from scripts.lab.registry import INDEX, Document, Registry, Repository
from scripts.lab.shelf import SOCI_INDEX, SOCI_LAYER, SOCI_MANIFEST, take_apart
from scripts.lab.torch import PIECE, WEIGHT_DEVIATION, leave_out_cuda, stub, weights
from tests.support.mounted import until
from tests.support.patience import allowed

needs_gcc = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("nm")), reason="no gcc, or no nm beside it"
)


def compile_library(path: Path, source: str, *options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.with_suffix(".c")
    text.write_text(source)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", path, text, *options], check=True, timeout=allowed(60))
    text.unlink()


@needs_gcc
def test_a_stub_answers_every_call_with_zeros(tmp_path: Path) -> None:
    stub(tmp_path / "libcuda.so", ["one", "two"])
    library = ctypes.CDLL(str(tmp_path / "libcuda.so"))
    for function in (library.one, library.two):
        function.restype = ctypes.POINTER(ctypes.c_char * 8)
        assert bytes(function().contents) == bytes(8)
    assert [path.name for path in tmp_path.iterdir()] == ["libcuda.so"]


@needs_gcc
def test_a_stub_has_the_version_that_its_users_ask_for(tmp_path: Path) -> None:
    stub(tmp_path / "libcudnn.so.8", ["cudnnGetVersion"], "libcudnn.so.8")
    said = subprocess.run(
        ["nm", "--dynamic", "--with-symbol-versions", tmp_path / "libcudnn.so.8"],
        capture_output=True,
        text=True,
        check=True,
        timeout=allowed(60),
    )
    assert "cudnnGetVersion@@libcudnn.so.8" in said.stdout


@needs_gcc
def test_a_program_of_cuda_starts_without_its_libraries(tmp_path: Path) -> None:
    at = tmp_path / "lib"
    compile_library(at / "libtorch_cuda.so", "int devices(void) { return 7; } int unused(void) { return 7; }")
    compile_library(at / "libtorch_cuda_linalg.so", "int solve(void) { return 7; }")
    user = "int devices(void); int ask(void) { return devices() != 0; }"
    compile_library(at / "libtorch_python.so", user, f"-L{at}", "-ltorch_cuda", "-Wl,-rpath,$ORIGIN")
    leave_out_cuda(at)
    assert sorted(path.name for path in at.iterdir()) == ["libtorch_cuda.so", "libtorch_python.so"]
    cuda = ctypes.CDLL(str(at / "libtorch_cuda.so"))
    assert cuda.devices() != 7
    assert not hasattr(cuda, "unused")
    ctypes.CDLL(str(at / "libtorch_python.so")).ask()


@pytest.mark.parametrize("size", [1_000, PIECE + 1, 2 * PIECE + 1_001])
def test_weights_have_the_size_asked_for_and_are_always_the_same(size: int) -> None:
    made = b"".join(weights(size))
    assert len(made) == size
    assert made == b"".join(weights(size))


def test_weights_are_a_normally_distributed_tensor() -> None:
    made = b"".join(weights(1_000_000))
    length = int.from_bytes(made[:8], "little")
    tensor = json.loads(made[8 : 8 + length])["weights"]
    start, end = tensor["data_offsets"]
    body = made[8 + length :]
    assert (start, end) == (0, len(body))
    assert tensor["shape"] == [len(body) // 2]
    numbers = [struct.unpack("<f", b"\0\0" + body[at : at + 2])[0] for at in range(0, len(body) - 1, 2)]
    assert all(map(math.isfinite, numbers))
    assert statistics.fmean(numbers) == pytest.approx(0, abs=0.002)
    assert statistics.pstdev(numbers) == pytest.approx(WEIGHT_DEVIATION, rel=0.5)


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry")
def test_a_registry_tells_where_an_image_lies(tmp_path: Path) -> None:
    image = layout.cached_image(
        tmp_path, "small", lambda at: layout.write_image(at, "v1", [recipes.pack_files(at, {"a": "text"})])
    )
    with Registry(tmp_path / "registry") as registry:
        assert not registry.holds("ns/small", "v1")
        assert registry.blobs("ns/small") == []
        registry.push(image, "ns/small")
        assert registry.holds("ns/small", "v1")
        assert not registry.holds("ns/small", "v2")
        held = {path.parent.name for path in registry.blobs("ns/small")}
    assert held == {path.name for path in (image.layout / "blobs/sha256").iterdir()}


def indexed(repository: Repository, image: Document, layers: list[str]) -> Document:
    """Put what SOCI makes of an image: an index of it and of its layers' zTOCs, which may be any blobs."""
    zones = [{"annotations": {SOCI_LAYER: one}, **repository.put_blob({"zone": one})} for one in layers]
    index = {**image, "config": repository.put_blob({}), "layers": zones}
    beside = {**repository.put_manifest(index), "annotations": {SOCI_MANIFEST: "sha256:0"}}
    manifests = [repository.put_manifest(image), beside]
    return {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}


@pytest.mark.parts
@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="no docker-registry")
def test_many_images_are_one_that_is_taken_apart(tmp_path: Path) -> None:
    def build(at: Path) -> layout.Image:
        return layout.write_image(at, "v1", [recipes.pack_files(at, {name: name}) for name in "abc"])

    image = layout.cached_image(tmp_path, "shelf", build)
    digests = [layer.digest for layer in image.layers]
    with Registry(tmp_path / "registry") as registry, Repository(registry.host, "shelf") as repository:
        registry.push(image, "shelf")
        take_apart(repository, "v1", ["one", "two"])
        repository.put_manifest(indexed(repository, repository.manifest("v1"), digests), "soci")
        take_apart(repository, "soci", ["soci-one", "soci-two"])
        for number, name in enumerate(["one", "two"], 1):
            own = repository.manifest(name)
            assert [layer["digest"] for layer in own["layers"]] == [digests[0], digests[number]]
            ids = repository.blob(own["config"]["digest"])["rootfs"]["diff_ids"]
            assert ids == [image.layers[0].diff_id, image.layers[number].diff_id]
            described, beside = repository.manifest(f"soci-{name}")["manifests"]
            annotated, zones = map(repository.manifest, (described["digest"], beside["digest"]))
            assert {**annotated, "annotations": None} == {**own, "annotations": None}
            assert annotated["annotations"] == {SOCI_INDEX: beside["digest"]}
            assert beside["annotations"] == {SOCI_MANIFEST: described["digest"]}
            about = [zone["annotations"][SOCI_LAYER] for zone in zones["layers"]]
            assert about == [digests[0], digests[number]]


def test_a_containerd_that_is_not_installed_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(recipes.RecipeError, match=r"^containerd is not installed$"), Containerd(tmp_path):
        pass


def test_the_journeys_of_a_cold_start_reach_every_stop_once() -> None:
    assert sorted(stop for stops in JOURNEYS for stop in stops) == sorted(STOPS)


def test_every_application_names_a_large_file_below_its_root() -> None:
    for recipe in APPLICATIONS.values():
        assert not recipe.large.startswith("/")
        assert Path(recipe.large).suffix in {".so", ".node"}
        assert Path(recipe.large).is_relative_to(recipe.packages)


def test_every_group_is_described_and_measured_unless_told() -> None:
    described = [line.split()[0] for line in about.splitlines() if line[4:7].strip().isupper()]
    assert "".join(described) == GROUPS
    assert "".join(parse([]).only) == GROUPS


def starts(tmp_path: Path, command: tuple[str, ...]) -> Starts:
    """podman's start took 0.4 s, and 10 s with its pull; the unpacked directory's less."""
    found, podman = Starts("H", command), PulledByPodman(PodmanRun(tmp_path))
    floor = Unpacked(tmp_path, Runc(tmp_path / "runc"))
    found.expect([podman, floor])
    found.add(floor, {DROPPED: 0.1, WARM: 0.1})
    for seconds in (0.4, 0.3, 9.0):
        found.add(podman, {COLD: 10.0, FETCHED: 200.0, DROPPED: seconds, WARM: seconds})
    return found


def test_a_start_is_compared_with_podmans_median_under_its_own_heading(tmp_path: Path) -> None:
    table = starts(tmp_path, TRUE).table()
    podman, floor = (dict(zip(COLUMNS, row, strict=True)) for row in table.rows)
    assert podman["engine"] == "podman run"
    assert (podman[COLD], podman[FETCHED], podman[DROPPED]) == (10.0, 200.0, 0.4)
    assert (podman["cold / podman"], podman["warm / podman"]) == (1.0, 1.0)
    assert (floor[COLD], floor["cold / podman"], floor[FETCHED]) == (None, None, None)
    assert (floor["dropped / podman"], floor["warm / podman"]) == (0.25, 0.25)


def test_what_fails_in_every_round_is_noted_once(tmp_path: Path) -> None:
    found = starts(tmp_path, TRUE)
    for _ in range(3):
        found.fail("runc: No such file or directory")
    assert found.table().notes == ["runc: No such file or directory"]


@pytest.mark.skipif(shutil.which("runc") is None, reason="no runc")
def test_a_bundle_of_an_unpacked_directory_is_not_written_to_and_wants_no_terminal(tmp_path: Path) -> None:
    runc = Runc(tmp_path / "runc")
    for command in (["true"], ["python3", "-c", "import numpy"]):
        runc.prepare(tmp_path / "root", command)
    spec = json.loads((tmp_path / "runc" / "bundle" / "config.json").read_text())
    assert spec["root"] == {"path": str(tmp_path / "root"), "readonly": True}
    assert (spec["process"]["args"], spec["process"]["terminal"]) == (command, False)
    runc.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_one_repository_is_right_for_every_copy_of_the_packages(tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    (packages / "d").mkdir(parents=True)
    for name in ("a", "d/b", ".gitignore"):
        (packages / name).write_text("a\n")
        os.utime(packages / name, (0, 0))  # git distrusts what is younger than its index
    git = drivers.commit(tmp_path / "git", packages)
    copy = tmp_path / "copy"
    run(["cp", "-a", packages, copy])
    (copy / "a").write_text("b\n")  # nobody looks inside a file that has its size and time
    shutil.copystat(packages / "a", copy / "a")
    at = [f"--git-dir={git}", f"--work-tree={copy}"]
    run(["git", *at, "diff-files", "--quiet"])
    (copy / "a").write_text("longer\n")
    assert (
        subprocess.run(["git", *at, "diff-files", "--quiet"], check=False, timeout=allowed(60)).returncode
        == 1
    )


@pytest.mark.parametrize(("text", "code"), [("import this", 0), (NOWHERE, 1)])
def test_grep_has_to_find_nothing(tmp_path: Path, text: str, code: int) -> None:
    (tmp_path / "file").write_text(text)
    words = ["sh", "-c", drivers.GREP, "sh", NOWHERE]
    for place, expected in ((tmp_path, code), (tmp_path / "missing", 1)):
        said = subprocess.run([*words, place], capture_output=True, check=False, timeout=allowed(60))
        assert said.returncode == expected


def test_the_drivers_are_judged_by_podmans_time_with_the_page_cache_dropped() -> None:
    def rounds(dropped: float, warm: float) -> drivers.Rounds:
        return [(Figure(dropped, 0.0), Figure(warm, 0.0))]

    find = {
        "imgfs kernel": rounds(0.6, 0.1),
        "imgfs fuse": rounds(1.9, 9.0),
        PODMAN: rounds(1.0, 1.0),
        FLOOR: rounds(1.0, 1.0),
    }
    dropped, warm, cpu = drivers.tables("python-app", {"find (names)": find, "du -s": find}, ["a note"])
    assert dropped.notes == [
        "target: imgfs kernel: find (names), as a multiple of podman's time at most 0.5: 0.60, NOT reached",
        "target: imgfs fuse: find (names), as a multiple of podman's time at most 2: 1.90, reached",
        "a note",
    ]
    assert warm.notes == []
    assert warm.rows[0] == ["find (names)", 0.1, 9.0, 1.0, 1.0, 0.1, 9.0]
    assert [column.partition(",")[0] for column in cpu.columns[1::2]] == ["imgfs kernel", "imgfs fuse"]


def test_what_was_started_with_a_store_is_found_and_waited_for() -> None:
    variable = f"IMGFS_STORE=/nowhere/{os.getpid()}"
    name, _, value = variable.partition("=")
    with subprocess.Popen(["sleep", "3"], env=os.environ | {name: value}) as sleeping:
        until(lambda: having(variable) == [sleeping.pid], "its environment is there")
        assert having(variable[:-1]) == []
        end(lambda: having(variable))
        assert sleeping.wait(10) == 0


def test_what_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "PATIENCE", 0.1)
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        end(lambda: [sleeping.pid])
        assert sleeping.wait(1) == -signal.SIGKILL


def test_readiness_is_told_beside_overlayfs_and_the_best_of_others() -> None:
    table = Table("K", READY)
    ready = {SNAPSHOTTERS[0].name: [9.0, 5.0], SNAPSHOTTERS[1].name: [3.0], OVERLAYFS: [10.0], "SOCI": [4.0]}
    tell(
        table, {name: [Readiness(1.0, one, 2.0, 3, 4.0, 5.0) for one in each] for name, each in ready.items()}
    )
    assert [row[2:4] for row in table.rows] == [[7.0, 0.7], [3.0, 0.3], [10.0, 1.0], [4.0, 0.4]]
    assert [note.rpartition(": ")[2] for note in table.notes] == ["1.75, NOT reached", "0.75, reached"]

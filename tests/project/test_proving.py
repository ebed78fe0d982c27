"""The fuzzer and the soak find what they are there to find, and nothing where nothing is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from scripts.proving import fuzz, soak
from scripts.proving.cases import KINDS, Case, Wrong, check, expected
from scripts.proving.damage import damaged, damaged_at, damaged_json, damaged_tar
from scripts.proving.load import Ledger, Reader, Usage
from scripts.proving.specimens import UPPER, every, gzips, tars
from tests.support.patience import allowed

BODY = bytes(range(256)) * 9


@pytest.mark.parametrize("damage", [damaged, damaged_tar], ids=["bytes", "tar"])
def test_damage_is_damage_and_the_same_for_the_same_chance(damage: Callable[[bytes, Random], bytes]) -> None:
    for seed in range(200):
        made = damage(UPPER[:20_000], Random(seed))
        assert made != UPPER[:20_000]
        assert made == damage(UPPER[:20_000], Random(seed))


def test_damage_in_place_stays_in_its_place() -> None:
    for seed in range(50):
        made = damaged_at(BODY, 100, 200, Random(seed))
        assert (made[:100], len(made), made[200:]) == (BODY[:100], len(BODY), BODY[200:])


def test_a_damaged_document_is_json_more_often_than_not() -> None:
    body = json.dumps({"a": [1, 2, {"b": "text"}], "c": None}).encode()
    made = [damaged_json(body, Random(seed)) for seed in range(200)]
    assert len(set(made)) > 100
    assert sum(one.startswith(b"{") and one.endswith(b"}") for one in made) > 100


def test_every_format_shows_the_same_files() -> None:
    right = expected(tars()[0])
    assert len(right) > 40
    for specimen in every():
        assert expected(specimen) == right, specimen.name


def test_a_byte_that_is_not_the_images_is_noticed() -> None:
    specimen = gzips()[0]
    right = expected(specimen)
    assert check(right, specimen) == "the same"
    assert check({**right, b"/usr/prose": None}, specimen) == "errors"
    with pytest.raises(Wrong, match="/usr/prose"):
        check({**right, b"/usr/prose": right[b"/usr/noise"]}, specimen)
    with pytest.raises(Wrong, match="other names"):
        check({path: seen for path, seen in right.items() if path != b"/link"}, specimen)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"artifact", "others", "tree", "store"}))
def test_some_cases_of_a_kind_are_as_they_should_be(kind: str, tmp_path: Path) -> None:
    outcomes = {fuzz.run_case(kind, 1, number, tmp_path)[0] for number in range(6)}
    assert outcomes <= set(fuzz.OUTCOMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "fails", [ZeroDivisionError("of all things"), Wrong("other bytes")], ids=["exception", "bytes"]
)
def test_a_case_that_fails_is_kept_and_can_be_repeated(
    fails: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def case(case: Case) -> str:
        case.damage("the body", damaged, BODY)
        if case.chance.random() < 2:
            raise fails
        return "the same"

    monkeypatch.setattr(fuzz, "make_ready", lambda _: None)
    monkeypatch.setitem(KINDS, "tar", case)
    words = ["--only", "tar", "--seed", "5", "--keep", str(tmp_path / "kept"), "--minutes", "0.001"]
    assert fuzz.main(words) == 1
    said = capsys.readouterr().out
    assert "| tar " in said
    report, evidence = sorted((tmp_path / "kept").iterdir(), reverse=True)
    assert "scripts/fuzz --only tar --seed 5 --case 0" in report.read_text()
    assert str(fails) in report.read_text()
    with pytest.raises(type(fails)):
        fuzz.main([*words, "--case", "0"])
    assert evidence.read_bytes() == damaged(BODY, Random("5/tar/0"))


def test_a_case_that_takes_too_much_memory_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "MEMORY", 50 << 20)
    monkeypatch.setitem(KINDS, "tar", lambda _: str(len(bytes(100 << 20).hex())))
    with pytest.raises(fuzz.TooMuch, match="MiB"):
        fuzz.run_case("tar", 1, 0, tmp_path)


def test_a_case_that_takes_too_long_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    monkeypatch.setitem(KINDS, "tar", lambda _: endless())
    with pytest.raises(fuzz.TooMuch, match="not done"):
        fuzz.run_case("tar", 1, 0, tmp_path)


def endless() -> str:
    while True:
        pass


def test_a_reader_blames_what_is_wrong_and_counts_what_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BODY)
    ledger = Ledger()
    reader = Reader("image", tmp_path, {"file": BODY}, Random(1), ledger, threading.Event())
    assert reader.read("file", 10, 99)
    assert (ledger.counts["image"]["bytes"], ledger.wrong) == (99, [])
    (tmp_path / "file").write_bytes(BODY[:-1])
    reader.read("file", 0, len(BODY))
    assert ledger.wrong == ["image: file at 0: wrong bytes"]
    (tmp_path / "file").unlink()
    assert not reader.read("file", 0, 1)
    assert "No such file" in ledger.wrong[1]


def test_the_use_of_the_machine_is_what_the_kernel_says() -> None:
    before = Usage.of(os.getpid())
    with open(os.devnull):
        after = Usage.of(os.getpid())
    assert after.files == before.files + 1
    assert before.memory > 10 << 20
    assert before.threads >= 1


@pytest.mark.kernel
@pytest.mark.parts
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("docker-registry") is None, reason="needs root and docker-registry"
)
def test_a_short_soak_finds_nothing_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = soak.formats()
    assert sorted(made) == ["chunked", "estargz", "gzip", "gzip-members", "tar", "zstd"]
    monkeypatch.setattr(soak, "formats", lambda: {name: made[name] for name in ("gzip", "chunked")})
    monkeypatch.setattr(soak, "PHASE", (0.5, 1.0))
    assert soak.main(["--minutes", "0.05", "--seed", "1"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "soak, seed 1" in said
    assert "| gzip " in said
    assert "| chunked " in said


@pytest.mark.parametrize("name", ["fuzz", "soak"])
def test_a_script_is_executable_and_valid_bash(name: str) -> None:
    path = Path(__file__).parent.parent.parent / "scripts" / name
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", path], check=True, timeout=allowed(20))

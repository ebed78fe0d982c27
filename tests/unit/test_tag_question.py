"""A registry asked by a child process: its answer, its errors, and what becomes of the child."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from imgfs.cli.tag_question import TagQuestion, question_of
from imgfs.errors import ImgfsError, NotFound, RegistryError, Unavailable
from imgfs.oci.descriptor import Descriptor, Digest
from imgfs.oci.reference import ENGINES, FILE_TRANSPORTS
from imgfs.registry.retry import Busy
from imgfs.transport.connect import OfflineSource
from imgfs.transport.source import Source

NAMED = Descriptor("", Digest("sha256", "7" * 64), 1)


class _Registry(OfflineSource):
    """Says that a tag names `answer`, or raises it."""

    def __init__(self, answer: Descriptor | BaseException) -> None:
        self._answer = answer

    def resolve(self, *, whole: bool = False) -> Descriptor:
        assert not whole
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer


def connect(answer: Descriptor | BaseException) -> Source:
    return _Registry(answer)


def be_busy() -> Source:
    return _Registry(Busy("later", after=9, status=429, code=None, url="https://example.com"))


def refuse() -> Source:
    raise Unavailable("no way there", url="https://example.com")


def test_the_answer_is_the_registrys() -> None:
    with TagQuestion.fork() as question:
        question.begin(partial(connect, NAMED))
        assert question.answer() == NAMED


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_part_of_an_answer_is_none(length: int) -> None:
    read, written = os.pipe()
    os.write(written, pickle.dumps(NAMED)[:length])
    os.close(written)
    question = TagQuestion(os.getpid(), os.open(os.devnull, os.O_RDONLY), read)
    assert question.answer() is None
    question.let_go()


@pytest.mark.parametrize(
    "error", [Unavailable("away", status=503), NotFound("no such tag", status=404, code="MANIFEST_UNKNOWN")]
)
def test_an_error_of_the_registry_is_raised_as_it_was(error: RegistryError) -> None:
    with TagQuestion.fork() as question:
        question.begin(partial(connect, error))
        with pytest.raises(type(error)) as raised:
            question.answer()
    assert (str(raised.value), raised.value.status, raised.value.code) == (
        str(error),
        error.status,
        error.code,
    )


def test_a_registry_that_cannot_be_connected_to_is_one_of_them() -> None:
    with TagQuestion.fork() as question:
        question.begin(refuse)
        with pytest.raises(Unavailable, match="no way there") as raised:
            question.answer()
    assert raised.value.url == "https://example.com"


def test_an_error_of_a_narrower_kind_is_raised_as_the_kind_that_commands_know() -> None:
    """One that takes more to be made than it keeps cannot be unpickled."""
    with TagQuestion.fork() as question:
        question.begin(be_busy)
        with pytest.raises(Unavailable, match="later") as raised:
            question.answer()
    assert (raised.value.status, raised.value.url) == (429, "https://example.com")


@pytest.mark.parametrize("error", [ImgfsError("a wrong file"), ValueError("a fault"), KeyboardInterrupt()])
def test_whatever_else_happens_there_is_no_answer_and_nothing_is_printed(
    error: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    with TagQuestion.fork() as question:
        question.begin(partial(connect, error))
        assert question.answer() is None
    assert capfd.readouterr() == ("", "")


def test_a_child_that_is_killed_has_no_answer() -> None:
    with TagQuestion.fork() as question:
        os.kill(question.pid, signal.SIGKILL)
        question.begin(partial(connect, NAMED))
        assert question.answer() is None


def test_a_child_that_is_never_asked_ends_with_the_block() -> None:
    with TagQuestion.fork() as question:
        question.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(question.pid, 0)


def open_files() -> set[str]:
    """Return what this process has open, by the kernel's names (`pipe:[17]`)."""
    names = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            names.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return names


def test_no_other_process_holds_its_pipes() -> None:
    """A daemon that is forked meanwhile lives on."""
    with TagQuestion.fork() as question:
        pipes = {os.readlink(f"/proc/self/fd/{end}") for end in (question._about, question._answer)}
        child = os.fork()
        if not child:
            os._exit(len(pipes & open_files()))
        assert os.waitpid(child, 0) == (child, 0)
        assert pipes <= open_files()
        question.begin(partial(connect, NAMED))
        assert question.answer() == NAMED


@pytest.mark.parametrize(
    "words",
    [
        ["mount", "--offline", "app", "/mnt"],
        ["mount", f"app@sha256:{'7' * 64}", "/mnt"],
        *(["mount", f"{transport}:x", "/mnt"] for transport in ("oci", *FILE_TRANSPORTS, *ENGINES)),
    ],
)
def test_no_process_gets_ready_where_no_registry_is_asked_about_a_tag(words: list[str]) -> None:
    with question_of(words) as question:
        assert question is None


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of what the store has resolved: one image."""
    monkeypatch.setenv("IMGFS_STORE", str(tmp_path))
    place = tmp_path / "references"
    place.mkdir()
    (place / "app.json").touch()
    return place


def test_no_process_gets_ready_where_the_store_knows_no_image(known: Path) -> None:
    (known / "app.json").unlink()
    for _ in range(2):
        with question_of(["mount", "app:v1", "/mnt"]) as question:
            assert question is None
        if known.exists():
            known.rmdir()


@pytest.mark.usefixtures("known")
def test_a_process_gets_ready_for_a_tag_where_it_has_a_processor_of_its_own() -> None:
    processors = os.sched_getaffinity(0)
    with question_of(["run", "-e", "A=b", "docker.io/app:v1"]) as question:
        assert (question is not None) is (len(processors) > 1)
    os.sched_setaffinity(0, {min(processors)})
    try:
        with question_of(["run", "docker.io/app:v1"]) as question:
            assert question is None
    finally:
        os.sched_setaffinity(0, processors)


def test_a_caller_that_ignores_the_ends_of_children_is_answered() -> None:
    """As a program does whose own caller has SIGCHLD ignored: the kernel reaps its children."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with TagQuestion.fork() as question:
            question.begin(partial(connect, NAMED))
            assert question.answer() == NAMED
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, whose processes are counted")
def test_where_no_process_can_be_forked_none_gets_ready() -> None:
    code = (
        "import os, resource; from imgfs.cli.tag_question import question_of;"
        "os.setuid(65534); resource.setrlimit(resource.RLIMIT_NPROC, (0, 0));"
        "print(question_of(['mount', 'app', '/mnt']).__enter__())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "None\n"

"""What counts as a raw text of Python: the tests look for it in every error and log that they see."""

from __future__ import annotations

import ast
import errno
import re

import pytest

from imgfs.errors import StoreError, describe, is_full
from tests.support.mounted import CHECKOUT, check_words

ERRORS = (
    "imgfs: /x: not a directory",
    "imgfs: registry.example.com/app:v1: 404 NAME_UNKNOWN: repository name not known to registry",
    "2026-01-01 00:00:00,000 ERROR imgfs.fuse.errors: EIO: /noise: layer 0123456789ab, span 3",
    "imgfs: the registry answered: Error: denied",
)


@pytest.mark.parametrize("said", ERRORS)
def test_imgfs_s_own_words_pass(said: str) -> None:
    check_words(said)


@pytest.mark.parametrize(
    "said",
    [
        "imgfs: [Errno 2] No such file or directory: '/x'",
        "imgfs: FileNotFoundError: /x",
        "imgfs: KeyError('layers')",
        "imgfs: sqlite3.DatabaseError: file is not a database",
        "imgfs: 'NoneType' has no len()",
        "imgfs: <socket.socket object at 0x7f00> is closed",
        "Traceback (most recent call last):",
        "imgfs run: error: argument --network: invalid Network value: 'hst'",
        "imgfs: /x: Expecting value: line 1 column 1 (char 0)",
        "imgfs: 'utf-8' codec can't decode byte 0xff in position 2: invalid start byte",
    ],
)
def test_python_s_words_are_found(said: str) -> None:
    with pytest.raises(AssertionError, match="Python's own words"):
        check_words(said)


ERROR_CALL = re.compile(r"[A-Z]\w*(Error|Image|Unavailable|Refused|Refusal|NotFound)$|refusal$|refuse$")
# said otherwise elsewhere: "'x' is not a size", "work: no such scratch", "PATH: already exists"
ODD = re.compile(r"\b(?<!there )is no [a-z]|there is no such|is there already|[a-z]{3}\.$")


def test_the_same_fault_has_the_same_words() -> None:
    odd = []
    for path in sorted((CHECKOUT / "imgfs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and ERROR_CALL.search(ast.unparse(node.func)):
                texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                odd += [f"{path}: {text}" for text in texts if isinstance(text, str) and ODD.search(text)]
    assert odd == []


def test_whether_a_disk_is_full_is_asked_in_one_place() -> None:
    """A user's quota is as full as a disk: what knows ENOSPC alone has forgotten EDQUOT."""
    both = [OSError(number, "") for number in (errno.ENOSPC, errno.EDQUOT)]
    assert [*map(is_full, both), is_full(OSError(errno.EIO, ""))] == [True, True, False]
    named = {
        str(path.relative_to(CHECKOUT / "imgfs"))
        for path in (CHECKOUT / "imgfs").rglob("*.py")
        if re.search(r"\berrno\.(ENOSPC|EDQUOT)", path.read_text())
    }
    # upper: ENOSPC of an attribute that is too large for ext4; cli: which errors are those of the output;
    # writable: the kernel tells close(2) of no other error
    assert named == {"errors.py", "overlay/upper.py", "cli/__init__.py", "fuse/writable.py"}


def test_an_error_is_described_without_python_s_words() -> None:
    assert describe(FileNotFoundError(2, "No such file or directory", "/x")) == "No such file or directory"
    assert describe(ValueError("not a number")) == "not a number"
    assert describe(StoreError("/x: full")) == "/x: full"
    check_words(f"imgfs: /x: {describe(OSError())}")

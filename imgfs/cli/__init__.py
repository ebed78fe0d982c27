"""The command line: arguments in, text and an exit code out. Only this package prints.

`commands` is their table; each command's module has its options, its work and its printing. `plain_line`
reads most lines, `parser` the others, by argparse. Shared: `options` (those of several commands),
`config_file` (what files say of them), `selection` (from options to an image; `scratch` has that to a
scratch), `connection` (to its registry), `tag_question` (asked of that), `output`, `output_file`, `format`,
`progress`, and `terminal`, which alone draws, but for `browser`, the screens of `browse`. `fstab` translates
what mount(8) asks; `pages` and `build` make man pages and completions.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 130 interrupted. `grep` and `diff` fail with 2:
their 1 says that nothing was found, or that something differs. Commands that are podman's, for containers,
have its codes: 125 for both kinds of failure. An error is one line on standard error.
"""

from __future__ import annotations

import errno
import os
import sys

from imgfs.cli.output import complain, prepare_logging, prepare_output, words_of, words_of_unicode
from imgfs.errors import ImgfsError, UsageError

TYPE_CHECKING = False  # as that of `typing`, which takes long to load
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from typing import NoReturn

    from imgfs.cli.tag_question import TagQuestion
    from imgfs.mount.daemon import Mounting

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_ANSWERS = ("grep", "diff")  # exit code 1 is an answer, as of grep(1) and diff(1), and trouble is 2
_AS_PODMAN = ("exec", "logs", "stop", "kill", "wait", "rm", "container", "volume")
_SILENT = (("--help",), ("version",), ("ps",), ("status",), ("store", "path"))  # commands that log nothing
_OF_OUTPUT = (
    errno.EBADF,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOSPC,
    errno.EROFS,
)  # where no file is named
_PODMANS = 125  # podman's exit code for its own failures, options included


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `imgfs ARGUMENTS…` and return its exit code; without `arguments`, as the program, end with it."""
    _open_standard_files()
    code = _run(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None or code == INTERRUPTED:
        _end(code)
    return code


def _run(words: list[str]) -> int:
    if is_served(words):
        from imgfs.forkserver.client import LOST, run_in_server

        served = run_in_server(words)
        if served == LOST:
            killed = "the process that `imgfs serve` has forked for this was killed"
            return _complain(killed, _PODMANS if words[0] == "run" else FAILED)
        if served is not None:
            return served
    return carry_out(words)


def _end(code: int) -> NoReturn:
    """End the process at once: to take apart all that it has loaded takes Python a seventh of a mount's time.

    Threads that wait for a dead registry do not hold up the end either.
    """
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:
        code = code or FAILED
        if not isinstance(error, BrokenPipeError):
            complain(f"standard output: {words_of(error)}")
    os._exit(code)


def is_served(words: Sequence[str]) -> bool:
    """Return True if a fork server may carry a command out: one that does not stay."""
    return words[:1] in (["mount"], ["run"]) and not {"-f", "--foreground", "--help", "-h"} & set(words)


def carry_out(words: Sequence[str], mounting: Mounting | None = None, *, has_loaded: bool = False) -> int:
    """Run `imgfs WORDS…` in this process and return its exit code.

    `mounting` is the daemon of the mount that `imgfs mount` is to make, if that was forked before. A process
    that `has_loaded` what commands take asks registries by itself.
    """
    failed, misused = _codes(words)
    is_silent = any(words[: len(silent)] == list(silent) for silent in _SILENT)
    if is_silent or is_served(words):  # the daemon of a mount looks as usual
        from imgfs.garbage import collect_seldom

        collect_seldom()
    try:
        prepare_output()
        if not is_silent:
            prepare_logging()
        if words[:1] == ["run"]:
            from imgfs.cli.run import run

            return run(words, has_loaded=has_loaded)
        with _question([] if has_loaded else words) as question:
            from imgfs.cli.plain_line import parse

            options = parse(words)
            options.mounting, options.question = mounting, question
            code: int = options.run(options)
        sys.stdout.flush()
    except SystemExit as error:  # argparse's
        return misused if error.code == MISUSED else int(error.code or 0)
    except UsageError as error:
        return _complain(str(error), misused)
    except ImgfsError as error:
        return _complain(str(error), failed)
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        _drop_output()
        return failed
    except OSError as error:
        _drop_output()
        is_output = error.filename is None and error.errno in _OF_OUTPUT
        return _complain(f"{'standard output: ' if is_output else ''}{words_of(error)}", failed)
    except UnicodeError as error:  # words of the command line may be any bytes
        return _complain(words_of_unicode(error), misused)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    return code


def _question(words: Sequence[str]) -> AbstractContextManager[TagQuestion | None]:
    """Have another process get ready to ask a registry for a mount, which is short if the image is here."""
    if words[:1] != ["mount"] or not is_served(words):
        from contextlib import nullcontext

        return nullcontext()
    from imgfs.cli.tag_question import question_of

    return question_of(words)


def _codes(words: Sequence[str]) -> tuple[int, int]:
    """Return a command's exit codes if it fails, and if its words are wrong."""
    command = words[0] if words else ""
    if command in _AS_PODMAN:
        return _PODMANS, _PODMANS
    return (MISUSED if command in _ANSWERS else FAILED), MISUSED


def mount_helper() -> int:
    """Run as `mount.fuse.imgfs IMAGE MOUNTPOINT [-sfnv] [-o OPTIONS]`, as mount(8) and fstab call it."""
    from imgfs.cli.fstab import is_mounted, mount_arguments, remount

    try:
        if remount(sys.argv[1:]) or is_mounted(sys.argv[1:]):
            return 0
        arguments = mount_arguments(sys.argv[1:], privileged=os.geteuid() == 0)
    except UsageError as error:
        return _complain(str(error), MISUSED)
    except ImgfsError as error:
        return _complain(str(error), FAILED)
    return main(arguments)


def umount_helper() -> int:
    """Run as `umount.fuse.imgfs MOUNTPOINT [-flnrv]`, as umount(8) calls it: waits for the daemon."""
    from imgfs.cli.fstab import umount_arguments

    try:
        arguments = umount_arguments(sys.argv[1:])
    except UsageError as error:
        return _complain(str(error), MISUSED)
    return main(arguments)


def _open_standard_files() -> None:
    """Open /dev/null for standard files that are closed: the next file opened would get their numbers.

    What is written to a standard output that is closed is an error (EBADF), as for other programs.
    """
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 1)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (as long as the process)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 (likewise)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 (likewise)


def _drop_output() -> None:
    """Flush standard output; if that fails, redirect it, so that Python does not try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _complain(message: str, code: int) -> int:
    complain(message)
    return code

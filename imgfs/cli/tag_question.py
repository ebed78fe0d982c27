"""What a tag names now, asked by a child process: its parent loads meanwhile what else the command takes.

What speaks HTTP takes as long to load as all the rest of a mount of an image that is here, and such a mount
has no other use for it. So the child is forked first of all. It asks nothing before it is told to; the answer
is that of `Source.resolve`, or its error; if there is neither, as when it was killed, its parent asks.
"""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imgfs.errors import RegistryError
    from imgfs.oci.descriptor import Descriptor
    from imgfs.transport.source import Source

# Beginnings of names (`oci.reference`) that no registry is asked about, and what is in a digest.
_ELSEWHERE = (
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "dir:",
    "tar:",
    "containers-storage:",
    "docker-daemon:",
    "containerd:",
)
_PINNED = "@sha256:"


class TagQuestion(AbstractContextManager["TagQuestion"]):
    """A child process that gets ready to ask, asks when it is told to, and has ended when the block does."""

    def __init__(self, pid: int, about: int, answer: int) -> None:
        self.pid = pid
        self._is_open = True
        self._is_asked = False
        self._about = about  # the pipe that the child is told by what to ask,
        self._answer = answer  # and the one that it answers in

    @classmethod
    def fork(cls) -> TagQuestion:
        """Fork the child, which loads what speaks HTTP, and waits."""
        told, about = os.pipe()
        read_answer, answer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(about)
            os.close(read_answer)
            _answer(told, answer)
        os.close(told)
        os.close(answer)
        question = cls(pid, about, read_answer)
        os.register_at_fork(after_in_child=question.let_go)
        return question

    def begin(self, connect: Callable[[], Source]) -> None:
        """Have the child ask what `connect` opens, which is pickled; it asks once."""
        if self._is_asked:
            return
        import pickle

        self._is_asked = True
        with suppress(BrokenPipeError), open(self._about, "wb", closefd=False) as pipe:  # it was killed
            pickle.dump(connect, pipe)

    def answer(self) -> Descriptor | None:
        """Wait for what the tag names; None if the child does not know. Raises RegistryError."""
        import pickle

        from imgfs.errors import RegistryError

        with open(self._answer, "rb", closefd=False) as pipe:
            body = pipe.read()
        found: Descriptor | RegistryError | None = None
        with suppress(EOFError, pickle.UnpicklingError):  # there is none, or a part: it was killed
            found = pickle.loads(body)
        if isinstance(found, RegistryError):
            raise found
        return found

    def end(self) -> None:
        """Have the child end; `close` waits for that, by when it has let go of all that it loaded."""
        if self._is_open:
            self.let_go()
            with suppress(ProcessLookupError):  # reaped by the kernel: SIGCHLD is ignored
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Wait for the child's end."""
        self.end()
        with suppress(ChildProcessError):  # likewise, or closed before
            os.waitpid(self.pid, 0)

    def let_go(self) -> None:
        """Close the pipes, as every other process does that is forked from this one."""
        if self._is_open:
            self._is_open = False
            os.close(self._about)
            os.close(self._answer)

    def __exit__(self, *_: object) -> None:
        self.close()


def question_of(words: Sequence[str]) -> AbstractContextManager[TagQuestion | None]:
    """Have a process get ready to ask a registry for `imgfs WORDS…`; a guess, which costs only time.

    On a single processor it would be in the way of what it is to run beside. A store without any image has
    none that could be confirmed: all of it has to be asked for, by this process.
    """
    asks_nothing = "--offline" in words or any(
        word.startswith(_ELSEWHERE) or _PINNED in word for word in words
    )
    if asks_nothing or len(os.sched_getaffinity(0)) < 2 or not _may_know_images(words):
        return nullcontext()
    try:
        return TagQuestion.fork()
    except OSError:  # no more processes
        return nullcontext()


def _may_know_images(words: Sequence[str]) -> bool:
    """Return False if the store is the usual one, and nothing has been resolved in it."""
    from imgfs.variables import own_store

    if any(word.startswith("--store") for word in words):
        return True
    try:
        with os.scandir(f"{own_store()}/references") as resolved:
            return any(resolved)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _answer(told: int, answer: int) -> NoReturn:
    """In the child: ask once told what, and write what came of it; nothing for any error but a registry's."""
    try:
        import gc
        import pickle

        gc.disable()  # it ends soon, and loads much
        from imgfs.errors import RegistryError
        from imgfs.transport.connect import load_http

        load_http()
        import imgfs.cli.connection  # noqa: F401  (by name in what is pickled)

        found: Descriptor | RegistryError
        with open(told, "rb") as asked:
            connect = pickle.load(asked)
        try:
            with closing(connect()) as source:
                found = source.resolve()
        except RegistryError as error:
            found = _plain(error)
        with open(answer, "wb") as pipe:
            pickle.dump(found, pipe)
    finally:
        os._exit(0)


def _plain(error: RegistryError) -> RegistryError:
    """Return an error as one of those in `errors`: what is made of others may take more than they keep."""
    from imgfs import errors

    kinds = errors.Unauthorized, errors.NotFound, errors.Unavailable
    kind = next((kind for kind in kinds if isinstance(error, kind)), errors.RegistryError)
    return kind(str(error), status=error.status, code=error.code, url=error.url)

"""A pytest plugin: commands that run beside the tests, on the same processors, and count as much.

    pytest -p tests.support.beside --beside "mypy imgfs tests scripts" --beside "make check"

All start with the tests, in the checkout. What each has written stands in the summary, before the last line;
what a failed command has, at once. If one fails, so does the run. None outlives pytest.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.patience import allowed

CHECKOUT = Path(__file__).resolve().parent.parent.parent
LIMIT = 1200.0  # seconds of a quiet machine for which the end of the tests waits for that of a command


class Beside:
    """A command that runs, in a process group of its own, so that all it has started can be ended."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # until `close`
        self.process = subprocess.Popen(
            shlex.split(command),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.is_shown = False

    @property
    def has_failed(self) -> bool:
        return bool(self.process.poll())

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Write what the command has written; once."""
        if not self.is_shown:
            self.log.seek(0)
            reporter.ensure_newline()
            reporter.section(f"beside the tests: {self.command}: exit code {self.process.poll()}", sep="-")
            reporter.write(self.log.read())
            self.is_shown = True

    def end(self, patience: float) -> None:
        """Wait for the command to end, for so many seconds, and then end it."""
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()

    def close(self) -> None:
        self.end(0)
        self.log.close()


class Plugin:
    """What starts the commands, in the process that the workers report to."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.commands: list[Beside] = []

    @property
    def reporter(self) -> pytest.TerminalReporter:
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        assert isinstance(reporter, pytest.TerminalReporter)
        return reporter

    def pytest_sessionstart(self) -> None:
        self.commands += map(Beside, self.config.getoption("beside"))

    def pytest_runtest_logreport(self) -> None:
        for command in self.commands:
            if command.has_failed:
                command.show(self.reporter)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Have the run wait for the commands, and fail if one of them has."""
        interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        for command in self.commands:
            command.end(0 if interrupted else allowed(LIMIT))
            if command.has_failed and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self) -> None:
        for command in self.commands:
            command.show(self.reporter)

    def pytest_unconfigure(self) -> None:
        for command in self.commands:
            command.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    help_ = "run COMMAND beside the tests"
    parser.addoption("--beside", action="append", default=[], metavar="COMMAND", help=help_)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Plugin(config), "commands beside the tests")

"""What tests of the whole program share: the command, accounts, and the proof that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from imgfs import syscalls
from imgfs.mounts.table import RUNTIME, mounts
from tests.support.fault_server import FaultServer
from tests.support.huge_pages import collapse, give_back
from tests.support.mounted import NOBODY, Imgfs, command_line, processes_of_tests
from tests.support.patience import allowed

# How long an example takes is a matter of what else the machine does, such as the tests of another worker.
settings.register_profile(
    "patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# Who runs the tests in the background has them ignore these, and so all that they start.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

_OPEN = f"{tempfile.gettempdir()}/imgfs-test-{os.getpid()}-"


def pytest_configure() -> None:
    """Give each worker of root's a mount namespace of its own, and what its daemons share.

    A program that a test runs under `unshare -m` has copies of every mount that it sees, and keeps them busy.
    A mount of the kernel driver sweeps what killed daemons of mounts have left that it does not see.
    """
    if os.geteuid() == 0 and "PYTEST_XDIST_WORKER" in os.environ:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        RUNTIME.mkdir(mode=0o755, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "imgfs-tests", RUNTIME], check=True)


def pytest_collection(session: pytest.Session) -> None:
    """Have the workers compile the test modules by turns, where they are new: each begins with others.

    A module compiled with pytest's assertions takes as long as loading thirty, and all that collect need all.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    given = [Path(argument.partition("::")[0]).resolve() for argument in session.config.args]
    modules = sorted(
        {path for place in given for path in [place, *place.rglob("test_*.py")] if path.is_file()}
    )
    for path in modules[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        name = ".".join(path.relative_to(session.config.rootpath).with_suffix("").parts)
        with contextlib.suppress(Exception, pytest.skip.Exception):  # pytest says it, when it collects
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test what this machine needs, and begin with the modules that are given most.

    So no worker is left alone with one of them in the end.
    """
    most: dict[Path, float] = {}
    for item in items:
        given = item.get_closest_marker("timeout")
        seconds = given.args[0] if given else float(item.config.getini("timeout"))
        most[item.path] = max(most.get(item.path, 0.0), seconds)
        item.add_marker(pytest.mark.timeout(allowed(seconds)), append=False)
    items.sort(key=lambda item: -most[item.path])


def pytest_collection_finish() -> None:
    """Make what all modules have loaded cheap to fork, and spare the garbage collector from looking at it."""
    gc.collect()
    gc.freeze()
    collapse()


@pytest.fixture(scope="module", autouse=True)
def nothing_large_is_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let go of what the module's functions have made once for all its tests (functools.cache)."""
    yield
    for made in vars(request.module).values():
        if hasattr(made, "cache_clear") and made.__module__ == request.module.__name__:
            made.cache_clear()
    give_back()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No mount and no process outlives the tests."""
    yield
    roots = (str(tmp_path_factory.getbasetemp()), _OPEN)
    left = [path for path in (str(mount.mountpoint) for mount in mounts()) if path.startswith(roots)]
    for path in reversed(left):
        subprocess.run(["umount", "-l", path], check=False)
    alive = {pid: command_line(pid) for pid in processes_of_tests()}
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert (left, alive) == ([], {})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have a test run once by each driver that it, or else its module, is marked with."""
    given = metafunc.definition.get_closest_marker("drivers")
    if given and "driver" in metafunc.fixturenames:
        cannot = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount EROFS")
        drivers = [pytest.param(name, marks=cannot if name == "kernel" else ()) for name in given.args]
        metafunc.parametrize("driver", drivers, indirect=True, scope="module")


@pytest.fixture(scope="module")
def driver(request: pytest.FixtureRequest) -> str:
    """What mounts are made by: FUSE, unless there is a mark."""
    return str(getattr(request, "param", "fuse"))


@pytest.fixture
def imgfs(tmp_path: Path, driver: str) -> Iterator[Imgfs]:
    """The command, with a store of its own."""
    command = Imgfs(tmp_path / "imgfs", driver=driver)
    yield command
    command.close()


@pytest.fixture(scope="module")
def module_imgfs(tmp_path_factory: pytest.TempPathFactory, driver: str) -> Iterator[Imgfs]:
    """The command, with a store that the tests of a module share."""
    command = Imgfs(tmp_path_factory.mktemp("module") / "imgfs", driver=driver)
    yield command
    command.close()


@pytest.fixture
def server() -> Iterator[FaultServer]:
    """A registry that does as it is told, and knows what refers to an image; many modules have their own."""
    with FaultServer() as running:
        running.referrers_api = True
        yield running


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user can get to, unlike `tmp_path`."""
    path = Path(tempfile.mkdtemp(prefix=os.path.basename(_OPEN)))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def nobody(open_path: Path) -> Iterator[Imgfs]:
    """The command as an ordinary user runs it."""
    if os.geteuid():
        pytest.skip("only root can be somebody else")
    _open_fuse()
    command = Imgfs(open_path / "imgfs", user=NOBODY)
    reason = command.program(*command.command("version")).err.strip().splitlines()[-1:]
    if reason:
        pytest.skip(f"an ordinary user cannot run this Python or read this checkout: {reason[0]}")
    yield command
    command.close()


def _open_fuse() -> None:
    """Distributions give /dev/fuse to everybody; bare containers do not."""
    if stat.S_IMODE(os.stat("/dev/fuse").st_mode) != 0o666:
        os.chmod("/dev/fuse", 0o666)

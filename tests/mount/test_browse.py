"""`imgfs browse`: its screen driven by keys without a terminal, and in a real one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from imgfs.cli import main
from imgfs.cli.browser.app import Browser
from imgfs.cli.browser.opened import open_image
from imgfs.cli.browser.tree import FileTree, slot_of
from imgfs.cli.parser import parse
from imgfs.image.marked import FileView, ImagesView, LayerView
from tests.support import tarmake as tar
from tests.support.fault_server import Fault, FaultServer
from tests.support.mounted import CHECKOUT, Imgfs, check_words, gzipped, plain, serve, until, write_image
from tests.support.patience import allowed

HOSTILE = [b"[red]x[/red]", b"a\x1b[2Jb", b"new\nline", b"\xff\xfe", b"[link=x]y", b"$(x)"]
FIRST = tar.archive(
    tar.directory("etc"),
    tar.file("etc/motd", b"hello\nworld\n"),
    tar.file("etc/run.py", b"import os\nprint('hi')\n"),
    tar.directory("same"),
    tar.file("same/deep", b"unchanged"),
    tar.file("gone", b"secret"),
    tar.symlink("link", "etc/motd"),
    tar.directory("odd"),
    *(tar.file(b"odd/" + name, b"\x1b[31mred\n") for name in HOSTILE),
    tar.file("program", b"\x7fELF" + bytes(100)),
)
SECOND = tar.archive(
    tar.directory("etc"), tar.file("etc/motd", b"hello\nmoon\n", mode=0o600), tar.whiteout("gone")
)
HISTORY = [{"created_by": "ADD rootfs /"}, {"created_by": "RUN [bold]change[/bold]"}]


class Screen:
    """A browser driven by keys."""

    def __init__(self, browser: Browser, pilot: Pilot[None]) -> None:
        self.browser = browser
        self.pilot = pilot

    @property
    def tree(self) -> FileTree:
        return self.browser.screen_stack[0].query_one("#tree", FileTree)

    def text(self, name: str) -> str:
        return str(self.browser.screen_stack[0].query_one(f"#{name}", Static).content)

    def names(self, path: str = "") -> list[str]:
        """The lines of a directory, as they are shown."""
        node = self.tree.root
        for part in filter(None, path.split("/")):
            node = slot_of(node).lines[os.fsencode(part)]
        return [str(child.label) for child in node.children]

    async def keys(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        ends = time.monotonic() + allowed(60)
        while not condition():
            assert time.monotonic() < ends, f"{what}: {self.text('status')}, {self.names()}"
            await self.pilot.pause(0.01)

    async def type(self, text: str) -> None:
        """Replace what the line of a dialog has, and send it."""
        await self.until(lambda: self.browser.screen.query(Input), "a line is asked for")
        self.browser.screen.query_one(Input).value = text
        await self.keys("enter")

    async def go(self, name: str) -> None:
        """Search a name, and go to the only match."""
        await self.keys("slash")
        await self.type(name)
        await self.until(lambda: self.found(), f"{name} is found")
        await self.keys("enter")
        await self.until(lambda: f"/{name}\n" in self.text("details"), f"{name} is shown")

    def found(self) -> list[str]:
        lists = self.browser.screen.query(OptionList)
        return [str(option.prompt) for option in lists.first().options] if lists else []


class Looked:
    """The images that a test looks at."""

    def __init__(self, place: Path) -> None:
        self.store = place / "store"
        layers = [gzipped(FIRST), plain(SECOND)]
        self.v1 = write_image(place / "layout", layers[:1], {"history": HISTORY[:1]}, tag="v1")
        self.v2 = write_image(place / "layout", layers, {"history": HISTORY}, tag="v2")

    @asynccontextmanager
    async def screen(self, *images: str, start: bytes = b"") -> AsyncIterator[Screen]:
        with ExitStack() as stack:
            each = [parse(["browse", "--store", str(self.store), name]) for name in images]
            browser = Browser([stack.enter_context(open_image(one)) for one in each], start=start)
            async with browser.run_test(size=(120, 40)) as pilot:
                screen = Screen(browser, pilot)
                await screen.until(lambda: screen.tree.root.children, "the root is listed")
                yield screen
            assert browser.end()


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    return Looked(tmp_path)


def test_directories_are_read_when_they_are_opened(looked: Looked) -> None:
    async def scenario() -> None:
        async with looked.screen(looked.v2) as screen:
            assert screen.names() == ["etc", "link", "odd", "program  104 B", "same"]
            assert screen.names("etc") == []
            await screen.keys("down", "right")
            await screen.until(lambda: screen.names("etc"), "etc is listed")
            assert screen.names("etc") == ["motd  11 B", "run.py  22 B"]
            await screen.keys("down")
            await screen.until(lambda: "moon" in screen.text("preview"), "a preview")
            details = dict(line.split(maxsplit=1) for line in screen.text("details").splitlines())
            assert details["path"] == "/etc/motd"
            assert details["mode"] == "-rw-------  0600"
            assert details["layer"] == "2 of 2"
            assert details["step"] == "RUN [bold]change[/bold]"
            await screen.keys("v")
            await screen.until(lambda: "A layer 1" in screen.text("details"), "all versions")
            assert "C layer 2  -rw------- 0:0 11 B" in screen.text("details")
            await screen.keys("left", "left")
            assert not slot_of(screen.tree.root).lines[b"etc"].is_expanded

    asyncio.run(scenario())


def test_names_and_bytes_of_an_image_are_shown_and_never_obeyed(looked: Looked) -> None:
    async def scenario() -> None:
        async with looked.screen(looked.v2, start=b"odd/[red]x[/red]") as screen:
            await screen.until(lambda: "\\x1b[31mred" in screen.text("preview"), "the path to begin at")
            assert "/odd/[red]x[/red]" in screen.text("details")
            shown = [name.removesuffix("  9 B") for name in screen.names("odd")]
            assert shown == ["$(x)", "[link=x]y", "[red]x[", "a\\x1b[2Jb", "new\\nline", "\\xff\\xfe"]
            drawn = screen.browser.export_screenshot(simplify=True)
            assert "[red]x[/red]" in drawn.replace("&#160;", " ")
            await screen.go("program")
            await screen.until(lambda: "7f 45 4c 46" in screen.text("preview"), "hexadecimal")
            assert "ELF" in screen.text("kind")

    asyncio.run(scenario())


def test_a_layer_shows_what_it_does(looked: Looked) -> None:
    async def scenario() -> None:
        async with looked.screen(looked.v2) as screen:
            await screen.keys("l")
            await screen.until(lambda: len(screen.found()) == 3, "the layers are listed")
            assert "RUN [bold]change[/bold]" in screen.found()[2]
            await screen.keys("down", "down", "enter")
            await screen.until(lambda: "layer 2 of 2" in screen.text("title"), "the layer is shown")
            await screen.until(lambda: screen.names(), "it is listed")
            assert screen.names() == ["etc", "D gone  6 B"]
            await screen.go("gone")
            await screen.until(lambda: "secret" in screen.text("preview"), "what was deleted can be read")
            await screen.go("motd")
            await screen.until(lambda: "-world" in screen.text("preview"), "what was changed")
            assert "+moon" in screen.text("preview")
            await screen.keys("l")
            await screen.until(lambda: screen.found(), "the layers are listed")
            await screen.keys("up", "up", "enter")
            await screen.until(lambda: len(screen.names()) == 5, "all layers are shown")

    asyncio.run(scenario())


def test_two_images_show_what_differs(looked: Looked) -> None:
    async def scenario() -> None:
        async with looked.screen(looked.v1, looked.v2) as screen:
            assert screen.names() == ["etc", "D gone  6 B"]
            await screen.go("motd")
            assert screen.names("etc") == ["C motd  11 B"]
            await screen.until(lambda: "-world" in screen.text("preview"), "what differs")
            assert "changed: mode, content" in screen.text("details")
            await screen.keys("d")
            await screen.until(lambda: len(screen.names()) == 6, "the one image")
            await screen.keys("d")
            await screen.until(lambda: len(screen.names()) == 5, "the other")
            await screen.keys("d")
            await screen.until(lambda: len(screen.names()) == 2, "what differs")

    asyncio.run(scenario())


@pytest.mark.parametrize("view", ["layer", "images"])
def test_the_views_show_what_the_commands_list(
    view: str, looked: Looked, capfd: pytest.CaptureFixture[str]
) -> None:
    """`imgfs ls --layer` and `imgfs diff` are the oracle; they walk by code of their own."""
    store = ["--store", str(looked.store)]
    line = ["ls", "--layer", "2", looked.v2] if view == "layer" else ["diff", looked.v1, looked.v2]
    main([line[0], *store, *line[1:]])
    listed = [row[0] + row[2:].split(" (")[0] for row in capfd.readouterr().out.splitlines()]
    with ExitStack() as stack:
        v1, v2 = (
            stack.enter_context(open_image(parse(["browse", *store, name])))
            for name in (looked.v1, looked.v2)
        )
        made: FileView = (
            LayerView(v2.after(1), v2.files, 2) if view == "layer" else ImagesView(v1.files, v2.files)
        )
        root = made.at(b"/")
        assert root is not None
        shown = [item for item in made.below(root) if item.change]
        assert [item.change[0].upper() + os.fsdecode(item.found.path) for item in shown] == listed


def test_files_are_saved_and_nothing_is_replaced_unasked(looked: Looked, tmp_path: Path) -> None:
    target = tmp_path / "saved"

    async def scenario() -> None:
        async with looked.screen(looked.v2) as screen:
            await screen.go("motd")
            await screen.keys("s")
            await screen.type(str(target))
            await screen.until(lambda: "saved as" in screen.text("status"), "it is saved")
            assert target.read_bytes() == b"hello\nmoon\n"
            assert target.stat().st_mode & 0o777 == 0o600
            target.write_bytes(b"mine")
            for key in ("n", "y"):
                await screen.keys("s")
                await screen.type(str(target))
                await screen.until(lambda: len(screen.browser.screen_stack) == 2, "it asks")
                await screen.keys(key)
                if key == "n":
                    await screen.until(lambda: "not saved" in screen.text("status"), "it does not")
                    assert target.read_bytes() == b"mine"
            await screen.until(lambda: target.read_bytes() != b"mine", "it is replaced")
            await screen.go("same")
            await screen.keys("s")
            await screen.type(str(tmp_path))
            await screen.until(lambda: (tmp_path / "same/deep").exists(), "a directory is saved")
            await screen.keys("s")
            await screen.type(str(tmp_path))
            await screen.until(lambda: "no directory is replaced" in screen.text("status"), "it is refused")

    asyncio.run(scenario())
    assert not list(tmp_path.glob(".imgfs-*"))


def test_only_what_is_previewed_is_fetched_and_errors_are_in_the_status_line(
    looked: Looked, capfd: pytest.CaptureFixture[str]
) -> None:
    body = os.urandom(4 << 20)
    layer = gzipped(tar.archive(tar.file("big", body), tar.directory("d"), tar.file("d/small", b"text\n")))
    store = ["--store", str(looked.store)]
    with FaultServer() as server:
        name = serve(server, "app", "v1", [layer])
        assert main(["ls", *store, name]) == 0
        assert main(["store", "rm", "--data", *store, name]) == 0
        server.log.clear()

        async def scenario() -> None:
            async with looked.screen(name) as screen:
                await screen.go("small")
                fetched = len(server.seen("/blobs/"))
                await screen.until(lambda: "text" in screen.text("preview"), "it is fetched")
                assert fetched <= len(server.seen("/blobs/")) <= 2
                await screen.until(lambda: "in 0 requests" not in screen.text("status"), "it is counted")
                server.inject(Fault(status=404), on="/blobs/", times=100)
                await screen.go("big")
                await screen.until(lambda: "cannot be read" in screen.text("kind"), "it fails")
                await screen.until(lambda: "404" in screen.text("status"), "it is said")
                check_words(screen.text("status"))

        asyncio.run(scenario())
    assert "Traceback" not in capfd.readouterr().err


def test_a_large_directory_is_shown_in_parts_and_a_search_reaches_all_of_it(
    looked: Looked, tmp_path: Path
) -> None:
    many = [tar.file(f"many/{number:05}", b"") for number in range(2500)]
    image = write_image(tmp_path / "other", [plain(tar.archive(tar.directory("many"), *many))])

    async def scenario() -> None:
        async with looked.screen(image) as screen:
            await screen.keys("down", "right")
            await screen.until(lambda: len(screen.names("many")) == 1001, "the first part")
            assert screen.names("many")[-1].startswith("… more")
            await screen.go("02345")
            assert len(screen.names("many")) >= 1002
            await screen.keys("slash")
            await screen.type("*")
            await screen.until(lambda: len(screen.found()) == 1000, "a search is bounded")
            await screen.keys("escape", "q")

    asyncio.run(scenario())


class Terminal:
    """tmux, with a shell in it that runs one command."""

    def __init__(self, place: Path, imgfs: Imgfs) -> None:
        self._words = ["tmux", "-S", str(place / "tmux"), "-f", "/dev/null"]
        self._environment = {**imgfs.environment, "TERM": "xterm-256color"}

    def run(self, *words: str) -> str:
        ran = subprocess.run(
            [*self._words, *words],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return ran.stdout

    def shows(self, text: str) -> str:
        until(lambda: text in self.run("capture-pane", "-p"), f"the terminal shows {text}", pause=0.2)
        return self.run("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self.run("send-keys", *keys)


@pytest.fixture
def terminal(tmp_path: Path, imgfs: Imgfs) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("no tmux")
    found = Terminal(tmp_path, imgfs)
    yield found
    subprocess.run([*found._words, "kill-server"], check=False, capture_output=True, timeout=60)


@pytest.mark.parts
def test_in_a_real_terminal(terminal: Terminal, imgfs: Imgfs, looked: Looked) -> None:
    command = " ".join(imgfs.command("browse", looked.v2))
    terminal.run("new-session", "-d", "-x", "100", "-y", "30", f"{command}; echo ended $?; read x")
    terminal.shows("program")
    terminal.press("/")
    terminal.shows("Search names")
    for end in range(1, 4):  # one by one: Textual loses some of a burst that has a line edited
        terminal.press("2Jb"[end - 1])
        terminal.shows(f" {'2Jb'[:end]} ")
    terminal.press("Enter")
    terminal.shows("/odd/a\\x1b[2Jb")
    terminal.press("Enter")
    terminal.shows("\\x1b[31mred")
    terminal.press("?")
    terminal.shows("give up what is under way")
    terminal.press("x", "?", "x", "q")  # in one burst: a key is for what the keys before it have led to
    assert "Traceback" not in terminal.shows("ended 0")


@pytest.mark.parts
def test_without_textual_it_says_what_to_install(imgfs: Imgfs, looked: Looked, tmp_path: Path) -> None:
    (tmp_path / "textual.py").write_text("raise ImportError('not here')")
    environment = {**imgfs.environment, "PYTHONPATH": f"{tmp_path}:{CHECKOUT}", "TERM": "xterm"}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    words = [sys.executable, "-m", "imgfs", "browse", looked.v1]
    ran = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    assert ran.wait(60) == 1
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert said.strip() == "imgfs: browse needs Textual, which is not installed: pip install 'imgfs[browse]'"


def test_without_a_terminal_it_names_other_commands(
    looked: Looked, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["browse", looked.v1]) == 2
    assert "needs a terminal" in capfd.readouterr().err

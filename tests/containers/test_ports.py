"""A network of the container's own, by pasta: ports that are published, and what is not reached."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgfs.errors import UsageError
from imgfs.runtime.exposed_ports import with_exposed_ports
from imgfs.runtime.pasta import pasta_command, resolv_conf_for_pasta
from imgfs.runtime.request import ContainerRequest, ImageDefaults, Network, PortMapping
from imgfs.runtime.rootfs import Refused
from tests.support import containers
from tests.support.containers import RUNTIMES, busybox, installed, traces
from tests.support.mounted import Imgfs, until

pytestmark = containers.marks
layout, image, run = containers.layout, containers.image, containers.run
needs_pasta = pytest.mark.skipif(not installed("pasta"), reason="passt is not installed")
SERVE = "echo content >/tmp/f; exec busybox httpd -f -p 80 -h /tmp"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(imgfs: Imgfs, image: str, *options: str) -> Iterator[None]:
    ran = imgfs.run("run", "-d", "--name", "web", *options, image, "sh", "-c", SERVE)
    assert (ran.code, ran.err) == (0, ""), ran
    try:
        yield
    finally:
        imgfs.run("rm", "-f", "-t", "0", "web")


def fetched(port: int) -> str:
    """What the container serves, once it does."""
    for _ in range(100):
        url = f"http://127.0.0.1:{port}/f"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
        time.sleep(0.1)
    return ""


@needs_pasta
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_published_port_leads_to_the_container_and_no_other_does(
    run: Imgfs, image: str, runtime: str
) -> None:
    port, here = free_port(), socket.create_server(("127.0.0.1", 0))
    with here, serving(run, image, "--runtime", runtime, "-p", f"127.0.0.1:{port}:80"):
        assert fetched(port) == "content\n"
        assert run.ok("ps", "--format", "{{.Ports}}") == f"127.0.0.1:{port}->80/tcp\n"
        inside = f"busybox nc -w 2 127.0.0.1 {here.getsockname()[1]} </dev/null"
        assert run.run("exec", "web", "sh", "-c", inside).code != 0  # the machine's loopback is another
        taken = run.run("run", "--runtime", runtime, "-p", f"127.0.0.1:{port}:80", image, "true")
        assert "pasta" in taken.complaint(125)
    socket.create_server(("127.0.0.1", port)).close()  # it is free, at once


@needs_pasta
def test_all_ports_that_an_image_exposes_are_published(run: Imgfs, layout: Path) -> None:
    image = busybox(layout, "exposed", Cmd=["sh"], ExposedPorts={"80/tcp": {}, "7000-7001/udp": {}})
    with serving(run, image, "-P"):
        pairs = [one.strip().split("->") for one in run.ok("ps", "--format", "{{.Ports}}").split(",")]
        shown = {inside: here for here, inside in pairs}
        assert set(shown) == {"80/tcp", "7000/udp", "7001/udp"}
        assert fetched(int(shown["80/tcp"].rpartition(":")[2])) == "content\n"
    ran = run.run("run", "-P", "--network=none", image, "true")
    assert (ran.code, ran.err) == (0, "imgfs: warning: -P has no effect with --network none\n")


def test_exposed_ports_are_read_as_engines_read_them() -> None:
    def published(*exposed: str) -> list[str]:
        defaults = ImageDefaults.parse({"ExposedPorts": {key: {} for key in exposed}})
        mine = PortMapping("", 8080, 80)
        asked = ContainerRequest(network=Network.PASTA, ports=(mine,), publish_all=True)
        ports = with_exposed_ports(asked, defaults).ports
        assert ports[0] == mine
        assert len({(one.host, one.protocol) for one in ports}) == len(ports)
        return [f"{one.container}/{one.protocol}" for one in ports[1:]]

    assert published("80", "80/udp", "53-54/UDP", "53/udp") == ["80/udp", "53/udp", "54/udp"]
    assert published() == []
    for wrong in ("0", "70000", "80/sctp", "9-8", "x", "80/", "1-65535"):
        with pytest.raises(Refused, match="the image exposes"):
            published(wrong)


@needs_pasta
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_ordinary_user_publishes_ports_too(nobody: Imgfs, runtime: str) -> None:
    if stat.S_IMODE(os.stat("/dev/net/tun").st_mode) != 0o666:
        os.chmod("/dev/net/tun", 0o666)  # as distributions have it
    image, port = busybox(nobody.directory / "layout", Cmd=["sh"]), free_port()
    with serving(nobody, image, "--runtime", runtime, "-p", f"127.0.0.1:{port}:80"):
        assert fetched(port) == "content\n"
    until(lambda: traces(nobody) == [], "nothing is left")


def test_without_pasta_a_line_says_what_is_missing(run: Imgfs, image: str, tmp_path: Path) -> None:
    from imgfs.runtime import pasta

    (tmp_path / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.which", lambda *_, **__: None)
        with pytest.raises(UsageError, match="apt install passt"):
            pasta.find_pasta()


@pytest.mark.parametrize("text", ["nonsense", "0:80", "80:70000", "1-3:1-2", "1.2.3.4:80/sctp", "a:80:80"])
def test_what_is_no_port_is_an_error_of_the_command_line(run: Imgfs, image: str, text: str) -> None:
    ran = run.run("run", "-p", text, image, "true")
    assert ran.code == 125
    assert text in ran.err


def test_ports_have_no_effect_on_this_machines_network(run: Imgfs, image: str) -> None:
    ran = run.run("run", "--network", "host", "-p", "8080:80", image, "true")
    assert (ran.code, ran.err) == (0, "imgfs: warning: -p has no effect with --network host\n")


def test_pasta_is_told_the_ports_and_nothing_else_is_open() -> None:
    mapped = [PortMapping("127.0.0.1", 8080, 80), PortMapping("", 53, 53, "udp")]
    words = pasta_command("pasta", Path("/n"), Path("/p"), mapped, "nameserver 127.0.0.53\n")
    pairs = list(itertools.pairwise(words))
    assert {("-t", "127.0.0.1/8080:80"), ("-u", "53:53"), ("-T", "none"), ("-U", "none")} <= set(pairs)
    assert ("--dns-forward", "169.254.1.1") in pairs
    assert "--no-map-gw" in words
    fewer = pasta_command("pasta", Path("/n"), Path("/p"), mapped[:1], "")
    assert ("-u", "none") in list(itertools.pairwise(fewer))


def test_a_name_server_on_loopback_is_reached_by_pasta() -> None:
    assert resolv_conf_for_pasta("nameserver 10.0.0.1\nsearch x\n") == "nameserver 10.0.0.1\nsearch x\n"
    assert resolv_conf_for_pasta("nameserver 127.0.0.53\nsearch x\n") == "nameserver 169.254.1.1\nsearch x\n"

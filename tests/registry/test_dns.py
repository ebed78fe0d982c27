"""Names of hosts: servers of names that say nothing, and names for places that nobody should be sent to."""

from __future__ import annotations

import errno
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path

import pytest

from imgfs.errors import RegistryError, Unauthorized, Unavailable
from imgfs.registry.client import Client
from imgfs.registry.config.credentials import Credentials
from imgfs.registry.retry import Timeouts
from imgfs.registry.sockets import addresses_of
from tests.support import tarmake as tar
from tests.support.clients import client_of
from tests.support.fault_server import FaultServer
from tests.support.forward_proxy import ForwardProxy
from tests.support.isolated import PUBLIC, isolated, needs_isolation
from tests.support.mounted import Imgfs, Wire, errno_of, gzipped, serve, until
from tests.support.name_server import NameServer
from tests.support.patience import allowed

pytestmark = needs_isolation

SLACK = 4.0  # seconds that a busy machine may add


@cache
def file_body() -> bytes:
    return random.Random(3).randbytes(3 << 20)


BRIEF = Timeouts(connect=0.5, read=2.0, deadline=1.5, backoff=0.01)


def lookups() -> int:
    """How many threads wait for the resolver."""
    return sum(thread.name == "imgfs-name" for thread in threading.enumerate())


# the resolver


def test_a_name_server_that_hangs_is_not_waited_for_and_leaves_no_threads(tmp_path: Path) -> None:
    isolated(silence, tmp_path)


def silence(_: Path) -> None:
    with NameServer({}) as names:
        names.silent = True
        began = time.monotonic()
        with ThreadPoolExecutor(12) as crowd:
            asked = [crowd.submit(addresses_of, "registry.test", 80, 0.5) for _ in range(12)]
            time.sleep(0.2)
            assert lookups() == 1
        for one in asked:
            with pytest.raises(socket.gaierror, match=r"no name server answers within 0\.5 s"):
                one.result()
        assert time.monotonic() - began < allowed(0.5 + SLACK)
        assert lookups() == 1  # and whoever asks now waits for this one
        with pytest.raises(socket.gaierror):
            addresses_of("registry.test", 80, 0.1)
        assert lookups() == 1
        until(lambda: lookups() == 0, "the resolver has given up")


def test_what_a_name_means_is_what_the_resolver_says(tmp_path: Path) -> None:
    isolated(sayings, tmp_path)


def sayings(_: Path) -> None:
    with NameServer({"two.test": ["10.0.0.1", "10.0.0.2"]}) as names:
        assert sorted(one.number for one in addresses_of("two.test", 80, 5)) == ["10.0.0.1", "10.0.0.2"]
        with pytest.raises(socket.gaierror, match="not known"):
            addresses_of("none.test", 80, 5)
        names.silent = True
        names.asked.clear()
        assert addresses_of("127.0.0.1", 80, 5)[0].place == ("127.0.0.1", 80)  # a number means itself
        assert addresses_of("::1", 80, 5)[0].number == "::1"
        with pytest.raises(socket.gaierror, match="no name of a host"):
            addresses_of("a" * 64, 80, 5)
        assert names.asked == []


def test_each_address_of_a_name_has_its_part_of_the_time(tmp_path: Path) -> None:
    isolated(dead_addresses, tmp_path)


def dead_addresses(_: Path) -> None:
    timeouts = Timeouts(connect=2.0, read=9.0, deadline=30.0, tries=1)
    with ExitStack() as stack:
        server = stack.enter_context(FaultServer("127.0.0.9"))
        deaf = ["127.0.0.1", "127.0.0.2"]
        for number in deaf:
            stack.enter_context(deafness(number, server.port))
        stack.enter_context(NameServer({"many.test": [*deaf, "127.0.0.9"], "dead.test": deaf}))
        blob = server.add_blob(file_body())
        began = time.monotonic()
        with closing(client_of(f"many.test:{server.port}", "app", timeouts=timeouts)) as client:
            assert b"".join(client.blob(blob)) == file_body()
        assert time.monotonic() - began < allowed(timeouts.connect + 1.5)  # not twice
        began = time.monotonic()
        with (
            closing(client_of(f"dead.test:{server.port}", "app", timeouts=timeouts)) as client,
            pytest.raises(Unavailable, match=r"dead\.test.*timed out"),
        ):
            client.blob_document(blob.digest)
        assert time.monotonic() - began < allowed(timeouts.connect + 1.5)


def deafness(host: str, port: int) -> ExitStack:
    """Have nothing come back from an address, as behind a firewall: who listens there has all he can take."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex((host, port))
        return stack.pop_all()


# mounts


def test_a_read_and_a_mount_wait_for_a_name_server_no_longer_than_for_a_registry(tmp_path: Path) -> None:
    isolated(mounts_in_silence, tmp_path)


def mounts_in_silence(directory: Path) -> None:
    imgfs = Imgfs(directory / "imgfs", expected=[r"(ERROR|WARNING) .*no name server answers"])
    layer = gzipped(tar.archive(tar.file("file", file_body())))
    with (
        FaultServer() as server,
        Wire(server.host) as wire,
        NameServer({"registry.test": ["127.0.0.1"]}) as names,
    ):
        image = serve(server, "app", "v1", [layer], f"registry.test:{wire.port}")
        at = imgfs.mount(image, "--plain-http", "--read-timeout", "2")
        imgfs.evict(image)
        names.silent = True
        wire.cut()
        wire.mend()
        began = time.monotonic()
        assert errno_of(lambda: (at / "file").read_bytes()) == errno.EIO
        assert time.monotonic() - began < allowed(2 + SLACK)
        assert "no name server answers" in " ".join(imgfs.ok("status", at).split())
        mount_in_silence(imgfs, image)
        names.silent = False
        until(lambda: errno_of(lambda: (at / "file").read_bytes()) is None, "the mount has healed")
        assert (at / "file").read_bytes() == file_body()
        imgfs.umount(at)
    imgfs.close()


def mount_in_silence(imgfs: Imgfs, known: str) -> None:
    """A new image cannot be had, in the stated time; one that is here is mounted as it was."""
    options, other = ("--plain-http", "--read-timeout", "2"), imgfs.mountpoint("other")
    began = time.monotonic()
    said = imgfs.run("mount", *options, known.replace("app", "unknown"), other).complaint()
    assert "no name server answers within 2 s" in said
    assert time.monotonic() - began < allowed(2 + SLACK)
    imgfs.ok("store", "ls")
    began = time.monotonic()
    ran = imgfs.run("mount", *options, known, other)
    assert ran.code == 0, ran
    assert "its registry cannot be reached" in ran.err
    assert time.monotonic() - began < allowed(2 + SLACK)
    imgfs.watch(other)
    imgfs.umount(other)


# where names lead


def test_a_token_server_is_judged_by_what_its_name_means_when_it_is_asked(tmp_path: Path) -> None:
    isolated(token_servers, tmp_path)


def token_servers(_: Path) -> None:
    """The registry is elsewhere; its token server is said to be by a name."""
    with FaultServer(PUBLIC) as server, FaultServer() as here, NameServer({}) as names:
        server.valid_tokens = here.valid_tokens
        blob = server.add_blob(file_body())
        names.names["registry.test"] = [PUBLIC]
        for port, meanings, refused in (
            (here.port, ["127.0.0.1"], "this machine"),
            (here.port, ["127.0.0.1", "::1"], "this machine"),
            (here.port, ["0.0.0.0"], "without a global meaning"),
            (here.port, ["169.254.169.254"], "without a global meaning"),
            (server.port, ["127.0.0.1", PUBLIC], None),  # only the latter is gone to
            (server.port, [PUBLIC], None),
        ):
            server.token_server = f"http://auth.test:{port}"
            names.names["auth.test"] = meanings
            with closing(client_with_password(f"registry.test:{server.port}")) as client:
                if refused:
                    with pytest.raises(Unauthorized, match=f"token server at auth.test, .*{refused}"):
                        client.blob_document(blob.digest)
                else:
                    assert client.blob_document(blob.digest) == file_body()
        assert here.log == []


def client_with_password(host: str) -> Client:
    return client_of(host, "app", credentials=lambda: Credentials("ann", "secret"), timeouts=BRIEF)


def test_a_registry_of_this_machine_may_have_its_token_server_here_by_any_name(tmp_path: Path) -> None:
    isolated(neighbours, tmp_path)


def neighbours(_: Path) -> None:
    meanings = {"registry.test": ["127.0.0.1"], "auth.test": ["127.0.0.1"]}
    with FaultServer() as server, NameServer(meanings):
        blob = server.add_blob(file_body())
        for realm in ("auth.test", "127.0.0.1"):
            server.token_server = f"http://{realm}:{server.port}"
            with closing(client_with_password(f"registry.test:{server.port}")) as client:
                assert client.blob_document(blob.digest) == file_body()


def test_what_a_proxy_finds_is_the_proxys_to_judge(
    tmp_path: Path,
) -> None:
    isolated(proxied, tmp_path)


def proxied(_: Path) -> None:
    with FaultServer() as server:
        places = {"registry.test": server.host, "auth.test": server.host}
        with ForwardProxy(places) as proxy, pytest.MonkeyPatch.context() as environment:
            environment.setenv("HTTP_PROXY", proxy.url)
            blob = server.add_blob(file_body())
            server.token_server = "http://auth.test"
            with closing(client_with_password("registry.test")) as client:
                assert client.blob_document(blob.digest) == file_body()
        assert [one for one in proxy.asked if "auth.test" in one] == ["GET http://auth.test/token"]


def test_a_redirect_is_judged_by_what_its_name_means_when_it_is_followed(tmp_path: Path) -> None:
    isolated(redirects, tmp_path)


def redirects(_: Path) -> None:
    meanings = {"registry.test": [PUBLIC], "cdn.test": ["127.0.0.1"]}
    with FaultServer(PUBLIC) as server, FaultServer() as here, NameServer(meanings) as names:
        blob = server.add_blob(file_body())
        here.add_blob(file_body())
        server.blob_host = f"cdn.test:{here.port}"
        with (
            closing(client_with_password(f"registry.test:{server.port}")) as client,
            pytest.raises(RegistryError, match=r"leads to cdn\.test, 127\.0\.0\.1, which is this machine"),
        ):
            client.blob_document(blob.digest)
        assert here.log == []
        names.names["cdn.test"] = [PUBLIC]
        with FaultServer(PUBLIC) as cdn:
            cdn.add_blob(file_body())
            server.blob_host = f"cdn.test:{cdn.port}"
            with closing(client_with_password(f"registry.test:{server.port}")) as client:
                assert client.blob_document(blob.digest) == file_body()

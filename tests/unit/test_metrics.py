"""A mount's status for Prometheus: the text by its grammar, and the endpoint with clients good and bad."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgfs.content.stats import Cause, Counts
from imgfs.errors import MountError
from imgfs.metrics import endpoint as endpoints
from imgfs.metrics.endpoint import AT_ONCE, MetricsAddress, MetricsEndpoint, parse_address
from imgfs.metrics.exposition import CONTENT_TYPE, exposition
from imgfs.status import MountStatus, plain
from tests.support import tarmake as tar
from tests.support.mounted import Imgfs, gzipped, is_alive, until, write_image
from tests.support.patience import allowed

# -- the text ------------------------------------------------------------------------------------------------

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_UNESCAPED = {"\\\\": "\\", "\\n": "\n", '\\"': '"'}


class Read(NamedTuple):
    """What a reader of the format makes of a text: types by family, values by name and labels."""

    types: dict[str, str]
    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, name: str, **labels: str) -> float:
        """The one sample with that name and, among others, those labels."""
        found = [
            value for (one, has), value in self.values.items() if one == name and labels.items() <= set(has)
        ]
        assert len(found) == 1, (name, labels, found)
        return found[0]


def read_text(text: str) -> Read:
    """Read the text format 0.0.4, strictly (prometheus.io, "Exposition formats")."""
    assert text.endswith("\n")
    read = Read({}, {})
    helped, family = set(), ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in helped, f"{family} twice"
            helped.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family, "a type follows its help"
            assert kind in {"counter", "gauge", "summary"}
            read.types[name] = kind
        else:
            _read_sample(line, family, read)
    assert helped == set(read.types)
    return read


def _read_sample(line: str, family: str, read: Read) -> None:
    found = _SAMPLE.fullmatch(line)
    assert found, line
    name, labels, value = found.groups()
    suffixes = {"_sum", "_count"} if read.types[family] == "summary" else {""}
    assert name in {family + suffix for suffix in suffixes}, f"{name} is not of {family}"
    pairs = list(_LABEL.finditer(labels or ""))
    assert "".join(pair[0] for pair in pairs) == (labels or ""), line
    key = (
        name,
        frozenset((pair[1], re.sub(r"\\.", lambda escape: _UNESCAPED[escape[0]], pair[2])) for pair in pairs),
    )
    assert key not in read.values, f"{key} twice"
    read.values[key] = float(value)


def a_status(**more: Any) -> dict[str, Any]:
    """A status of a mount of one layer twice."""
    counts = Counts()
    counts.landed(Cause.MISS, 100, used=True)
    counts.landed(Cause.AHEAD, 50, used=False)
    counts.waited(0.25)
    counts.failed(OSError("lost"))
    layer = plain(counts.snapshot()) | {
        "digest": "sha256:" + "a" * 64, "format": "gzip", "index": "verified", "size": 1000,
        "bytes_fetched": 150, "spans": 3, "spans_present": 2, "spans_touched": 1, "hits": 7,
        "flat_size": 3000,
    }  # fmt: skip
    mount = {
        "image": "app:1", "digest": "sha256:" + "b" * 64, "platform": "linux/amd64", "mountpoint": "/mnt",
        "began": 1000.5, "bytes_served": 5, "bytes_fetched": 200, "requests_fetched": 4, "spans_recorded": 1,
        "fill": None, "layers": [layer, layer],
    }  # fmt: skip
    return mount | more


def test_every_number_of_a_status_is_a_sample() -> None:
    read = read_text(exposition(MountStatus.from_json(a_status())))
    assert read.value("imgfs_mount_start_time_seconds") == 1000.5
    assert read.value("imgfs_served_bytes_total") == 5
    assert read.value("imgfs_layer_spans_present", number="1") == 2
    assert read.value("imgfs_layer_fetched_bytes_total", number="2") == 0
    assert read.value("imgfs_layer_brought_bytes_total", number="1", cause="miss", format="gzip") == 100
    assert read.value("imgfs_layer_brought_used_bytes_total", number="1", cause="ahead") == 0
    assert read.value("imgfs_layer_unread_bytes", number="1") == 50
    assert read.value("imgfs_layer_first_byte_seconds_sum", number="1") == 0.25
    assert read.value("imgfs_layer_first_byte_seconds_count", number="1") == 1
    assert read.value("imgfs_layer_failing_since_seconds", number="1") > 1e9


def test_names_end_in_what_they_count() -> None:
    types = read_text(exposition(MountStatus.from_json(a_status(fill={"state": "done", "missing": 0})))).types
    assert {
        name for name, kind in types.items() if kind == "counter" and not name.endswith("_total")
    } == set()
    assert {name for name, kind in types.items() if kind != "counter" and name.endswith("_total")} == set()
    assert all(name.startswith("imgfs_") for name in types)


def test_a_fill_tells_its_state_without_its_reasons() -> None:
    status = a_status(fill={"state": "pausing: registry.example: https://u:secret@x", "missing": 12})
    text = exposition(MountStatus.from_json(status))
    read = read_text(text)
    assert read.value("imgfs_fill_missing_bytes") == 12
    assert read.value("imgfs_fill_state", state="pausing") == 1
    assert "secret" not in text


@given(image=st.text(), mountpoint=st.text(), layer_format=st.text())
def test_any_label_is_read_back_as_it_was(image: str, mountpoint: str, layer_format: str) -> None:
    status = a_status(image=image, mountpoint=mountpoint)
    status["layers"] = [status["layers"][0] | {"format": layer_format}]
    read = read_text(exposition(MountStatus.from_json(status)))
    assert read.value("imgfs_mount_info", image=image, mountpoint=mountpoint) == 1
    assert read.value("imgfs_layer_spans", format=layer_format) == 3


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address", "url"),
    [
        ("9100", MetricsAddress("127.0.0.1", 9100), "http://127.0.0.1:9100/metrics"),
        ("0.0.0.0:80", MetricsAddress("0.0.0.0", 80), "http://0.0.0.0:80/metrics"),
        ("localhost:0", MetricsAddress("localhost", 0), "http://localhost:0/metrics"),
        ("[::1]:9100", MetricsAddress("::1", 9100), "http://[::1]:9100/metrics"),
        ("unix:/run/x.sock", MetricsAddress(path=Path("/run/x.sock")), "unix:/run/x.sock"),
    ],
)
def test_an_address_is_a_port_on_loopback_or_elsewhere_or_a_path(
    text: str, address: MetricsAddress, url: str
) -> None:
    assert (parse_address(text), str(address)) == (address, url)


@pytest.mark.parametrize(
    "text", ["", "x", "70000", ":80", "a:b", "::1:80", "unix:", "unix:/" + "x" * 200, "-1"]
)
def test_what_is_no_address_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an? (address|socket)"):
        parse_address(text)


# -- the endpoint --------------------------------------------------------------------------------------------

TEXT = "imgfs_x 1\n" * 10


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    with MetricsEndpoint.bind(MetricsAddress("127.0.0.1", 0), lambda: TEXT) as running:
        running.start()
        yield running


def ask(
    address: MetricsAddress, method: str = "GET", path: str = "/metrics"
) -> tuple[int, dict[str, str], str]:
    """(status, headers, body) of a request."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def test_metrics_are_served_as_prometheus_wants_them(endpoint: MetricsEndpoint) -> None:
    status, headers, body = ask(endpoint.address)
    assert (status, headers["Content-Type"], body) == (200, CONTENT_TYPE, TEXT)


def test_head_says_how_long_they_are(endpoint: MetricsEndpoint) -> None:
    status, headers, body = ask(endpoint.address, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(TEXT)), "")


@pytest.mark.parametrize("path", ["/", "/metrics/", "/etc/passwd", "/../metrics"])
def test_there_is_nothing_else(endpoint: MetricsEndpoint, path: str) -> None:
    assert ask(endpoint.address, path=path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_but_read(endpoint: MetricsEndpoint, method: str) -> None:
    status, headers, _ = ask(endpoint.address, method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_an_address_in_use_is_an_error_that_names_it(endpoint: MetricsEndpoint) -> None:
    with pytest.raises(MountError, match=re.escape(f"metrics at {endpoint.address}: Address already in use")):
        MetricsEndpoint.bind(endpoint.address, lambda: TEXT)


def test_a_host_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(MountError, match=r"metrics at http://host\.invalid:1/metrics: "):
        MetricsEndpoint.bind(MetricsAddress("host.invalid", 1), lambda: TEXT)


def test_clients_that_never_ask_or_never_read_are_cut_off_and_hold_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "DEADLINE", 3.0)
    with MetricsEndpoint.bind(MetricsAddress("127.0.0.1", 0), lambda: "x" * 50_000_000) as running:
        running.start()
        place = (running.address.host, running.address.port)
        mute = socket.create_connection(place)
        deaf = socket.create_connection(place)
        deaf.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        drip = socket.create_connection(place)
        began = time.monotonic()
        assert ask(running.address, "HEAD")[0] == 200
        assert time.monotonic() - began < allowed(2.5)
        cut = False
        for _ in range(100):  # a byte now and then does not make it any better
            time.sleep(0.1)
            try:
                drip.sendall(b"G")
            except OSError:
                cut = True
                break
        assert cut
        mute.settimeout(10)
        assert mute.recv(1) == b""
        for one in (mute, deaf, drip):
            one.close()


def test_there_are_never_more_than_a_few_connections(endpoint: MetricsEndpoint) -> None:
    place = (endpoint.address.host, endpoint.address.port)
    before = threading.active_count()
    crowd = [socket.create_connection(place) for _ in range(AT_ONCE * 3)]
    until(lambda: threading.active_count() >= before + AT_ONCE, "the first to be let in")
    assert threading.active_count() <= before + 2 * AT_ONCE  # with those that have given way
    for one in crowd:
        one.close()
    until(lambda: threading.active_count() == before, "them to be gone")
    assert ask(endpoint.address)[0] == 200


def test_closing_hangs_up_and_frees_the_address() -> None:
    with MetricsEndpoint.bind(MetricsAddress("127.0.0.1", 0), lambda: TEXT) as running:
        running.start()
        client = socket.create_connection((running.address.host, running.address.port))
        until(lambda: len(running._server._open) == 1, "the client to be let in")
    client.settimeout(10)
    assert client.recv(1) == b""
    client.close()
    MetricsEndpoint.bind(running.address, lambda: TEXT).close()


def ask_at(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_socket_is_its_owners_alone_and_goes_with_the_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with MetricsEndpoint.bind(MetricsAddress(path=path), lambda: TEXT) as running:
        running.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ask_at(path).endswith(f"\r\n\r\n{TEXT}".encode())
        with pytest.raises(MountError, match=f"metrics at unix:{path}: Address already in use"):
            MetricsEndpoint.bind(MetricsAddress(path=path), lambda: TEXT)
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    MetricsEndpoint.bind(MetricsAddress(path=path), lambda: TEXT).close()
    path.write_text("precious")
    with pytest.raises(MountError, match="Address already in use"):
        MetricsEndpoint.bind(MetricsAddress(path=path), lambda: TEXT)
    assert path.read_text() == "precious"


# -- the command ---------------------------------------------------------------------------------------------

LAYER = gzipped(tar.archive(tar.file("noise", os.urandom(300_000))))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.kernel
def test_a_mount_serves_what_its_status_shows(imgfs: Imgfs, tmp_path: Path) -> None:
    image = write_image(tmp_path / "layout", [LAYER, LAYER])
    at = imgfs.mount(image, "--metrics", "0")
    (at / "noise").read_bytes()
    found = imgfs.status(at)
    address = parse_address(found["metrics"].removeprefix("http://").removesuffix("/metrics"))
    read = read_text(ask(address)[2])
    assert read.value("imgfs_served_bytes_total") == found["bytes_served"] == 300_000
    assert read.value("imgfs_mount_info", image=image, mountpoint=str(at)) == 1
    assert read.value("imgfs_layer_spans", number="2") == found["layers"][1]["spans"]
    assert read_text(imgfs.ok("status", "--metrics", at)).types == read.types
    imgfs.umount(at)
    with pytest.raises(ConnectionRefusedError):
        ask(address)


@pytest.mark.kernel
def test_an_address_in_use_is_one_line_and_nothing_is_mounted(imgfs: Imgfs, tmp_path: Path) -> None:
    image, at = write_image(tmp_path / "layout", [LAYER]), imgfs.mountpoint()
    imgfs.expected.append("metrics at .*: Address already in use")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = imgfs.run("mount", "--metrics", str(port), image, at).complaint()
    assert said == f"metrics at http://127.0.0.1:{port}/metrics: Address already in use"
    assert imgfs.run("status", at).complaint() == f"{at}: nothing is mounted here"


def test_an_address_that_is_none_is_exit_code_2(imgfs: Imgfs) -> None:
    ran = imgfs.run("mount", "--metrics", "here", "app", "/mnt")
    assert ran.code == 2
    assert "argument --metrics: 'here' is not an address: PORT, HOST:PORT or unix:PATH" in ran.err


@pytest.mark.kernel
def test_a_client_that_never_reads_does_not_hold_up_the_mount(imgfs: Imgfs, tmp_path: Path) -> None:
    image, port = write_image(tmp_path / "layout", [LAYER]), free_port()
    at = imgfs.mount(image, "--metrics", str(port))
    pid = imgfs.pid(at)
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(AT_ONCE)]
    for client in clients:
        client.sendall(b"GET /metrics HTTP/1.1\r\n")
    assert len((at / "noise").read_bytes()) == 300_000
    began = time.monotonic()
    imgfs.umount(at)
    assert time.monotonic() - began < allowed(5)
    assert not is_alive(pid)
    for client in clients:
        client.close()


@pytest.mark.kernel
def test_a_socket_is_named_from_where_one_is(imgfs: Imgfs, tmp_path: Path) -> None:
    image, at = write_image(tmp_path / "layout", [LAYER]), imgfs.mountpoint()
    assert imgfs.ok("mount", "--metrics", "unix:here", image, at, cwd=tmp_path) == ""
    imgfs.watch(at)
    assert json.loads(imgfs.ok("status", "--json", at))["metrics"] == f"unix:{tmp_path}/here"
    assert b"imgfs_mount_info" in ask_at(tmp_path / "here")

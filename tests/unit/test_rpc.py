"""A gRPC server of an engine's, and who asks it what no engine would."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from imgfs.engines import rpc
from imgfs.engines.refusal import Refusal, not_found
from imgfs.engines.rpc import Service
from imgfs.engines.snapshotter.labels import id_maps
from imgfs.engines.snapshotter.rows import SnapshotKind, SnapshotRows
from imgfs.transport.protobuf import ProtobufMessage, encode_message
from tests.support.patience import allowed

Ask = Callable[[str, bytes], bytes]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Asks a service that knows no name."""

    def find(body: bytes) -> bytes:
        raise not_found(ProtobufMessage(body, "a request").text(1))

    before = os.umask(0)
    try:
        server = rpc._listen(tmp_path / "run/sock", [Service("names", {"Find": find})])
    finally:
        os.umask(before)
    with grpc.insecure_channel(f"unix:{tmp_path}/run/sock") as channel:

        def asked(method: str, body: bytes) -> bytes:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/names/{method}")
            return call(body, timeout=allowed(30))

        yield asked
    server.stop(None).wait()


def refused(ask: Ask, method: str, body: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        ask(method, body)
    return raised.value.code(), raised.value.details() or ""


def test_a_socket_is_its_users_alone_whatever_the_umask(ask: Ask, tmp_path: Path) -> None:
    del ask
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("run/sock", "run")]
    assert modes == [0o600, 0o755]


@pytest.mark.parametrize(
    "name",
    ["x" * 20_000, "\u00fc" * 1_000_000, "new\nline", "nul\0", "\U0001f600" * 20_000],
    ids=["long", "very long", "two lines", "nul", "long of four bytes each"],
)
def test_a_reason_has_its_code_whatever_name_is_in_it(ask: Ask, name: str) -> None:
    code, reason = refused(ask, "Find", encode_message((1, name)))
    assert code == grpc.StatusCode.NOT_FOUND
    assert reason.startswith("snapshot ")
    assert reason.isprintable()


def test_what_makes_no_sense_is_refused_and_the_next_is_answered(ask: Ask) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for body in (b"\xff\xff", b"\x0a\xff", b"\x0b", b"\x0a\x01\xff", b"\x08\x01"):
        assert refused(ask, "Find", body)[0] == invalid
    assert refused(ask, "Find", bytes(17 << 20))[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused(ask, "Lose", b"")[0] == grpc.StatusCode.UNIMPLEMENTED
    assert refused(ask, "Find", encode_message((1, "one")))[1] == "snapshot one: does not exist"


@pytest.mark.parametrize(
    "ids", ["0:4294967295:1", "0:9999999999:1", "4294967295:0:2,0:1:1", "0:0:4294967297"]
)
def test_ids_that_linux_does_not_have_are_no_map(ids: str) -> None:
    with pytest.raises(Refusal, match="is not a map of ids"):
        id_maps({f"containerd.io/snapshot/{kind}mapping": ids for kind in ("uid", "gid")})


def test_rows_are_their_users_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        rows = SnapshotRows(tmp_path / "rows.db")
        rows.add("p", "name", "", SnapshotKind.ACTIVE, {})
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
        rows.close()
    finally:
        os.umask(before)

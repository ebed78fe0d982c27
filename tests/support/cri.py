"""What a kubelet asks containerd for: pods and containers, by the Container Runtime Interface (CRI v1).

The numbers are those of the fields of its messages (k8s.io/cri-api, pkg/apis/runtime/v1/api.proto). Pods use
the host's network, so that none has to be configured.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from imgfs.transport.engine_socket import connect_engine
from imgfs.transport.grpc import GrpcChannel
from imgfs.transport.protobuf import ProtobufMessage, encode_message
from tests.support.patience import allowed

_NODE = 2  # NamespaceMode: the host's
_LIMIT = 8 << 20


Field = tuple[int, str | bytes | int]


class Ask(Protocol):
    """Calls a method of one of CRI's services."""

    def __call__(self, service: str, method: str, *fields: Field) -> ProtobufMessage:
        """Return the answer."""


class ExecResult(NamedTuple):
    """What a program in a container has said, and its exit code."""

    out: str
    err: str
    code: int


class Cri:
    """Asks the containerd at `socket`."""

    def __init__(self, socket: Path) -> None:
        self._channel = GrpcChannel(
            lambda: connect_engine(socket, "containerd", "CONTAINERD_ADDRESS"), "CRI", allowed(60)
        )

    def pull(self, image: str) -> str:
        """Pull an image; its id."""
        return self._ask("Image", "PullImage", (1, encode_message((1, image)))).text(1)

    def remove_image(self, image: str) -> None:
        """Remove an image."""
        self._ask("Image", "RemoveImage", (1, encode_message((1, image))))

    @contextmanager
    def pod(self, name: str, runtime: str = "") -> Iterator[Pod]:
        """Run a pod; it is removed, with its containers, after the block."""
        words = encode_message((1, name), (2, uuid.uuid4().hex), (3, "default"))
        network = encode_message((1, encode_message((1, _NODE))))
        config = encode_message((1, words), (8, encode_message((2, network))))
        made = self._ask("Runtime", "RunPodSandbox", (1, config), (2, runtime)).text(1)
        try:
            yield Pod(self._ask, made, config)
        finally:
            self._ask("Runtime", "StopPodSandbox", (1, made))
            self._ask("Runtime", "RemovePodSandbox", (1, made))

    def _ask(self, service: str, method: str, *fields: Field) -> ProtobufMessage:
        name = f"runtime.v1.{service}Service/{method}"
        (answer,) = self._channel.call(name, encode_message(*fields), {}, _LIMIT)
        return ProtobufMessage(answer, method)

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()


class Pod:
    """A pod that runs."""

    def __init__(self, ask: Ask, made: str, config: bytes) -> None:
        self._ask = ask
        self._id = made
        self._config = config

    def run(self, image: str, *command: str) -> str:
        """Start a container; its id."""
        name = encode_message((1, uuid.uuid4().hex))
        words = [(3, word) for word in command]
        config = encode_message((1, name), (2, encode_message((1, image))), *words)
        asked = (1, self._id), (2, config), (3, self._config)
        made = self._ask("Runtime", "CreateContainer", *asked).text(1)
        self._ask("Runtime", "StartContainer", (1, made))
        return made

    def exec(self, container: str, *command: str) -> ExecResult:
        """Run a program in a container to its end."""
        words = [(2, word) for word in command]
        answer = self._ask("Runtime", "ExecSync", (1, container), *words, (3, int(allowed(60))))
        return ExecResult(answer.text(1), answer.text(2), answer.number(3))

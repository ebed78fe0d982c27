"""A pod on a node, as kubelet makes it: by CRI, with `crictl`, in the host's network."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from scripts.benchmark.clock import CommandFailed, output_of
from scripts.benchmark.snapshotters import PATIENCE, Node

_HOSTS = 2  # CRI, NamespaceMode.NODE: the host's, not the pod's own
_PAUSE = 0.005  # seconds between looks into a container's log


class Pod:
    """A pod on a node that answers kubelet, while its `with` block lasts; its files lie in `place`."""

    def __init__(self, node: Node, programs: Path, place: Path) -> None:
        self._place = place
        self._words: list[str | Path] = [programs / "crictl", "--timeout", "600s"]
        for name in ("runtime", "image"):
            self._words += [f"--{name}-endpoint", f"unix://{node.containerd}"]
        self._stack = ExitStack()
        self._id = ""

    def __enter__(self) -> Pod:
        self._place.mkdir()
        with ExitStack() as stack:
            self._id = self._say("runp", self._written("pod", self._pod()))
            stack.callback(self._remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pull(self, reference: str) -> None:
        """Have an image pulled."""
        self._say("pull", "--pod-config", self._place / "pod.json", reference)

    def start(self, reference: str, name: str, command: list[str]) -> None:
        """Start a container of an image that was pulled; it goes on."""
        container: dict[str, object] = {
            "metadata": {"name": name},
            "image": {"image": reference},
            "command": command,
            "log_path": name,
            "linux": {"security_context": {"namespace_options": {"network": _HOSTS}}},
        }
        written = self._written(name, container)
        made = self._say("create", "--no-pull", self._id, written, self._place / "pod.json")
        self._say("start", made)

    def await_word(self, name: str, word: str) -> None:
        """Wait until a container has said a word; CommandFailed if it does not in a minute."""
        log, ends = self._place / name, time.monotonic() + PATIENCE
        said = ""
        while time.monotonic() < ends:
            with suppress(OSError):
                said = log.read_text(errors="replace")
            if word in said:
                return
            time.sleep(_PAUSE)
        raise CommandFailed(f"{name} does not say {word!r}: {said[-300:]!r}")

    def _remove(self) -> None:
        self._say("rmp", "--force", self._id)

    def _pod(self) -> dict[str, object]:
        return {
            "metadata": {"name": "bench", "namespace": "default", "uid": uuid.uuid4().hex},
            "log_directory": str(self._place),
            "linux": {"security_context": {"namespace_options": {"network": _HOSTS}}},
        }

    def _written(self, name: str, document: dict[str, object]) -> Path:
        path = self._place / f"{name}.json"
        path.write_text(json.dumps(document))
        return path

    def _say(self, *words: str | Path) -> str:
        return output_of([*self._words, *words]).strip()

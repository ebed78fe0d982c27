"""Programs of containerd's world that Debian lacks or has too old: built by Go, once, or found.

containerd and crictl come as Go modules. stargz-snapshotter and SOCI keep their programs in modules within
modules, which `go install` does not build: from a checkout, `cd cmd && go build -o DIR/` and
`./containerd-stargz-grpc ./ctr-remote` (`./soci ./soci-snapshotter-grpc`), where DIR is `programs` beside
the bench's images, or in the PATH.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from scripts.lab.recipes import RecipeError

CONTAINERD, CRICTL = "2.4.2", "1.37.0"
_CONTAINERD = f"github.com/containerd/containerd/v2/cmd/{{}}@v{CONTAINERD}"
_BUILT = {  # programs, and where each is among Go's modules
    **{name: _CONTAINERD.format(name) for name in ("containerd", "ctr", "containerd-shim-runc-v2")},
    "crictl": f"sigs.k8s.io/cri-tools/cmd/crictl@v{CRICTL}",
}
_PATIENCE = 3600.0  # seconds: thousands of packages, on a machine that may be busy


def node_programs(directory: Path) -> Path:
    """Build containerd, its shim, ctr and crictl in `directory`, unless they are there; or RecipeError."""
    for name, module in _BUILT.items():
        if not (directory / name).exists():
            _build(name, module, directory)
    return directory


def _build(name: str, module: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GOBIN": str(directory), "CGO_ENABLED": "0"}
    command = ["go", "install", module]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.SubprocessError) as failed:
        said = getattr(failed, "stderr", None) or b""
        why = (said.decode(errors="replace").strip().splitlines() or [str(failed)])[-1]
        raise RecipeError(f"{name} is not built: {why}") from failed


def program(directory: Path, name: str) -> str:
    """Find a program in `directory`, else in the PATH; RecipeError if it is in neither."""
    found = shutil.which(name, path=f"{directory}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise RecipeError(f"{name} is not installed, nor in {directory}")
    return found

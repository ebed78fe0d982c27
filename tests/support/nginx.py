"""Debian's nginx on a free port of 127.0.0.1, as what stands before a registry in the world.

with nginx(tmp_path / "nginx", "location / { proxy_pass http://HOST; }") as host:
    requests.get(f"http://{host}/v2/")
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounted import until

PROGRAM = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_nginx = pytest.mark.skipif(PROGRAM is None, reason="no nginx")

_CONFIGURATION = """\
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port}{ssl};
        {server}
    }}
}}
"""


@contextmanager
def nginx(
    directory: Path, server: str, *, tls: tuple[Path, Path] | None = None, port: int | None = None
) -> Iterator[str]:
    """Run it with the lines `server` in its only server block: its `host:port`."""
    port = port or _free_port()
    directory.mkdir(parents=True)
    if tls:
        server = f"ssl_certificate {tls[0]};\nssl_certificate_key {tls[1]};\n{server}"
    configuration = directory / "nginx.conf"
    ssl = " ssl" if tls else ""
    configuration.write_text(_CONFIGURATION.format(directory=directory, port=port, ssl=ssl, server=server))
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(PROGRAM), "-c", str(configuration)], stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or _listens(port), f"nginx listens: {log}")
        assert process.poll() is None, log.read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

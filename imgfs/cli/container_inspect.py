"""imgfs container inspect: what all is known of a container, by the names of `podman inspect`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from imgfs.cli.container_list import ContainerRow, PublishedPort
from imgfs.runtime.container_record import SpecMount, StoredContainer


def inspected(container: StoredContainer) -> dict[str, object]:
    """Return what all is known of a container, by the names of `podman inspect`."""
    row = ContainerRow.of(container)
    record, running, ended = row.record, row.running, row.ended
    process, process_env = record.process, record.process.get("env", [])
    return {
        "Id": record.id,
        "Created": _time(record.created),
        "Path": record.command[0],
        "Args": list(record.command[1:]),
        "State": {
            "OciVersion": "1.0.2",
            "Status": row.state,
            "Running": row.state == "running",
            "Pid": row.pid,
            "ConmonPid": running.monitor.pid if running and running.monitor and not ended else 0,
            "ExitCode": row.exit_code,
            "StartedAt": _time(running.started if running else None),
            "FinishedAt": _time(ended.finished if ended else None),
        },
        "Image": record.image_id.partition(":")[2],
        "ImageDigest": record.digest,
        "ImageName": record.image,
        "Name": record.name,
        "OCIRuntime": record.runtime,
        "Mounts": [_mount(one) for one in record.mounts],
        "Volumes": list(record.volumes),
        "NetworkSettings": {"Ports": _bindings(record.ports)},
        "Config": {
            "Hostname": next((text[9:] for text in process_env if text.startswith("HOSTNAME=")), ""),
            "User": "{uid}:{gid}".format(**process["user"]),
            "Tty": process["terminal"],
            "Env": process_env,
            "Cmd": list(record.command),
            "Image": record.image,
            "WorkingDir": process["cwd"],
            "Labels": dict(record.labels),
            "StopSignal": record.stop_signal or "SIGTERM",
            "StopTimeout": record.stop_timeout,
        },
        "HostConfig": {
            "AutoRemove": record.auto_remove or not record.detached,
            "NetworkMode": record.network,
            "PortBindings": _bindings(record.ports),
        },
    }


def _bindings(ports: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for port in map(PublishedPort.parse, ports):
        key = f"{port.container_port}/{port.protocol}"
        found.setdefault(key, []).append({"HostIp": port.host_ip, "HostPort": str(port.host_port)})
    return found


def _mount(one: SpecMount) -> dict[str, object]:
    options = one.get("options", [])
    return {
        "Type": "bind",
        "Source": one["source"],
        "Destination": one["destination"],
        "Options": options,
        "RW": "ro" not in options,
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")

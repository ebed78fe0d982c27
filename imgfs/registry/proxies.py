"""Which proxy the environment asks for: $HTTP_PROXY, $HTTPS_PROXY, $ALL_PROXY, and $NO_PROXY against them.

They are read as curl and Go read them, in capitals or not; what stands in $NO_PROXY means a host and all
below it, a host with a port, a number, or a network of numbers (`10.0.0.0/8`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.request import getproxies

from imgfs.registry.urls import Url, is_loopback


def proxy_for(url: Url) -> str:
    """The URL of the proxy for a request, "" for none; never one for this machine."""
    said = {} if is_loopback(url.netloc) else getproxies()
    proxy = "" if _is_excepted(url, said) else said.get(url.scheme) or said.get("all") or ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _is_excepted(url: Url, said: Mapping[str, str]) -> bool:
    return any(_means(entry.strip().lower(), url) for entry in said.get("no", "").split(","))


def _means(entry: str, url: Url) -> bool:
    """Whether an entry of $NO_PROXY means the host of a URL."""
    name = entry.removeprefix("*").removeprefix(".")
    if not name:
        return entry == "*"
    if name in (url.host, f"{url.host}:{url.port}") or url.host.endswith(f".{name}"):
        return True
    try:
        return ipaddress.ip_address(url.host) in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        return False

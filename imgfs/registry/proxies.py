"""Which proxy the environment asks for: $HTTP_PROXY, $HTTPS_PROXY, $ALL_PROXY, and $NO_PROXY against them.

The rules are those of requests, which other Python programs on the machine follow too: names in capitals or
not; $NO_PROXY means a host and all below it, a host with a port, an address or an IPv4 network. requests is
loaded only where the environment names a proxy at all. It judges the URL as imgfs has parsed it, so there is
no second reading of what a server sent.
"""

from __future__ import annotations

from urllib.request import getproxies

from imgfs.registry.urls import Url, is_loopback


def proxy_for(url: Url) -> str:
    """Return the URL of the proxy for a request, "" for none; never one for this machine."""
    named = getproxies()
    if is_loopback(url.netloc) or not named.keys() - {"no"}:
        return ""
    from requests.utils import get_environ_proxies, select_proxy

    host = f"[{url.host}]" if ":" in url.host else url.host
    origin = f"{url.scheme}://{host}:{url.port}/"  # with its port, which $NO_PROXY may name
    excepted = named.get("no", "").lower().replace("*.", ".")  # as curl and Go take it
    proxy = select_proxy(origin, get_environ_proxies(origin, no_proxy=excepted)) or ""
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"
